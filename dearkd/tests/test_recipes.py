"""The rows have what the columns of the paper's tables say, and differ in nothing else; settings are as printed."""

from __future__ import annotations

from functools import cache

import pytest
import timm
import torch
from torch import nn

from dearkd.cli import PAPER
from dearkd.generation.commands import resolve_generation
from dearkd.generation.config import GenerationConfig, TermsConfig
from dearkd.models import MHCA
from vitutor_core.cli.options import SCALES
from vitutor_core.models.weights import create_model
from vitutor_core.recipe import read_recipe, recipe_path
from vitutor_core.train import optim
from vitutor_core.train.method import Clock

TABLE_1 = {  # MHCA, hidden loss, distillation, two stages
    "vit": (False, False, False, False),
    "mhca": (True, False, False, False),
    "distill": (False, False, True, False),
    "hidden_distill": (False, True, True, False),
    "mhca_hidden_distill": (True, True, True, False),
    "dearkd": (True, True, True, True),
}
TABLE_2 = {f"{method}_{percent}": percent / 100 for method in ("vit", "deit", "dearkd") for percent in (10, 25, 50)}
TABLE_2["deit_100"] = 1.0
NUM_CLASSES = {"digits": 10, "scenes": 10, "small": 20, "cifar100": 100, "imagenet": 1000}
IMAGES = {"digits": 901, "scenes": 1802, "small": 1000, "cifar100": 50_000, "imagenet": 1_281_167}


@cache
def resolve(scale, row, *settings):
    return PAPER.resolve(scale, None, row, settings)


def rows(scale, *prefixes):
    found = [row for row in read_recipe(recipe_path("dearkd", scale)).rows if row.startswith(prefixes)]
    assert found
    return found


def budget(config):
    return config.optim, config.train, config.augment


@cache
def student(scale, row):
    config = resolve(scale, row)
    size = config.data.image_size
    with torch.device("meta"):
        return create_model(config.student, num_classes=NUM_CLASSES[scale], image_size=size, channels=3)


def ticks(scale, row):
    """The columns of Table 1 that a row stands for, read off its config and its model."""
    config = resolve(scale, row)
    taught = config.teacher is not None
    mhca = any(isinstance(module, MHCA) for module in student(scale, row).modules())
    two_stages = 0 < config.stage1_epochs < config.train.epochs
    return mhca, taught and bool(config.method.pairs), taught and config.method.distill == "pooled", two_stages


