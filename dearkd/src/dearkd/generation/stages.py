"""DearKD's stages beside its rows: the sets of generated images, and how different their images are."""

from __future__ import annotations

from collections.abc import Iterator

from dearkd.config import DearKDConfig
from dearkd.generation.config import GenerationConfig
from vitutor_core.config import fingerprinted_fields
from vitutor_core.graph.code import MEASURING, code_fingerprint
from vitutor_core.graph.stages import Stage
from vitutor_core.recipe import read_recipe, recipe_path, resolve

_RUNS = "results/runs/dearkd/"


def stages(scale: str) -> Iterator[Stage]:
    """Yield a stage per set of images that the scale's recipe for generation has, and one that measures them."""
    path = recipe_path("dearkd", f"generation/{scale}")
    if not path.exists():
        return
    code = code_fingerprint(["dearkd.generation.generate", "dearkd.method"], without=MEASURING)
    sets = list(read_recipe(path).rows)
    for name in sets:
        config = resolve(GenerationConfig, path, row=name)
        rival = config.competitor
        yield Stage(
            name="dearkd_generate",
            item=name,
            command=f"dearkd generate {name} --scale {scale} --plan results/plan",
            outs=(f"generated/{name}",),
            rows=(rival.removeprefix(_RUNS).partition("/")[0],) if rival is not None else (),
            teachers=(config.teacher.recipe,) if config.teacher.recipe is not None else (),
            plan={"code": code, "config": fingerprinted_fields(config)},
        )
    source = resolve(DearKDConfig, recipe_path("dearkd", scale)).data.source
    yield Stage(
        name="dearkd_diversity",
        item="images",
        command=f"dearkd diversity --scale {scale} --lpips auto --plan results/plan",
        outs=tuple(f"evaluation/dearkd/images_{name}" for name in ("real", *sets)),
        rows=("vit",),
        sources=(source,),
        inputs=tuple(f"generated/{name}" for name in sets),
        plan={"code": code_fingerprint(["dearkd.generation.measure"])},
    )
