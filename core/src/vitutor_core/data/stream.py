"""Work done in worker processes, whose failures arrive as one-line errors and never as a hang."""

from __future__ import annotations

import multiprocessing
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from multiprocessing.util import Finalize
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from vitutor_core.errors import DataError
from vitutor_core.schema import RuntimeConfig

_ADVICE = "lower runtime.workers, free memory, or use data.loader=resident"


class Stream:
    """Compute ``fetch(key)`` for lists of keys, in order and ahead of time, in ``runtime.workers`` processes.

    The workers start with the first list and live until `close`. They ignore SIGTERM and SIGINT, which a
    process group gets as a whole: the main process stops at a step boundary and shuts them down.
    """

    def __init__(self, fetch: Callable[[Any], Tensor], runtime: RuntimeConfig, *, pin: bool) -> None:
        self._fetch = fetch
        self._timeout_s = runtime.worker_timeout_s
        self._keys: list[Any] = []
        self._workers: list[BaseProcess] = []
        # At exit, multiprocessing would wait for workers that are deaf to its SIGTERM; this runs before that.
        self._kill_workers = Finalize(self, _kill, args=(self._workers,), exitpriority=0)
        self._loader: DataLoader[Any] | None = None
        if runtime.workers:
            self._loader = DataLoader(
                _Fetched(fetch),
                batch_size=None,
                sampler=self._keys,
                collate_fn=_unchanged,
                num_workers=runtime.workers,
                timeout=runtime.worker_timeout_s,
                multiprocessing_context="fork",
                persistent_workers=True,
                pin_memory=pin,
                # Without one of its own, DataLoader would advance torch's global generator at every start.
                generator=torch.Generator(),
            )

    def __call__(self, keys: Sequence[Any]) -> Iterator[Tensor]:
        """Yield ``fetch(key)`` for each key.

        Raises DataError if a worker dies, if no result comes within ``runtime.worker_timeout_s`` seconds, or with the
        message of the DataError that ``fetch`` raised.
        """
        if self._loader is None:
            yield from map(self._fetch, keys)
            return
        self._keys[:] = keys
        with self._watch(), _deaf_children():
            others = multiprocessing.active_children()
            results = iter(self._loader)
            self._workers += [child for child in multiprocessing.active_children() if child not in others]
        for _ in keys:
            with self._watch():
                result = next(results)
            if isinstance(result, str):
                raise DataError(result)
            yield result

    def close(self) -> None:
        """Shut the workers down; none is left when this returns."""
        self._loader = None
        self._kill_workers()

    @contextmanager
    def _watch(self) -> Iterator[None]:
        """Notice a worker's death at once, but only here.

        torch would raise from its SIGCHLD handler wherever the main thread is, for instance in the middle of an
        optimiser step; between two batches the state of a run is consistent.
        """
        failure = None
        in_main_thread = threading.current_thread() is threading.main_thread()
        previous = signal.signal(signal.SIGCHLD, self._raise_if_dead) if in_main_thread else None
        try:
            self._raise_if_dead()
            yield
        except RuntimeError as error:
            failure = error
        finally:
            if in_main_thread:
                signal.signal(signal.SIGCHLD, previous)
        if failure is not None:
            raise self._explain(failure) from None

    def _raise_if_dead(self, _signal: int = 0, _frame: FrameType | None = None) -> None:
        if not all(worker.is_alive() for worker in self._workers):
            raise RuntimeError("a worker has died")

    def _explain(self, error: RuntimeError) -> Exception:
        dead = [worker for worker in self._workers if not worker.is_alive()]
        if dead:
            deaths = ", ".join(f"PID {worker.pid}: {_cause(worker.exitcode)}" for worker in dead)
            explained = DataError(f"a data worker died ({deaths}); {_ADVICE}")
        elif str(error).startswith("DataLoader timed out"):
            pids = ", ".join(str(worker.pid) for worker in self._workers)
            explained = DataError(
                f"no batch from the data workers (PID {pids}) within runtime.worker_timeout_s = {self._timeout_s} s: "
                f"reading hangs, or shared memory is too small; raise the timeout, {_ADVICE}"
            )
        else:
            return error
        self.close()
        return explained


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
def _deaf_children() -> Iterator[None]:
    """Block SIGTERM and SIGINT while workers are forked: they inherit that for life, without a moment of hearing.

    For the main process both are only put off until the end.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _cause(exit_code: int | None) -> str:
    if exit_code == -signal.SIGKILL:
        return "killed, most likely because memory ran out"
    if exit_code == -signal.SIGBUS:
        return "bus error, most likely because shared memory (/dev/shm) is too small"
    return f"exit code {exit_code}"
