"""The config sections that every paper shares. A paper's config is `RunConfig` plus its own sections."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from vitutor_core.config import Config, fingerprinted, runtime

MANY = 10**9
"""Of images, updates or iterations."""
EPOCHS = 10**6
LARGE = 1e30
"""Of weights and learning rates: far from the largest number of float32, 3.4e38."""

LARGEST_SEED = 2**53
"""Up to which all readers of JSON keep whole numbers."""

Seed = Annotated[int, Field(ge=0, le=LARGEST_SEED)]
Share = Annotated[float, Field(ge=0, le=1)]
Weight = Annotated[float, Field(ge=0, le=LARGE)]
Temperature = Annotated[float, Field(gt=0, le=LARGE)]
Beta = Annotated[float, Field(ge=0, lt=1)]
Aspect = Annotated[float, Field(gt=0, le=1000)]
ImageSize = Annotated[int, Field(ge=4, le=8192)]
CropRatio = Annotated[float, Field(ge=0.05, le=1)]
JitterScale = Annotated[float, Field(ge=0.01, le=10)]
Interpolation = Literal["bilinear", "bicubic"]
Layer = Annotated[int, Field(ge=0, le=1000)]

Value = bool | int | float | str | None
KwargValue = Value | tuple[Value, ...]


class DataConfig(Config):
    """Where the images come from and which of them are used."""

    source: str = fingerprinted(
        "digits",
        help="One of digits | scene_digits | cifar10 | cifar100 | torchvision:NAME | domainnet:DOMAIN | folder:PATH | "
        "hub:ID | parquet:PATH | timm:NAME; for detection: scenes | coco:FOLDER",
    )
    image_column: str | None = fingerprinted(
        None, help="Column of images in shards; null: image, img, pixel_values or jpg"
    )
    label_column: str | None = fingerprinted(
        None, help="Column of labels in shards; null: label, labels, target, fine_label or cls"
    )
    class_list: str | tuple[str, ...] | None = fingerprinted(
        None, help="Keep these classes: imagenet100, a file with a class name in each line, or the names"
    )
    train_from: str | None = runtime(
        None, help="Train on PATH/train/<class>/... instead, classes matched by name (fingerprinted: names, manifest)"
    )
    image_size: ImageSize = fingerprinted(help="Side of the student's input, in pixels")
    eval_split: str | None = fingerprinted(
        None, help="Evaluate on this split of a folder or of shards, such as test; null: the first of val, ..., test"
    )
    holdout: float | None = fingerprinted(
        None,
        help="Evaluate on this share of each class's training images, which are not trained on, instead of the "
        "source's evaluation split; before class_list, train_from and subsets",
        gt=0,
        lt=1,
    )
    holdout_seed: Seed = fingerprinted(0, help="Seed of the draw of held-out images")
    fraction: float = fingerprinted(1.0, help="Share of each class that is used for training", gt=0, le=1)
    per_class: int | None = fingerprinted(None, help="Training images per class, instead of a fraction", ge=1, le=MANY)
    long_tail: float | None = fingerprinted(
        None, help="Imbalance: the smallest class keeps this share of the largest, geometrically", gt=0, le=1
    )
    subset_seed: Seed = fingerprinted(0, help="Seed of the subset; the same seed gives nested fractions")
    subset_draw: Literal["keyed", "numpy"] = fingerprinted(
        "keyed",
        help="Draw of the subset; keyed: by subset_seed; numpy: NumPy's generator seeded with the class, as "
        "released with arXiv 2112.03552",
    )
    balance: Literal["none", "sampling"] = fingerprinted(
        "none",
        help="Balance of the classes; sampling: an epoch, of the same length, has as many images of each class, so "
        "those of small classes come more often; none: each image once",
    )
    view_seed: Seed | None = fingerprinted(
        None,
        help="Seed of order, augmentation and mixing, apart from that of the weights; runs that share it share a "
        "teacher's cached logits, and vary less; null: the run's seed",
    )
    crop_ratio: CropRatio = fingerprinted(1.0, help="Evaluation: resize to size / ratio, then crop the centre")
    interpolation: Interpolation = fingerprinted("bilinear", help="Resampling of every resize")
    loader: Literal["resident", "streamed"] = fingerprinted(
        "resident",
        help="Where images are kept; resident: uint8 on the device, augmented in batch; streamed: decoded in workers",
    )
    decoded_gb: float = runtime(
        10.0,
        help="Decoded images that the user's cache may hold for later runs, in GB, of the resident loader; 0: none",
        ge=0,
        le=1e6,
    )

    @model_validator(mode="after")
    def _excludes(self) -> Self:
        if sum((self.fraction < 1, self.per_class is not None, self.long_tail is not None)) > 1:
            raise ValueError("fraction, per_class and long_tail exclude each other")
        if self.holdout is not None and self.eval_split is not None:
            raise ValueError("holdout and eval_split exclude each other")
        return self


class AugmentConfig(Config):
    """Augmentation of the training images, in the order in which it is applied."""

    pad_crop: int = fingerprinted(0, help="Zero-pad by this many pixels, then crop at random; 0: off", ge=0, le=1024)
    crop_scale: tuple[Share, Share] | None = fingerprinted(None, help="Area range of the random resized crop, or null")
    crop_aspect: tuple[Aspect, Aspect] = fingerprinted((0.75, 4 / 3), help="Aspect range of the random resized crop")
    flip: float = fingerprinted(0.0, help="Probability of a horizontal flip", ge=0, le=1)
    color_jitter: float = fingerprinted(0.0, help="Strength of brightness, contrast and saturation jitter", ge=0, le=10)
    rand_augment: str | None = fingerprinted(
        None, help="RandAugment string of timm's, e.g. rand-m9-mstd0.5-inc1, or null"
    )
    random_erasing: float = fingerprinted(0.0, help="Probability of erasing a rectangle with pixel noise", ge=0, le=1)
    mixup: float = fingerprinted(0.0, help="Mixup's Beta parameter; 0: off", ge=0, le=1000)
    cutmix: float = fingerprinted(0.0, help="CutMix's Beta parameter; 0: off", ge=0, le=1000)
    mix_probability: float = fingerprinted(1.0, help="Probability that a batch is mixed", ge=0, le=1)
    mix_switch: float = fingerprinted(0.5, help="Probability of CutMix where both are on", ge=0, le=1)
    label_smoothing: float = fingerprinted(0.0, help="Label smoothing of the training targets", ge=0, lt=1)
    repeats: int = fingerprinted(1, help="Repeated augmentation: views of one image in an epoch", ge=1, le=100)


def border_of(image_size: int, patch: int) -> str:
    """Say which sizes are right for a model's patches, of images that are not a multiple of them; else nothing."""
    rest = image_size % patch
    if not rest:
        return ""
    below = f"{image_size - rest} or " if image_size > patch else ""
    return (
        f"{image_size} px are not a multiple of its patches of {patch} px, so a border of {rest} px would not be seen; "
        f"let data.image_size, or teacher.image_size, be {below}{image_size - rest + patch}"
    )


