from __future__ import annotations

import pytest
import torch

from mae_lite_distill.config import MAEConfig
from mae_lite_distill.losses import attention_loss, contrastive_loss, patchify, pixel_loss, unpatchify
from mae_lite_distill.methods.masked import MaskedPretraining
from mae_lite_distill.methods.momentum import momentum
from mae_lite_distill.models import Decoder, LogitBlock, encode, encode_logits, sincos_positions
from mae_lite_distill.models.encoder import masking_of
from mae_lite_distill.tests.mae_samples import PRECISIONS, assert_agrees, load, small_vit, weights_of
from vitutor_core.data.types import DataInfo
from vitutor_core.distill import FrozenTeacher

both_precisions = pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
INFO = DataInfo("x", ("a",) * 7, 20, 3, (0.5,) * 3, (0.25,) * 3, 10, 10, "")


@both_precisions
def test_patchify_and_its_inverse(dtype, tolerance):
    case = load("patchify", dtype)
    assert torch.equal(patchify(case["input.images"], 4), case["expected.patchified"])
    assert torch.equal(unpatchify(case["input.patches"], 4, (3, 3)), case["expected.unpatchified"])


@both_precisions
@pytest.mark.parametrize("kind", ["normalised", "raw"])
def test_pixel_loss(kind, dtype, tolerance):
    case = load(f"pixel_loss_{kind}", dtype)
    predictions = case["input.pred"].requires_grad_()
    patches = patchify(case["input.images"], 4)
    loss = pixel_loss(predictions, patches, case["input.mask"], normalise=kind == "normalised")
    loss.backward()
    assert_agrees(loss.detach(), case["expected.loss"], tolerance)
    assert_agrees(predictions.grad, case["grad.pred"], tolerance)


@pytest.mark.parametrize(("name", "first", "tolerance"), [("mae", "column", 1e-10), ("mocov3", "row", 1e-6)])
def test_sincos_positions(name, first, tolerance):
    case = load(f"sincos_{name}", torch.float64)
    assert_agrees(sincos_positions(12, (5, 5), first=first), case["expected.table"], tolerance)


@both_precisions
def test_encoder_on_visible_tokens(dtype, tolerance):
    case = load("encoder_visible_tokens", dtype)
    vit = small_vit(weights_of(case), heads=3)
    masking = masking_of(case["input.ids_shuffle"], 6)
    encoded = encode(vit, case["input.images"], masking, logits=(0, 1))
    (encoded.tokens * case["input.cotangent"]).sum().backward()
    assert_agrees(encoded.tokens.detach(), case["expected.latent"], tolerance)
    alone = encode_logits(vit, case["input.images"], masking, (0, 1))
    logits = [name for name in case if name.startswith("expected.") and "logits" in name]
    assert len(logits) == 2
    for block, name in enumerate(sorted(logits)):
        assert_agrees(encoded.logits[block].detach(), case[name], max(tolerance, 1e-6))
        assert_agrees(alone[block].detach(), case[name], max(tolerance, 1e-6))
    parameters = dict(vit.named_parameters())
    gradients = {name.removeprefix("grad."): value for name, value in case.items() if name.startswith("grad.")}
    assert gradients
    for name, gradient in gradients.items():
        assert_agrees(parameters[name].grad, gradient, tolerance)


def golden_decoder(case, dtype):
    names = {
        "decoder_embed": "embed",
        "decoder_blocks": "blocks",
        "decoder_norm": "norm",
        "decoder_pred": "predict",
        "mask_token": "mask_token",
    }
    decoder = Decoder(24, (5, 5), 48, width=12, depth=1, heads=3).to(dtype)
    weights = weights_of(case)
    assert_agrees(decoder.positions.double(), weights["decoder_pos_embed"].double(), 1e-6)
    decoder.positions = weights["decoder_pos_embed"]
    renamed = {}
    for name, value in weights.items():
        head, _, rest = name.partition(".")
        if head in names:
            renamed[f"{names[head]}.{rest}".rstrip(".")] = value
    decoder.load_state_dict(renamed)
    return decoder


@both_precisions
def test_decoder(dtype, tolerance):
    case = load("decoder", dtype)
    decoder, latent = golden_decoder(case, dtype), case["input.latent"].requires_grad_()
    masking = masking_of(case["input.ids_restore"].argsort(dim=1), 6)
    assert torch.equal(masking.restore, case["input.ids_restore"])
    predictions = decoder(latent, masking)
    (predictions * case["input.cotangent"]).sum().backward()
    assert_agrees(predictions.detach(), case["expected.pred"], tolerance)
    gradients = {
        "latent": latent.grad,
        "mask_token": decoder.mask_token.grad,
        "decoder_embed.weight": decoder.embed.weight.grad,
        "decoder_pred.bias": decoder.predict.bias.grad,
        "decoder_blocks.0.attn.qkv.weight": decoder.blocks[0].attn.qkv.weight.grad,
    }
    for name, gradient in gradients.items():
        assert_agrees(gradient, case[f"grad.{name}"], tolerance)


