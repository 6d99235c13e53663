"""A real model folder, small enough for every test run to make: tokenizer, graph over packed rows, config."""

from __future__ import annotations

import hashlib
import json
import string
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

WORDS = """a an and answer are ball blue car cat chef child concepts cooks day dog down drives eats film from good green
he house i in is it mountain movie not of old on pasta put question red runs sentence she ski skier skis snow street sun
the they this to together was water we who word write yes you""".split()  # noqa: SIM905
HIDDEN = 16


def write_tiny_model(folder: Path, *, max_tokens: int = 160, seed: int = 0) -> Path:
    """Writes the folder and returns it. Weights are random: scores mean nothing, and depend on every token."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = tiny_tokenizer()
    tokenizer.save(str(folder / "tokenizer.json"))
    onnx.save(_graph(tokenizer.get_vocab_size(), max_tokens, seed), folder / "model.onnx")
    (folder / "README.md").write_text("# A tiny model with random weights, for tests\n")
    write_config(folder, max_tokens=max_tokens)
    return folder


def write_config(folder: Path, **changes: object) -> None:
    """Writes config.json with the digests of the folder's files as they are; `changes` replace its keys."""
    config: dict[str, object] = {
        "format_version": 3,
        "name": "tiny",
        "graph": "shared",
        "max_tokens": 160,
        "special_tokens": {"cls": "[CLS]", "sep": "[SEP]"},
        "score_activation": "sigmoid",
        "score_position": "last_sep",
        "calibration": None,
        "base_model": "none",
        "licence": "Apache-2.0",
        "parity": {},
        "training": {},
        "files": {
            name: {
                "sha256": hashlib.sha256((folder / name).read_bytes()).hexdigest(),
                "bytes": (folder / name).stat().st_size,
            }
            for name in ("model.onnx", "tokenizer.json", "README.md")
        },
    }
    (folder / "config.json").write_text(json.dumps(config | changes, indent=2))


def tiny_tokenizer() -> Tokenizer:
    """WordPiece over a few words, and over letters and digits for all others."""
    characters = string.ascii_lowercase + string.digits
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *string.punctuation, *characters, *(f"##{c}" for c in characters)]
    vocabulary = {token: index for index, token in enumerate(dict.fromkeys([*tokens, *WORDS]))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]"])
    # As in files that were trained with: the runtime has to turn both off.
    tokenizer.enable_truncation(max_length=32)
    tokenizer.enable_padding(length=32)
    return tokenizer


def _graph(vocabulary: int, max_tokens: int, seed: int) -> onnx.ModelProto:
    """One attention layer with the rule of packed rows, and a head that reads the score positions."""
    random = np.random.default_rng(seed)
    weights = {
        "words": random.normal(size=(vocabulary, HIDDEN)),
        "positions": random.normal(size=(max_tokens, HIDDEN)) / 2,
        "types": random.normal(size=(2, HIDDEN)) / 2,
        "query": random.normal(size=(HIDDEN, HIDDEN)) / HIDDEN,  # scores of some units: neither flat nor one-hot
        "key_value": random.normal(size=(HIDDEN, 2 * HIDDEN)) / 2,
        "head": random.normal(size=(HIDDEN,)) / 2,
    }
    nodes = [
        helper.make_node("Gather", ["words", "input_ids"], ["word_states"]),
        helper.make_node("Gather", ["positions", "position_ids"], ["position_states"]),
        helper.make_node("Gather", ["types", "token_type_ids"], ["type_states"]),
        helper.make_node("Sum", ["word_states", "position_states", "type_states"], ["states"]),
        helper.make_node("MatMul", ["states", "query"], ["queries"]),
        helper.make_node("MatMul", ["states", "key_value"], ["layers.0.key_value"]),
        helper.make_node("Gather", ["segments", "own_places"], ["spans"], axis=1),
        helper.make_node(
            "Attention",
            ["queries", "layers.0.key_value", "context", "kept_tokens", "segments", "spans"],
            ["gathered", "layers.0.kept"],
            domain="cappy",
            heads=1,
            layer=0,
        ),
        helper.make_node("Add", ["states", "gathered"], ["mixed"]),
        helper.make_node("Tanh", ["mixed"], ["squashed"]),
        helper.make_node("Gather", ["squashed", "score_positions"], ["picked"]),
        helper.make_node("MatMul", ["picked", "head"], ["logits"]),
    ]
    initializers = [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()]
    initializers.append(numpy_helper.from_array(np.array([0, 1]), "own_places"))
    shapes: dict[str, list[str | int]] = {key: ["tokens"] for key in ("input_ids", "position_ids", "token_type_ids")}
    shapes |= {"segments": ["segments", 4], "score_spans": ["segments", 2], "score_positions": ["candidates"]}
    inputs = [helper.make_tensor_value_info(name, TensorProto.INT64, shape) for name, shape in shapes.items()]
    inputs.append(helper.make_tensor_value_info("context", TensorProto.FLOAT, [1, "length", 2 * HIDDEN]))
    inputs.append(helper.make_tensor_value_info("kept_tokens", TensorProto.INT64, [1]))
    outputs = [
        helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["candidates"]),
        helper.make_tensor_value_info("layers.0.kept", TensorProto.FLOAT, ["kept", 2 * HIDDEN]),
    ]
    graph = helper.make_graph(nodes, "tiny", inputs, outputs, initializers)
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("cappy", 1)], ir_version=8
    )
    onnx.checker.check_model(model)
    return model
