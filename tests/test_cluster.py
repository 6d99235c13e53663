"""Stages on a Ray cluster of two nodes: the bytes of a local run, also where processes are killed in the middle."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from ray.cluster_utils import Cluster as RayCluster
from test_annotate import contents, random_instances, write_lines
from test_rendering import YAML
from tiny_generators import write_generator
from tiny_training import write_templates, write_tiny_bert, write_tiny_pairs

from cappy_lite.errors import InputValueError
from cappy_train import cluster
from cappy_train.cli import main
from cappy_train.cluster import Cluster, RemoteModel, open_cluster
from cappy_train.shards import ShardFiles, open_writer
from cappy_train.training import read_checkpoint

# Ray leaves sockets and files to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")

NODE = {"num_cpus": 1, "object_store_memory": 100 << 20, "include_dashboard": False}


@pytest.fixture(scope="module")
def nodes() -> Iterator[RayCluster]:
    made = RayCluster(initialize_head=True, head_node_args=NODE)
    made.add_node(**NODE)
    yield made
    made.shutdown()


@pytest.fixture(scope="module")
def connected(nodes: RayCluster) -> Iterator[Cluster]:
    with open_cluster(nodes.address) as opened:
        yield opened


@pytest.fixture
def kill_busy(nodes: RayCluster) -> Callable[[str], None]:
    """Kills a process of the cluster in the middle of a task, by a part of the task's name."""
    raylets = {node.all_processes["raylet"][0].process.pid for node in nodes.list_all_nodes()}

    def kill(name: str) -> None:
        end = time.monotonic() + 60
        seen = set()
        while time.monotonic() < end:
            workers = [process for process in Path("/proc").glob("[0-9]*") if parent(process) in raylets]
            for _, process in itertools.product(range(200), workers):
                seen.add(title(process))
                if name in title(process):
                    # It may have gone on meanwhile; once it has stopped it can't.
                    os.kill(int(process.name), signal.SIGSTOP)
                    found = name in title(process)
                    os.kill(int(process.name), signal.SIGKILL if found else signal.SIGCONT)
                    if found:
                        return
        raise AssertionError(f"no process did {name}, but {seen}")

    return kill


def parent(process: Path) -> int | None:
    with suppress(OSError):
        return int((process / "stat").read_text().rpartition(")")[2].split()[1])
    return None


def title(process: Path) -> str:
    """What a process of Ray's does; nothing once it is gone."""
    with suppress(OSError):
        return (process / "cmdline").read_text()
    return ""


def in_background(work: Callable[[], Any]) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], dict[str, bytes]]:
    """Arguments of annotate with thirty shards and a bad row, and what it writes here."""
    folder = tmp_path_factory.mktemp("job")
    records = random_instances(600)
    records[100]["references"] = []
    path = write_lines(folder / "in.jsonl", records)
    arguments = ["annotate", "--data", str(path), "--shard-instances", "20", "--skip-bad-rows"]
    assert main([*arguments, "--out", str(folder / "out")]) == 0
    return arguments, contents(folder / "out")


def test_annotation_survives_a_worker(
    connected: Cluster, job: tuple[list[str], dict[str, bytes]], kill_busy: Callable[[str], None], tmp_path: Path
) -> None:
    from cappy_train.annotate import annotate

    arguments, expected = job
    out = tmp_path / "out"

    def kill_one() -> None:
        while len(list(out.glob("*.parquet"))) < 3:
            time.sleep(0.002)
        kill_busy("MapBatches")

    killer = in_background(kill_one)
    annotate([arguments[2]], out, shard_instances=20, skip_bad_rows=True, workers=connected)
    killer.join()
    assert contents(out) == expected


def test_items_come_once_and_in_order_though_processes_die(connected: Cluster, tmp_path: Path) -> None:
    def die_once(name: str) -> None:
        (tmp_path / f"{name}-{os.getpid()}").touch()
        if len(list(tmp_path.glob(f"{name}-*"))) == 1:
            os.kill(os.getpid(), signal.SIGKILL)

    def numbers() -> Iterator[int]:
        for number in range(20):
            if number == 7:
                die_once("reading")
            yield number

    def square(number: int) -> int:
        if number in (3, 11):
            die_once(str(number))
        return number * number

    assert list(connected.map(square, numbers)) == [number * number for number in range(20)]
    for name in ("reading", "3", "11"):
        assert len(list(tmp_path.glob(f"{name}-*"))) == 2


def test_actors_start_with_few_arenas_of_memory(connected: Cluster) -> None:
    def began_with(_: int) -> str:
        return Path("/proc/self/environ").read_text()  # glibc reads it once, at the start

    (variables,) = Cluster(actors=1).map(began_with, lambda: [0])
    assert "MALLOC_ARENA_MAX=2" in variables.split("\0")


