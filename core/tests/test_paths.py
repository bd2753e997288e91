"""Every path of every command is checked for being empty."""

from __future__ import annotations

import click
import pytest

from vitutor_core.cli.options import PathOption
from vitutor_core.cli.vitutor import vitutor


@pytest.mark.parametrize("option", ["--out", "--teachers", "--recipe"])
def test_an_empty_path_is_refused(toypaper, call, tmp_path, monkeypatch, option):
    monkeypatch.chdir(tmp_path)
    code, _, errors = call(toypaper, "train", "--out", "run", option, "")
    assert (code, "is empty; name a path" in errors) == (2, True)
    assert not list(tmp_path.iterdir())


def test_every_path_of_every_command_is_checked_for_being_empty(toypaper):
    parameters = [(name, of) for group in (vitutor, toypaper) for name, of in walk(group)]
    assert len(parameters) > 20
    assert [f"{name} {of.name}" for name, of in parameters if not isinstance(of.type, PathOption)] == []


def walk(group):
    """Yield the name of each command below a group with each of its parameters that is a path."""
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from walk(command)
        else:
            yield from ((name, of) for of in command.params if isinstance(of.type, click.Path))
