"""The config of ``dearkd generate``: the teacher, the images, the objective and its schedule."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import model_validator

from vitutor_core.config import Config, fingerprinted, runtime
from vitutor_core.schema import LARGE, MANY, Beta, Seed, TeacherConfig


class TermsConfig(Config):
    """Weights of eq. 8 and the settings of its terms; a weight of 0 leaves a term out.

    The defaults are the paper's, at ImageNet's size, for plain inversion. What the paper leaves open is said in
    docs/fidelity/dearkd.md.
    """

    label: float = fingerprinted(1.0, help="Cross-entropy with the assigned class", ge=0, le=LARGE)
    total_variation: float = fingerprinted(1e-4, help="TV, a norm over the batch", ge=0, le=LARGE)
    l2: float = fingerprinted(1e-5, help="Norm of an image", ge=0, le=LARGE)
    bn: float = fingerprinted(5e-2, help="R_BN, the batch-norm statistics", ge=0, le=LARGE)
    first_bn: float = fingerprinted(10.0, help="R_BN: factor of the first batch norm", ge=0, le=LARGE)
    easiest_positive: float = fingerprinted(0.0, help="L_ep, eq. 11; the paper: 50", ge=0, le=LARGE)
    triplet: float = fingerprinted(0.0, help="L_triplet, eq. 12; the paper: 0.5", ge=0, le=LARGE)
    margin: float = fingerprinted(0.3, help="L_triplet: margin", ge=0, le=LARGE)
    normalise_latents: bool = fingerprinted(True, help="L_ep, L_triplet: unit length before distances")
    competition: float = fingerprinted(
        0.0, help="Adaptive inversion: weight of the disagreement with a student", ge=0, le=LARGE
    )
    temperature: float = fingerprinted(3.0, help="Competition: temperature", gt=0, le=LARGE)


class PhaseConfig(Config):
    """One phase of the optimisation, with an optimiser of its own."""

    iterations: int = fingerprinted(help="Iterations", ge=1, le=MANY)
    lr: float = fingerprinted(help="Peak learning rate of Adam", gt=0, le=LARGE)
    shrink: int = fingerprinted(1, help="The teacher sees the images at 1 / shrink of their side", ge=1, le=64)
    schedule: Literal["cosine", "constant"] = fingerprinted("cosine", help="Learning rate after the warm-up")
    warmup: int = fingerprinted(100, help="Cosine: iterations of linear warm-up", ge=0, le=MANY)


class GenerationRuntimeConfig(Config):
    """What does not change the images."""

    device: str = runtime("auto", help="Device: auto, cpu, cuda or cuda:N")
    threads: int | None = runtime(None, help="CPU threads of torch; null: torch's default", ge=1, le=4096)
    log_every: int = runtime(100, help="Iterations between two lines of a batch's log", ge=1, le=MANY)


class GenerationConfig(Config):
    """Everything that a set of generated images needs."""

    seed: Seed = fingerprinted(0, help="Seed of the classes, the first noise and the jitter")
    teacher: TeacherConfig = fingerprinted(help="The network that is inverted; it must have batch norms")
    competitor: str | None = runtime(
        None, help="Adaptive inversion: run folder of the student to disagree with (fingerprinted: its sha256)"
    )
    num_images: int = fingerprinted(
        help="How many images, a multiple of a batch; the paper does not say", ge=1, le=MANY
    )
    classes_per_batch: int = fingerprinted(6, help="Classes in a batch", ge=1, le=10**5)
    images_per_class: int = fingerprinted(7, help="Images of each of them", ge=1, le=10**5)
    grey: bool = fingerprinted(False, help="One plane of pixels for all channels, for grey data")
    phases: tuple[PhaseConfig, ...] = fingerprinted(
        (
            PhaseConfig(iterations=2000, lr=0.5, shrink=2),
            PhaseConfig(iterations=2000, lr=0.01),
        ),
        help="Phases in their order",
    )
    low_resolution: Literal["view", "own"] = fingerprinted(
        "view",
        help="Images of phases that shrink; view: the full-size images, averaged; own: small images, enlarged for "
        "the next phase",
    )
    betas: tuple[Beta, Beta] = fingerprinted((0.5, 0.9), help="Adam's betas")
    jitter: int = fingerprinted(30, help="Images are rolled by up to this many pixels of full size", ge=0, le=8192)
    flip: float = fingerprinted(0.5, help="Probability of mirroring the batch", ge=0, le=1)
    clamp: bool = fingerprinted(True, help="Keep pixels in [0, 1] after every iteration")
    terms: TermsConfig = fingerprinted(TermsConfig(), help="The objective")
    diversity_pairs: int = fingerprinted(
        4, help="Same-class pairs, per class, that diversity is measured with", ge=1, le=10**6
    )
    runtime: GenerationRuntimeConfig = runtime(GenerationRuntimeConfig(), help="What does not change the images")

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        if self.num_images % self.batch_size:
            below = max(self.num_images // self.batch_size, 1) * self.batch_size
            raise ValueError(
                f"num_images is {self.num_images}, not a multiple of a batch of {self.batch_size} "
                f"(classes_per_batch x images_per_class); take {below} or {below + self.batch_size}"
            )
        if not self.phases or self.phases[-1].shrink != 1:
            raise ValueError("phases: the last one must have shrink 1")
        if (self.terms.competition > 0) != (self.competitor is not None):
            raise ValueError("terms.competition and competitor go together: give both, or neither")
        if (self.terms.easiest_positive > 0 or self.terms.triplet > 0) and self.images_per_class == 1:
            raise ValueError("terms.easiest_positive and terms.triplet need two images per class in a batch")
        return self

    @property
    def batch_size(self) -> int:
        return self.classes_per_batch * self.images_per_class

    @property
    def num_batches(self) -> int:
        return self.num_images // self.batch_size

    @property
    def iterations(self) -> int:
        """Iterations of one batch, over all phases."""
        return sum(phase.iterations for phase in self.phases)