def test_the_driver_is_killed_and_goes_on(
    nodes: RayCluster, job: tuple[list[str], dict[str, bytes]], tmp_path: Path
) -> None:
    arguments, expected = job
    out = tmp_path / "out"
    command = [sys.executable, "-m", "cappy_train.cli", *arguments, "--out", str(out), "--cluster", nodes.address]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None and len(list(out.glob("*.parquet"))) < 5:
            time.sleep(0.002)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert (out / "unfinished.json").exists()
    again = subprocess.run(command, capture_output=True, text=True, check=True)
    # Nothing of Ray's.
    assert again.stdout == ""
    assert [line.partition(":")[0] for line in again.stderr.splitlines()] == [str(out), "left out"]
    assert contents(out) == expected


def test_rendering(connected: Cluster, tmp_path: Path) -> None:
    from cappy_train.rendering import render_instances

    templates, data = tmp_path / "templates.tar.gz", tmp_path / "rows.jsonl"
    write_templates(templates, {"mood": YAML})
    rows = [{"text": f"day {number}", "label": number % 2} for number in range(2000)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = [
        render_instances(data, templates, "mood", tmp_path / name, one_per_row=True, workers=workers)
        for name, workers in (("here.parquet", None), ("there.parquet", connected))
    ]
    assert done[0] == done[1]
    assert done[0].rows == 2000
    assert (tmp_path / "there.parquet").read_bytes() == (tmp_path / "here.parquet").read_bytes()


def test_sampling_survives_an_actor(connected: Cluster, kill_busy: Callable[[str], None], tmp_path: Path) -> None:
    from cappy_train.local_models import LocalModel
    from cappy_train.sampling import sample

    folder = write_generator(tmp_path / "t5", "t5")
    data = write_lines(tmp_path / "in.jsonl", random_instances(60))
    open_model = partial(LocalModel, folder, max_new_tokens=8)
    sample(data, tmp_path / "here", open_model(), shard_instances=4)
    out = tmp_path / "there"

    def kill_one() -> None:
        while len(list(out.glob("*.parquet"))) < 2:
            time.sleep(0.002)
        kill_busy("_Actor")

    killer = in_background(kill_one)
    sample(data, out, RemoteModel(open_model), shard_instances=4, workers=Cluster(actors=2))
    killer.join()
    assert contents(out) == contents(tmp_path / "here")
    other = RemoteModel(open_model)
    other._plan = other.plan | {"device": "cuda"}
    with pytest.raises(InputValueError, match=r"would sample with device 'cpu', another machine with 'cuda'"):
        other.sample([])
    with pytest.raises(InputValueError, match=r"3 processes need as many CPUs, and the cluster has 2"):
        Cluster(actors=3)


def test_the_commands_stage_by_stage(connected: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def opened(address: str, *, actors: int | None = None) -> Iterator[Cluster]:
        assert address == "local"
        yield Cluster(actors)

    monkeypatch.setattr(cluster, "open_cluster", opened)
    monkeypatch.chdir(tmp_path)
    write_templates(tmp_path / "templates.tar.gz", {"mood": YAML})
    Path("rows.jsonl").write_text("".join(f'{{"text": "day {number}", "label": 0}}\n' for number in range(40)))
    write_generator(tmp_path / "t5", "t5")
    write_tiny_bert(tmp_path / "bert")
    for command in (
        "instances --data rows.jsonl --templates templates.tar.gz --dataset mood --out in.parquet",
        "sample --data in.parquet --model t5 --max-new-tokens 4 --shard-instances 20 --out sampled --actors 2",
        "annotate --data sampled --out pairs",
        "pretrain --data pairs --base bert --out run --steps 2 --batch-tokens 256 --short 140 --long 160 --processes 2",
    ):
        assert main([*command.split(), "--cluster", "local"]) == 0, command
    assert read_checkpoint(tmp_path / "run" / "checkpoint.pt")["step"] == 2


def test_ctrl_c_ends_training_as_it_ends_other_stages() -> None:
    @cluster._interruptible()
    def train() -> None:
        signal.signal(signal.SIGINT, lambda *_: sys.exit(0))  # as Ray Train does
        signal.raise_signal(signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        train()
    assert signal.getsignal(signal.SIGINT) is before


def test_bad_rows_are_named_as_here(connected: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from cappy_train.annotate import annotate

    records = random_instances(60)
    records[30]["split"] = "training"
    write_lines(tmp_path / "in.jsonl", records)
    monkeypatch.chdir(tmp_path)
    messages = []
    for out, workers in (("here", None), ("there", connected)):
        with pytest.raises(InputValueError) as raised:
            annotate(["in.jsonl"], Path(out), shard_instances=10, workers=workers)
        messages.append(str(raised.value))
    assert messages[0] == messages[1]
    assert "in.jsonl, line 31: split is 'training'" in messages[0]
    shards = [sorted(path.name for path in Path(out).glob("*.parquet")) for out in ("here", "there")]
    assert shards[0] == shards[1] == [f"shard-{number:06}.parquet" for number in range(3)]


def test_errors_reach_the_driver(connected: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(number: int) -> int:
        raise InputValueError(f"no {number}")

    def unready() -> Iterator[int]:
        yield 1
        raise InputValueError("damaged")

    with pytest.raises(InputValueError, match=r"^no 0$"):
        list(connected.map(refuse, lambda: range(3)))
    with pytest.raises(InputValueError, match=r"^damaged$"):
        list(connected.map(lambda number: number, unready))
    monkeypatch.setattr(cluster, "_versions", lambda: {"pyarrow": "0.1"})
    with pytest.raises(InputValueError, match=rf"has pyarrow {pa.__version__}, and 0.1 is where .* install the same"):
        list(connected.map(lambda number: number, lambda: range(3)))


def test_addresses_without_a_cluster(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_lines(tmp_path / "in.jsonl", random_instances(5))
    for address, message in (
        ("127.0.0.1:1", "no Ray cluster at 127.0.0.1:1"),
        ("nonsense", "no Ray cluster at nonsense"),
        ("ray://127.0.0.1:10001", "Ray Data doesn't run through Ray's client"),
    ):
        arguments = ["annotate", "--data", str(path), "--out", str(tmp_path / "out"), "--cluster", address]
        assert main(arguments) == 1
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_ray_is_not_installed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "cappy_train.cluster")
    monkeypatch.setitem(sys.modules, "ray", None)
    assert main(["annotate", "--data", "x", "--out", str(tmp_path / "out"), "--cluster", "auto"]) == 1
    assert "pip install 'cappy-lite[cluster]'" in capsys.readouterr().err


def test_a_folder_that_is_not_shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    schema = pa.schema([("n", pa.int64())])
    table = pa.table({"n": [1]})
    monkeypatch.setattr("cappy_train.shards.SEEN_SECONDS", 0.2)
    with open_writer(tmp_path / "out", {}) as writer:
        elsewhere = ShardFiles(tmp_path / "elsewhere", writer.files.plan)
        elsewhere.folder.mkdir()
        with pytest.raises(InputValueError, match=r"doesn't see .*unfinished.json: give an --out that all machines"):
            elsewhere.write(0, [table], schema, counts={})
        (elsewhere.folder / "unfinished.json").write_text("{}")
        shard = elsewhere.write(0, [table], schema, counts={})
        with pytest.raises(InputValueError, match=r"shard-000000.parquet, which a worker has written, isn't seen by"):
            writer.add(shard)


def test_training_is_the_same_and_survives_a_process(
    connected: Cluster, kill_busy: Callable[[str], None], tmp_path: Path
) -> None:
    from cappy_train.pretrain import pretrain
    from cappy_train.training import Settings

    pairs, _ = write_tiny_pairs(tmp_path)
    bert = str(write_tiny_bert(tmp_path / "bert"))
    options = {
        "steps": 30,
        "checkpoint_every": 5,
        "batch_tokens": 256,
        "batches_per_step": 2,
        "short": 140,
        "long": 160,
    }
    settings = Settings(**options, learning_rate=3e-3, precision="float32")
    # In a process of its own, as those of the cluster are.
    command = [sys.executable, "-m", "cappy_train.cli", "pretrain", "--data", str(pairs), "--base", bert]
    command += ["--out", str(tmp_path / "here"), "--learning-rate", "3e-3", "--precision", "float32"]
    for name, value in options.items():
        command += [f"--{name.replace('_', '-')}", str(value)]
    subprocess.run(command, capture_output=True, check=True)
    out = tmp_path / "there"

    def kill_one() -> None:
        while not (out / "checkpoint.pt").exists():
            time.sleep(0.002)
        kill_busy("RayTrainWorker")

    killer = in_background(kill_one)
    connected.train(partial(pretrain, pairs, out, base=bert, settings=settings), out, processes=2)
    killer.join()
    states = [read_checkpoint(run / "checkpoint.pt") for run in (tmp_path / "here", out)]
    assert states[0]["step"] == states[1]["step"] == 30
    losses = [
        [json.loads(line)["loss"] for line in (run / "log.jsonl").read_text().splitlines()]
        for run in (tmp_path / "here", out)
    ]
    # Sums in another order.
    assert losses[0] == pytest.approx(losses[1], abs=2e-3)
    assert {path.name for path in out.iterdir()} == {"checkpoint.pt", "tokenizer.json", "log.jsonl"}
    with pytest.raises(InputValueError, match=r"the cluster has 2$"):
        connected.train(lambda: None, tmp_path, processes=3)
