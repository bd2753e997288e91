"""Processes of their own for tests, forked from one that has imported what takes seconds and is not ours.

A test about a process (its signals, its exit code, what its own imports find) gets a real one, and torch is imported
once for all of them, and for the Python processes that they start: `sys.executable` is `python` there. Code of ours is
imported by each afresh. Variables that libraries read on import, such as ``OMP_NUM_THREADS``, cannot be set; those of
the Hub can, with HF_ENDPOINT among them, without which it is not to be reached.
"""

from __future__ import annotations

import atexit
import base64
import contextlib
import functools
import os
import pickle
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from conformance import fork_server

DVC = ("dvc.cli.parser", "dvc.repo", "dvc.repo.reproduce", "dvc.fs", "dvc.scm", "dulwich.repo", "networkx", "configobj")
"""What DVC imports, to be given as ``imports``."""
_SHARED = "VITUTOR_TESTS_FORK_FROM"


class Forked:
    """A process that runs ``code`` as ``python -c`` does, in a session of its own; used as `subprocess.Popen` is.

    ``imports`` are further modules that are not ours and that such processes share.
    """

    def __init__(
        self,
        code: str,
        *arguments: object,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        imports: Sequence[str] = (),
    ) -> None:
        request = {
            "arguments": ["-c", code, *map(str, arguments)],
            "folder": str(cwd or Path.cwd()),
            "environment": dict(os.environ if env is None else env),
            "files": [0, 1, 2],
            "imports": list(imports),
        }
        self._folder = tempfile.TemporaryDirectory()
        self._written = [Path(self._folder.name, name) for name in ("stdout", "stderr")]
        with contextlib.ExitStack() as opened:
            files = [opened.enter_context(Path(os.devnull).open())]
            files += [opened.enter_context(path.open("a")) for path in self._written]
            self._line = fork_server.Line(_address(), request, [file.fileno() for file in files])
        self.returncode: int | None = None
        self.pid = self._line.process

    def __enter__(self) -> Forked:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None:
            self.kill()
        self.wait()
        self._line.close()
        self._folder.cleanup()

    def poll(self, timeout: float = 0) -> int | None:
        if self.returncode is None:
            self.returncode = self._line.ended(timeout)
        return self.returncode

    def wait(self, timeout: float = 300) -> int:
        code = self.poll(timeout)
        if code is None:
            self.kill()
            raise subprocess.TimeoutExpired(f"process {self.pid}", timeout)
        return code

    def communicate(self, timeout: float = 300) -> tuple[str, str]:
        self.wait(timeout)
        output, errors = (path.read_text() for path in self._written)
        return output, errors

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)


def run(code: str, *arguments: object, check: bool = False, timeout: float = 300, **options: Any) -> Any:
    """Run ``code`` to its end; return a `subprocess.CompletedProcess` with its output as text."""
    with Forked(code, *arguments, **options) as process:
        output, errors = process.communicate(timeout)
    done = subprocess.CompletedProcess([code, *arguments], process.wait(), output, errors)
    assert not check or done.returncode == 0, errors
    return done


def together(function: Callable[..., object], *arguments: Any, processes: int = 2) -> None:
    """Call ``function(rank, *arguments)`` in several processes at once; where one fails, the others are killed."""
    calls = [base64.b85encode(pickle.dumps((function, rank, arguments))).decode() for rank in range(processes)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with contextlib.ExitStack() as stack:
        code = "import base64, pickle, sys; f, rank, rest = pickle.loads(base64.b85decode(sys.argv[1])); f(rank, *rest)"
        running = [stack.enter_context(Forked(code, call, env=environment)) for call in calls]
        while None in (codes := [process.poll() for process in running]) and not any(codes):
            time.sleep(0.01)
        for process in running:
            if any(codes):
                process.kill()
        assert not any(codes), [process.communicate()[1] for process in running]


def commands(folder: Path, modules: Mapping[str, str], *, imports: Sequence[str] = ()) -> Path:
    """Write programs that run ``main`` of a module in a forked process, by name; return their folder, for PATH.

    For ``imports`` see `Forked`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, module in modules.items():
        code = f"import sys; from {module} import main; sys.exit(main())"
        _write_program(folder / name, _address(), imports, "-c", code)
    return folder


def python() -> str:
    """Return the path of a program that takes ``-c`` and ``-m`` as Python does, and runs them in forked processes."""
    return str(Path(_address()).with_name("python"))


def share() -> None:
    """Let the processes that this one starts fork from the same server as it."""
    os.environ[_SHARED] = _address()


def _write_program(path: Path, *call: object) -> None:
    path.write_text(
        f"#!{sys.executable} -SE\nimport sys\nsys.path.insert(0, {str(Path(__file__).parents[1])!r})\n"
        f"from conformance.fork_server import relay\nrelay(*{call!r})\n"
    )
    path.chmod(0o755)


@functools.cache
def _address() -> str:
    """Start the process that the others are forked from, with the path of one that was given none; return its address.

    It ends with this process, which alone holds the other end of a pipe. Where another process shares its own, that
    one is used.
    """
    if _SHARED in os.environ:
        return os.environ[_SHARED]
    folder = tempfile.TemporaryDirectory()
    atexit.register(folder.cleanup)
    address, program = (str(Path(folder.name, name)) for name in ("forked", "python"))
    _write_program(Path(program), address, ())
    lifeline, end = os.pipe()
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment["HF_HUB_OFFLINE"] = "1"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen(64)
        given = [listener.fileno(), lifeline]
        command = [sys.executable, fork_server.__file__, *map(str, given), program]
        process = subprocess.Popen(command, pass_fds=given, env=environment, stdin=subprocess.DEVNULL)
    os.close(lifeline)
    atexit.register(process.wait)
    atexit.register(os.close, end)  # the last one is called first
    return address
