"""Run a command so that every error a user can cause is one line and an exit code."""

from __future__ import annotations

import errno
import io
import os
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, TextIO

import click

from vitutor_core.errors import ResourceError, VitutorError, are_files_exhausted

_NO_PLACE = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM}
    | {errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG}
)
"""Where a folder or disk takes no file; other errors of the system are bugs."""


def run(group: click.Command, arguments: list[str] | None = None) -> NoReturn:
    """Run ``group`` and leave the process with the exit code of what happened.

    ``VITUTOR_DEBUG=1`` or ``--debug`` shows tracebacks; for the codes see `exit_after`.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    if "--debug" in arguments:
        os.environ["VITUTOR_DEBUG"] = "1"
    arguments = [argument for argument in arguments if argument != "--debug"]
    _list_whole_sentences(group)
    exit_after(lambda: group.main(arguments, standalone_mode=False))


def _list_whole_sentences(command: click.Command) -> None:
    """Let lists of commands wrap the first sentence of each, which click cuts at the end of the line."""
    command.short_help = command.get_short_help_str(limit=10**4)
    for child in command.commands.values() if isinstance(command, click.Group) else ():
        _list_whole_sentences(child)


def exit_after(call: Callable[[], Any], *, who: str = "") -> NoReturn:
    """Make a call and leave the process; ``who`` says in an error which of several calls it is.

    0 ok, 1 bug, 2 usage or config, 3 data, 4 checkpoint, 5 non-finite, 6 memory or disk, 7 run folder busy,
    130, 138 and 143 stopped by SIGINT, SIGUSR1 and SIGTERM after saving: the same command goes on.
    """
    warnings.showwarning = _show_warning
    try:
        code = call()
    except click.ClickException as error:
        shown = io.StringIO()
        error.show(shown)
        click.echo("\n".join(map(printable, shown.getvalue().split("\n"))), err=True, nl=False)
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        _fail(f"{who}interrupted", 130)
    except OSError as error:
        if are_files_exhausted(error):
            advice = "raise the limit (ulimit -n 1024), or lower runtime.workers"
            _fail(f"{who}too many open files; {advice}", ResourceError.exit_code)
        if error.errno not in _NO_PLACE:
            raise
        where = "" if error.filename is None else f"{Path(error.filename).absolute()}: "
        _fail(f"{who}{where}cannot write ({error.strerror}); choose another folder", ResourceError.exit_code)
    except VitutorError as error:
        if os.environ.get("VITUTOR_DEBUG") == "1":
            traceback.print_exc()
        _fail(who + " ".join(str(error).split()), error.exit_code)
    sys.exit(code if isinstance(code, int) else 0)


def printable(text: str) -> str:
    """Return ``text`` with control and other invisible characters spelt out.

    Names of files and classes come from data that was downloaded; escape sequences in them would reach the terminal.
    """
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def _fail(message: str, code: int) -> NoReturn:
    click.echo(f"error: {printable(message)}", err=True)
    sys.exit(code)


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,  # as `warnings` calls it
) -> None:
    where = "" if issubclass(category, UserWarning) else f"{filename}:{lineno}: {category.__name__}: "
    click.echo(f"warning: {printable(where + ' '.join(str(message).split()))}", err=True)
