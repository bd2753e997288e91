"""Checkpoints of MAE, MAE-Lite and MoCo-v3 as they were released give the features of their authors' networks."""

from __future__ import annotations

import re

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from core.tests.published import Official, assert_close, embedded, listing_sha256, transformer, vit
from mae_lite_distill.method import MAELite
from mae_lite_distill.methods.masked import MaskedPretraining
from mae_lite_distill.models.decoder import Decoder
from mae_lite_distill.models.layouts import MAE, MOCO
from mae_lite_distill.models.positions import sincos_positions
from mae_lite_distill.tests.mae_samples import INFO, MICRO_MAE, resolve, train_row
from vitutor_core.cli.entry import run as run_command
from vitutor_core.cli.vitutor import vitutor
from vitutor_core.data.types import Batch
from vitutor_core.distill.teacher import load_teacher
from vitutor_core.errors import ConfigError
from vitutor_core.models.convert import Classes, convert
from vitutor_core.schema import ModelConfig, TeacherConfig
from vitutor_core.train.method import Clock

RELEASED = "e69481c90e0541301bf4a3516c6b968319d0412f1bb95bc92861267ffd4cb367"
"""Of the names and shapes of the released MAE-Tiny, without its decoder's blocks, norm and prediction."""
SMALL = {"embed_dim": 16, "depth": 2, "num_heads": 2}


def images(side=224, count=2):
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def mae(weights, pixels, *, width=192, depth=12, heads=12, prefix="", decoder=96, patch=16):
    """The pre-trained autoencoder on all patches: class tokens, and what the decoder predicts."""
    x = embedded(weights, pixels, width=width, patch=patch, prefix=prefix)
    x = transformer(weights, x, f"{prefix}blocks.", depth=depth, heads=heads)
    x = weights.layer_norm(x, f"{prefix}norm", 1e-6)
    weights(f"{prefix}mask_token", 1, 1, decoder)
    y = weights.linear(x, f"{prefix}decoder_embed", decoder)
    side = int((x.shape[1] - 1) ** 0.5)
    weights[f"{prefix}decoder_pos_embed"] = sincos_positions(decoder, (side, side), first="column").float()[None]
    y = y + weights(f"{prefix}decoder_pos_embed", 1, x.shape[1], decoder)
    y = transformer(weights, y, f"{prefix}decoder_blocks.", depth=1, heads=3)
    y = weights.linear(weights.layer_norm(y, f"{prefix}decoder_norm", 1e-6), f"{prefix}decoder_pred", 3 * patch**2)
    return x[:, 0], y[:, 1:]


def features(converted, pixels):
    with torch.no_grad():
        return converted.model.double().eval()(pixels)


def test_the_released_encoder_with_its_decoder():
    weights = Official()
    with torch.no_grad():
        expected, predictions = mae(weights, images(), prefix="module.model.")
    listed = {name: value for name, value in weights.items() if not re.search(r"decoder_(blocks|norm|pred)", name)}
    assert listing_sha256(listed) == RELEASED
    found = convert(weights, where="file")
    assert (found.card.name, found.card.kwargs["num_heads"]) == ("vit_tiny_patch16_224", 12)
    assert found.card.mean == (0.485, 0.456, 0.406)
    assert_close(features(found, images()), expected)
    assert found.notes[1:] == ("prefix 'module.' removed", "not of the model: decoder; --beside FILE keeps it")
    decoder = Decoder(192, (14, 14), 768)
    decoder.load_state_dict({name.removeprefix("decoder."): value for name, value in found.beside.items()})
    decoder = decoder.double()
    with torch.no_grad():
        tokens = found.model.forward_features(images())
        x = decoder.embed(tokens) + decoder.positions
        assert_close(decoder.predict(decoder.norm(decoder.blocks(x)))[:, 1:], predictions)


