"""The figures of `vitutor analyze` and `vitutor agreement` in a paper's report, copied as they were drawn."""

from __future__ import annotations

import json
from pathlib import Path

from vitutor_core.errors import DataError
from vitutor_core.files import copy_file
from vitutor_core.report.drawing import Picture


def analysis_pictures(results: Path, folder: Path) -> list[Picture]:
    """Copy the figures of the analyses ``<name>/`` below ``results`` into ``folder``.

    A model that several analyses look at is shown once. Raises `DataError` for an analysis that cannot be read.
    """
    pictures: dict[str, Picture] = {}
    for path in sorted(results.glob("*/analysis.json")):
        try:
            entries = json.loads(path.read_text())["pictures"]
            texts = [[str(entry[key]) for key in ("file", "title", "caption", "alt")] for entry in entries]
        except (OSError, ValueError, LookupError, TypeError, RecursionError):
            raise DataError(f"{path.absolute()}: not readable; run the command that made it again") from None
        for file, title, caption, alt in texts:
            drawn = path.parent / Path(file).name
            if title not in pictures:
                pictures[title] = Picture(folder / f"{path.parent.name}-{drawn.name}", title, caption, alt)
                copy_file(drawn, pictures[title].path)
    return list(pictures.values())
