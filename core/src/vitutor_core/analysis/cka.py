"""Centred kernel alignment between the layers of two models (Nguyen et al., ICLR 2021, arXiv 2010.15327)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vitutor_core.errors import ConfigError


class MinibatchCKA:
    """Linear CKA of every layer of a first model with every layer of a second one, over batches of the same images.

    Each of the three HSIC terms is averaged over the batches before the ratio is taken; averaging ratios would be
    biased. Grams are float64, since they are sums of many products.
    """

    def __init__(self) -> None:
        self._sums: tuple[Tensor, Tensor, Tensor] | None = None
        self._batches = 0

    def add(self, first: Sequence[Tensor], second: Sequence[Tensor]) -> None:
        """Add a batch: features (n, ...) by layer of both models, of the same n images.

        Raises `ConfigError` for fewer than four images: the unbiased estimator divides by n - 3.
        """
        grams = _grams(first), _grams(second)
        terms = (hsic(grams[0], grams[1]), _own(grams[0]), _own(grams[1]))
        if self._sums is None:
            self._sums = terms
        else:
            self._sums = tuple(a + b for a, b in zip(self._sums, terms, strict=True))  # type: ignore[assignment]
        self._batches += 1

    def terms(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return the mean HSIC between the models (L1, L2), and of each model's layers with themselves (L1,), (L2,)."""
        if self._sums is None:
            raise ConfigError("CKA: no batch was added")
        between, first, second = (value / self._batches for value in self._sums)
        return between, first, second

    def result(self) -> Tensor:
        """Return the CKA matrix (L1, L2), float64; NaN where a layer's own mean HSIC is not positive."""
        between, first, second = self.terms()
        return between / (first.sqrt()[:, None] * second.sqrt()[None])


def hsic(first: Tensor, second: Tensor) -> Tensor:
    """Return the unbiased HSIC_1 of Gram matrices (A, n, n) and (B, n, n) with zero diagonals: (A, B).

    Song et al. (JMLR 2012), eq. 5.
    """
    n = first.shape[-1]
    trace = torch.einsum("aij,bij->ab", first, second)
    rows = first.sum(-1), second.sum(-1)
    totals = rows[0].sum(-1)[:, None] * rows[1].sum(-1)[None]
    mixed = rows[0] @ rows[1].T
    return (trace + totals / ((n - 1) * (n - 2)) - 2 * mixed / (n - 2)) / (n * (n - 3))


def _own(grams: Tensor) -> Tensor:
    return torch.stack([hsic(gram[None], gram[None])[0, 0] for gram in grams])


def _grams(layers: Sequence[Tensor]) -> Tensor:
    """Return the linear Grams (L, n, n) without their diagonals."""
    if min(len(features) for features in layers) < 4:
        raise ConfigError("CKA: needs at least 4 images in a batch; raise --batch")
    flat = (features.flatten(1).double() for features in layers)
    grams = torch.stack([features @ features.T for features in flat])
    grams.diagonal(dim1=1, dim2=2).zero_()
    return grams
