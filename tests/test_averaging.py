"""The mean of networks' weights: by hand, as a run that other stages take, and what has no mean."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_training import write_tiny_bert, write_tiny_pairs

from cappy_lite import Scorer
from cappy_lite.errors import InputValueError
from cappy_train import cli
from cappy_train.averaging import average
from cappy_train.export import export
from cappy_train.pretrain import pretrain
from cappy_train.shared_builds import from_saved
from cappy_train.training import Settings, trained_network

SETTINGS = Settings(steps=2, batch_tokens=256, short=140, long=160, learning_rate=1e-2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pairs, a base, two runs from it, and bases that it has no mean with."""
    folder = tmp_path_factory.mktemp("inputs")
    write_tiny_pairs(folder)
    base = write_tiny_bert(folder / "bert")
    for seed, name in enumerate(("first", "second")):
        pretrain(folder / "pairs", folder / name, base=str(base), settings=replace(SETTINGS, seed=seed))
    for name, file, old, new in (
        ("other sizes", "config.json", '"layer_norm_eps": 1e-12', '"layer_norm_eps": 1e-05'),
        ("other words", "tokenizer.json", '"dog"', '"god"'),
    ):
        changed = write_tiny_bert(folder / name) / file
        text = changed.read_text()
        assert old in text
        changed.write_text(text.replace(old, new))
    return folder


def weights(run: Path) -> dict[str, torch.Tensor]:
    return trained_network(run).state_dict()


def test_a_run_and_its_start(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "averaged"
    assert average([(str(folder / "first"), 3), (str(folder / "bert"), 1)], out) == {}
    trained, start, found = weights(folder / "first"), from_saved(folder / "bert").state_dict(), weights(out)
    assert found.keys() == trained.keys()
    moved = "layers.0.output.weight"
    assert not torch.allclose(trained[moved], start[moved], atol=1e-3)
    for name, weight in found.items():
        expected = trained[name] if name.startswith("head") else 0.75 * trained[name] + 0.25 * start[name]
        torch.testing.assert_close(weight, expected)
    assert {path.name for path in out.iterdir()} == {"checkpoint.pt", "log.jsonl", "tokenizer.json"}
    assert (out / "tokenizer.json").read_bytes() == (folder / "first" / "tokenizer.json").read_bytes()


def test_runs_of_one_start(folder: Path, tmp_path: Path) -> None:
    average([(str(folder / "first"), 1), (str(folder / "second"), 1)], tmp_path / "averaged")
    one, other, found = (weights(run) for run in (folder / "first", folder / "second", tmp_path / "averaged"))
    assert all(torch.allclose(weight, (one[name] + other[name]) / 2) for name, weight in found.items())
    assert not torch.allclose(found["head_output.weight"], one["head_output.weight"])


@pytest.mark.filterwarnings("ignore:.*tokens")
def test_the_result_is_exported_and_trained_further(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    averaged, dev = tmp_path / "averaged", str(folder / "*.jsonl.gz")
    networks = [f"{folder / 'first'}=0.8", f"{folder / 'bert'}=0.2"]
    assert cli.main(["average", "--networks", *networks, "--dev", dev, "--out", str(averaged)]) == 0
    figures = json.loads(capsys.readouterr().out)
    (line,) = (averaged / "log.jsonl").read_text().splitlines()
    assert json.loads(line) == pytest.approx({"step": 2, **figures}, abs=1e-5)
    assert 0 <= figures["choice_dev_accuracy"] <= 1

    identity = {"name": "tiny", "base_model": "random weights", "licence": "MIT"}
    export(averaged, dev, tmp_path / "model", float32=True, **identity)
    assert (
        "the mean of these networks' (and their shares): first (0.8), bert (0.2)"
        in (tmp_path / "model" / "README.md").read_text()
    )
    assert len(set(Scorer(tmp_path / "model").score("is it a dog?", ["a dog", "the cat"]).tolist())) == 2

    average([(str(folder / "bert"), 1), (str(averaged), 3)], tmp_path / "again")
    assert json.loads((tmp_path / "again" / "log.jsonl").read_text()) == {"step": 2}

    small = replace(SETTINGS, steps=1, learning_rate=1e-9)
    pretrain(folder / "pairs", tmp_path / "further", base=str(averaged), settings=small)
    further, start = weights(tmp_path / "further"), weights(averaged)
    assert all(torch.allclose(weight, start[name], atol=1e-6) for name, weight in further.items())
    with pytest.raises(InputValueError, match="data was 'an average of first"):
        pretrain(folder / "pairs", averaged, base=str(folder / "bert"), settings=SETTINGS)


@pytest.mark.parametrize(
    ("networks", "message"),
    [
        (["first"], "needs two networks"),
        (["bert", "bert"], "one of them must be a run's"),
        (["first=0", "bert"], r"the share of .*first is 0\.0"),
        (["first=nan", "bert"], r"the share of .*first is nan"),
        (["first=some", "bert"], "--networks .*first=some: give a name, or name=number, such as runs/mine=0\\.8"),
        (["first", "other sizes"], "first and .*other sizes are networks of other sizes"),
        (["first", "other words"], "first and .*other words have other vocabularies"),
        (["first", "none"], "none' is no folder"),
    ],
)
def test_what_has_no_mean(
    folder: Path, tmp_path: Path, networks: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [str(folder / name) for name in networks]
    assert cli.main(["average", "--networks", *paths, "--out", str(tmp_path / "out")]) == 1
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_there_stays(folder: Path) -> None:
    before = (folder / "first" / "checkpoint.pt").read_bytes()
    with pytest.raises(InputValueError, match="first exists: give --out a new folder"):
        average([(str(folder / "first"), 1), (str(folder / "bert"), 1)], folder / "first")
    assert (folder / "first" / "checkpoint.pt").read_bytes() == before
