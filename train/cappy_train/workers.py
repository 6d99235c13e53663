"""Where a stage's work is done: in this process, on its threads, or on a cluster (`cluster.Cluster`)."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol, TypeVar

T = TypeVar("T")
R = TypeVar("R")


class Workers(Protocol):
    """What does a stage's work, piece by piece."""

    def map(self, work: Callable[[T], R], items: Callable[[], Iterable[T]]) -> Generator[R]:
        """`work(item)` for each of `items()`, in their order; few items are in memory at a time.

        On a cluster both functions, what they hold, the items and the results are pickled, and an item may be worked on
        twice, if a machine is lost.
        """
        ...


class Here:
    """One item after the other, as they are asked for."""

    def map(self, work: Callable[[T], R], items: Callable[[], Iterable[T]]) -> Generator[R]:
        yield from map(work, items())


@dataclass(frozen=True, slots=True)
class Threads:
    """So many threads of this process, while this one reads the items."""

    count: int

    def map(self, work: Callable[[T], R], items: Callable[[], Iterable[T]]) -> Generator[R]:
        running: deque[Future[R]] = deque()
        pool = ThreadPoolExecutor(self.count)
        try:
            for item in items():
                running.append(pool.submit(work, item))
                if len(running) > self.count:
                    yield running.popleft().result()
            while running:
                yield running.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


@contextmanager
def one_thread_an_operation() -> Iterator[None]:
    """PyTorch computes each operation on the thread that calls it; so results don't depend on the number of threads."""
    import torch  # which not every stage needs

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