@both_precisions
@pytest.mark.parametrize(("name", "layers"), [("", [12]), ("_two_layers", [6, 12])])
def test_attention_loss(name, layers, dtype, tolerance):
    case = load(f"attention_distillation_loss{name}", dtype)
    student = [case[f"input.student_logits_layer{layer}"].requires_grad_() for layer in layers]
    teacher = [case[f"input.teacher_logits_layer{layer}"] for layer in layers]
    maps = [case[f"weight.M_layer{layer}"].requires_grad_() for layer in layers]
    loss = attention_loss(student, teacher, maps)
    loss.backward()
    assert_agrees(loss.detach(), case["expected.loss"], tolerance)
    for place, layer in enumerate(layers):
        assert_agrees(student[place].grad, case[f"grad.student_logits_layer{layer}"], tolerance)
        assert_agrees(maps[place].grad, case[f"grad.M_layer{layer}"], tolerance)


@both_precisions
def test_distillation_step(dtype, tolerance):
    case = load("distillation_step", dtype)
    weights = weights_of(case)
    student = small_vit({n: v for n, v in weights.items() if not n.startswith("teacher.")}, heads=3)
    teacher = small_vit(weights_of(case, "teacher."), heads=4)
    method = MaskedPretraining(
        student,
        golden_decoder(case, dtype),
        MAEConfig(decoder_width=12, distill_layers=(2,)),
        INFO,
        teacher=FrozenTeacher(teacher, name="t", mean=INFO.mean, std=INFO.std, image_size=20, info=INFO),
        maps=torch.nn.ParameterList([torch.nn.Parameter(weights["M"])]),
    )
    output = method.objective(case["input.images"], masking_of(case["input.ids_shuffle"], 6))
    output.loss.backward()
    assert_agrees(output.loss.detach(), case["expected.loss"], tolerance)
    assert_agrees(output.parts["reconstruction_loss"].detach(), case["expected.loss_reconstruction"], tolerance)
    assert_agrees(output.parts["attention_loss"].detach(), case["expected.loss_attention"], tolerance)
    gradients = {name: p.grad for name, p in student.named_parameters() if p.grad is not None}
    gradients |= {
        "M": method.maps[0].grad,
        "mask_token": method.decoder.mask_token.grad,
        "decoder_embed.bias": method.decoder.embed.bias.grad,
    }
    expected = [name for name in case if name.startswith("grad.")]
    assert len(expected) == 8
    for name in expected:
        assert_agrees(gradients[name.removeprefix("grad.")], case[name], tolerance)


@both_precisions
def test_decoupled_encoder(dtype, tolerance):
    case = load("d2_encoder", dtype)
    weights = weights_of(case)
    vit = small_vit({n: v for n, v in weights.items() if not n.startswith("blocks.2.")}, heads=3)
    extra = LogitBlock(24, 3).to(dtype)
    renamed = {name.removeprefix("blocks.2.").removeprefix("attn."): v for name, v in weights.items() if "s.2." in name}
    extra.load_state_dict(renamed)
    encoded = encode(vit, case["input.images"], masking_of(case["input.ids_shuffle"], 6), tokens_after=1)
    assert_agrees(encoded.tokens.detach(), case["expected.latent"], tolerance)
    assert_agrees(extra(encoded.last).detach(), case["expected.logits_last"], tolerance)


@both_precisions
def test_contrastive_loss_and_momentum(dtype, tolerance):
    case = load("mocov3_loss_and_momentum", dtype)
    queries = [case[f"input.q{view}"].requires_grad_() for view in (1, 2)]
    keys = [case[f"input.k{view}"] for view in (1, 2)]
    terms = [contrastive_loss(q, k, temperature=0.2) for q, k in zip(queries, reversed(keys), strict=True)]
    sum(terms).backward()
    assert_agrees(terms[0].detach(), case["expected.ctr_q1_k2"], tolerance)
    assert_agrees(sum(terms).detach(), case["expected.loss"], tolerance)
    for view, query in enumerate(queries, start=1):
        assert_agrees(query.grad, case[f"grad.q{view}"], tolerance)
    found = torch.tensor([momentum(step / 1000, 0.99) for step in case["input.iteration"].tolist()], dtype=dtype)
    assert_agrees(found, case["expected.momentum"], tolerance)
