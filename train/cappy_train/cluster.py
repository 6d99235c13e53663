"""Stages on a Ray cluster, by its address alone.

A stage's blocks go through Ray Data: one task reads them, others do with each what the stage itself does with it
(`workers.Workers`), and where a process or a machine is lost, Ray Data gives its block to another. Blocks become files
on storage that all machines share, each whole or not at all and the same whoever writes it, so nothing is lost or
doubled; this process keeps the books.
"""

from __future__ import annotations

import logging
import os
import pickle
import platform
import shutil
import signal
import socket
import threading
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, Generic, TypeVar

import pyarrow as pa

from cappy_lite.arguments import check_count
from cappy_lite.errors import CappyError, InputValueError
from cappy_lite.session import available_cpus
from cappy_train.instances import Instance
from cappy_train.sampling import Advance, Sampled, Sampler, no_advance
from cappy_train.shards import Plan

# Read as Ray is imported.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import ray
from ray.data import DataContext, Datasource, read_datasource
from ray.data.block import BlockMetadata
from ray.data.datasource import ReadTask
from ray.exceptions import RayError

T = TypeVar("T")
R = TypeVar("R")

LOCAL, AUTO = "local", "auto"
# What bytes depend on.
PACKAGES = ("cappy-lite", "pyarrow")
CONNECT_SECONDS = 10.0
# How often training begins again after it has lost a process.
MOST_FAILURES = 3
# Threads of an actor would have glibc's arenas for themselves, many, which keep what they once held; two are enough.
ACTOR_VARIABLES = {"MALLOC_ARENA_MAX": "2"}


@contextmanager
def open_cluster(address: str, *, actors: int | None = None) -> Iterator[Cluster]:
    """A Ray cluster, within the block.

    Args:
        address: "local" starts Ray on this machine, for the block; "auto" is the cluster that this machine is part of;
            host:port is the one whose head is there.
        actors: so many processes, each with a GPU where the cluster has any, keep what they work with, such as a
            model; None: as many tasks as there are CPUs.

    Raises:
        InputValueError: there is no cluster at the address, it has other versions of Python or Ray, or no room for so
            many actors.
    """
    if address.startswith("ray://"):
        raise InputValueError(
            f"{address}: Ray Data doesn't run through Ray's client. Run the command on a machine of the cluster, with "
            "auto as the address, or by ray job submit"
        )
    _connect(address)
    try:
        yield Cluster(actors)
    finally:
        ray.shutdown()


def _connect(address: str) -> None:
    local: dict[str, Any] = {"num_cpus": available_cpus(), "include_dashboard": False} if address == LOCAL else {}
    fix = "start one by ray start --head, give the address that this prints, or give local"
    try:
        if address not in (LOCAL, AUTO):
            host, _, port = address.rpartition(":")
            socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()
        ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False, **local)
    except (ConnectionError, OSError, ValueError) as error:
        raise InputValueError(f"no Ray cluster at {address} ({error}): {fix}") from error
    except RuntimeError as error:  # other versions of Python or Ray
        raise InputValueError(f"the Ray cluster at {address} can't be used: {error}") from error
    _data_context()  # Once made, it warns no more.
    for part in ("data", "train"):
        logging.getLogger(f"ray.{part}").setLevel(logging.ERROR)


def _data_context() -> DataContext:
    with warnings.catch_warnings():
        # Ray sets settings of its own that it has deprecated.
        warnings.simplefilter("ignore", DeprecationWarning)
        return DataContext.get_current().copy()


