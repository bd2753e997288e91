"""Two machines, as far as one can stand for them: two torchrun agents that meet at a rendezvous on the loopback."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest

from conformance import forked

ROOT = Path(__file__).parents[2]
RUN = ("drloc", "train", "--scale", "digits", "--row", "vit", "--set", "train.epochs=4", "--set", "data.per_class=30")
OFTEN = ("--set", "runtime.log_every_steps=2", "--set", "runtime.checkpoint_every_epochs=1")


@pytest.fixture
def programs(tmp_path):
    """The path of programs with torchrun, and drloc as it is started by it."""
    return forked.commands(tmp_path / "bin", {"torchrun": "torch.distributed.run", "drloc": "drloc.cli"})


def start_nodes(folder, port, programs):
    path = f"{programs}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "NODES": "2", "GPUS": "1", "RENDEZVOUS": f"127.0.0.1:{port}"}
    environment |= {"OMP_NUM_THREADS": "1", "VITUTOR_QUIET": "1"}
    command = [str(ROOT / "examples" / "cluster" / "torchrun.sh"), *RUN, *OFTEN, "--out", str(folder)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return [subprocess.Popen(command, env=environment, start_new_session=True, **pipes) for _ in range(2)]


def end(nodes):
    try:
        return [node.communicate(timeout=240)[0] for node in nodes]
    finally:
        for node in nodes:  # and what an agent that has died may have left behind
            with contextlib.suppress(ProcessLookupError):
                os.killpg(node.pid, signal.SIGKILL)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.slow
def test_a_signal_to_one_node_saves_and_stops_both_and_the_same_commands_go_on(tmp_path, programs):
    nodes, port = start_nodes(tmp_path / "two", free_port(), programs), free_port()
    until = time.monotonic() + 200
    while not list(tmp_path.glob("two/checkpoints/step-*")) and time.monotonic() < until and nodes[0].poll() is None:
        time.sleep(0.1)
    nodes[0].send_signal(signal.SIGUSR1)
    said = end(nodes)
    assert [node.returncode for node in nodes] == [1, 1]  # by themselves: torchrun's own code after a signal
    for output in said:
        assert (
            len(re.findall(r"^error: stopped (?:at step|after epoch) \d+; run it again to go on$", output, re.M)) == 1
        ), output
    assert not (tmp_path / "two" / "metrics.json").exists()

    nodes = start_nodes(tmp_path / "two", port, programs)
    said = end(nodes)
    assert [node.returncode for node in nodes] == [0, 0], said
    record = json.loads((tmp_path / "two" / "metrics.json").read_text())
    assert record["processes"] == 2
    assert len((tmp_path / "two" / "curves.csv").read_text().splitlines()) == 1 + 4