def test_the_released_distiller_holds_a_teacher_and_head_maps_too():
    weights = Official()
    with torch.no_grad():
        expected, _ = mae(weights, images(32), width=16, depth=2, heads=2, prefix="module.model.")
        vit(weights, images(32), width=24, depth=1, heads=2, classes=0, prefix="module.tch_model.")
        weights("module.attn_adapter.adapter11.weight", 12, 12, 1, 1)
    found = convert(weights, where="file", name="vit_tiny_patch16_224", kwargs=SMALL)
    assert_close(features(found, images(32)), expected)
    assert found.notes[1:] == (
        "prefix 'module.' removed",
        "not of the model: attn_adapter, decoder, teacher; --beside FILE keeps them",
    )


def test_a_fine_tuned_encoder_pools_its_patches():
    weights = Official()
    with torch.no_grad():
        x = embedded(weights, images(), width=192, patch=16)
        x = transformer(weights, x, "blocks.", depth=12, heads=12)
        x = weights.layer_norm(x[:, 1:].mean(1), "fc_norm", 1e-6)
        expected = weights.linear(x, "head", 100)
    found = convert(weights, where="file", classes=Classes([f"class {number}" for number in range(100)]))
    assert found.card.kwargs == {"num_heads": 12, "global_pool": "avg", "img_size": 224}
    assert_close(features(found, images()), expected)


def moco(weights, pixels, prefix="module."):
    for encoder in ("base_encoder", "momentum_encoder"):
        found = vit(weights, pixels, width=16, depth=2, heads=2, classes=0, prefix=f"{prefix}{encoder}.")
        head = f"{prefix}{encoder}.head"
        y = F.relu(weights.batch_norm(weights.linear(found, f"{head}.0", 32, bias=False), f"{head}.1"))
        y = F.relu(weights.batch_norm(weights.linear(y, f"{head}.3", 32, bias=False), f"{head}.4"))
        weights.linear(y, f"{head}.6", 8, bias=False)
        if encoder == "base_encoder":
            expected = found
    for number in (0, 3):
        weights(f"{prefix}predictor.{number}.weight", 32, 32)
    return expected


def test_the_query_encoder_of_moco_is_taken():
    weights = Official()
    with torch.no_grad():
        expected = moco(weights, images(32))
    found = convert(weights, where="file", name="vit_tiny_patch16_224", kwargs=SMALL)
    assert_close(features(found, images(32)), expected)
    beside = {name.partition(".")[0] for name in found.beside}
    assert beside == {"projector", "predictor", "key_projector", "key_student"}
    assert torch.equal(found.beside["projector.6.weight"], weights["module.base_encoder.head.6.weight"])
    assert found.notes[0].startswith("MoCo-v3: vit_tiny_patch16_224, no classes")


@pytest.mark.parametrize("layout", [MAE, MOCO], ids=["MAE", "MoCo-v3"])
def test_every_rule_of_a_table_is_used(layout):
    weights = Official()
    with torch.no_grad():
        if layout is MAE:
            mae(weights, images(32), width=16, depth=1, heads=2, prefix="model.")
            vit(weights, images(32), width=16, depth=1, heads=2, classes=0, prefix="tch_model.")
        else:
            moco(weights, images(32), prefix="")
    used = {next((rule for rule in layout.renames if re.match(rule[0], name)), None) for name in weights}
    assert used - {None} == set(layout.renames)