class ModelConfig(Config):
    """A model by its timm name."""

    name: str = fingerprinted(
        help="Any name timm.create_model takes, with its pretrained tag if it matters; also local-dir:FOLDER, as "
        "`export` writes it, and hf-hub:OWNER/NAME"
    )
    kwargs: dict[str, KwargValue] = fingerprinted({}, help="Further arguments of timm.create_model")
    pretrained: bool = fingerprinted(False, help="Start from the weights that the name stands for")
    start_row: str | None = fingerprinted(
        None, help="Start from this row's student of the same seed (reproduce finds it)"
    )
    weights: str | None = runtime(
        None,
        help="Start from a run folder, safetensors file, local-dir:FOLDER or hf-hub:OWNER/NAME (fingerprinted: its "
        "sha256); tensors may have their authors' names; the head is loaded only if the number of classes is equal",
    )

    @model_validator(mode="after")
    def _heads_share_the_width(self) -> Self:
        width, heads = self.kwargs.get("embed_dim"), self.kwargs.get("num_heads")
        if type(width) is int and type(heads) is int and heads > 0 and width % heads:
            fitting = f"{width - width % heads} or " if width > heads else ""
            raise ValueError(
                f"kwargs.embed_dim is {width}, not a multiple of the {heads} of kwargs.num_heads; set it to "
                f"{fitting}{width - width % heads + heads}"
            )
        return self


