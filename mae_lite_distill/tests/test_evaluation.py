"""What starts from an encoder: which tensors are taken, and what a probe trains."""

from __future__ import annotations

import pytest
import timm
import torch
from torch.nn import functional as F

from mae_lite_distill.method import MAELite
from mae_lite_distill.methods.probe import LinearProbe
from mae_lite_distill.models.start import build_from_encoder
from mae_lite_distill.tests.mae_samples import INFO, MICRO_MAE, resolve, train_row
from vitutor_core.data.types import Batch
from vitutor_core.errors import CheckpointError, ConfigError
from vitutor_core.models.weights import create_student, save_tensors, starting_weights
from vitutor_core.train.method import Clock
from vitutor_core.train.supervised import Supervised

DEPTH = 4


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    out = tmp_path_factory.mktemp("encoder") / "mae"
    train_row("mae", out, *MICRO_MAE, f"student.kwargs.depth={DEPTH}", "train.epochs=2")
    return out


def started(row, start, *settings, seed=1, info=INFO):
    torch.manual_seed(seed)
    config = resolve(row, f"student.weights={start}", f"student.kwargs.depth={DEPTH}", *settings)
    return build_from_encoder(config, info)


def fresh(seed=1, info=INFO):
    torch.manual_seed(seed)
    settings = ("student.start_row=null", f"student.kwargs.depth={DEPTH}")
    return create_student(resolve("mae_finetune", *settings).student, info)


def same(model, tensors):
    return {name for name, value in model.state_dict().items() if name in tensors and torch.equal(value, tensors[name])}


@pytest.mark.parametrize("kept", [None, *range(DEPTH + 1)])
def test_keeping_blocks(encoder, kept):
    tensors, untouched = starting_weights(str(encoder)), fresh().state_dict()
    model = started("mae_finetune", encoder, f"method.keep_blocks={'null' if kept is None else kept}")
    body = {name for name in untouched if not name.startswith(("head.", "fc_norm.", "norm."))}
    taken = body if kept in (None, DEPTH) else {n for n in body if "blocks" not in n or int(n.split(".")[1]) < kept}
    taken = set() if kept == 0 else taken
    assert taken <= same(model, tensors)
    left = untouched.keys() - taken
    assert left <= same(model, untouched)
    if kept != 0:
        assert "blocks.0.attn.qkv.weight" not in same(model, untouched)


def test_all_blocks_are_plain_loading(encoder):
    models = [started("mae_finetune", encoder, f"method.keep_blocks={kept}") for kept in ("null", DEPTH)]
    assert same(models[0], models[1].state_dict()) == models[0].state_dict().keys()


def test_a_classifier_gives_its_norm_but_not_its_head(tmp_path):
    source = fresh(2)
    torch.nn.init.normal_(source.fc_norm.weight)
    torch.nn.init.normal_(source.head.weight)
    save_tensors(tmp_path / "w.safetensors", source.state_dict())
    model = started("mae_finetune", tmp_path / "w.safetensors")
    assert torch.equal(model.fc_norm.weight, source.fc_norm.weight)
    assert torch.equal(model.head.weight, fresh().head.weight)


def test_the_norm_of_an_encoder_is_kept_where_the_model_has_one(encoder):
    model, tensors = started("mae_probe", encoder), starting_weights(str(encoder))
    assert torch.equal(model.norm.weight, tensors["norm.weight"])
    assert not torch.equal(model.norm.weight, torch.ones(16))


@pytest.mark.parametrize(
    ("setting", "error"),
    [
        ("student.kwargs.depth=3", CheckpointError),
        ("student.kwargs.embed_dim=32", CheckpointError),
        ("method.keep_blocks=5", ConfigError),
    ],
)
def test_other_models_are_refused(encoder, setting, error):
    with pytest.raises(error):
        started("mae_finetune", encoder, setting)


def build(row, *settings):
    torch.manual_seed(0)
    return MAELite.build(resolve(row, f"student.kwargs.depth={DEPTH}", *settings), INFO)


def test_finetuning_trains_everything_from_the_encoder(encoder):
    method = build("mae_finetune", f"student.weights={encoder}")
    assert isinstance(method, Supervised)
    assert all(parameter.requires_grad for parameter in method.parameters())
    assert torch.equal(
        method.student.blocks[1].mlp.fc1.weight, starting_weights(str(encoder))["blocks.1.mlp.fc1.weight"]
    )
    with pytest.raises(ConfigError, match="say where 'mae' was trained"):
        build("mae_finetune")


def batch():
    generator = torch.Generator().manual_seed(0)
    return Batch(torch.randn(32, 3, 16, 16, generator=generator), torch.arange(32) % 10, torch.arange(32))


def test_a_probe_trains_a_linear_layer_on_a_frozen_encoder(encoder):
    method = build("mae_probe", f"student.weights={encoder}").train()
    assert isinstance(method, LinearProbe)
    assert not method.student.training
    assert method.normalise.training
    assert {n for n, p in method.named_parameters() if p.requires_grad} == {"classify.weight", "classify.bias"}
    before = {name: value.clone() for name, value in method.student.state_dict().items()}
    optimizer = torch.optim.SGD(method.classify.parameters(), lr=0.1)
    for _ in range(5):
        optimizer.zero_grad()
        loss = method(batch(), Clock(0, 1, 1)).loss
        loss.backward()
        optimizer.step()
    assert same(method.student, before) == before.keys()
    features = method.student.forward_features(batch().images)[:, 0]
    normalised = F.batch_norm(features, None, None, training=True, eps=1e-6)
    torch.testing.assert_close(
        method(batch(), Clock(0, 1, 1)).loss, F.cross_entropy(method.classify(normalised), batch().targets)
    )


def test_the_published_probe_is_the_plain_model_with_both_layers_in_its_head(encoder):
    method = build("mae_probe", f"student.weights={encoder}").train()
    for _ in range(3):
        method(batch(), Clock(0, 1, 1))
    with torch.no_grad():
        method.classify.weight.normal_()
    method.eval()
    images = batch().images
    expected = method.classify(method.normalise(method.student.forward_features(images)[:, 0]))
    torch.testing.assert_close(method.inference_model()(images), expected, atol=1e-4, rtol=1e-4)
    assert type(method.inference_model()) is type(timm.create_model("vit_tiny_patch16_224"))


@pytest.mark.parametrize(
    ("row", "settings", "message"),
    [
        ("mae", ("mae.distill_layers=[2]",), "a teacher and mae.distill_layers go together"),
        ("scratch", ("method.objective=token",), "there is a teacher alone"),
        ("seed", ("augment.mixup=0.5",), "not mixed"),
        ("mae_distilled", ("mae.distill_layers=[1, 1]",), "name each block once"),
        ("mae_distilled", ("mae.distill_layers=[1, 2]", "mae.decouple_after=1"), "needs one layer"),
        ("mae", ("mae.decoder_width=20", "mae.decoder_heads=3"), "multiple of 4"),
        ("scratch", ("method.keep_blocks=1",), "keeps blocks of an encoder"),
        ("moco", ("augment.mixup=0.5",), "not mixed"),
    ],
)
def test_settings_that_cannot_work(row, settings, message):
    with pytest.raises(ConfigError, match=message):
        resolve(row, *settings)
