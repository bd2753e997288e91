"""DRLoc (Liu et al., NeurIPS 2021, arXiv 2106.03746): a dense relative localisation loss for any backbone.

from drloc import DRLoc
drloc = DRLoc(model)                  # any timm model; give drloc.parameters() to the optimiser too
out = drloc(model, images)            # one forward pass
loss = F.cross_entropy(out.logits, labels) + 0.5 * out.loss
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vitutor_core.lazy import lazily

if TYPE_CHECKING:
    from drloc.compose import WithDRLoc
    from drloc.config import LossConfig
    from drloc.localise import DRLoc

__all__ = ["DRLoc", "LossConfig", "WithDRLoc"]
__version__ = "0.1.0"

__getattr__ = lazily(__name__, {"DRLoc": "drloc.localise", "LossConfig": "drloc.config", "WithDRLoc": "drloc.compose"})
