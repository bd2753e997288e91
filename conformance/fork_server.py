"""The process that `conformance.forked` lets the others be forked from, and the programs that ask it to.

Who asks holds a line to it for as long as the process lives: the server writes its number and, at its end, its exit
code; where the line ends before, it kills the process. Imports nothing heavy before it serves.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import gc
import importlib
import json
import os
import select
import signal
import socket
import sys
import weakref
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

HEAVY = (
    *("timm", "timm.optim", "timm.scheduler", "torch.distributed", "torch.utils.flop_counter", "safetensors.torch"),
    *("pydantic.main", "pydantic.json_schema", "ruamel.yaml", "click", "sklearn.datasets", "pyarrow.parquet"),
)
_PASSED_ON = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
_LENGTH, _MOST_FILES = 8, 250

Request = dict[str, Any]
"""``arguments`` of Python, ``environment``, ``folder`` to start in, ``files`` as numbers, ``imports`` to be there."""


class Line:
    """The client's end of the line to a process that is forked by the server at ``address``."""

    def __init__(self, address: str, request: Request, files: Sequence[int]) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(address)
        content = json.dumps(request).encode()
        socket.send_fds(self._socket, [len(content).to_bytes(_LENGTH)], files)
        self._socket.sendall(content)
        self._answers = self._socket.makefile("r")
        self.process = int(self._answers.readline())

    def ended(self, timeout: float | None) -> int | None:
        """Return the exit code, or minus the number of a signal; None where it lives after ``timeout`` seconds."""
        if not select.select([self._socket], [], [], timeout)[0]:
            return None
        return int(self._answers.readline())

    def close(self) -> None:
        """Kill the process if it lives."""
        self._answers.close()
        self._socket.close()


def relay(address: str, imports: Sequence[str], *arguments: str) -> NoReturn:
    """Be Python with ``arguments`` and those of this program, in a forked process with the files of this one.

    Signals are passed on to that process, but not to others of its group. What takes other options than ``-u``, or a
    script, is left to Python itself.
    """
    arguments = (*arguments, *sys.argv[1:])
    while arguments[:1] == ("-u",):
        arguments = arguments[1:]
    if arguments[:1] not in {("-c",), ("-m",)}:
        os.execv(sys.executable, [sys.executable, *arguments])  # noqa: S606  # Python itself, without a shell
    signal.pthread_sigmask(signal.SIG_BLOCK, _PASSED_ON)
    files = sorted(number for number in map(int, os.listdir("/dev/fd")) if _is_inherited(number))  # noqa: PTH208  # quicker
    where = {"environment": dict(os.environ), "folder": os.getcwd(), "imports": imports}  # noqa: PTH109  # quicker
    line = Line(address, {"arguments": arguments, "files": files, **where}, files)
    for number in files:
        os.close(number)
    for number in _PASSED_ON:
        signal.signal(number, lambda number, _: _tell(line.process, number))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _PASSED_ON)
    code = line.ended(None)
    if code is not None and code < 0:
        with contextlib.suppress(OSError):  # of one that nobody can handle
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(1 if code is None else code)


def _tell(process: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, number)


def _is_inherited(number: int) -> bool:
    try:
        return os.get_inheritable(number)  # what is not was opened by this program
    except OSError:
        return False


