"""The vitutor command: data, teachers, reports, and a check of the environment."""

from __future__ import annotations

import click

from vitutor_core.cli.graph import data, graph, params, plan, ready
from vitutor_core.cli.machine import bench, doctor
from vitutor_core.cli.models import agreement, analyze, convert, predict, replay
from vitutor_core.cli.report import fields, report
from vitutor_core.cli.training import cache, compare, detect, teacher


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="vitutor-core")
def vitutor() -> None:
    """ViTutor's shared tools. Each paper has a command of its own."""


_MODELS = (predict, convert, analyze, agreement, replay)
_TRAINING = (teacher, cache, compare, detect)
for command in (*_MODELS, *_TRAINING, data, graph, plan, ready, params, report, fields, doctor, bench):
    vitutor.add_command(command)
