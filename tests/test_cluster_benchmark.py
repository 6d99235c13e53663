from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_training import write_tiny_bert

from benchmarks import cluster, corpus, training
from cappy_train.workers import Here

# Ray leaves sockets and files to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Little work; and threads as they were before."""
    monkeypatch.setattr(corpus, "SYNTHETIC_VOCABULARY", 100)
    monkeypatch.setattr(training, "MADE_UP", 40)
    monkeypatch.setattr(training, "INSTRUCTION_WORDS", (2, 6))
    monkeypatch.setattr(training, "REFERENCE_WORDS", (1, 4))
    monkeypatch.setattr(cluster, "ANNOTATED_PAIRS", 600)
    monkeypatch.setattr(cluster, "RENDERED_ROWS", 50)
    monkeypatch.setattr(cluster, "SAMPLED_INSTANCES", 1)
    monkeypatch.setattr(cluster, "BLOCKS", 5)
    small = replace(cluster.TRAINING, batch_tokens=256, short=140, long=160, precision="float32")
    monkeypatch.setattr(cluster, "TRAINING", small)
    monkeypatch.setattr(cluster, "GENERATOR", replace(cluster.GENERATOR, decoder_layers=1, instruction_tokens=100))
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_the_command_measures_and_plans(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written = tmp_path / "cluster.json"
    base = write_tiny_bert(tmp_path / "bert")
    assert cluster.main(["--base", str(base), "--rounds", "1", "--gpus", "4", "--output", str(written)]) == 0
    report = json.loads(written.read_text())
    stages = report["measured"]["stages"]
    assert set(stages) == {"instances", "annotate", "sample", "pretrain"}
    for rates in (*(one["one"] for one in stages.values() if "one" in one), stages["pretrain"]["all"]):
        assert 0 < rates[1] <= rates[0] <= rates[2]
    assert all(size > 0 for size in report["measured"]["bytes"].values())
    assert report["assumptions"]["gpus"] == 4
    assert [row["name"] for row in report["plans"]["gpus"]] == ["instances", "sample", "annotate", "pretrain"]
    assert {"cpus", "ray", "torch", "processor"} <= set(report)
    printed = capsys.readouterr().out
    assert "| annotate, " in printed
    assert "| 1 of 4 GPUs |" in printed


def test_plans_are_counted_by_hand() -> None:
    measured = {
        "stages": {
            "instances": {"one": [1000.0, 900.0, 1100.0], "most": [50_000.0, 1.0, 1.0]},
            "sample": {"one": [2000.0, 1.0, 1.0]},
            "annotate": {"one": [400_000.0, 1.0, 1.0], "most": [1e6, 1.0, 1.0]},
            "pretrain": {"all": [4000.0, 1.0, 1.0], "threads": 2},
        },
        "bytes": {"rendered instance": 190, "sampled pair": 50, "pair": 40, "checkpoint": 3e8},
    }
    assumptions = cluster.Assumptions(cpu_nodes=2, cores=10, gpu_nodes=3, gpus=4, core_price=0.1, gpu_price=2)
    instances, sample, annotate, pretrain = cluster.plan(
        cluster.cpu_stages(measured, assumptions), assumptions, on_gpus=()
    )
    count = 160e6 / 19
    assert instances["hours_of_one"] == pytest.approx(count / 1000 / 3600)
    assert instances["hours"] == pytest.approx(count / 1000 / 20 / 3600)
    assert instances["bytes"] == pytest.approx(count * 190)
    assert sample["work"] == pytest.approx(count * 17 * 20)
    assert sample["hours"] == pytest.approx(count * 17 * 20 / 2000 / 20 / 3600)
    assert sample["dollars"] == pytest.approx(sample["hours"] * 20 * 0.1)
    # What one process hands out bounds it: twenty cores would do 8 million pairs a second.
    assert annotate["hours"] == pytest.approx(160 / 3600)
    assert annotate["dollars"] == pytest.approx(160 / 3600 * 20 * 0.1)
    assert pretrain["hours_of_one"] == pytest.approx(count * 500 / 2000 / 3600)
    _, sample, annotate, pretrain = cluster.plan(
        cluster.gpu_stages(measured, assumptions), assumptions, on_gpus=("sample", "pretrain")
    )
    assert sample["rate"] == pytest.approx(0.05 * 312e12 / 6e9)
    assert sample["hours"] == pytest.approx(count * 340 / 2600 / 12 / 3600)
    assert sample["dollars"] == pytest.approx(sample["hours"] * 12 * 2)
    assert annotate["on"] == "core"
    assert pretrain["rate"] == pytest.approx(0.3 * 312e12 / 1.8e9)
    assert pretrain["bytes"] == pytest.approx(3.6e9)


def test_a_difference_ends_it(tmp_path: Path) -> None:
    def write(path: Path, workers: object) -> None:
        path.write_text(path.name)

    (tmp_path / "out").write_text("out")
    job = cluster.Job(write, tmp_path / "out", 1, "rows", writes=False)
    with pytest.raises(SystemExit, match=r"DIFFERENT: 0-out, which a stage made, from out"):
        cluster.measure_job("a stage", job, Here(), 1)
