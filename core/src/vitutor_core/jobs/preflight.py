"""What can be said of a run before its teachers are trained: its data, its models, its first step."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Mapping
from pathlib import Path

from vitutor_core.config import setting
from vitutor_core.data.build import Planned, plan_data
from vitutor_core.data.types import DataInfo
from vitutor_core.distributed import choose_device
from vitutor_core.errors import named
from vitutor_core.models.weights import create_student, save_model
from vitutor_core.paper import load
from vitutor_core.schema import RunConfig
from vitutor_core.train.dry import check_first_step
from vitutor_core.train.method import Method
from vitutor_core.train.session import model_card


def check_run(config: RunConfig, method: str, teachers: Mapping[str, RunConfig]) -> tuple[Method, Planned]:
    """Build the method and make its first step, with untrained models in place of the ``teachers`` that are missing.

    ``teachers`` are the configs of what is trained first, by the path of the teacher. Returns the method and what is
    known of its data. Raises `VitutorError`.
    """
    choose_device(config.runtime.device)
    planned = plan_data(config)
    info = planned.info
    with tempfile.TemporaryDirectory() as folder:
        settings = []
        for path, teacher in teachers.items():
            file = Path(folder) / f"{path}.safetensors"
            with named(f"{path}, the teacher"):
                save_untrained(file, teacher, info)
            settings.append(setting(f"{path}.weights", str(file)))
        built: Method = load(method).build(config.changed(settings), info)
        check_first_step(built, config, info)
    return built, planned


def save_untrained(file: Path, config: RunConfig, info: DataInfo) -> None:
    """Write the student of a config with random weights, as a teacher for images of the classes of ``info``."""
    own = dataclasses.replace(info, image_size=config.data.image_size)
    save_model(file, create_student(config.student, own), model_card(config, own, "untrained", {}))