class TeacherConfig(Config):
    """Where a frozen teacher comes from; exactly one of the four sources."""

    recipe: str | None = fingerprinted(
        None, help="A row of the core's teacher recipe at this scale, trained if need be"
    )
    row: str | None = fingerprinted(None, help="Another row of the same paper: its seed 0 (reproduce finds it)")
    model: ModelConfig | None = fingerprinted(None, help="A timm model; with `weights`, its architecture")
    weights: str | None = runtime(
        None, help="A run folder, or a safetensors file, for `model` where it has no card (fingerprinted: its sha256)"
    )
    image_size: ImageSize | None = fingerprinted(
        None, help="Input side of the teacher; null: its own, of a run, folder or repository, else the student's"
    )

    @model_validator(mode="after")
    def _has_a_source(self) -> Self:
        if self.recipe is None and self.row is None and self.model is None and self.weights is None:
            raise ValueError("a teacher needs `recipe`, `row`, `model` or `weights`")
        if self.model is not None and self.recipe is not None:
            raise ValueError("`recipe` and `model` exclude each other; set one of them to null")
        if self.model is not None and self.model.weights is not None:
            raise ValueError("the weights of a teacher are `teacher.weights`, not `teacher.model.weights`")
        return self


class OptimConfig(Config):
    """Optimiser and learning-rate schedule, both timm's."""

    name: str = fingerprinted("adamw", help="Any optimiser of timm's factory")
    lr: float = fingerprinted(help="Learning rate; see lr_reference_batch", gt=0, le=LARGE)
    lr_reference_batch: int | None = fingerprinted(
        None, help="If set, the peak learning rate is lr * batch_size / lr_reference_batch", ge=1, le=MANY
    )
    weight_decay: float = fingerprinted(
        0.05, help="Weight decay; none on biases, norms, positions and tokens", ge=0, le=LARGE
    )
    betas: tuple[Beta, Beta] | None = fingerprinted(None, help="Adam's betas; null: the optimiser's default")
    momentum: float = fingerprinted(0.9, help="Momentum of SGD", ge=0, lt=1)
    layer_decay: float | None = fingerprinted(None, help="Layer-wise learning-rate decay of the student", gt=0, le=1)
    clip_norm: float | None = fingerprinted(None, help="Clip the gradient norm", gt=0, le=LARGE)
    schedule: Literal["cosine", "constant"] = fingerprinted("cosine", help="Shape of the learning rate after warm-up")
    schedule_unit: Literal["epoch", "update"] = fingerprinted("epoch", help="How often the learning rate changes")
    warmup_epochs: float = fingerprinted(0.0, help="Linear warm-up, in epochs", ge=0, le=EPOCHS)
    warmup_prefix: bool = fingerprinted(
        False, help="The cosine starts after the warm-up; false: it runs from the first epoch"
    )
    warmup_lr: float = fingerprinted(1e-6, help="Learning rate at the start of the warm-up", ge=0, le=LARGE)
    min_lr: float = fingerprinted(
        1e-5, help="Learning rate at the end of the cosine; not scaled with the batch", ge=0, le=LARGE
    )


class TrainConfig(Config):
    """Length of the run and how a step is computed."""

    epochs: int = fingerprinted(help="Epochs; see epoch_length", ge=1, le=EPOCHS)
    schedule_epochs: int | None = fingerprinted(
        None,
        help="Length of the learning-rate schedule, where the run stops before its end; null: epochs",
        ge=1,
        le=EPOCHS,
    )
    epoch_length: Literal["subset", "full"] = fingerprinted(
        "subset",
        help="Length of an epoch; full: as many updates as on the full training set, so a fraction f of it is seen "
        "1/f times",
    )
    batch_size: int = fingerprinted(help="Images per update, over all processes and accumulation steps", ge=1, le=2**20)
    accumulate: int = fingerprinted(1, help="Micro-batches per update", ge=1, le=2**16)
    precision: Literal["fp32", "bf16"] = fingerprinted(
        "fp32", help="Precision of a step; bf16: autocast with fp32 weights, on GPUs; CPUs compute in fp32"
    )
    compile: bool = fingerprinted(False, help="Compile the training step by torch.compile")
    ema_decay: float | None = fingerprinted(
        None, help="Decay of the weight average of the student; null: none", gt=0, lt=1
    )

    @model_validator(mode="after")
    def _stops_within_the_schedule(self) -> Self:
        if self.schedule_epochs is not None and self.schedule_epochs < self.epochs:
            raise ValueError(
                f"schedule_epochs is {self.schedule_epochs}, but the run has {self.epochs} epochs; set it, too "
                "(null: as many)"
            )
        return self


