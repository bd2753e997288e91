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
Interpolation = Literal["bilinear", "bicubic"]
Layer = Annotated[int, Field(ge=0, le=1000)]

Value = bool | int | float | str | None
KwargValue = Value | tuple[Value, ...]


class DataConfig(Config):
    """Where the images come from and which of them are used."""

    source: str = fingerprinted(
        "digits",
        help="digits | cifar10 | cifar100 | torchvision:NAME | domainnet:DOMAIN | folder:PATH | hub:ID | parquet:PATH "
        "| timm:NAME",
    )
    image_column: str | None = fingerprinted(
        None, help="column of images in shards; null: image, img, pixel_values or jpg"
    )
    label_column: str | None = fingerprinted(
        None, help="column of labels in shards; null: label, labels, target, fine_label or cls"
    )
    class_list: str | tuple[str, ...] | None = fingerprinted(
        None, help="keep these classes: imagenet100, a file with a class name in each line, or the names"
    )
    train_from: str | None = runtime(
        None, help="train on PATH/train/<class>/... instead, classes matched by name (fingerprinted: names, manifest)"
    )
    image_size: ImageSize = fingerprinted(help="side of the student's input, in pixels")
    eval_split: str | None = fingerprinted(
        None, help="evaluate on this split of a folder or of shards, such as test; null: the first of val, ..., test"
    )
    holdout: float | None = fingerprinted(
        None,
        help="evaluate on this share of each class's training images, which are not trained on, instead of the "
        "source's evaluation split; before class_list, train_from and subsets",
        gt=0,
        lt=1,
    )
    holdout_seed: Seed = fingerprinted(0, help="seed of the draw of held-out images")
    fraction: float = fingerprinted(1.0, help="share of each class that is used for training", gt=0, le=1)
    per_class: int | None = fingerprinted(None, help="training images per class, instead of a fraction", ge=1, le=MANY)
    long_tail: float | None = fingerprinted(
        None, help="imbalance: the smallest class keeps this share of the largest, geometrically", gt=0, le=1
    )
    subset_seed: Seed = fingerprinted(0, help="seed of the subset; the same seed gives nested fractions")
    subset_draw: Literal["keyed", "numpy"] = fingerprinted(
        "keyed",
        help="keyed: by subset_seed; numpy: NumPy's generator seeded with the class, as released with arXiv 2112.03552",
    )
    balance: Literal["none", "sampling"] = fingerprinted(
        "none",
        help="sampling: an epoch, of the same length, has as many images of each class, so those of small classes come "
        "more often; none: each image once",
    )
    view_seed: Seed | None = fingerprinted(
        None,
        help="seed of order, augmentation and mixing, apart from that of the weights; runs that share it share a "
        "teacher's cached logits, and vary less; null: the run's seed",
    )
    crop_ratio: CropRatio = fingerprinted(1.0, help="evaluation: resize to size / ratio, then crop the centre")
    interpolation: Interpolation = fingerprinted("bilinear", help="resampling of every resize")
    loader: Literal["resident", "streamed"] = fingerprinted(
        "resident", help="resident: uint8 on the device, augmented in batch; streamed: decoded in workers"
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

    pad_crop: int = fingerprinted(0, help="zero-pad by this many pixels, then crop at random; 0: off", ge=0, le=1024)
    crop_scale: tuple[Share, Share] | None = fingerprinted(None, help="area range of the random resized crop, or null")
    crop_aspect: tuple[Aspect, Aspect] = fingerprinted((0.75, 4 / 3), help="aspect range of the random resized crop")
    flip: float = fingerprinted(0.0, help="probability of a horizontal flip", ge=0, le=1)
    color_jitter: float = fingerprinted(0.0, help="strength of brightness, contrast and saturation jitter", ge=0, le=10)
    rand_augment: str | None = fingerprinted(None, help="timm's RandAugment string, e.g. rand-m9-mstd0.5-inc1, or null")
    random_erasing: float = fingerprinted(0.0, help="probability of erasing a rectangle with pixel noise", ge=0, le=1)
    mixup: float = fingerprinted(0.0, help="Mixup's Beta parameter; 0: off", ge=0, le=1000)
    cutmix: float = fingerprinted(0.0, help="CutMix's Beta parameter; 0: off", ge=0, le=1000)
    mix_probability: float = fingerprinted(1.0, help="probability that a batch is mixed", ge=0, le=1)
    mix_switch: float = fingerprinted(0.5, help="probability of CutMix where both are on", ge=0, le=1)
    label_smoothing: float = fingerprinted(0.0, help="label smoothing of the training targets", ge=0, lt=1)
    repeats: int = fingerprinted(1, help="repeated augmentation: views of one image in an epoch", ge=1, le=100)


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
        help="any name timm.create_model takes, with its pretrained tag if it matters; also local-dir:FOLDER, as "
        "`export` writes it, and hf-hub:OWNER/NAME"
    )
    kwargs: dict[str, KwargValue] = fingerprinted({}, help="further arguments of timm.create_model")
    pretrained: bool = fingerprinted(False, help="start from the weights that the name stands for")
    start_row: str | None = fingerprinted(
        None, help="start from this row's student of the same seed (reproduce finds it)"
    )
    weights: str | None = runtime(
        None,
        help="start from a run folder, safetensors file, local-dir:FOLDER or hf-hub:OWNER/NAME (fingerprinted: its "
        "sha256), by its authors' names too; its head only for equal classes",
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
        None, help="a row of the core's teacher recipe at this scale, trained if need be"
    )
    row: str | None = fingerprinted(None, help="another row of the same paper: its seed 0 (reproduce finds it)")
    model: ModelConfig | None = fingerprinted(None, help="a timm model; with `weights`, its architecture")
    weights: str | None = runtime(
        None, help="a run folder, or a safetensors file, for `model` where it has no card (fingerprinted: its sha256)"
    )
    image_size: ImageSize | None = fingerprinted(
        None, help="input side of the teacher; null: its own, of a run, folder or repository, else the student's"
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

    name: str = fingerprinted("adamw", help="any optimiser of timm's factory")
    lr: float = fingerprinted(help="learning rate; see lr_reference_batch", gt=0, le=LARGE)
    lr_reference_batch: int | None = fingerprinted(
        None, help="if set, the peak learning rate is lr * batch_size / lr_reference_batch", ge=1, le=MANY
    )
    weight_decay: float = fingerprinted(
        0.05, help="weight decay; none on biases, norms, positions and tokens", ge=0, le=LARGE
    )
    betas: tuple[Beta, Beta] | None = fingerprinted(None, help="Adam's betas; null: the optimiser's default")
    momentum: float = fingerprinted(0.9, help="momentum of SGD", ge=0, lt=1)
    layer_decay: float | None = fingerprinted(None, help="layer-wise learning-rate decay of the student", gt=0, le=1)
    clip_norm: float | None = fingerprinted(None, help="clip the gradient norm", gt=0, le=LARGE)
    schedule: Literal["cosine", "constant"] = fingerprinted("cosine", help="shape of the learning rate after warm-up")
    schedule_unit: Literal["epoch", "update"] = fingerprinted("epoch", help="how often the learning rate changes")
    warmup_epochs: float = fingerprinted(0.0, help="linear warm-up, in epochs", ge=0, le=EPOCHS)
    warmup_prefix: bool = fingerprinted(
        False, help="the cosine starts after the warm-up; false: it runs from the first epoch"
    )
    warmup_lr: float = fingerprinted(1e-6, help="learning rate at the start of the warm-up", ge=0, le=LARGE)
    min_lr: float = fingerprinted(
        1e-5, help="learning rate at the end of the cosine; not scaled with the batch", ge=0, le=LARGE
    )


class TrainConfig(Config):
    """Length of the run and how a step is computed."""

    epochs: int = fingerprinted(help="epochs; see epoch_length", ge=1, le=EPOCHS)
    schedule_epochs: int | None = fingerprinted(
        None,
        help="length of the learning-rate schedule, where the run stops before its end; null: epochs",
        ge=1,
        le=EPOCHS,
    )
    epoch_length: Literal["subset", "full"] = fingerprinted(
        "subset",
        help="full: an epoch has as many updates as on the full training set, so a fraction f of it is seen 1/f times",
    )
    batch_size: int = fingerprinted(help="images per update, over all processes and accumulation steps", ge=1, le=2**20)
    accumulate: int = fingerprinted(1, help="micro-batches per update", ge=1, le=2**16)
    precision: Literal["fp32", "bf16"] = fingerprinted(
        "fp32", help="bf16: autocast with fp32 weights, on GPUs; CPUs compute in fp32"
    )
    compile: bool = fingerprinted(False, help="torch.compile the training step")
    ema_decay: float | None = fingerprinted(
        None, help="decay of the weight average of the student; null: none", gt=0, lt=1
    )

    @model_validator(mode="after")
    def _stops_within_the_schedule(self) -> Self:
        if self.schedule_epochs is not None and self.schedule_epochs < self.epochs:
            raise ValueError(f"schedule_epochs is {self.schedule_epochs}, but the run has {self.epochs} epochs")
        return self


class CacheConfig(Config):
    """The teachers' logits of training batches, kept for other runs on the same batches; see `distill.taught`."""

    folder: str | None = runtime(
        None, help="keep them there, and reuse what is there; null: ask the teachers each time"
    )
    max_gb: float = runtime(10.0, help="what the folder may hold, in GB; what goes beyond is not stored", gt=0, le=1e6)
    dtype: Literal["fp32", "fp16"] = fingerprinted(
        "fp32", help="fp32: exactly the teacher's logits; fp16: half the space"
    )
    top_k: int | None = fingerprinted(
        None, help="keep the k largest and what the others share; null: all of them", ge=1, le=1_000_000
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

    device: str = runtime("auto", help="auto, cpu, cuda or cuda:N")
    threads: int | None = runtime(None, help="CPU threads of torch; null: torch's default", ge=1, le=4096)
    workers: int = runtime(2, help="worker processes of the streamed loader", ge=0, le=1024)
    worker_timeout_s: int = runtime(
        120, help="seconds without a batch after which a worker counts as hung", ge=1, le=10**6
    )
    eval_batch_size: int = runtime(256, help="images per evaluation batch", ge=1, le=2**20)
    eval_every_epochs: int = runtime(
        1, help="evaluate after every this many epochs, and after the last", ge=1, le=EPOCHS
    )
    checkpoint_every_epochs: int = runtime(
        1, help="save after every this many epochs, and after the last", ge=1, le=EPOCHS
    )
    sync_batch_norm: bool = runtime(
        False, help="BatchNorm sees the batches of all processes, on GPUs; false: those of its own"
    )
    log_every_steps: int = runtime(20, help="steps between two readings of the losses", ge=1, le=MANY)
    track: tuple[str, ...] = runtime(
        (), help="trackers that get losses and metrics, by commas: tensorboard, wandb, mlflow, trackio, dvclive"
    )


class RunConfig(Config):
    """Everything that one training run needs, whatever the method."""

    seed: Seed = fingerprinted(0, help="seed of the weights, the data order, the augmentation and dropout")
    data: DataConfig = fingerprinted(help="data")
    augment: AugmentConfig = fingerprinted(AugmentConfig(), help="augmentation")
    student: ModelConfig = fingerprinted(help="the model that is trained")
    optim: OptimConfig = fingerprinted(help="optimiser and schedule")
    train: TrainConfig = fingerprinted(help="length and precision")
    cache: CacheConfig = fingerprinted(CacheConfig(), help="stored teacher outputs")
    runtime: RuntimeConfig = runtime(RuntimeConfig(), help="what may change on resume")

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
