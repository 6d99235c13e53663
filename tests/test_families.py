"""Checkpoints of every family that can become a shared-instruction network; and clear words to all others."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tiny_checkpoints import MAX_TOKENS, write_checkpoint
from tiny_training import write_tiny_bert, write_tiny_pairs
from transformers import AutoModel

from cappy_lite import Scorer
from cappy_lite.errors import InputValueError
from cappy_train.batches import Packer
from cappy_train.export import export
from cappy_train.network import from_bert
from cappy_train.pretrain import pretrain
from cappy_train.shared_builds import from_saved
from cappy_train.trainable import network_scores
from cappy_train.training import Settings, trained_network

SHARED = {"bert": ("[CLS]", "[SEP]"), "roberta": ("<s>", "</s>"), "xlm-roberta": ("<s>", "</s>")}


@pytest.fixture(scope="module", params=SHARED)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    return request.param, write_checkpoint(tmp_path_factory.mktemp("checkpoints"), request.param)


def test_its_states_are_those_of_transformers(checkpoint: tuple[str, Path]) -> None:
    family, folder = checkpoint
    network = from_bert(folder).eval()
    assert network.config.positions == MAX_TOKENS
    # Beyond the special tokens, of which RoBERTa takes one for padding.
    ids = torch.randint(5, network.config.vocabulary, (1, 30), generator=torch.Generator().manual_seed(0))
    types = torch.zeros_like(ids)
    if family == "bert":
        types[:, 20:] = 1
    positions = torch.arange(ids.shape[1])[None]
    with torch.inference_mode():
        expected = AutoModel.from_pretrained(folder).eval()(input_ids=ids, token_type_ids=types).last_hidden_state
        # In one segment all tokens see each other.
        found = network.encode(ids, positions, types, torch.zeros_like(ids))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_one_type_of_tokens_becomes_two_that_start_alike(tmp_path: Path) -> None:
    network = from_bert(write_checkpoint(tmp_path, "roberta"))
    instruction, candidate = network.token_type_embeddings.weight
    assert torch.equal(instruction, candidate)


def test_rows_have_the_tokenizers_own_special_tokens(checkpoint: tuple[str, Path]) -> None:
    family, folder = checkpoint
    packer = Packer(folder / "tokenizer.json")
    assert (packer.cls_token, packer.sep_token) == SHARED[family]
    instruction, candidate = packer.encode("the snow"), packer.encode("the dog")
    (row,) = packer.pack(instruction, [candidate], 150)
    assert row.input_ids.tolist() == [packer.cls_id, *instruction, packer.sep_id, *candidate, packer.sep_id]


def test_a_tokenizer_without_special_tokens_is_refused(tmp_path: Path) -> None:
    path = write_tiny_bert(tmp_path) / "tokenizer.json"
    path.write_text(path.read_text().replace("[CLS]", "[FIRST]"))
    with pytest.raises(InputValueError, match="neither the tokens"):
        Packer(path)


def test_other_builds_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputValueError, match=r"shared-instruction network: it is of type .*--graph joint"):
        from_saved(write_checkpoint(tmp_path, "deberta-v3"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"hidden_act": "relu"}, "activation is relu"),
        ({"hidden_size": 24}, "multiples of 16"),
        ({"is_decoder": True}, "own"),
    ],
)
def test_what_a_network_does_otherwise_is_named(tmp_path: Path, change: dict[str, object], words: str) -> None:
    folder = write_tiny_bert(tmp_path)
    config = folder / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | change))
    with pytest.raises(InputValueError, match=words):
        from_bert(folder)


def test_damaged_checkpoints_are_named(tmp_path: Path) -> None:
    folder = write_tiny_bert(tmp_path)
    config = folder / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"num_hidden_layers": 3}))
    with pytest.raises(InputValueError, match=r"lacks the weights 'encoder.layer.2"):
        from_bert(folder)
    (folder / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(InputValueError, match="can't be read"):
        from_bert(folder)


def test_a_roberta_is_trained_exported_and_run(tmp_path: Path) -> None:
    pairs, instances = write_tiny_pairs(tmp_path / "in")
    base, run, model = write_checkpoint(tmp_path / "base", "roberta"), tmp_path / "run", tmp_path / "model"
    settings = Settings(steps=30, batch_tokens=1024, short=140, long=MAX_TOKENS, learning_rate=3e-3)
    pretrain(pairs, run, base=str(base), settings=settings)
    export(run, instances, model, name="tiny", base_model="random weights", licence="MIT")
    config = json.loads((model / "config.json").read_text())
    assert config["special_tokens"] == {"cls": "<s>", "sep": "</s>"}
    assert config["max_tokens"] == MAX_TOKENS
    candidates = ("the dog runs", "snow", "The chef cooks!")
    expected = network_scores(
        trained_network(run), Packer(run / "tokenizer.json"), [("Say something.", candidates)], MAX_TOKENS
    )
    assert Scorer(model).score("Say something.", candidates) == pytest.approx(expected[0], abs=0.05)
