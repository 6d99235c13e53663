"""The command pretrain: from pairs to a run, and what is wrong with its inputs."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_training import write_tiny_bert, write_tiny_pairs

from cappy_lite.errors import InputValueError
from cappy_lite.models import model_folder
from cappy_lite.tokens import read_tokenizer
from cappy_train import cli
from cappy_train.network import packaged_minilm
from cappy_train.pretrain import PACKAGED, base_folder, pretrain
from cappy_train.read_back import network_of
from cappy_train.trainable import network_scores
from cappy_train.training import Settings, read_checkpoint, trained_network

SETTINGS = Settings(steps=2, batch_tokens=256, short=140, long=160, evaluate_every=1, checkpoint_every=1)
SMALL = ["--steps", "2", "--batch-tokens", "256", "--short", "140", "--long", "160"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    write_tiny_pairs(folder)
    write_tiny_bert(folder / "bert")
    return folder


def test_command_line(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    arguments = ["pretrain", "--data", str(folder / "pairs"), "--dev", str(folder / "*.jsonl.gz"), "--out", str(out)]
    arguments += ["--base", str(folder / "bert"), *SMALL, "--losses", "squared", "listwise=0.5", "--recompute"]
    assert cli.main(arguments) == 0
    assert {path.name for path in out.iterdir()} == {"checkpoint.pt", "log.jsonl", "tokenizer.json"}
    settings = read_checkpoint(out / "checkpoint.pt")["settings"]
    assert settings["losses"] == {"squared": 1.0, "listwise": 0.5}
    assert (settings["steps"], settings["short"], settings["recompute"]) == (2, 140, True)
    log = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert "choice_dev_accuracy" in log[0]
    assert "loss" in log[1]
    assert cli.main([*arguments[:2], str(tmp_path / "none"), *arguments[3:]]) == 1
    assert "manifest.json: no such file" in capsys.readouterr().err
    assert cli.main([*arguments, "--losses", "squared=much"]) == 1
    assert "--losses squared=much" in capsys.readouterr().err


def test_dev_is_not_needed_and_the_seed_makes_the_head(folder: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        pretrain(
            folder / "pairs", tmp_path / name, base=str(folder / "bert"), settings=replace(SETTINGS, steps=1, seed=seed)
        )
    heads = [trained_network(tmp_path / name).head_dense.weight for name in "abc"]
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])


def test_a_final_full_stop_is_not_read(folder: Path, tmp_path: Path) -> None:
    pretrain(folder / "pairs", tmp_path, base=str(folder / "bert"), settings=replace(SETTINGS, steps=1))
    network = trained_network(tmp_path)
    packer = network.packer(tmp_path / "tokenizer.json")
    asked = [("is it a dog?", ["a dog", "the cat", ""]), ("is it a dog?", ["a dog. ", " the cat...", " ."])]
    without, with_stops = network_scores(network, packer, asked, network.max_tokens)
    assert without.tolist() == with_stops.tolist()
    assert len(set(without.tolist())) == 3
    tokenizer = read_tokenizer(tmp_path / "tokenizer.json")
    assert tokenizer.encode("a dog. the cat. .").tokens == tokenizer.encode("a dog. the cat").tokens
    assert tokenizer.encode("dog. dog").tokens != tokenizer.encode("dog dog").tokens


def test_a_model_is_trained_further(folder: Path, tmp_path: Path) -> None:
    pretrain(
        folder / "pairs",
        tmp_path / "run",
        base="cappy-mini",
        settings=replace(SETTINGS, steps=1, learning_rate=1e-9),
    )
    trained, before = (
        trained_network(tmp_path / "run").state_dict(),
        network_of(model_folder("cappy-mini")).state_dict(),
    )
    assert trained.keys() == before.keys()
    assert all(torch.allclose(weight, before[name], atol=1e-6) for name, weight in trained.items())


def test_another_run_is_trained_further(folder: Path, tmp_path: Path) -> None:
    pretrain(folder / "pairs", tmp_path / "first", base=str(folder / "bert"), settings=SETTINGS)
    small = replace(SETTINGS, steps=1, learning_rate=1e-9)
    pretrain(folder / "pairs", tmp_path / "second", base=str(tmp_path / "first"), settings=small)
    trained, before = (trained_network(tmp_path / run).state_dict() for run in ("second", "first"))
    assert all(torch.allclose(weight, before[name], atol=1e-6) for name, weight in trained.items())


def test_the_base_is_a_name_a_folder_or_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert base_folder(PACKAGED) == packaged_minilm()
    assert base_folder("cappy-mini") == model_folder("cappy-mini")
    assert base_folder(str(tmp_path)) == tmp_path
    with pytest.raises(InputValueError, match="give a checkpoint's folder, or hub:owner/name"):
        base_folder("no-such-folder")
    import huggingface_hub

    (tmp_path / "model.safetensors").touch()
    asked = []
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **_: asked.append(name) or str(tmp_path))
    assert base_folder("hub:owner/name") == tmp_path
    assert asked == ["owner/name"]


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_missing_file_of_the_base_is_named(folder: Path, tmp_path: Path, name: str) -> None:
    base = write_tiny_bert(tmp_path / "bert")
    (base / name).unlink()
    with pytest.raises(InputValueError, match=name.replace(".", r"\.")):
        pretrain(folder / "pairs", tmp_path / "run", base=str(base), settings=SETTINGS)
    assert not (tmp_path / "run").exists()


def test_a_damaged_shard_ends_the_run_and_is_named(tmp_path: Path) -> None:
    pairs, _ = write_tiny_pairs(tmp_path)
    base = write_tiny_bert(tmp_path / "bert")
    for shard in pairs.glob("*.parquet"):
        content = bytearray(shard.read_bytes())
        content[4:-200] = bytes(len(content) - 204)
        shard.write_bytes(bytes(content))
    with pytest.raises(InputValueError, match=r"shard-\d+\.parquet can't be read"):
        pretrain(pairs, tmp_path / "run", base=str(base), settings=SETTINGS)