MICRO = {"patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2}


@pytest.fixture
def released(tmp_path):
    """A small autoencoder of 32 px as it is released, as safetensors."""
    weights = Official()
    with torch.no_grad():
        mae(weights, images(32), width=16, depth=2, heads=2, prefix="module.model.", patch=4)
    save_file(dict(weights), tmp_path / "released.safetensors")
    return tmp_path / "released.safetensors", weights


def test_a_released_file_is_a_teacher_of_attention_on_other_images(released):
    file, weights = released
    teacher = TeacherConfig(model=ModelConfig(name="vit_tiny_patch16_224", kwargs=MICRO), weights=str(file))
    config = resolve("mae_distilled", *MICRO_MAE, "mae.distill_layers=[2]").model_copy(update={"teacher": teacher})
    with pytest.warns(UserWarning, match="released") as said:
        method = MaskedPretraining.build(config, INFO)
    assert [str(warning.message).removeprefix(f"{file}: ") for warning in said] == [
        "prefix 'module.' removed",
        "positions resampled from 1 x 65 x 16 to 1 x 17 x 16",
        "head.weight, head.bias: left as initialised",
    ]
    found = method._teacher.model.blocks[1].attn.qkv.weight
    assert torch.equal(found, weights["module.model.blocks.1.attn.qkv.weight"])
    batch = Batch(images(16).float(), torch.zeros(2).long(), torch.arange(2))
    assert method(batch, Clock(0, 1, 1)).parts["attention_loss"] > 0


def test_the_command_keeps_the_decoder_where_asked(released, tmp_path, capsys):
    _, weights = released
    torch.save({"model": dict(weights)}, tmp_path / "released.pth.tar")
    given = [f"--set=kwargs.{name}={value}" for name, value in MICRO.items()]
    to, beside = tmp_path / "encoder.safetensors", tmp_path / "decoder.safetensors"
    files = [tmp_path / "released.pth.tar", f"--to={to}", f"--beside={beside}", "--model=vit_tiny_patch16_224"]
    with pytest.raises(SystemExit) as caught:
        run_command(vitutor, ["convert", *map(str, files), *given])
    assert caught.value.code == 0
    assert f"{beside}: 19 tensors" in capsys.readouterr().out
    decoder = Decoder(16, (8, 8), 48)
    decoder.load_state_dict({name.removeprefix("decoder."): value for name, value in load_file(beside).items()})
    assert torch.equal(decoder.embed.weight, weights["module.model.decoder_embed.weight"])
    teacher = load_teacher(TeacherConfig(weights=str(to)), INFO, reads_logits=False)
    assert torch.equal(teacher.model.pos_embed, weights["module.model.pos_embed"])
    with pytest.raises(ConfigError, match="the teacher knows 0 classes"):
        load_teacher(TeacherConfig(weights=str(to)), INFO)


def test_weights_by_their_authors_names_get_their_authors_normalisation(released):
    """timm's of this name is another; converted before or not, a teacher sees the same pixels."""
    file = str(released[0])
    model = ModelConfig(name="vit_tiny_patch16_224", kwargs={**MICRO, "num_classes": 0})
    with pytest.warns(UserWarning, match="released"):
        teacher = load_teacher(TeacherConfig(model=model, weights=file), INFO, reads_logits=False)
    card = convert(load_file(file), where="file", name=model.name, kwargs=MICRO).card
    assert teacher.input["mean"] == list(card.mean) == [0.485, 0.456, 0.406]
    assert teacher.input["std"] == list(card.std) == [0.229, 0.224, 0.225]


def test_weights_by_timms_names_get_timms_normalisation():
    """This package lists the architecture, too, and who has trained these weights is not known."""
    own = timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=16, **MICRO).state_dict()
    card = convert(own, where="file", name="vit_tiny_patch16_224", kwargs=MICRO).card
    assert (card.mean, card.std) == ((0.5,) * 3, (0.5,) * 3)


def test_fine_tuning_starts_from_a_released_file(released):
    file, weights = released
    with pytest.warns(UserWarning, match="released") as said:
        method = MAELite.build(resolve("mae_finetune", f"student.weights={file}", "student.kwargs.mlp_ratio=4"), INFO)
    assert [str(warning.message).removeprefix(f"{file}: ") for warning in said][2:] == [
        "fc_norm.weight, fc_norm.bias, head.weight, head.bias: left as initialised",
        "norm.bias, norm.weight: not used, the model has none",
    ]
    assert torch.equal(method.student.blocks[0].mlp.fc1.weight, weights["module.model.blocks.0.mlp.fc1.weight"])


def test_a_teacher_that_learnt_other_classes_may_teach_attention(tmp_path):
    """Of card and data, only what attention depends on must agree."""
    settings = (*MICRO_MAE, "train.epochs=1", "optim.warmup_epochs=0", "data.fraction=1.0")
    train_row("mae_teacher", tmp_path / "t", *settings, 'data.class_list=["0","1","2"]')
    config = resolve("mae_distilled", *settings, "mae.distill_layers=[2]", f"teacher.weights={tmp_path / 't'}")
    assert MaskedPretraining.build(config, INFO).teachers()["mae"]["name"] == "vit_tiny_patch16_224"
