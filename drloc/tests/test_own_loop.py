"""DRLoc around a model that is at hand: the README's example."""

from __future__ import annotations

from conformance.readme import run_example, trained


def test_the_example_of_the_readme():
    names = run_example("drloc")
    assert trained(names["model"])
    assert trained(names["drloc"])
