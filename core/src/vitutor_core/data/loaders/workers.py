"""Work done in worker processes, whose failures arrive as one-line errors and never as a hang.

The pool is the standard library's. Results lie in memory that both sides hold from the start, so only a few bytes per
result go through the pool's pipes, and the main process never waits without a time limit.
"""

from __future__ import annotations

import mmap
import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import islice
from math import prod
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from typing import Any

import torch
from torch import Tensor

from vitutor_core.data.transfer import to_device
from vitutor_core.data.types import WaitGivenUp, never
from vitutor_core.errors import DataError
from vitutor_core.schema import RuntimeConfig

_LOOK_S = 1
"""How often a wait is interrupted to see whether it is still wanted."""

_AHEAD = 2
"""Keys per worker that are under way at a time."""

_ADVICE = "lower runtime.workers, free memory, or use data.loader=resident"


class Stream:
    """Compute ``fetch(key)`` for lists of keys, in order and ahead of time, in ``runtime.workers`` processes.

    ``fetch`` returns uint8 tensors of at most the shape ``largest``; only the first dimension may be smaller. They come
    to ``device``.
    The workers start with the first list and live until `close`. They ignore the signals that ask a process to stop,
    which a process group receives as a whole: the main process stops at a step boundary and shuts them down.
    """

    def __init__(
        self, fetch: Callable[[Any], Tensor], largest: tuple[int, ...], runtime: RuntimeConfig, device: torch.device
    ) -> None:
        self._fetch = fetch
        self._largest = largest
        self._num_workers = runtime.workers
        self._timeout_s = runtime.worker_timeout_s
        self._device = device
        self._pool: ProcessPoolExecutor | None = None
        self._workers: list[BaseProcess] = []
        self._under_way: deque[Future[int]] = deque()

    def __call__(self, keys: Sequence[Any], give_up: Callable[[], bool] = never) -> Iterator[Tensor]:
        """Yield ``fetch(key)`` for each key. On a CPU, a result is overwritten after the next one was asked for.

        Raises DataError if a worker dies, if no result comes within ``runtime.worker_timeout_s`` seconds, or with the
        message of the DataError that ``fetch`` raised, and WaitGivenUp if ``give_up`` says so during a wait.
        """
        if not self._num_workers or not keys:
            yield from (to_device(self._fetch(key), self._device) for key in keys)
            return
        if self._under_way:
            self.close()  # the previous list was left early, and what is under way may take long
        mine = self._under_way = deque()
        try:
            pool = self._start()
            slots = _AHEAD * self._num_workers
            asked = enumerate(keys)
            for number in range(len(keys)):
                if self._under_way is not mine:
                    raise RuntimeError("the stream was closed or began another list")
                for index, key in islice(asked, slots - len(mine)):
                    mine.append(self._ask(pool, key, index % slots))
                count = self._answer(mine.popleft(), give_up)
                yield to_device(self._memory[number % slots, :count], self._device)
        except (DataError, OSError, WaitGivenUp):
            self.close()
            raise

    def close(self) -> None:
        """Shut the workers down; none is left when this returns."""
        self._under_way = deque()
        for worker in self._workers:
            worker.kill()
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None
        for worker in self._workers:
            worker.join()
        self._workers = []

    def _start(self) -> ProcessPoolExecutor:
        if self._pool is not None:
            return self._pool
        shape = (_AHEAD * self._num_workers, *self._largest)
        # Anonymous memory needs no file descriptor, and the size of /dev/shm does not limit it.
        self._memory = torch.frombuffer(mmap.mmap(-1, prod(shape)), dtype=torch.uint8).view(shape)
        self._pool = ProcessPoolExecutor(
            self._num_workers,
            mp_context=multiprocessing.get_context("fork"),
            initializer=_begin,
            initargs=(self._fetch, self._memory, os.getpid()),
        )
        others = multiprocessing.active_children()
        try:
            with _deaf():
                self._pool.submit(os.getpid)  # all workers are forked here
        finally:
            self._workers = [child for child in multiprocessing.active_children() if child not in others]
        return self._pool

    def _ask(self, pool: ProcessPoolExecutor, key: Any, slot: int) -> Future[int]:
        try:
            return pool.submit(_work, key, slot)
        except BrokenProcessPool:
            raise self._failure() from None

    def _answer(self, future: Future[int], give_up: Callable[[], bool]) -> int:
        deadline = time.monotonic() + self._timeout_s
        while not wait([future], min(_LOOK_S, max(deadline - time.monotonic(), 0))).done:
            if time.monotonic() >= deadline:
                raise self._failure()
            if give_up():
                raise WaitGivenUp
        try:
            return future.result()
        except BrokenProcessPool:
            raise self._failure() from None

    def _failure(self) -> DataError:
        workers, ended = self._workers, connection.wait([worker.sentinel for worker in self._workers], 0)
        self.close()
        if ended:
            dead = [worker for worker in workers if worker.sentinel in ended]
            deaths = ", ".join(f"PID {worker.pid}: {_cause(worker.exitcode)}" for worker in dead)
            return DataError(f"a data worker died ({deaths}); {_ADVICE}")
        pids = ", ".join(str(worker.pid) for worker in workers)
        return DataError(
            f"no batch from the data workers (PID {pids}) within runtime.worker_timeout_s = {self._timeout_s} s: "
            f"reading hangs, or they were stopped; raise the timeout, {_ADVICE}"
        )


_fetch: Callable[[Any], Tensor]
_memory: Tensor


def _begin(fetch: Callable[[Any], Tensor], memory: Tensor, parent: int) -> None:
    """Prepare a worker."""
    global _fetch, _memory  # of the worker's process
    _fetch, _memory = fetch, memory
    torch.set_num_threads(1)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_LOOK_S)
    os._exit(1)


def _work(key: Any, slot: int) -> int:
    """Write a result into a slot of the shared memory and return its length."""
    try:
        images = _fetch(key)
    except MemoryError:
        raise DataError(f"a data worker ran out of memory; {_ADVICE}") from None
    _memory[slot, : len(images)] = images
    return len(images)


@contextmanager
def _deaf() -> Iterator[None]:
    """Fork workers that ignore the signals that ask a process to stop.

    Blocked signals are inherited for life, so there is no moment in which a worker would still hear them; for the main
    process they are only delayed.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT, signal.SIGUSR1})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _cause(exit_code: int | None) -> str:
    if exit_code == -signal.SIGKILL:
        return "killed, most likely because memory ran out"
    return f"exit code {exit_code}"
