"""A small BERT checkpoint and small training files, made in every test run."""

from __future__ import annotations

import gzip
import io
import json
import random
import tarfile
from pathlib import Path

import torch
from safetensors.torch import save_file
from tiny_model import tiny_tokenizer

from cappy_train.annotate import annotate
from cappy_train.distractors import write_default_data
from cappy_train.duplicates import TEST_SETS
from cappy_train.network import ScorerNetwork, from_bert

HIDDEN, LAYERS, FEED_FORWARD, POSITIONS = 16, 2, 32, 160
ANIMALS = ("dog", "cat", "car", "house", "film", "chef", "word", "child", "snow", "sun")
VERBS = ("runs", "eats", "drives", "skis")

ROTTEN_TOMATOES = """\
dataset: rotten_tomatoes
templates:
  a1: !Template
    answer_choices: bad ||| good
    id: a1
    jinja: '{{text}} Is the film good or bad? ||| {{ answer_choices [label] }}'
    metadata: !TemplateMetadata
      original_task: true
    name: good or bad
    reference: ''
"""
TREC = """\
dataset: trec
templates:
  b1: !Template
    answer_choices: day ||| word
    id: b1
    jinja: '{{text}} ||| {{ answer_choices [coarse_label] }}'
    metadata: !TemplateMetadata
      original_task: true
    name: coarse
    reference: ''
  b2: !Template
    answer_choices: day ||| word
    id: b2
    jinja: '{{text}} ||| {{ answer_choices [fine_label] }}'
    metadata: !TemplateMetadata
      original_task: false
    name: a field that rows lack
    reference: ''
"""


