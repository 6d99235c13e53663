from __future__ import annotations

import gzip
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tiny_model import write_tiny_model
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from benchmarks import quality
from benchmarks.machine import describe_machine
from benchmarks.quality import held_out_questions, table
from cappy_train.baselines import longest, overlap
from cappy_train.embedding import Embedder, minilm_cosine
from cappy_train.evaluate import checked_scores
from cappy_train.evaluation import Evaluated, compare, gains_by_method
from cappy_train.instances import Instance

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"abcdefghij"]
HIDDEN, FEED_FORWARD, POSITIONS = 16, 32, 300


@pytest.fixture
def bert_folder(tmp_path: Path) -> Path:
    """A two-layer BERT with random weights, under the names of transformers' BertModel, and its tokenizer."""
    torch.manual_seed(0)
    sizes = {
        "vocab_size": len(WORDS),
        "hidden_size": HIDDEN,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": FEED_FORWARD,
        "max_position_embeddings": POSITIONS,
        "layer_norm_eps": 1e-12,
    }
    shapes = {
        "embeddings.word_embeddings.weight": (len(WORDS), HIDDEN),
        "embeddings.position_embeddings.weight": (POSITIONS, HIDDEN),
        "embeddings.token_type_embeddings.weight": (2, HIDDEN),
    }
    modules = {
        "attention.self.query": (HIDDEN, HIDDEN),
        "attention.self.key": (HIDDEN, HIDDEN),
        "attention.self.value": (HIDDEN, HIDDEN),
        "attention.output.dense": (HIDDEN, HIDDEN),
        "attention.output.LayerNorm": (HIDDEN,),
        "intermediate.dense": (FEED_FORWARD, HIDDEN),
        "output.dense": (HIDDEN, FEED_FORWARD),
        "output.LayerNorm": (HIDDEN,),
    }
    named = {"embeddings.LayerNorm": (HIDDEN,)}
    named |= {f"encoder.layer.{layer}.{name}": shape for layer in range(2) for name, shape in modules.items()}
    for name, shape in named.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    save_file({name: torch.randn(shape) for name, shape in shapes.items()}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(sizes))
    tokenizer = Tokenizer(models.WordLevel({word: id for id, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.enable_padding()  # as the published tokenizer.json has it; embeddings must not depend on it
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return tmp_path


def write_held_out(folder: Path) -> None:
    choices = [
        Instance(f"rte:val:{n}:{template}", "rte", template, f"{template} {n}", (gold,), (), ("yes", "no"), split)
        for n, (gold, split) in enumerate([("yes", "test"), ("no", "test"), ("yes", "test"), ("yes", "train")])
        for template in ("ask", "tell")
    ]
    open_ended = [
        Instance(f"{task}-{n}", task, None, f"Copy: {letter} b", (f"{letter} b",), (), None, "test")
        for task in ("task1", "task2")
        for n, letter in enumerate("acdefghij")
    ]
    for name, instances in {"t0_heldout": choices, "superni_test": open_ended}.items():
        lines = [json.dumps(asdict(one)) + "\n" for one in instances]
        (folder / f"{name}.jsonl.gz").write_bytes(gzip.compress("".join(lines).encode()))


def test_embeddings_do_not_depend_on_the_batch(bert_folder: Path) -> None:
    texts = ["a b c", "a", "c b a d e f g", "a b c d"]
    embedder = Embedder(bert_folder)
    together = embedder.embed(texts)
    assert together.shape == (4, HIDDEN)
    assert np.linalg.norm(together, axis=1) == pytest.approx(np.ones(4))
    for text, row in zip(texts, together, strict=True):
        assert embedder.embed([text])[0] == pytest.approx(row, abs=1e-6)
    assert np.abs(together[0] - together[3]).max() > 0.01


def test_embeddings_read_256_tokens(bert_folder: Path) -> None:
    kept, cut = "a b " * 127, "a b " * 127 + "c d " * 40
    one, same, other = Embedder(bert_folder).embed([kept, cut, "d " + kept])
    assert one == pytest.approx(same, abs=1e-6)
    assert np.abs(one - other).max() > 1e-4


def test_cosine_is_highest_for_the_same_text(bert_folder: Path) -> None:
    scores = minilm_cosine(bert_folder)([("a b c", ("d", "a b c")), ("d", ("d", "e", "a b c"))])
    assert [len(row) for row in scores] == [2, 3]
    assert scores[0][1] == pytest.approx(1)
    assert scores[1][0] == pytest.approx(1)
    assert scores[0][0] == pytest.approx(scores[1][2])
    assert max(scores[0][0], scores[1][1]) < 1


def test_overlap_is_the_share_of_distinct_words_that_the_instruction_has() -> None:
    (scores,) = overlap([("The cat, on a mat", ("THE cat", "cat cat dog", "dog", "?!"))])
    assert scores.tolist() == [1, 0.5, 0, 0]


def results(tmp_path: Path, bert_folder: Path, limit: int | None) -> dict[str, dict[str, Any]]:
    """Both sets' figures, of a model that picks the longest candidate."""
    write_held_out(tmp_path)
    minilm = minilm_cosine(bert_folder)
    return {
        name: compare(some, gains_by_method(some, [Evaluated("tiny", checked_scores(some, longest))], minilm))
        for name, some in held_out_questions(tmp_path, limit=limit).items()
    }


def test_the_report_compares_the_model_with_every_baseline(tmp_path: Path, bert_folder: Path) -> None:
    by_set = results(tmp_path, bert_folder, limit=None)
    heldout = {method["name"]: method for method in by_set["t0_heldout"]["methods"]}
    assert by_set["t0_heldout"]["questions_by_task"] == {"rte": 6}
    rules = ["longest", "word overlap", "MiniLM cosine", "random", "oracle"]
    assert list(heldout) == ["tiny", "majority class", *rules]
    averages = {name: method["average"]["value"] for name, method in heldout.items()}
    assert averages["tiny"] == averages["longest"] == averages["majority class"] == pytest.approx(2 / 3, abs=1e-5)
    assert (averages["random"], averages["oracle"]) == (0.5, 1)

    superni = {method["name"]: method for method in by_set["superni_test"]["methods"]}
    assert list(superni) == ["tiny", *rules]
    assert by_set["superni_test"]["questions"] == 18
    assert superni["word overlap"]["average"] == {"value": 1, "low": 1, "high": 1}
    assert superni["word overlap"]["closed"] == {"value": 1, "low": 1, "high": 1}
    for name, method in superni.items():
        ahead = method["ahead"]["tiny"]
        lead = superni["tiny"]["average"]["value"] - method["average"]["value"]
        assert ahead["value"] == pytest.approx(lead, abs=2e-5)
        assert ahead["low"] <= ahead["value"] <= ahead["high"], name
    assert superni["longest"]["ahead"]["tiny"] == {"value": 0, "low": 0, "high": 0}
    assert superni["oracle"]["ahead"]["tiny"]["high"] < 0
    json.dumps(by_set, allow_nan=False)


def test_the_table_has_tasks_averages_and_intervals(tmp_path: Path, bert_folder: Path) -> None:
    lines = table(results(tmp_path, bert_folder, limit=4)["superni_test"]).splitlines()
    assert lines[0].split() == [
        "task",
        "n",
        "tiny",
        "longest",
        "word",
        "overlap",
        "MiniLM",
        "cosine",
        "random",
        "oracle",
    ]
    assert lines[2].split()[:2] == ["task1", "2"]
    assert lines[3].split()[:2] == ["task2", "2"]
    assert [line.split()[0] for line in lines[5::2]] == ["average", "closed,", "tiny"]
    assert lines[6].split()[-1] == "100.0..100.0"


def test_the_command_prints_tables_and_then_one_json_line(
    tmp_path: Path, bert_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_held_out(tmp_path)
    model = write_tiny_model(tmp_path / "tiny")
    # The published MiniLM is large; a BERT with random weights goes the same way.
    monkeypatch.setattr(quality, "packaged_minilm", lambda: bert_folder)
    quality.main(["--data", str(tmp_path), "--model", str(model), "--json", str(tmp_path / "out.json"), "--limit", "6"])
    output = capsys.readouterr()
    *tables, last = output.out.splitlines()
    report = json.loads(last)
    assert json.loads((tmp_path / "out.json").read_text()) == report
    assert {name: result["questions"] for name, result in report["sets"].items()} == {
        "t0_heldout": 6,
        "superni_test": 6,
    }
    assert report["machine"]["numpy"] == np.__version__
    assert report["seeds"] == {"distractors": 0, "bootstrap": 0}
    assert [line.split(":")[0] for line in tables if "questions;" in line] == ["t0_heldout", "superni_test"]
    assert "tiny" in output.err  # the progress bar


def test_the_machine_is_described() -> None:
    machine = describe_machine("numpy", "no-such-package")
    assert machine["numpy"] == np.__version__
    assert machine["no-such-package"] is None
    assert isinstance(machine["cpus"], int)
    assert machine["processor"]
