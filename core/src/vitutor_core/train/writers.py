"""Trackers for TensorBoard, W&B, MLflow, Trackio and DVCLive; see `track`. Each is an extra, imported when it is used.

A resumed run goes on where it was: the x axis is the number of updates, and what a service calls the run is kept in the
run's folder.
"""

from __future__ import annotations

import inspect
import os
import time
import uuid
from pathlib import Path
from typing import Any

from vitutor_core.files import write_text
from vitutor_core.train.track import Facts

_PROJECT = "vitutor"


def _kept(facts: Facts, service: str, make: Any = lambda: uuid.uuid4().hex) -> str:
    """Return what a service calls the run, made the first time."""
    path = facts.folder / f"{service}.id"
    if not path.exists():
        write_text(path, make())
    return path.read_text().strip()


class TensorBoard:
    """Event files in the run's folder; those of steps that a resumption repeats are dropped by TensorBoard."""

    package = "tensorboard"

    def __init__(self, facts: Facts) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(facts.folder / "tensorboard"), purge_step=facts.first_step + 1)

    def log(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class Wandb:
    """A run of the project "vitutor", or of WANDB_PROJECT."""

    package = "wandb"

    def __init__(self, facts: Facts) -> None:
        import wandb

        settings = wandb.Settings(login_timeout=30, init_timeout=60, silent=True, console="off")
        project, key = os.environ.get("WANDB_PROJECT", _PROJECT), _kept(facts, "wandb")
        self._run: Any = wandb.init(
            project=project,
            id=key,
            resume="allow",
            name=facts.name,
            config=dict(facts.config),
            dir=str(facts.folder),
            settings=settings,
        )

    def log(self, step: int, values: dict[str, float]) -> None:
        self._run.log(values, step=step)

    def close(self) -> None:
        self._run.finish()


class MLflow:
    """A run of the experiment "vitutor" at MLFLOW_TRACKING_URI, by default in a database in the run's folder."""

    package = "mlflow"

    def __init__(self, facts: Facts) -> None:
        from mlflow.entities import Param
        from mlflow.tracking import MlflowClient

        where = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{facts.folder.absolute()}/mlflow.db"
        client: Any = MlflowClient(where)
        self._client = client
        experiment = client.get_experiment_by_name(_PROJECT)
        number = client.create_experiment(_PROJECT) if experiment is None else experiment.experiment_id
        self._run = _kept(facts, "mlflow", lambda: client.create_run(number, run_name=facts.name).info.run_id)
        client.update_run(self._run, status="RUNNING")
        if facts.first_step == 0:
            params = [Param(name, str(value)) for name, value in facts.config.items()]
            for start in range(0, len(params), 100):  # at most, in one request
                client.log_batch(self._run, params=params[start : start + 100])

    def log(self, step: int, values: dict[str, float]) -> None:
        from mlflow.entities import Metric

        now = time.time_ns() // 10**6
        self._client.log_batch(self._run, metrics=[Metric(name, value, now, step) for name, value in values.items()])

    def close(self) -> None:
        self._client.set_terminated(self._run)


class Trackio:
    """A run of the local project "vitutor", in a database at TRACKIO_DIR."""

    package = "trackio"

    def __init__(self, facts: Facts) -> None:
        import trackio

        name = f"{facts.name}-{_kept(facts, 'trackio')[:8]}"
        known = inspect.signature(trackio.init).parameters
        resumes = {"resume": "allow"} if "resume" in known else {}
        self._run: Any = trackio.init(project=_PROJECT, name=name, config=dict(facts.config), **resumes)

    def log(self, step: int, values: dict[str, float]) -> None:
        self._run.log(values, step=step)

    def close(self) -> None:
        self._run.finish()


class DVCLive:
    """Metrics and plots in ``dvclive`` below the run's folder; no experiment of DVC is saved."""

    package = "dvclive"

    def __init__(self, facts: Facts) -> None:
        from dvclive import Live

        where: Path = facts.folder / "dvclive"
        self._live: Any = Live(str(where), resume=True, save_dvc_exp=False, dvcyaml=None)

    def log(self, step: int, values: dict[str, float]) -> None:
        self._live.step = step
        for name, value in values.items():
            self._live.log_metric(name, value)
        self._live.make_summary()

    def close(self) -> None:
        self._live.end()
