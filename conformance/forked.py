"""Processes of their own for tests, forked from one that has imported what takes seconds and is not ours.

A test about a process (its signals, its exit code, what its own imports find) gets a real one, and torch is imported
once for all of them. Code of ours is imported by each afresh. ``HF_*``, which libraries read on import, cannot be set.
"""

from __future__ import annotations

import atexit
import base64
import contextlib
import functools
import gc
import json
import os
import pickle
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

HEAVY = ("timm", "pydantic", "sklearn.datasets", "pyarrow.parquet", "safetensors.torch", "torch.distributed")


class Forked:
    """A process that runs ``code`` as ``python -c`` does, in a session of its own; used as `subprocess.Popen` is."""

    def __init__(
        self,
        code: str,
        *arguments: object,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        address: str | None = None,
    ) -> None:
        self._address = address or _server()
        self._folder = tempfile.TemporaryDirectory()
        for name in ("stdout", "stderr"):
            Path(self._folder.name, name).touch()
        self.returncode: int | None = None
        request = {
            "code": code,
            "arguments": [str(argument) for argument in arguments],
            "cwd": str(cwd or Path.cwd()),
            "environment": dict(os.environ if env is None else env),
            "folder": self._folder.name,
        }
        self.pid = _ask(request, self._address)

    def __enter__(self) -> Forked:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None:
            self.kill()
        self.wait()
        self._folder.cleanup()

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = _ask({"wait": self.pid}, self._address)
        return self.returncode

    def wait(self, timeout: float = 300) -> int:
        until = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() > until:
                self.kill()
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout)
            time.sleep(0.01)
        return code

    def communicate(self, timeout: float = 300) -> tuple[str, str]:
        self.wait(timeout)
        output, errors = (Path(self._folder.name, name).read_text() for name in ("stdout", "stderr"))
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


def commands(folder: Path, modules: Mapping[str, str]) -> Path:
    """Write programs that run ``main`` of a module in a forked process, by name; return their folder, for PATH.

    They pass no signals on, and what is printed shows at the end.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, module in modules.items():
        program = folder / name
        call = [f"from {module} import main; main()", _server()]
        program.write_text(
            f"#!{sys.executable} -S\nimport sys\nsys.path.insert(0, {str(Path(__file__).parents[1])!r})\n"
            f"from conformance.forked import relay\nrelay(*{call!r})\n"
        )
        program.chmod(0o755)
    return folder


def relay(code: str, address: str) -> None:
    """Be a program of `commands`."""
    with Forked(code, *sys.argv[1:], address=address) as process:
        output, errors = process.communicate(timeout=1200)
    sys.stdout.write(output)
    sys.stderr.write(errors)
    sys.exit(process.wait())


def _ask(request: dict[str, Any], address: str) -> Any:
    with socket.socket(socket.AF_UNIX) as line:
        line.connect(address)
        with line.makefile("rw") as both:
            both.write(json.dumps(request) + "\n")
            both.flush()
            return json.loads(both.readline())


@functools.cache
def _server() -> str:
    """Start the process that the others are forked from, with the path of one that was given none; return its address.

    It ends with this process, which alone holds the other end of a pipe.
    """
    folder = tempfile.TemporaryDirectory()
    atexit.register(folder.cleanup)
    address = str(Path(folder.name, "forked"))
    lifeline, _ = os.pipe()
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment["HF_HUB_OFFLINE"] = "1"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen(64)
        given = [listener.fileno(), lifeline]
        command = [sys.executable, __file__, *map(str, given)]
        process = subprocess.Popen(command, pass_fds=given, env=environment, stdin=subprocess.DEVNULL)
    os.close(lifeline)
    atexit.register(process.wait)
    atexit.register(process.kill)  # the last one is called first
    return address


def _serve(listening: int, lifeline: int) -> dict[str, Any]:
    """Fork, and say how processes ended, until nobody asks any more; return what to run, in the forked ones."""
    for name in HEAVY:
        __import__(name)
    gc.freeze()  # a collection in a forked process would copy the pages of all that was imported
    with socket.socket(fileno=listening) as listener:
        while lifeline not in select.select([listener, lifeline], [], [])[0]:
            line, _ = listener.accept()
            with line, line.makefile("rw") as both:
                request = json.loads(both.readline())
                if "wait" in request:
                    process, status = os.waitpid(request["wait"], os.WNOHANG)
                    answer = os.waitstatus_to_exitcode(status) if process else None
                else:
                    answer = os.fork()
                    if answer == 0:
                        return dict(request)
                both.write(json.dumps(answer) + "\n")
    sys.exit()


def _become(request: dict[str, Any]) -> types.ModuleType:
    """Turn this process into the one that was asked for, and return its main module."""
    os.setsid()
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(Path(request["folder"], name), os.O_WRONLY | os.O_APPEND), number)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["environment"])
    own = request["environment"].get("PYTHONPATH", "").split(os.pathsep)
    sys.path[0:1] = ["", *filter(None, own)]  # in place of the folder of this file
    sys.argv = ["-c", *request["arguments"]]
    main = sys.modules["__main__"] = types.ModuleType("__main__")
    return main


def _run(code: str, main: types.ModuleType) -> int:
    """Run ``code`` and what it registered for its end; return the exit code that Python would give."""
    try:
        exec(compile(code, "<string>", "exec"), main.__dict__)  # noqa: S102  # what -c does
    except SystemExit as end:
        if isinstance(end.code, int):
            return end.code
        sys.stderr.write(f"{end.code}\n" if end.code is not None else "")
        return int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
    return 0


if __name__ == "__main__":
    asked = _serve(*map(int, sys.argv[1:]))
    # To take all modules apart would cost two seconds of copying pages.
    os._exit(_run(asked["code"], _become(asked)) & 0xFF)
