"""Co-advise's stages beside its rows: accuracy on ImageNet-A and -R and the error on -C, of Tables 1 and 9."""

from __future__ import annotations

from collections.abc import Iterator

from vitutor_core.graph.code import code_fingerprint
from vitutor_core.graph.stages import Stage
from vitutor_core.recipe import read_recipe, recipe_path


def stages(scale: str) -> Iterator[Stage]:
    """Yield a stage per row that the scale's recipe names under ``robustness``."""
    for row in read_recipe(recipe_path("coadvise", scale)).robustness:
        out = f"robustness/coadvise/{row}"
        plan = f"results/plan/stages/coadvise_robustness-{row}.json"
        yield Stage(
            name="coadvise_robustness",
            item=row,
            command=f"coadvise robustness results/runs/coadvise/{row} --plan {plan} --out results/{out}",
            outs=(out,),
            rows=(row,),
            group="robustness",
            folders=("imagenet-a", "imagenet-r", "imagenet-c"),
            plan={"code": code_fingerprint(["coadvise.robustness"], without=frozenset({"report", "cli"}))},
        )
