"""The drloc command."""

from __future__ import annotations

from vitutor_core.paper import Paper

PAPER = Paper(
    "drloc",
    config="drloc.config:DRLocConfig",
    method="drloc.method:DRLocMethod",
    summary="DRLoc: a dense relative localisation loss beside cross-entropy (NeurIPS 2021).",
    term="drloc.compose:beside",
)
main = PAPER.main
