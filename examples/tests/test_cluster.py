"""The cluster's files, with stand-ins for SLURM's commands and for the run that they start."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from ruamel.yaml import YAML

FILES = Path(__file__).parents[1] / "cluster"


def stand_in(folder, name, text):
    path = folder / name
    path.write_text(f"#!/usr/bin/env bash\n{text}\n")
    path.chmod(0o755)


def submit(folder, file, *arguments, srun="", **variables):
    """Run a job's file as SLURM would; return it, and what it has asked SLURM for."""
    stand_in(folder, "srun", srun or 'echo "$@"')
    stand_in(folder, "scontrol", 'if [ "$1" = show ]; then echo "node1"; echo "node2"; else echo "$@" >> asked; fi')
    environment = {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}", "SLURM_JOB_ID": "7", **variables}
    done = subprocess.run(
        ["bash", FILES / file, *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    asked = folder / "asked"
    return done, asked.read_text() if asked.exists() else ""


@pytest.mark.parametrize(
    ("code", "again"), [(0, False), (138, True), (143, True), (1, False), (2, False), (137, False)]
)
@pytest.mark.parametrize("file", ["train.sbatch", "sweep.sbatch"])
def test_a_job_that_was_saved_is_queued_again_and_no_other(tmp_path, file, code, again):
    variables = {"SLURM_JOB_NODELIST": "node[1-2]", "SLURM_ARRAY_TASK_ID": "0", "ROWS": "vit", "SEEDS": "0"}
    done, asked = submit(tmp_path, file, "dearkd", "digits", srun=f"exit {code}", **variables)
    assert done.returncode == code
    assert asked == ("requeue 7\n" if again else "")
    assert done.stderr == ""


def test_each_task_of_a_job_knows_its_place(tmp_path):
    # srun sets these for each task; the stand-in is the second of two.
    task = 'while [ "$1" != bash ]; do shift; done; SLURM_PROCID=1 SLURM_LOCALID=1 SLURM_NTASKS=2 "$@"'
    stand_in(tmp_path, "dearkd", 'echo "$RANK $LOCAL_RANK $WORLD_SIZE $MASTER_ADDR $MASTER_PORT $@"')
    done, _ = submit(tmp_path, "train.sbatch", "dearkd", "train", "--out", "a b", srun=task, SLURM_JOB_NODELIST="n")
    assert done.stdout == "1 1 2 node1 20007 train --out a b\n"


def test_an_array_goes_through_all_rows_and_seeds(tmp_path):
    started = []
    for task in range(6):
        variables = {"SLURM_ARRAY_TASK_ID": str(task), "ROWS": "vit dearkd", "SEEDS": "0 1 4"}
        done, _ = submit(tmp_path, "sweep.sbatch", "dearkd", "imagenet", "--set", "x=1", **variables)
        started.append(done.stdout.strip())
    wanted = [(row, seed) for row in ("vit", "dearkd") for seed in (0, 1, 4)]
    assert started == [f"dearkd reproduce {row} --scale imagenet --seeds {seed} --set x=1" for row, seed in wanted]


def test_the_file_for_rented_machines_starts_a_file_that_is_there():
    job = YAML(typ="safe").load(FILES / "sky.yaml")
    assert "examples/cluster/torchrun.sh" in job["run"]
    assert os.access(FILES / "torchrun.sh", os.X_OK)
