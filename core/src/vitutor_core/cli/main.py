"""The vitutor command: data, teachers, reports, and a check of the environment."""

from __future__ import annotations

from typing import NoReturn

import click

from vitutor_core.cli.agreement import agreement
from vitutor_core.cli.analyze import analyze
from vitutor_core.cli.bench import bench
from vitutor_core.cli.cache import cache
from vitutor_core.cli.compare import compare
from vitutor_core.cli.convert import convert
from vitutor_core.cli.data import data
from vitutor_core.cli.detect import detect
from vitutor_core.cli.doctor import doctor
from vitutor_core.cli.entry import run
from vitutor_core.cli.fields import fields
from vitutor_core.cli.graph import graph, params, plan, ready
from vitutor_core.cli.predict import predict_command
from vitutor_core.cli.replay import replay
from vitutor_core.cli.report import report
from vitutor_core.cli.teacher import teacher


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="vitutor-core")
def vitutor() -> None:
    """ViTutor's shared tools. Each paper has a command of its own."""


_TOOLS = (data, teacher, predict_command(), convert, cache, analyze, agreement, detect, compare, replay, report, fields)
for command in (*_TOOLS, doctor, bench):
    vitutor.add_command(command)
for command in (graph, plan, ready, params):
    vitutor.add_command(command)


def main() -> NoReturn:
    """Entry point of the vitutor command."""
    run(vitutor)