class Cluster:
    """`workers.Workers` on the Ray cluster that this process is connected to."""

    def __init__(self, actors: int | None = None) -> None:
        if actors is not None:
            _check_room(actors)
        self._actors = actors

    def map(self, work: Callable[[T], R], items: Callable[[], Iterable[T]]) -> Generator[R]:
        """See `workers.Workers.map`. One task of the cluster reads the items, by names as this process would.

        Raises:
            InputValueError: a machine has other versions than this one, or lacks cappy_train.
            CappyError: of `work` or `items`.
        """
        site = _Site(Path.cwd(), _versions())
        context = _data_context()
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        # Results come as items do.
        context.execution_options.preserve_order = True
        # Each item is a block by itself: it isn't kept back until there are some megabytes of them.
        context.target_max_block_size = 1
        with DataContext.current(context):
            # Without a CPU of its own the reader can't take the last one, nor is it made one with the work.
            stream = read_datasource(_Items(partial(_read, site, items)), override_num_blocks=1, num_cpus=0)
            if self._actors is None:
                results = stream.map_batches(partial(_work, site, work), batch_format="pyarrow", num_cpus=1)
            else:
                results = stream.map_batches(
                    _Actor,
                    fn_constructor_args=(site, work),
                    batch_format="pyarrow",
                    concurrency=self._actors,
                    num_gpus=min(_count("GPU"), 1),
                    runtime_env={"env_vars": ACTOR_VARIABLES},
                )
            try:
                for row in results.iter_rows():
                    result = pickle.loads(row["value"])
                    if isinstance(result, CappyError):
                        raise result
                    yield result
            except RayError as error:
                raise InputValueError(f"the cluster gave up: {_first_cause(error)}") from error

    def train(self, work: Callable[[], None], folder: Path, *, processes: int | None = None) -> None:
        """Calls `work` in several processes that torch.distributed connects (Ray Train's TorchTrainer).

        Where one is lost, all begin again, `MOST_FAILURES` times at most; `pretrain` goes on from its checkpoint.

        Args:
            work: what each process does, such as `pretrain` with its arguments.
            folder: where Ray Train keeps its records meanwhile, on storage that all machines share.
            processes: each has a GPU where the cluster has any, else its share of the CPUs; None: as many as there are
                GPUs, else as machines.

        Raises:
            InputValueError: the cluster has too little for so many, or other versions, or it lost processes too often.
            CappyError: of `work`.
        """
        # Imported here: it loads torch.
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchTrainer
        from ray.train.v2.api.exceptions import TrainingFailedError, WorkerGroupError

        gpus, cpus = _count("GPU"), _count("CPU")
        processes = processes or gpus or sum(node["Alive"] for node in ray.nodes())
        _check_room(processes)
        records = folder.resolve() / "ray"
        trainer = TorchTrainer(
            _train,
            train_loop_config={"site": _Site(Path.cwd(), _versions()), "work": work},
            scaling_config=ScalingConfig(
                num_workers=processes,
                use_gpu=bool(gpus),
                resources_per_worker={"CPU": max(1, cpus // processes)} | ({"GPU": 1} if gpus else {}),
            ),
            run_config=RunConfig(
                storage_path=str(records),
                failure_config=FailureConfig(max_failures=MOST_FAILURES),
            ),
        )
        try:
            with _interruptible():
                trainer.fit()
        except WorkerGroupError as error:
            for failure in error.worker_failures.values():
                cause = getattr(failure, "_base_exc", failure)
                if isinstance(cause, CappyError):
                    raise cause from None
            raise InputValueError(f"the cluster gave up: {_first_cause(error)}") from error
        except TrainingFailedError as error:
            raise InputValueError(f"the cluster gave up: {_first_cause(error)}") from error
        finally:
            shutil.rmtree(records, ignore_errors=True)


@contextmanager
def _interruptible() -> Iterator[None]:
    """Ctrl-C is KeyboardInterrupt, which Ray Train makes SystemExit, and would keep doing so."""
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit:
        raise KeyboardInterrupt from None
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, before)


def _count(resource: str) -> int:
    """How many CPUs or GPUs the cluster has."""
    return int(ray.cluster_resources().get(resource, 0))


def _check_room(processes: int) -> None:
    """Raises InputValueError if the cluster hasn't a GPU for each, or a CPU where there are no GPUs."""
    check_count("processes", processes)
    kind = "GPU" if _count("GPU") else "CPU"
    if processes > _count(kind):
        raise InputValueError(f"{processes} processes need as many {kind}s, and the cluster has {_count(kind)}")


def _train(config: dict[str, Any]) -> None:
    config["site"].enter()
    config["work"]()


class RemoteModel:
    """A `sampling.Sampler` whose model each process of a cluster opens for itself, once; this one never does."""

    def __init__(self, open_model: Callable[[], Sampler]) -> None:
        """Opens it once, on a machine that has what actors have, to know its plan.

        Args:
            open_model: such as `LocalModel` with its arguments; it is pickled.

        Raises:
            CappyError: of `open_model`.
        """
        self._open_model = open_model
        self._model: Sampler | None = None
        (self._plan,) = Cluster(actors=1).map(_plan_of, lambda: [open_model])

    @property
    def plan(self) -> Plan:
        return self._plan

    def job(self, folder: Path) -> nullcontext[None]:
        return nullcontext()

    def sample(self, instances: Sequence[Instance], *, advance: Advance = no_advance) -> Sampled:
        """See `sampling.Sampler.sample`.

        Raises:
            InputValueError: here the model is another one, or computes on another device or in other numbers.
        """
        if self._model is None:
            model = self._open_model()
            for name, value in self._plan.items():
                if model.plan.get(name) != value:
                    raise InputValueError(
                        f"{platform.node()} would sample with {name} {model.plan.get(name)!r}, another machine with "
                        f"{value!r}: give the cluster machines of one kind, or name --precision"
                    )
            self._model = model
        return self._model.sample(instances, advance=advance)


def _plan_of(open_model: Callable[[], Sampler]) -> Plan:
    return open_model().plan


@dataclass(frozen=True, slots=True)
class _Site:
    """Where a command was given: names of files are meant from there, and all machines should have its versions."""

    folder: Path
    versions: dict[str, str]

    def enter(self) -> None:
        """Makes this process as if it were there."""
        here = _versions()
        for name, version in self.versions.items():
            if here.get(name) != version:
                raise InputValueError(
                    f"{platform.node()} has {name} {here.get(name)}, and {version} is where the command was given: "
                    "install the same version on all machines"
                )
        if self.folder.is_dir():
            os.chdir(self.folder)


def _versions() -> dict[str, str]:
    return {package: metadata.version(package) for package in PACKAGES}


class _Items(Datasource):
    """Items as rows, which one task reads."""

    def __init__(self, read: Callable[[], Iterator[pa.Table]]) -> None:
        self._read = read

    def estimate_inmemory_data_size(self) -> int | None:
        return None

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: DataContext | None = None
    ) -> list[ReadTask]:
        return [ReadTask(self._read, BlockMetadata(num_rows=None, size_bytes=None, exec_stats=None, input_files=None))]


