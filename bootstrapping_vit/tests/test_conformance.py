from __future__ import annotations

from conformance.suite import SHORT_EPOCHS, MethodConformance

SIZES = ("embed_dim=18", "depth=3", "mlp_ratio=2")


class TestBootstrappingViT(MethodConformance):
    """Shared weights with Algorithm 1: an update rule, and tensors that two models use."""

    package = "bootstrapping_vit"
    to_compile = ("method.align=false",)
    beside_the_tables = frozenset({"joint_official_init"})
    micro = (
        "method.mode=shared",
        "train.epochs=3",
        *SHORT_EPOCHS,
        *(f"{model}.kwargs.{size}" for model in ("student", "agent") for size in SIZES),
        "agent.kwargs.down=[0]",
        "agent.kwargs.stem_width=8",
        "runtime.threads=1",
        "runtime.eval_every_epochs=1",
        "runtime.checkpoint_every_epochs=1",
    )
