"""Work done in worker processes, whose failures arrive as one-line errors and never as a hang."""

from __future__ import annotations

import multiprocessing
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from multiprocessing.util import Finalize
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from vitutor_core.errors import DataError
from vitutor_core.schema import RuntimeConfig

_LOOK_S = 5
"""How often a wait is interrupted to see whether all workers live."""

_ADVICE = "lower runtime.workers, free memory, or use data.loader=resident"


class Stream:
    """Compute ``fetch(key)`` for lists of keys, in order and ahead of time, in ``runtime.workers`` processes.

    The workers start with the first list and live until `close`. They ignore SIGTERM and SIGINT, which a
    process group gets as a whole: the main process stops at a step boundary and shuts them down.
    """

    def __init__(self, fetch: Callable[[Any], Tensor], runtime: RuntimeConfig, *, pin: bool) -> None:
        self._fetch = fetch
        self._num_workers = runtime.workers
        self._timeout_s = runtime.worker_timeout_s
        self._pin = pin
        self._keys: list[Any] = []
        self._current: Sequence[Any] | None = None
        self._loader: DataLoader[Any] | None = None
        # The only reference: without it the iterator ends, and its workers with it.
        self._results: Iterator[Any] | None = None
        self._idle = True
        self._workers: list[BaseProcess] = []
        # At exit, multiprocessing would wait for workers that are deaf to its SIGTERM; this runs before that.
        Finalize(self, _kill, args=(self._workers,), exitpriority=0)

    def __call__(self, keys: Sequence[Any]) -> Iterator[Tensor]:
        """Yield ``fetch(key)`` for each key.

        Raises DataError if a worker dies, if no result comes within ``runtime.worker_timeout_s`` seconds, or with the
        message of the DataError that ``fetch`` raised.
        """
        if not self._num_workers:
            yield from map(self._fetch, keys)
            return
        self._start(keys)
        for number, _ in enumerate(keys, start=1):
            result = self._next(keys)
            self._idle = number == len(keys)
            if isinstance(result, str):
                raise DataError(result)
            yield result

    def close(self) -> None:
        """Shut the workers down; none is left when this returns."""
        self._results = self._loader = self._current = None
        self._idle = True
        _kill(self._workers)

    def _start(self, keys: Sequence[Any]) -> None:
        if not self._idle:
            # The list before was left early. DataLoader would wait for what is under way as long as it takes.
            self.close()
        if self._loader is None:
            self._loader = DataLoader(
                _Fetched(self._fetch),
                batch_size=None,
                sampler=self._keys,
                collate_fn=_unchanged,
                num_workers=self._num_workers,
                timeout=min(_LOOK_S, self._timeout_s),
                multiprocessing_context="fork",
                persistent_workers=True,
                pin_memory=self._pin,
                # Without one of its own, DataLoader would advance torch's global generator at every start.
                generator=torch.Generator(),
            )
        self._keys[:] = self._current = keys
        self._idle = False
        with _signals_set_for_workers():
            others = multiprocessing.active_children()
            self._results = iter(self._loader)
            self._workers += [child for child in multiprocessing.active_children() if child not in others]

    def _next(self, keys: Sequence[Any]) -> Any:
        if self._results is None or self._current is not keys:
            raise RuntimeError("the stream was closed or began another list")
        deadline = time.monotonic() + self._timeout_s
        while True:
            try:
                return next(self._results)
            except (RuntimeError, OSError, EOFError) as error:
                timed_out = str(error).startswith("DataLoader timed out")
                # A connection to a worker can break a moment before its end shows.
                ended = wait([worker.sentinel for worker in self._workers], timeout=0 if timed_out else 1)
                if not ended and not timed_out:
                    raise
            if ended or time.monotonic() >= deadline:
                # Outside of the `except`: an error with a traceback into DataLoader would keep its iterator alive,
                # to be inherited and finalised by workers forked later.
                failure = self._failure([worker for worker in self._workers if worker.sentinel in ended])
                _kill(self._workers)  # first, because shutting down waits for workers that hang
                self.close()
                raise failure

    def _failure(self, dead: Sequence[BaseProcess]) -> DataError:
        if dead:
            for worker in dead:
                worker.join()
            deaths = ", ".join(f"PID {worker.pid}: {_cause(worker.exitcode)}" for worker in dead)
            return DataError(f"a data worker died ({deaths}); {_ADVICE}")
        pids = ", ".join(str(worker.pid) for worker in self._workers)
        return DataError(
            f"no batch from the data workers (PID {pids}) within runtime.worker_timeout_s = {self._timeout_s} s: "
            f"reading hangs, or shared memory is too small; raise the timeout, {_ADVICE}"
        )


class _Fetched(Dataset[Tensor | str]):
    """``fetch`` as a dataset; errors travel as text, because DataLoader would wrap them into a traceback."""

    def __init__(self, fetch: Callable[[Any], Tensor]) -> None:
        self._fetch = fetch

    def __getitem__(self, key: Any) -> Tensor | str:
        try:
            return self._fetch(key)
        except DataError as error:
            return str(error)


def _unchanged(result: Any) -> Any:
    return result


def _kill(workers: list[BaseProcess]) -> None:
    for worker in workers:
        worker.kill()
        worker.join()
    workers.clear()


@contextmanager
def _signals_set_for_workers() -> Iterator[None]:
    """Fork workers that are deaf to SIGTERM and SIGINT, and keep torch's SIGCHLD handler out.

    Blocked signals are inherited for life, so that there is no moment of hearing as there would be if the workers
    switched them off themselves; for the main process they are only put off. torch's handler would raise wherever the
    main thread is when a worker dies: in the middle of an optimiser step, or of closing a file.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    handler = signal.getsignal(signal.SIGCHLD)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGCHLD, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _cause(exit_code: int | None) -> str:
    if exit_code == -signal.SIGKILL:
        return "killed, most likely because memory ran out"
    if exit_code == -signal.SIGBUS:
        return "bus error, most likely because shared memory (/dev/shm) is too small"
    return f"exit code {exit_code}"
