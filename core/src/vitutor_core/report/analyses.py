"""The figures of `vitutor analyze` in a paper's report, copied as they were drawn."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from vitutor_core.report.drawing import Picture


def analysis_pictures(results: Path, folder: Path) -> list[Picture]:
    """Copy the figures of the analyses ``<name>/`` below ``results`` into ``folder``.

    A model that several analyses look at is shown once.
    """
    pictures: dict[str, Picture] = {}
    for path in sorted(results.glob("*/analysis.json")):
        for entry in json.loads(path.read_text())["pictures"]:
            if entry["title"] in pictures:
                continue
            light, dark = (folder / f"{path.parent.name}-{entry['file']}{suffix}.png" for suffix in ("", "-dark"))
            for file, suffix in ((light, ""), (dark, "-dark")):
                shutil.copyfile(path.parent / f"{entry['file']}{suffix}.png", file)
            pictures[entry["title"]] = Picture(light, dark, entry["title"], entry["caption"], entry["alt"])
    return list(pictures.values())
