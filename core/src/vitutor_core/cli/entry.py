"""Run a command so that every error a user can cause is one line and an exit code."""

from __future__ import annotations

import io
import os
import sys
from typing import Any, NoReturn

import click

from vitutor_core.terminal import exit_after, printable, say


def run(group: click.Command, arguments: list[str] | None = None) -> NoReturn:
    """Run ``group`` and leave the process with the exit code of what happened.

    ``VITUTOR_DEBUG=1`` or ``--debug`` shows tracebacks; for the codes see `exit_after`.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    if "--debug" in arguments:
        os.environ["VITUTOR_DEBUG"] = "1"
    arguments = [argument for argument in arguments if argument != "--debug"]
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a name that the terminal's encoding has not is spelt out
    _list_whole_sentences(group)
    exit_after(lambda: _called(group, arguments))


def _called(group: click.Command, arguments: list[str]) -> Any:
    try:
        return group.main(arguments, standalone_mode=False)
    except click.ClickException as error:
        shown = io.StringIO()
        error.show(shown)
        say("\n".join(map(printable, shown.getvalue().rstrip("\n").split("\n"))), err=True)
        return error.exit_code
    except click.Abort:
        raise KeyboardInterrupt from None


def _list_whole_sentences(command: click.Command) -> None:
    """Let lists of commands wrap the first sentence of each, which click cuts at the end of the line."""
    command.short_help = command.get_short_help_str(limit=10**4)
    for child in command.commands.values() if isinstance(command, click.Group) else ():
        _list_whole_sentences(child)
