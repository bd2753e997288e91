from __future__ import annotations

from conformance.suite import SHORT_EPOCHS, MethodConformance


class TestDearKD(MethodConformance):
    package = "dearkd"
    micro = (
        "train.epochs=3",
        *SHORT_EPOCHS,
        "student.kwargs.embed_dim=32",
        "student.kwargs.depth=3",
        "student.kwargs.mhca_blocks=2",
        "student.kwargs.drop_path_rate=0.1",
        "method.pairs=[[1, layer2], [2, layer3]]",
        "method.stage1_epochs=2",
        "runtime.threads=1",
        "runtime.eval_every_epochs=1",
        "runtime.checkpoint_every_epochs=1",
    )
