"""A real joint model folder, small enough for every test run to make: tokenizer, graph over pairs, config."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from tiny_model import HIDDEN, tiny_tokenizer, write_config
from tokenizers import Tokenizer, processors

# Special tokens are the tokenizer's business, and what config.json says about them isn't read.
CONFIG = {"graph": "joint", "score_activation": "identity", "special_tokens": {"cls": "[X]", "sep": "[Y]"}}


def write_tiny_joint(folder: Path, *, max_tokens: int = 160, seed: int = 0, **changes: object) -> Path:
    """Writes the folder and returns it. Weights are random: scores mean nothing, and depend on every token."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = tiny_pair_tokenizer()
    tokenizer.save(str(folder / "tokenizer.json"))
    onnx.save(_graph(tokenizer.get_vocab_size(), max_tokens, seed), folder / "model.onnx")
    (folder / "README.md").write_text("# A tiny model with random weights, for tests\n")
    write_config(folder, **CONFIG | {"max_tokens": max_tokens} | changes)
    return folder


def tiny_pair_tokenizer() -> Tokenizer:
    """As `tiny_tokenizer`, and joins pairs as BERT does."""
    tokenizer = tiny_tokenizer()
    tokenizer.post_processor = processors.BertProcessing(
        ("[SEP]", tokenizer.token_to_id("[SEP]")), ("[CLS]", tokenizer.token_to_id("[CLS]"))
    )
    return tokenizer


def _graph(vocabulary: int, max_tokens: int, seed: int) -> onnx.ModelProto:
    """One attention layer, and a head that reads the first token of each pair."""
    random = np.random.default_rng(seed)
    weights = {
        "words": random.normal(size=(vocabulary, HIDDEN)),
        "positions": random.normal(size=(max_tokens, HIDDEN)) / 2,
        "types": random.normal(size=(2, HIDDEN)) / 2,
        "query": random.normal(size=(HIDDEN, HIDDEN)) / HIDDEN,  # scores of some units: neither flat nor one-hot
        "key": random.normal(size=(HIDDEN, HIDDEN)) / 2,
        "value": random.normal(size=(HIDDEN, HIDDEN)) / 2,
        "head": random.normal(size=(HIDDEN,)) / 2,
    }
    nodes = [
        helper.make_node("Gather", ["words", "input_ids"], ["word_states"]),
        helper.make_node("Gather", ["types", "token_type_ids"], ["type_states"]),
        helper.make_node("Shape", ["input_ids"], ["length"], start=1, end=2),
        helper.make_node("Slice", ["positions", "zero", "length"], ["position_states"]),
        helper.make_node("Sum", ["word_states", "type_states", "position_states"], ["states"]),
        helper.make_node("MatMul", ["states", "query"], ["queries"]),
        helper.make_node("MatMul", ["states", "key"], ["keys"]),
        helper.make_node("MatMul", ["states", "value"], ["values"]),
        helper.make_node("Transpose", ["keys"], ["keys_across"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["queries", "keys_across"], ["affinities"]),
        helper.make_node("Softmax", ["affinities"], ["attention"], axis=-1),
        helper.make_node("MatMul", ["attention", "values"], ["context"]),
        helper.make_node("Add", ["states", "context"], ["mixed"]),
        helper.make_node("Tanh", ["mixed"], ["squashed"]),
        helper.make_node("Gather", ["squashed", "first"], ["picked"], axis=1),
        helper.make_node("MatMul", ["picked", "head"], ["logits"]),
    ]
    initializers = [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()]
    initializers += [numpy_helper.from_array(np.array([0]), "zero"), numpy_helper.from_array(np.array(0), "first")]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [
            helper.make_tensor_value_info(name, TensorProto.INT64, ["pairs", "tokens"])
            for name in ("input_ids", "token_type_ids")
        ],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["pairs"])],
        initializers,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return model
