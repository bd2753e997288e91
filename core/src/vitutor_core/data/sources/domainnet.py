"""DomainNet (Peng et al., ICCV 2019, arXiv 1812.01754): six domains as folders, with the official list files.

``<data root>/domainnet`` holds ``<domain>_train.txt`` and ``<domain>_test.txt``, whose lines are
``<domain>/<class>/<file> <label>``, and the folders of images that these name.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from vitutor_core.config import nearest
from vitutor_core.data.sources.images import file_split
from vitutor_core.data.sources.locate import data_root, require_folder
from vitutor_core.data.sources.statistics import IMAGENET
from vitutor_core.data.types import Source, Split
from vitutor_core.errors import ConfigError, DataError

IMAGES = {
    "clipart": (33_525, 14_604),
    "infograph": (36_023, 15_582),
    "painting": (50_416, 21_850),
    "quickdraw": (120_750, 51_750),
    "real": (120_906, 52_041),
    "sketch": (48_212, 20_916),
}
"""Training and test images of the official lists; clipart and painting are those of the cleaned release."""
NUM_CLASSES = 345


def domainnet_source(domain: str) -> Source:
    """Open a domain; evaluation is its test list.

    Raises `ConfigError` if there is no such domain, and `DataError` if a list is not the official one, by its number of
    images and classes, or if a file is missing.
    """
    if domain not in IMAGES:
        raise ConfigError(f"data.source: no domainnet:{domain}{nearest(domain, IMAGES)}; valid: {', '.join(IMAGES)}")
    root = data_root() / "domainnet"
    require_folder(root, f"{domain}_train.txt, {domain}_test.txt and the folder {domain}")
    names: dict[int, str] = {}
    train, evaluation = (
        _read_list(root, f"{domain}_{split}.txt", expected, names)
        for split, expected in zip(("train", "test"), IMAGES[domain], strict=True)
    )
    if sorted(names) != list(range(NUM_CLASSES)):
        raise DataError(f"{root}: the lists of {domain} name {len(names)} classes, DomainNet has {NUM_CLASSES}")
    class_names = tuple(names[label] for label in range(NUM_CLASSES))
    return Source(f"domainnet:{domain}", class_names, *IMAGENET, train, evaluation)


def _read_list(root: Path, name: str, expected: int, names: dict[int, str]) -> Split:
    """Read a list, and add the classes that its lines name to ``names``."""
    path = root / name
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise DataError(f"{path}: {reason}; put DomainNet's official list there") from None
    if len(lines) != expected:
        raise DataError(f"{path}: {len(lines)} images, the official list has {expected}; download it again")
    images, labels = [], []
    for number, line in enumerate(lines, start=1):
        file, _, label = line.rpartition(" ")
        parts = Path(file).parts
        if len(parts) != 3 or ".." in parts or Path(file).is_absolute() or not label.isdigit():
            raise DataError(f"{path}, line {number}: expected '<domain>/<class>/<file> <label>'; download it again")
        if names.setdefault(int(label), parts[1]) != parts[1]:
            raise DataError(f"{path}, line {number}: label {label} is {parts[1]} here and {names[int(label)]} before")
        images.append(file)
        labels.append(int(label))
    return file_split(root, images, np.array(labels, dtype=np.int64))
