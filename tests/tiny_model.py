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
        "format_version": 1,
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
        "key": random.normal(size=(HIDDEN, HIDDEN)) / 2,
        "value": random.normal(size=(HIDDEN, HIDDEN)) / 2,
        "head": random.normal(size=(HIDDEN,)) / 2,
        "hidden_from": np.array(-1e9),
    }
    nodes = [
        helper.make_node("Gather", ["words", "input_ids"], ["word_states"]),
        helper.make_node("Gather", ["positions", "position_ids"], ["position_states"]),
        helper.make_node("Gather", ["types", "token_type_ids"], ["type_states"]),
        helper.make_node("Sum", ["word_states", "position_states", "type_states"], ["states"]),
        helper.make_node("MatMul", ["states", "query"], ["queries"]),
        helper.make_node("MatMul", ["states", "key"], ["keys"]),
        helper.make_node("MatMul", ["states", "value"], ["values"]),
        helper.make_node("Transpose", ["keys"], ["keys_across"]),
        helper.make_node("MatMul", ["queries", "keys_across"], ["affinities"]),
        # A query sees the instruction, segment 0, and its own segment.
        helper.make_node("Unsqueeze", ["segment_ids", "first_axis"], ["key_segments"]),
        helper.make_node("Unsqueeze", ["segment_ids", "last_axis"], ["query_segments"]),
        helper.make_node("Equal", ["key_segments", "no_segment"], ["in_instruction"]),
        helper.make_node("Equal", ["key_segments", "query_segments"], ["in_own_segment"]),
        helper.make_node("Or", ["in_instruction", "in_own_segment"], ["visible"]),
        helper.make_node("Where", ["visible", "affinities", "hidden_from"], ["visible_affinities"]),
        helper.make_node("Softmax", ["visible_affinities"], ["attention"], axis=-1),
        helper.make_node("MatMul", ["attention", "values"], ["context"]),
        helper.make_node("Add", ["states", "context"], ["mixed"]),
        helper.make_node("Tanh", ["mixed"], ["squashed"]),
        helper.make_node("Gather", ["squashed", "score_positions"], ["picked"]),
        helper.make_node("MatMul", ["picked", "head"], ["logits"]),
    ]
    integers = {"first_axis": np.array([0]), "last_axis": np.array([1]), "no_segment": np.array(0)}
    initializers = [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()]
    initializers += [numpy_helper.from_array(value.astype(np.int64), name) for name, value in integers.items()]
    lengths = dict.fromkeys(("input_ids", "position_ids", "token_type_ids", "segment_ids"), "tokens")
    lengths["score_positions"] = "candidates"
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info(name, TensorProto.INT64, [length]) for name, length in lengths.items()],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["candidates"])],
        initializers,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return model