class CacheConfig(Config):
    """The teachers' logits of training batches, kept for other runs on the same batches; see `distill.taught`."""

    folder: str | None = runtime(
        None, help="Keep them there, and reuse what is there; null: ask the teachers each time"
    )
    max_gb: float = runtime(10.0, help="What the folder may hold, in GB; what goes beyond is not stored", gt=0, le=1e6)
    dtype: Literal["fp32", "fp16"] = fingerprinted(
        "fp32", help="Form of stored logits; fp32: exactly the teacher's logits; fp16: half the space"
    )
    top_k: int | None = fingerprinted(
        None, help="Keep the k largest and what the others share; null: all of them", ge=1, le=1_000_000
    )

    @property
    def is_exact(self) -> bool:
        return self.dtype == "fp32" and self.top_k is None

    @model_validator(mode="after")
    def _rounds_with_a_folder_only(self) -> Self:
        if not self.is_exact and self.folder is None:
            raise ValueError("dtype and top_k say how logits are stored; set cache.folder, too")
        return self


class RuntimeConfig(Config):
    """What may differ between a run and its resumption."""

    device: str = runtime("auto", help="Device: auto, cpu, cuda or cuda:N")
    threads: int | None = runtime(None, help="CPU threads of torch; null: torch's default", ge=1, le=4096)
    workers: int = runtime(2, help="Worker processes of the streamed loader", ge=0, le=1024)
    worker_timeout_s: int = runtime(
        120, help="Seconds without a batch after which a worker counts as hung", ge=1, le=10**6
    )
    eval_batch_size: int = runtime(256, help="Images per evaluation batch", ge=1, le=2**20)
    eval_every_epochs: int = runtime(
        1, help="Evaluate after every this many epochs, and after the last", ge=1, le=EPOCHS
    )
    checkpoint_every_epochs: int = runtime(
        1, help="Save after every this many epochs, and after the last", ge=1, le=EPOCHS
    )
    sync_batch_norm: bool = runtime(
        False, help="BatchNorm sees the batches of all processes, on GPUs; false: those of its own"
    )
    log_every_steps: int = runtime(20, help="Steps between two readings of the losses", ge=1, le=MANY)
    track: tuple[str, ...] = runtime(
        (), help="Trackers that get losses and metrics, by commas: tensorboard, wandb, mlflow, trackio, dvclive"
    )


class DetectionConfig(Config):
    """Detection and instance segmentation with Mask R-CNN on the student; see `train.detector`."""

    scale: tuple[JitterScale, JitterScale] = fingerprinted(
        (0.1, 2.0), help="Large-scale jitter: range of an image's size, relative to the one that fills the input"
    )
    window: int | None = fingerprinted(
        14, help="Side of the attention windows of a plain ViT, in patches; null: all blocks are global", ge=1, le=8192
    )
    global_blocks: int = fingerprinted(4, help="Blocks of a plain ViT, evenly spaced, that stay global", ge=1, le=1000)
    channels: int = fingerprinted(256, help="Width of the feature pyramid and of the heads", ge=1, le=2**14)
    proposals: int = fingerprinted(512, help="Boxes per image on which the heads are trained", ge=1, le=10**5)

    @model_validator(mode="after")
    def _is_a_range(self) -> Self:
        if self.scale[0] > self.scale[1]:
            raise ValueError(f"scale: {list(self.scale)} is not a range; write the smaller number first")
        return self


class RunConfig(Config):
    """Everything that one training run needs, whatever the method."""

    seed: Seed = fingerprinted(0, help="Seed of the weights, the data order, the augmentation and dropout")
    data: DataConfig = fingerprinted(help="Data")
    augment: AugmentConfig = fingerprinted(AugmentConfig(), help="Augmentation")
    student: ModelConfig = fingerprinted(help="The model that is trained")
    optim: OptimConfig = fingerprinted(help="Optimiser and schedule")
    train: TrainConfig = fingerprinted(help="Length and precision")
    cache: CacheConfig = fingerprinted(CacheConfig(), help="Stored teacher outputs")
    runtime: RuntimeConfig = runtime(RuntimeConfig(), help="What may change on resume")

    @model_validator(mode="after")
    def _patches_cover_the_image(self) -> Self:
        patch = self.student.kwargs.get("patch_size")
        if type(patch) is int and patch > 0 and not self.student.kwargs.get("dynamic_img_pad"):
            problem = border_of(self.data.image_size, patch)
            if problem:
                raise ValueError(f"{self.student.name}: {problem}")
        return self

    @property
    def view_seed(self) -> int:
        """Seed of order, augmentation and mixing."""
        return self.seed if self.data.view_seed is None else self.data.view_seed


class DetectorConfig(RunConfig):
    """A run of `vitutor detect`."""

    detect: DetectionConfig = fingerprinted(DetectionConfig(), help="Detection")