def serve(listening: int, lifeline: int, program: str) -> Request:
    """Fork what is asked for until ``lifeline`` ends; return what to be, in the forked processes."""
    os.fsync = os.fstat  # as in the tests themselves
    for name in HEAVY:
        __import__(name)
    import multiprocessing

    sys.executable = program
    multiprocessing.set_executable(program)
    woken, wake = socket.socketpair()
    wake.setblocking(False)
    signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    lines: dict[socket.socket, int] = {}
    with socket.socket(fileno=listening) as listener:
        while True:
            ready = select.select([listener, lifeline, woken, *lines], [], [])[0]
            if lifeline in ready:
                for process in lines.values():
                    _kill(process)
                os._exit(0)  # to take all modules apart would cost two seconds
            if woken in ready:
                woken.recv(4096)
            for line in [line for line in ready if line in lines]:  # who asked has gone
                _kill(lines[line])
            for line, process in list(lines.items()):
                ended, status = os.waitpid(process, os.WNOHANG)
                if ended:
                    with contextlib.suppress(OSError):
                        line.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())
                    line.close()
                    del lines[line]
            if listener in ready:
                line, _ = listener.accept()
                try:
                    request, files = _received(line)
                except (OSError, ValueError):  # who asked has gone
                    line.close()
                    continue
                for name in request["imports"]:
                    with contextlib.suppress(ImportError):  # which the process will meet itself
                        __import__(name)
                _end_quickly()
                gc.freeze()  # a collection in a forked process would copy the pages of all that was imported
                process = os.fork()
                if process == 0:
                    for own in (listener, woken, wake, line, *lines):
                        own.detach()  # to close one later would close a file of the process
                    _place(files, request["files"])
                    return request
                for number in files:
                    os.close(number)
                with contextlib.suppress(OSError):
                    line.sendall(f"{process}\n".encode())
                lines[line] = process


def _end_quickly() -> None:
    """Leave out of the end of forked processes what torch does at its own, which takes as long as a short process."""
    for finalizer in weakref.finalize._registry:  # each would take operators out of torch's tables
        finalizer.atexit = False
    atexit.unregister(sys.modules["torch._dynamo.utils"].dump_compile_times)


def _received(line: socket.socket) -> tuple[Request, list[int]]:
    length, files, _, _ = socket.recv_fds(line, _LENGTH, _MOST_FILES)
    with line.makefile("rb") as content:
        return json.loads(content.read(int.from_bytes(length))), files


def _kill(process: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process, signal.SIGKILL)


def _place(files: Sequence[int], numbers: Sequence[int]) -> None:
    """Leave this process with ``files`` alone, as ``numbers``."""
    above = max((*files, *numbers)) + 1
    moved = [fcntl.fcntl(file, fcntl.F_DUPFD, above) for file in files]
    os.closerange(0, above)
    for file, number in zip(moved, numbers, strict=True):
        os.dup2(file, number)
    os.closerange(above, max(moved) + 1)


def be(request: Request) -> int:
    """Turn this process into the one that was asked for, to its end; return the exit code that Python would give."""
    import types

    os.setsid()
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    if "HF_ENDPOINT" in os.environ:  # a stand-in for the Hub
        importlib.reload(importlib.import_module("huggingface_hub.constants"))
    own = request["environment"].get("PYTHONPATH", "").split(os.pathsep)
    sys.path[0:1] = ["", *filter(None, own)]  # in place of the folder of this file
    for number, name, errors in ((1, "stdout", "strict"), (2, "stderr", "backslashreplace")):
        by_line = number == 2 or os.isatty(number)
        stream = open(number, "w", 1 if by_line else -1, errors=errors, closefd=False)  # noqa: SIM115  # to the end
        setattr(sys, name, stream)
    how, what, *arguments = request["arguments"]
    sys.argv = [how, *arguments]
    sys.modules["__main__"] = types.ModuleType("__main__")
    return _ended(lambda: _execute(what) if how == "-c" else _run_module(what))


def _execute(code: str) -> None:
    exec(compile(code, "<string>", "exec"), sys.modules["__main__"].__dict__)  # noqa: S102  # what -c does


def _run_module(name: str) -> None:
    import runpy

    sys.path[0] = os.getcwd()  # noqa: PTH109  # as Python has it
    runpy._run_module_as_main(name)


def _ended(run: Callable[[], None]) -> int:
    """Run, and what was registered for the end; return the exit code."""
    import threading
    import traceback

    try:
        run()
    except SystemExit as end:
        if isinstance(end.code, int):
            return end.code
        sys.stderr.write(f"{end.code}\n" if end.code is not None else "")
        return int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        threading._shutdown()
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):  # the process may have closed it
                stream.flush()
    return 0


if __name__ == "__main__":
    asked = serve(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
    os._exit(be(asked) & 0xFF)
