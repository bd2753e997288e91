"""What the user said and is told: the command, lines, warnings, and each error as one line and an exit code."""

from __future__ import annotations

import errno
import os
import shlex
import sys
import warnings
from collections.abc import Callable
from typing import Any, NoReturn, TextIO

from vitutor_core.errors import ResourceError, VitutorError, are_files_exhausted

_NO_PLACE = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM}
    | {errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG}
)
"""Where a folder or disk takes no file; other errors of the system are bugs."""


def say(text: str, *, err: bool = False) -> None:
    """Print a line, with ``err`` as a message; what the terminal's encoding has not is spelt out."""
    stream = sys.stderr if err else sys.stdout
    encoding = stream.encoding or "utf-8"
    stream.write(text.encode(encoding, "backslashreplace").decode(encoding) + "\n")
    stream.flush()


def printable(text: str) -> str:
    """Return ``text`` with control and other invisible characters spelt out.

    Names of files and classes come from data that was downloaded; escape sequences in them would reach the terminal.
    """
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def say_json(value: Any) -> None:
    """Print JSON, names as they are; what is invisible, or not in the terminal's encoding, is escaped as JSON does."""
    import json

    is_unicode = (sys.stdout.encoding or "utf-8").lower().startswith("utf")
    text = json.dumps(value, indent=2, ensure_ascii=not is_unicode)
    say("".join(char if char.isprintable() or char == "\n" else json.dumps(char)[1:-1] for char in text))


def exit_after(call: Callable[[], Any], *, who: str = "") -> NoReturn:
    """Make a call and leave the process; ``who`` says in an error which of several calls it is.

    An error is a line; what it is about, if that is many things, are its notes, a line each before it.

    0 ok, 1 bug, 2 usage or config, 3 data, 4 checkpoint, 5 non-finite, 6 memory or disk, 7 run folder busy,
    130, 138 and 143 stopped by SIGINT, SIGUSR1 and SIGTERM after saving: the same command goes on.
    """
    warnings.showwarning = _show_warning
    try:
        code = call()
    except KeyboardInterrupt:
        _fail(f"{who}interrupted", 130)
    except OSError as error:
        if are_files_exhausted(error):
            advice = "raise the limit (ulimit -n 1024), or lower runtime.workers"
            _fail(f"{who}too many open files; {advice}", ResourceError.exit_code)
        if error.errno not in _NO_PLACE:
            raise
        from pathlib import Path

        where = "" if error.filename is None else f"{Path(error.filename).absolute()}: "
        _fail(f"{who}{where}cannot write ({error.strerror}); choose another folder", ResourceError.exit_code)
    except VitutorError as error:
        if os.environ.get("VITUTOR_DEBUG") == "1":
            import traceback

            traceback.print_exc()
        for line in (*getattr(error, "__notes__", ()), str(error)):
            _say_error(who + " ".join(line.split()))
        sys.exit(error.exit_code)
    sys.exit(code if isinstance(code, int) else 0)


def _fail(message: str, code: int) -> NoReturn:
    _say_error(message)
    sys.exit(code)


def _say_error(message: str) -> None:
    say(f"error: {printable(message)}", err=True)


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,  # as `warnings` calls it
) -> None:
    where = "" if issubclass(category, UserWarning) else f"{filename}:{lineno}: {category.__name__}: "
    say(f"warning: {printable(where + ' '.join(str(message).split()))}", err=True)


def command_line(program: str) -> str:
    """Return the command that was given, as one would type it."""
    return shlex.join([program, *sys.argv[1:]])
