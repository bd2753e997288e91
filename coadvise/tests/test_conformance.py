from __future__ import annotations

from conformance.suite import SHORT_EPOCHS, MethodConformance


class TestCoadvise(MethodConformance):
    package = "coadvise"
    micro = (
        "train.epochs=3",
        *SHORT_EPOCHS,
        "student.kwargs.embed_dim=32",
        "student.kwargs.depth=2",
        "student.kwargs.drop_path_rate=0.1",
        "runtime.threads=1",
        "runtime.eval_every_epochs=1",
        "runtime.checkpoint_every_epochs=1",
    )
