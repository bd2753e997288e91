"""Published networks written down slowly, by the names of their authors: a forward pass draws the weights it asks for.

So the state dict of a checkpoint and its logits come from one text, which knows nothing of our names or models.
"""

from __future__ import annotations

import hashlib
import math
from itertools import product

import torch
from torch import Tensor
from torch.nn import functional as F


class Official(dict):
    """A state dict that grows as a forward pass asks for weights; computed with in double precision."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, name: str, *shape: int) -> Tensor:
        if name not in self:
            value = torch.randn(shape, generator=self.generator)
            if name.endswith("running_var"):
                value = value.abs() + 0.5
            elif len(shape) > 1:
                value = value / math.sqrt(math.prod(shape[1:]))
            elif name.endswith("weight"):
                value = 1 + 0.1 * value
            self[name] = value
        assert self[name].shape == shape
        return self[name].double()

    def linear(self, x: Tensor, name: str, out: int, *, bias: bool = True) -> Tensor:
        weight = self(f"{name}.weight", out, x.shape[-1])
        return F.linear(x, weight, self(f"{name}.bias", out) if bias else None)

    def conv(self, x, name, out, kernel, *, stride=1, padding=0, groups=1, bias=True) -> Tensor:
        weight = self(f"{name}.weight", out, x.shape[1] // groups, kernel, kernel)
        return F.conv2d(x, weight, self(f"{name}.bias", out) if bias else None, stride, padding, groups=groups)

    def batch_norm(self, x: Tensor, name: str) -> Tensor:
        mean, variance, weight, bias = (
            self(f"{name}.{part}", x.shape[1]) for part in ("running_mean", "running_var", "weight", "bias")
        )
        self[f"{name}.num_batches_tracked"] = torch.tensor(7)
        return F.batch_norm(x, mean, variance, weight, bias, eps=1e-5)

    def layer_norm(self, x: Tensor, name: str, eps: float) -> Tensor:
        width = x.shape[-1]
        return F.layer_norm(x, (width,), self(f"{name}.weight", width), self(f"{name}.bias", width), eps)


def listing_sha256(tensors: dict[str, Tensor]) -> str:
    """Of the names and shapes, sorted, a line each: the digests in the tests are those of released files."""
    lines = sorted(f"{name} {list(value.shape)}" for name, value in tensors.items())
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int, scale: float, bias: Tensor | float = 0.0) -> Tensor:
    """Attention of (B, N, D), the channels of a head side by side."""
    parts = [part.unflatten(2, (heads, -1)).transpose(1, 2) for part in (q, k, v)]
    logits = parts[0] @ parts[1].transpose(2, 3) * scale + bias
    return (logits.softmax(-1) @ parts[2]).transpose(1, 2).flatten(2)


TIMM = {"qkv": "attn.qkv", "proj": "attn.proj", "fc1": "mlp.fc1", "fc2": "mlp.fc2"}


def transformer(w, x, prefix, *, depth, heads, eps=1e-6, mlp=4, names=TIMM, qkv_bias=True, scale=None):
    """The blocks of a ViT with pre-norm; ``prefix`` is what precedes the number of a block."""
    width = x.shape[-1]
    for index in range(depth):
        block = f"{prefix}{index}"
        normed = w.layer_norm(x, f"{block}.norm1", eps)
        q, k, v = w.linear(normed, f"{block}.{names['qkv']}", 3 * width, bias=qkv_bias).chunk(3, -1)
        mixed = attend(q, k, v, heads, scale or (width // heads) ** -0.5)
        x = x + w.linear(mixed, f"{block}.{names['proj']}", width)
        hidden = F.gelu(w.linear(w.layer_norm(x, f"{block}.norm2", eps), f"{block}.{names['fc1']}", mlp * width))
        x = x + w.linear(hidden, f"{block}.{names['fc2']}", width)
    return x


def embedded(w, images, *, width, patch, prefix="", tokens=("cls_token",)):
    """Patches and the tokens in front of them, with positions."""
    patches = w.conv(images, f"{prefix}patch_embed.proj", width, patch, stride=patch).flatten(2).transpose(1, 2)
    first = [w(f"{prefix}{name}", 1, 1, width).expand(len(images), -1, -1) for name in tokens]
    x = torch.cat([*first, patches], dim=1)
    return x + w(f"{prefix}pos_embed", 1, x.shape[1], width)


def vit(w, images, *, width=192, depth=12, heads=3, patch=16, classes=1000, prefix="", distilled=False):
    """DeiT, also the distilled one, whose two heads are averaged; without classes the class token."""
    tokens = ("cls_token", "dist_token") if distilled else ("cls_token",)
    x = embedded(w, images, width=width, patch=patch, prefix=prefix, tokens=tokens)
    x = transformer(w, x, f"{prefix}blocks.", depth=depth, heads=heads)
    x = w.layer_norm(x, f"{prefix}norm", 1e-6)
    if not classes:
        return x[:, 0]
    logits = w.linear(x[:, 0], f"{prefix}head", classes)
    return (logits + w.linear(x[:, 1], f"{prefix}head_dist", classes)) / 2 if distilled else logits


def involution(w, x, name, kernel, stride=1):
    """As OpenMMLab has it: conv1 reduces, conv2 makes a kernel of each position for every 16 channels."""
    channels = x.shape[1]
    pooled = F.avg_pool2d(x, stride) if stride > 1 else x
    hidden = w.conv(pooled, f"{name}.conv1.conv", channels // 4, 1, bias=False)
    hidden = w.batch_norm(hidden, f"{name}.conv1.bn").relu()
    kernels = w.conv(hidden, f"{name}.conv2.conv", channels // 16 * kernel**2, 1)
    kernels = kernels.unflatten(1, (channels // 16, 1, kernel**2))
    windows = F.unfold(x, kernel, padding=kernel // 2, stride=stride)
    windows = windows.view(len(x), channels // 16, 16, kernel**2, *kernels.shape[-2:])
    return (windows * kernels).sum(3).flatten(1, 2)


def involution_stem(w, images, name):
    x = w.batch_norm(w.conv(images, f"{name}.0.conv", 32, 3, stride=2, padding=1, bias=False), f"{name}.0.bn").relu()
    x = w.batch_norm(involution(w, x, f"{name}.1", 3), f"{name}.2").relu()
    return w.batch_norm(w.conv(x, f"{name}.4.conv", 64, 3, padding=1, bias=False), f"{name}.4.bn").relu()


def rednet(w, images, *, blocks=(1, 2, 4, 1), classes=1000):
    x = F.max_pool2d(involution_stem(w, images, "backbone.stem"), 3, 2, 1)
    for stage, count in enumerate(blocks, 1):
        width = 32 * 2**stage
        for index in range(count):
            name, stride = f"backbone.layer{stage}.{index}", 2 if index == 0 and stage > 1 else 1
            y = w.batch_norm(w.conv(x, f"{name}.conv1", width, 1, bias=False), f"{name}.bn1").relu()
            y = w.batch_norm(involution(w, y, f"{name}.conv2", 7, stride), f"{name}.bn2").relu()
            y = w.batch_norm(w.conv(y, f"{name}.conv3", 4 * width, 1, bias=False), f"{name}.bn3")
            if index == 0:
                shortcut = w.conv(x, f"{name}.downsample.0", 4 * width, 1, stride=stride, bias=False)
                x = w.batch_norm(shortcut, f"{name}.downsample.1")
            x = (x + y).relu()
    return w.linear(x.mean((2, 3)), "head.fc", classes)


def cvt(w, images, *, widths=(64, 192, 384), depths=(1, 2, 10), classes=1000):
    x = images
    for stage, (width, depth) in enumerate(zip(widths, depths, strict=True)):
        name, kernel = f"stage{stage}", 7 if stage == 0 else 3
        x = w.conv(x, f"{name}.patch_embed.proj", width, kernel, stride=4 if stage == 0 else 2, padding=kernel // 3)
        grid = x.shape[-2:]
        tokens = w.layer_norm(x.flatten(2).transpose(1, 2), f"{name}.patch_embed.norm", 1e-5)
        first = tokens[:, :0]
        if stage == 2:
            first = w(f"{name}.cls_token", 1, 1, width).expand(len(x), -1, -1)
        tokens = torch.cat([first, tokens], dim=1)
        for index in range(depth):
            block = f"{name}.blocks.{index}"
            normed = w.layer_norm(tokens, f"{block}.norm1", 1e-5)
            first, cells = normed[:, : first.shape[1]], normed[:, first.shape[1] :]
            cells = cells.transpose(1, 2).unflatten(2, grid)
            qkv = []
            for part in "qkv":
                at = f"{block}.attn.conv_proj_{part}"
                stride = 1 if part == "q" else 2
                y = w.conv(cells, f"{at}.conv", width, 3, stride=stride, padding=1, groups=width, bias=False)
                y = w.batch_norm(y, f"{at}.bn").flatten(2).transpose(1, 2)
                qkv.append(w.linear(torch.cat([first, y], dim=1), f"{block}.attn.proj_{part}", width))
            mixed = attend(*qkv, (1, 3, 6)[stage], width**-0.5)
            tokens = tokens + w.linear(mixed, f"{block}.attn.proj", width)
            hidden = w.linear(w.layer_norm(tokens, f"{block}.norm2", 1e-5), f"{block}.mlp.fc1", 4 * width)
            tokens = tokens + w.linear(hidden * torch.sigmoid(1.702 * hidden), f"{block}.mlp.fc2", width)
        x = tokens[:, first.shape[1] :].transpose(1, 2).unflatten(2, grid)
    return w.linear(w.layer_norm(tokens, "norm", 1e-5)[:, 0], "head", classes)


def t2t(w, images, *, classes=1000):
    x = images
    for number, (kernel, stride) in enumerate(((7, 4), (3, 2)), 1):
        name = f"tokens_to_token.attention{number}"
        side = x.shape[-1] // stride
        tokens = F.unfold(x, kernel, padding=kernel // 2 - (kernel == 7), stride=stride).transpose(1, 2)
        k, q, v = w.linear(w.layer_norm(tokens, f"{name}.norm1", 1e-5), f"{name}.kqv", 192).chunk(3, -1)
        features = w(f"{name}.w", 32, 64)
        q, k = (torch.exp(y @ features.T - (y * y).sum(-1, keepdim=True) / 2) / 32**0.5 for y in (q, k))
        scores = q @ k.transpose(1, 2)
        mixed = scores @ v / (scores.sum(-1, keepdim=True) + 1e-8)
        tokens = v + w.linear(mixed, f"{name}.proj", 64)
        hidden = F.gelu(w.linear(w.layer_norm(tokens, f"{name}.norm2", 1e-5), f"{name}.mlp.0", 64))
        tokens = tokens + w.linear(hidden, f"{name}.mlp.2", 64)
        x = tokens.transpose(1, 2).unflatten(2, (side, side))
    x = w.linear(F.unfold(x, 3, padding=1, stride=2).transpose(1, 2), "tokens_to_token.project", 384)
    x = torch.cat([w("cls_token", 1, 1, 384).expand(len(x), -1, -1), x], dim=1)
    x = x + w("pos_embed", 1, x.shape[1], 384)
    x = transformer(w, x, "blocks.", depth=14, heads=6, eps=1e-5, mlp=3, qkv_bias=False, scale=384**-0.5)
    return w.linear(w.layer_norm(x, "norm", 1e-5)[:, 0], "head", classes)


def swin(w, images, *, width, depths, heads, window, classes):
    """Windows are cut one by one, and what a shifted one must not see is found cell by cell."""
    x = w.conv(images, "patch_embed.proj", width, 4, stride=4).permute(0, 2, 3, 1)
    x = w.layer_norm(x, "patch_embed.norm", 1e-5)
    for stage, depth in enumerate(depths):
        side, dim = x.shape[1], x.shape[-1]
        size = min(window, side)
        cells = list(product(range(size), range(size)))
        index = torch.tensor(
            [[(a - c + size - 1) * (2 * size - 1) + b - d + size - 1 for c, d in cells] for a, b in cells]
        )
        for number in range(depth):
            block = f"layers.{stage}.blocks.{number}"
            shift = size // 2 if number % 2 and size < side else 0
            table = w(f"{block}.attn.relative_position_bias_table", (2 * size - 1) ** 2, heads[stage])
            w[f"{block}.attn.relative_position_index"] = index
            bias = table[index].permute(2, 0, 1)
            rolled = w.layer_norm(x, f"{block}.norm1", 1e-5).roll((-shift, -shift), (1, 2))
            mixed = torch.empty_like(rolled)
            for top, left in product(range(0, side, size), repeat=2):
                # After the roll, the last rows and columns come from the other side.
                wraps = [(top + a >= side - shift, left + b >= side - shift) if shift else 0 for a, b in cells]
                apart = torch.tensor([[0.0 if one == other else -100.0 for other in wraps] for one in wraps])
                part = rolled[:, top : top + size, left : left + size].flatten(1, 2)
                q, k, v = w.linear(part, f"{block}.attn.qkv", 3 * dim).chunk(3, -1)
                scale = (dim // heads[stage]) ** -0.5
                seen = attend(q, k, v, heads[stage], scale, bias + apart.double())
                mixed[:, top : top + size, left : left + size] = seen.unflatten(1, (size, size))
            if shift:
                w[f"{block}.attn_mask"] = torch.zeros((side // size) ** 2, size**2, size**2)
            x = x + w.linear(mixed.roll((shift, shift), (1, 2)), f"{block}.attn.proj", dim)
            hidden = F.gelu(w.linear(w.layer_norm(x, f"{block}.norm2", 1e-5), f"{block}.mlp.fc1", 4 * dim))
            x = x + w.linear(hidden, f"{block}.mlp.fc2", dim)
        if stage < len(depths) - 1:
            corners = [x[:, row::2, column::2] for column, row in product((0, 1), repeat=2)]
            merged = w.layer_norm(torch.cat(corners, -1), f"layers.{stage}.downsample.norm", 1e-5)
            x = w.linear(merged, f"layers.{stage}.downsample.reduction", 2 * dim, bias=False)
    return w.linear(w.layer_norm(x, "norm", 1e-5).mean((1, 2)), "head", classes)


def assert_close(found, expected):
    """Compare outputs in fp64, of which neither may be constant."""
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    assert expected.std() > 1e-3