def _read(site: _Site, items: Callable[[], Iterable[T]]) -> Iterator[pa.Table]:
    """The items; or, in the place of one that can't be read, the error."""
    try:
        site.enter()
        for item in items():
            yield _row(item)
    except CappyError as error:
        yield _row(error)


def _work(site: _Site, work: Callable[[T], R], batch: pa.Table) -> pa.Table:
    """The result of a batch, which has one item; or the error."""
    try:
        site.enter()
        item = pickle.loads(batch["value"][0].as_py())
        return _row(item if isinstance(item, CappyError) else work(item))
    except CappyError as error:
        return _row(error)


class _Actor(Generic[T, R]):
    """Does the same in a process that keeps `work`."""

    def __init__(self, site: _Site, work: Callable[[T], R]) -> None:
        self._site, self._work = site, work

    def __call__(self, batch: pa.Table) -> pa.Table:
        return _work(self._site, self._work, batch)


def _row(value: object) -> pa.Table:
    return pa.table({"value": pa.array([pickle.dumps(value)], pa.large_binary())})


def _first_cause(error: BaseException) -> str:
    """The innermost exception, in a line: Ray gives whole tracebacks of its machinery."""
    while True:
        inner = getattr(error, "cause", None) or error.__cause__
        if not isinstance(inner, BaseException):
            lines = str(error).strip().splitlines()
            return f"{type(error).__name__}: {lines[-1] if lines else ''}"
        error = inner