@pytest.mark.parametrize("scale", SCALES)
def test_rows_on_generated_images(scale):
    sets = read_recipe(recipe_path("dearkd", f"generation/{scale}")).rows
    assert sets.keys() == {"plain", "adaptive", "intra"}
    real = resolve(scale, "dearkd")
    for row in rows(scale, "free_"):
        images = row.removesuffix("_small").removeprefix("free_")
        config, made = resolve(scale, row), resolve_generation(scale, None, images, ())
        assert config.data.train_from == f"results/generated/{images}"
        assert config.data.changed(["train_from=null"]) == real.data  # evaluation stays real
        assert config.teacher == made.teacher  # taught by the network that was inverted
        assert (config.optim, config.augment) == (real.optim, real.augment)
        ours, theirs = (of.method.changed(["stage1_epochs=null", "pairs=[]"]) for of in (config, real))
        assert ours == theirs
        assert abs(config.stage1_epochs - config.train.epochs * 5 / 6) <= 0.5
        whole = IMAGES[scale] / real.data.fraction  # a real epoch is as long as one of all images
        per_epoch, per_real_epoch = (int(count // config.train.batch_size) for count in (made.num_images, whole))
        updates = config.train.epochs * per_epoch
        assert updates == pytest.approx(real.train.epochs * per_real_epoch, rel=2e-3)


@pytest.mark.parametrize("scale", SCALES)
def test_generated_sets_differ_in_their_terms_alone(scale):
    sets = {name: resolve_generation(scale, None, name, ()) for name in ("plain", "adaptive", "intra")}
    plain = sets["plain"]
    weights = {name: (c.terms.competition, c.terms.easiest_positive, c.terms.triplet) for name, c in sets.items()}
    easiest = 50 if scale == "imagenet" else 5
    assert weights == {"plain": (0, 0, 0), "adaptive": (0.2, 0, 0), "intra": (0, easiest, 0.5)}
    assert sets["adaptive"].competitor == "results/runs/dearkd/free_plain/seed-0"
    for config in sets.values():
        same = config.model_copy(update={"terms": plain.terms, "competitor": None})
        assert same == plain
    # As many as half of the real images, which is the row with as many real ones.
    assert plain.num_images == pytest.approx(IMAGES[scale] / 2, rel=0.07)


def test_imagenet_generation_is_the_papers_setting():
    config = resolve_generation("imagenet", None, "intra", ())
    assert config.teacher.model.name == "resnet101.tv_in1k"
    first, second = config.phases
    assert (first.iterations, first.lr, first.shrink) == (2000, 0.5, 2)
    assert (second.iterations, second.lr, second.shrink) == (2000, 0.01, 1)
    assert (config.classes_per_batch, config.images_per_class) == (6, 7)
    terms = config.terms
    assert (terms.label, terms.total_variation, terms.l2, terms.bn, terms.first_bn) == (1, 1e-4, 1e-5, 5e-2, 10)
    assert (terms.easiest_positive, terms.triplet, terms.margin) == (50, 0.5, 0.3)
    assert config == GenerationConfig(
        teacher=config.teacher,
        num_images=config.num_images,
        terms=TermsConfig(easiest_positive=50.0, triplet=0.5),
    )


@pytest.mark.parametrize("scale", ["cifar100", "imagenet"])
def test_transfer_starts_from_the_student_without_a_teacher(scale):
    for row in rows(scale, "transfer_"):
        config = resolve(scale, row)
        size = {"small": "dearkd_small", "base": "dearkd_base"}.get(row.split("_")[1], "dearkd")
        assert config.student.start_row == size
        assert config.student.name == resolve(scale, size).student.name
        assert config.teacher is None
        assert config.data.source != resolve(scale, "dearkd").data.source
        assert (config.optim.name, config.optim.lr, config.augment.random_erasing) == ("sgd", 0.01, 0)
        assert config.student.kwargs.get("drop_path_rate", 0) == 0


def test_table_2_has_deit_as_published_beside_the_one_with_twelve_heads():
    for part, fraction in (("10", 0.1), ("25", 0.25), ("50", 0.5), ("100", 1.0)):
        config, twelve = resolve("imagenet", f"deit_plain_{part}"), resolve("imagenet", "vit")
        assert (config.student.name, config.data.fraction) == ("deit_tiny_patch16_224", fraction)
        assert "num_heads" not in config.student.kwargs
        assert (config.teacher, budget(config), config.augment) == (None, budget(twelve), twelve.augment)


@pytest.mark.parametrize("size", ["tiny", "small", "base"])
def test_table_3_has_deit_distilled_for_as_long_as_dearkd(size):
    row = "deit_100" if size == "tiny" else f"deit_100_{size}"
    for name, epochs in ((row, 300), (f"{row}_1000", 1000)):
        config = resolve("imagenet", name)
        assert config.student.name == f"deit_{size}_distilled_patch16_224"
        assert (config.train.epochs, config.stage1_epochs, config.method.distill) == (epochs, epochs, "token")
        assert config.teacher == resolve("imagenet", "dearkd").teacher


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("row", TABLE_1)
def test_table_1(scale, row):
    assert ticks(scale, row) == TABLE_1[row]
    config, base = resolve(scale, row), resolve(scale, "dearkd")
    assert (config.data, budget(config)) == (base.data, budget(base))
    assert config.data.fraction == base.data.fraction
    if config.teacher is not None:
        assert config.teacher == base.teacher
        epochs = config.train.epochs
        assert config.stage1_epochs == (round(epochs * 5 / 6) if row == "dearkd" else epochs)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("row", TABLE_2)
def test_table_2(scale, row):
    config, method = resolve(scale, row), row.split("_")[0]
    whole = resolve(scale, "dearkd").data.fraction
    assert config.data.fraction == pytest.approx(TABLE_2[row] * whole)
    assert config.train.epoch_length == "full"
    if method == "deit":
        assert ticks(scale, row) == (False, False, False, False)
        assert (config.method.distill, config.method.alpha_loss) == ("token", 0.5)
        assert config.stage1_epochs == config.train.epochs
        assert student(scale, row).dist_token is not None
    else:
        assert ticks(scale, row) == TABLE_1[method]
    # A row differs from its full-data one in the data alone.
    full = resolve(scale, "deit_100" if method == "deit" else method)
    assert config.changed([f"data.fraction={whole}"]) == full
    assert budget(full) == budget(resolve(scale, "dearkd"))


@pytest.mark.parametrize("scale", SCALES)
def test_students_differ_in_the_attention_alone(scale):
    dearkd, plain, deit = (student(scale, row) for row in ("dearkd", "vit", "deit_100"))
    rpe = {name for name in dearkd.state_dict() if name.endswith((".alpha", ".delta"))}
    assert dearkd.state_dict().keys() - rpe == plain.state_dict().keys()
    shapes = {name: value.shape for name, value in dearkd.state_dict().items()}
    assert all(shapes[name] == value.shape for name, value in plain.state_dict().items())
    heads = {model.blocks[0].attn.num_heads for model in (dearkd, plain)}
    assert len(heads) == 1
    assert deit.embed_dim == plain.embed_dim
    assert len(deit.blocks) == len(plain.blocks)


@pytest.mark.parametrize("scale", SCALES)
def test_hidden_pairs_end_at_the_last_block_with_mhca(scale):
    pairs = resolve(scale, "dearkd").method.pairs
    blocks = [isinstance(block.attn, MHCA) for block in student(scale, "dearkd").blocks]
    assert all(blocks[block - 1] for block, _ in pairs)
    assert not any(blocks[pairs[-1][0] :])


def test_imagenet_is_the_papers_setting():
    config = resolve("imagenet", "dearkd")
    assert (config.train.epochs, config.stage1_epochs, config.train.batch_size) == (300, 250, 2048)
    assert config.teacher.model.name == "regnety_160.deit_in1k"
    assert config.teacher.model.pretrained
    assert optim.peak_lr(config.optim, config.train.batch_size) == pytest.approx(2e-3)
    flat = config.changed(["optim.lr_reference_batch=null"])
    assert optim.peak_lr(flat.optim, flat.train.batch_size) == 5e-4
    assert (config.optim.name, config.optim.weight_decay, config.optim.betas) == ("adamw", 0.05, None)
    assert (config.optim.warmup_epochs, config.optim.warmup_lr, config.optim.min_lr) == (5, 1e-6, 1e-5)
    augment = config.augment
    assert (augment.mixup, augment.cutmix, augment.mix_probability, augment.mix_switch) == (0.8, 1.0, 1.0, 0.5)
    assert (augment.random_erasing, augment.rand_augment) == (0.25, "rand-m9-mstd0.5-inc1")
    assert (augment.label_smoothing, augment.repeats) == (0.1, 3)
    assert (config.data.image_size, config.data.crop_ratio, config.data.interpolation) == (224, 0.875, "bicubic")
    assert config.train.ema_decay == 0.99996
    assert config.method.pairs == ((4, "s2"), (8, "s3"))
    longer = [resolve("imagenet", row) for row in rows("imagenet", "dearkd_") if row.endswith("_1000")]
    assert longer
    assert {(config.train.epochs, config.stage1_epochs) for config in longer} == {(1000, 800)}


def test_the_imagenet_teacher_is_the_one_without_extra_data():
    cfg = timm.get_pretrained_cfg("regnety_160.deit_in1k")
    expected = (1000, timm.data.IMAGENET_DEFAULT_MEAN, timm.data.IMAGENET_DEFAULT_STD)
    assert (cfg.num_classes, cfg.mean, cfg.std) == expected
    # timm's default of this model was pre-trained on ImageNet-12k.
    assert timm.get_pretrained_cfg("regnety_160").tag != cfg.tag
    with torch.device("meta"):
        teacher = timm.create_model("regnety_160.deit_in1k")
    stages = {info["module"]: info["num_chs"] for info in teacher.feature_info}
    assert (stages["s2"], stages["s3"]) == (448, 1232)


def learning_rates(config, epochs):
    updates = 10
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=optim.peak_lr(config.optim, config.train.batch_size))
    schedule = optim.build_schedule(optimizer, config.optim, config.train.epochs, updates)
    found = []
    for epoch in epochs:
        optim.set_learning_rate(schedule, Clock(epoch * updates, updates, config.train.epochs * updates))
        found.append(optimizer.param_groups[0]["lr"])
    return found


def test_the_learning_rate_at_the_switch():
    config = resolve("imagenet", "dearkd")
    assert learning_rates(config, (0, 250)) == pytest.approx([1e-6, 1.4330e-4], rel=1e-4)
    long = config.changed(["train.epochs=1000", "method.stage1_epochs=800"])
    assert learning_rates(long, (800,)) == pytest.approx([2.000e-4], rel=1e-3)
    flat = config.changed(["optim.lr_reference_batch=null"])
    assert learning_rates(flat, (250,)) == pytest.approx([4.28e-5], rel=1e-3)