def write_tiny_bert(folder: Path) -> Path:
    """A BERT checkpoint with random weights, as transformers saves a BertModel, and its tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = tiny_tokenizer()
    tokenizer.save(str(folder / "tokenizer.json"))
    generator = torch.Generator().manual_seed(0)
    vocabulary = tokenizer.get_vocab_size()
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (vocabulary, HIDDEN),
        "embeddings.position_embeddings.weight": (POSITIONS, HIDDEN),
        "embeddings.token_type_embeddings.weight": (2, HIDDEN),
    }
    for layer in range(LAYERS):
        prefix = f"encoder.layer.{layer}"
        for part in ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"):
            shapes[f"{prefix}.{part}.weight"] = (HIDDEN, HIDDEN)
        shapes[f"{prefix}.intermediate.dense.weight"] = (FEED_FORWARD, HIDDEN)
        shapes[f"{prefix}.output.dense.weight"] = (HIDDEN, FEED_FORWARD)
    weights = {name: torch.randn(shape, generator=generator) * 0.3 for name, shape in shapes.items()}
    weights |= {
        name.replace(".weight", ".bias"): torch.randn(shape[0], generator=generator) * 0.1
        for name, shape in shapes.items()
        if name.startswith("encoder")
    }
    norms = ["embeddings.LayerNorm"] + [
        f"encoder.layer.{layer}.{part}.LayerNorm" for layer in range(LAYERS) for part in ("attention.output", "output")
    ]
    for norm in norms:
        weights[f"{norm}.weight"], weights[f"{norm}.bias"] = torch.ones(HIDDEN), torch.zeros(HIDDEN)
    save_file(weights, folder / "model.safetensors")
    sizes = {
        "vocab_size": vocabulary,
        "hidden_size": HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "intermediate_size": FEED_FORWARD,
        "max_position_embeddings": POSITIONS,
        "layer_norm_eps": 1e-12,
    }
    (folder / "config.json").write_text(json.dumps(sizes))
    return folder


def tiny_network(folder: Path) -> ScorerNetwork:
    """A scorer network of that checkpoint, written to `folder`, with random weights in its head too."""
    torch.manual_seed(0)
    network = from_bert(write_tiny_bert(folder))
    # A fresh head gives scores that hardly differ; one that is too steep, scores that 8 bits don't hold.
    torch.nn.init.normal_(network.head_dense.weight, std=0.3)
    torch.nn.init.normal_(network.head_output.weight, std=0.2)
    return network.eval()


def write_tiny_data(folder: Path, *, count: int = 60) -> Path:
    """The files that the default data are chosen from, in miniature: open generation, choices, rows and templates."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(0)
    superni, t0 = [], []
    for number in range(count):
        animal, verb = rng.choice(ANIMALS), rng.choice(VERBS)
        split = "dev" if number % 5 == 4 else "train"
        superni.append(
            record(f"s{number}", "put_together", f"put the word together: {animal} {verb} {number}", split)
            | {"references": [f"the {animal} {verb} on the street"], "licence": "MIT"}
        )
        t0.append(
            record(f"t{number}", "yes_no", f"is the {animal} a {'cat' if number % 2 else 'dog'} {number}", split)
            | {"references": ["yes" if number % 2 else "no"], "choices": ["no", "yes"], "template": "ask"}
        )
        t0.append(
            record(f"g{number}", "answer", f"answer the question: what {verb} {number}", split)
            | {"references": [f"{animal} {verb}"], "template": "open"}
        )
    for licence in ("CC BY-NC 4.0", "Dedicated Terms and Conditions (https://recipenlg.cs.put.poznan.pl/dataset)"):
        left_out = {"references": ["x"], "licence": licence}
        superni.append(record(licence, "put_together", f"left out by {licence}", "train") | left_out)
    superni.append(record("held", "xlwic_true_or_false", "left out too", "train") | {"references": ["x"]})
    write_lines(folder / "superni_train.jsonl.gz", superni)
    induction = [
        record(f"i{number}", "antonyms", f"write the other word {number}", "train") | {"references": [f"word {number}"]}
        for number in range(10)
    ]
    write_lines(folder / "instruction_induction.jsonl.gz", induction)
    for name in TEST_SETS:
        if name != "instruction_induction":
            entry = record(name, name, f"what is in {name}", "test") | {"references": ["nothing"]}
            write_lines(folder / f"{name}.jsonl.gz", [entry])
    write_lines(folder / "t0_train.jsonl.gz", t0)
    rows = [{"text": f"the film is {rng.choice(ANIMALS)} {number}", "label": number % 2} for number in range(20)]
    write_lines(folder / "rows_rotten_tomatoes.jsonl.gz", rows)
    rows = [{"text": f"what is a {animal}", "coarse_label": at % 2} for at, animal in enumerate(ANIMALS)]
    write_lines(folder / "rows_trec.jsonl.gz", rows)
    write_templates(folder / "promptsource_templates.tar.gz", {"rotten_tomatoes": ROTTEN_TOMATOES, "trec": TREC})
    return folder


def write_tiny_pairs(folder: Path, *, count: int = 60, shard_instances: int = 64) -> tuple[Path, Path]:
    """Labelled pairs in shards, and the file of instances that they are of, whose split dev is for evaluation."""
    instances = folder / "instances.jsonl.gz"
    write_default_data(write_tiny_data(folder / "data", count=count), instances)
    annotate([instances], folder / "pairs", split="train", shard_instances=shard_instances, threads=1)
    return folder / "pairs", instances


def record(id: str, task: str, instruction: str, split: str) -> dict[str, object]:
    return {
        "id": id,
        "task": task,
        "template": None,
        "instruction": instruction,
        "references": [],
        "candidates": [],
        "choices": None,
        "split": split,
    }


def write_lines(path: Path, records: list[dict[str, object]]) -> None:
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(entry) + "\n" for entry in records)


def write_templates(path: Path, files: dict[str, str]) -> None:
    with tarfile.open(path, "w:gz") as tar:
        for dataset, text in files.items():
            member = tarfile.TarInfo(f"templates/{dataset}/templates.yaml")
            member.size = len(text.encode())
            tar.addfile(member, io.BytesIO(text.encode()))
