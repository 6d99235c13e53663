"""A shared model's weights as an ordinary sequence-pair cross-encoder, in files that other packages load.

Such a model reads each candidate beside the whole instruction and answers at [CLS]. Its scores mean little, for the
weights were trained with another attention rule: it is there to be timed.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper
from safetensors.numpy import save_file
from tokenizers import Tokenizer

from benchmarks.scorer.rivals import FLOAT32, GRAPH, INT8, JOINT, STANDARD, FloatArray, sigmoid
from benchmarks.scorer.sizes import open_tokenizer
from cappy_lite.errors import InputValueError
from cappy_lite.models import FORMAT_VERSION, GRAPH_FILE, TOKENIZER_FILE, ModelConfig, read_config
from cappy_lite.session import OUTPUT, import_onnxruntime, session_options
from cappy_train.bert_names import LINEARS, NORMS
from cappy_train.export import CONFIG_FILE, seal
from cappy_train.graph import GraphWeights, float_weights, joint_twin, packed_graph, read_weights
from cappy_train.graph_builder import save_graph
from cappy_train.modern_graph import is_modern

# Of GraphWeights' parts, what transformers calls them in a BertForSequenceClassification.
BERT_LAYER = LINEARS | NORMS
KEY_VALUE = "key_value"
BERT = {"embedding_norm": "bert.embeddings.LayerNorm", "head_dense": "bert.pooler.dense", "head_output": "classifier"}


def write_twins(model: Path, out: Path) -> GraphWeights:
    """Writes the folders `out`/int8, with the model's own graph behind another front, and `out`/float32.

    Either has an ONNX graph and what FlashRank, fastembed and transformers want to have beside it; float32 also the
    weights as transformers saves them. `out`/int8-joint and `out`/float32-joint are model folders of our own. Returns
    the weights in float32.

    Args:
        model: folder of a shared model of BERT's build, quantised or not.

    Raises:
        InputValueError: the model is of another kind.
    """
    graph = onnx.load(model / GRAPH_FILE)
    if read_config(model).graph != "shared" or is_modern(graph):
        raise InputValueError(
            f"{model} holds no shared model of BERT's build, whose weights other packages could read as a "
            "cross-encoder's: give cappy-mini, or another such model"
        )
    quantised = read_weights(graph)
    weights = float_weights(quantised)
    config = read_config(model)
    for precision, twin in {INT8: quantised, FLOAT32: weights}.items():
        folder = out / precision
        folder.mkdir(parents=True)
        pairs = answering_at_cls(joint_twin(twin))
        onnx.save(pairs, folder / GRAPH)
        open_tokenizer(model).save(str(folder / TOKENIZER_FILE))
        _write_json(folder / "config.json", bert_config(weights))
        _write_json(folder / "tokenizer_config.json", tokenizer_config(config.max_tokens))
        _write_json(folder / "special_tokens_map.json", SPECIAL_TOKENS)
        write_joint(folder.with_name(precision + JOINT), twin, folder / TOKENIZER_FILE, config)
        if precision == INT8:
            standard = folder.with_name(precision + STANDARD)
            standard.mkdir()
            onnx.save(of_standard_operators(pairs), standard / GRAPH)
    save_file(bert_weights(weights), out / FLOAT32 / "model.safetensors", metadata={"format": "pt"})
    return weights


def answering_at_cls(twin: onnx.ModelProto) -> onnx.ModelProto:
    """The twin with its score read at a pair's first token, as BERT's is, and with logits (B, 1), as usual."""
    graph = twin.graph
    kept = [node for node in graph.node if node.name not in ("own_length", "last", "score_positions")]
    place = next(at for at, node in enumerate(kept) if node.name == "row_start")
    kept.insert(place + 1, helper.make_node("Identity", ["row_start"], ["score_positions"], "score_positions"))
    del graph.node[:]
    graph.node.extend(kept)
    (shape,) = (each for each in graph.initializer if each.name == "logits_shape")
    shape.CopyFrom(numpy_helper.from_array(np.array([-1, 1]), shape.name))
    del graph.output[:]
    graph.output.append(helper.make_tensor_value_info(OUTPUT, onnx.TensorProto.FLOAT, ["pairs", 1]))
    return twin


def of_standard_operators(twin: onnx.ModelProto) -> onnx.ModelProto:
    """The twin with its 8-bit products as ONNX writes them: both sides made numbers again, and a Gemm of float32."""
    model = onnx.ModelProto()
    model.CopyFrom(twin)
    graph = model.graph
    arrays = {each.name: numpy_helper.to_array(each) for each in graph.initializer}
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        if node.op_type != "QGemm":
            nodes.append(node)
            continue
        codes, scale, zero_point, weight, weight_scales, weight_zero_points, bias = node.input
        exact = f"{bias}.numbers"
        numbers = (arrays[bias] * (arrays[scale] * arrays[weight_scales])).astype(np.float32)
        graph.initializer.append(numpy_helper.from_array(numbers, exact))
        sides = [f"{node.name}.{side}" for side in ("left", "right")]
        nodes += [
            helper.make_node("DequantizeLinear", [codes, scale, zero_point], sides[:1]),
            helper.make_node("DequantizeLinear", [weight, weight_scales, weight_zero_points], sides[1:], axis=1),
            helper.make_node("Gemm", [*sides, exact], node.output, node.name),
        ]
    del graph.node[:]
    graph.node.extend(nodes)
    return model


def write_joint(folder: Path, weights: GraphWeights, tokenizer: Path, config: ModelConfig) -> None:
    """A model folder of our own that is read pair by pair, as `cappy-train import` writes it."""
    folder.mkdir()
    save_graph(packed_graph(weights), folder / GRAPH_FILE)
    shutil.copyfile(tokenizer, folder / TOKENIZER_FILE)
    _write_json(
        folder / CONFIG_FILE,
        {
            "format_version": FORMAT_VERSION,
            "name": f"{config.name}, pair by pair",
            "graph": "joint",
            "max_tokens": config.max_tokens,
            "special_tokens": {"cls": config.cls_token, "sep": config.sep_token},
            "score_activation": "sigmoid",
            "base_model": config.base_model,
            "licence": config.licence,
        },
    )
    seal(folder)


SPECIAL_TOKENS = {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "unk_token": "[UNK]"}


def tokenizer_config(max_tokens: int) -> dict[str, object]:
    return {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": max_tokens} | SPECIAL_TOKENS


def bert_config(weights: GraphWeights) -> dict[str, object]:
    """What transformers must know to build the network."""
    tables = {kind: np.asarray(table) for kind, table in weights.embeddings.items()}
    vocabulary, hidden = tables["word_embeddings"].shape
    return {
        "architectures": ["BertForSequenceClassification"],
        "model_type": "bert",
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "num_hidden_layers": weights.layers,
        "num_attention_heads": weights.heads,
        "intermediate_size": len(weights.linears["layers.0.intermediate"].bias),
        "hidden_act": "gelu",
        "max_position_embeddings": len(tables["position_embeddings"]),
        "type_vocab_size": len(tables["token_type_embeddings"]),
        "layer_norm_eps": weights.layer_norm_eps,
        "pad_token_id": 0,
        "id2label": {"0": "score"},
        "label2id": {"score": 0},
    }


def bert_weights(weights: GraphWeights) -> dict[str, FloatArray]:
    """The weights by the names of a BertForSequenceClassification."""
    arrays = {f"bert.embeddings.{kind}.weight": np.asarray(table) for kind, table in weights.embeddings.items()}
    for name, linear in weights.linears.items():
        columns = np.split(linear.weight, 2, axis=1) if name.endswith(KEY_VALUE) else [linear.weight]
        biases = np.split(linear.bias, len(columns))
        for part, own, bias in zip(_bert_names(name), columns, biases, strict=True):
            arrays[f"{part}.weight"] = own.T
            arrays[f"{part}.bias"] = bias
    for name, norm in weights.norms.items():
        (own_name,) = _bert_names(name)
        arrays[f"{own_name}.weight"] = norm.gain
        arrays[f"{own_name}.bias"] = norm.bias
    return {name: np.ascontiguousarray(array) for name, array in arrays.items()}


def _bert_names(name: str) -> list[str]:
    """What a layer is called there: keys and values are two."""
    if name in BERT:
        return [BERT[name]]
    _, layer, part = name.split(".")
    parts = ["key", "value"] if part == KEY_VALUE else [part]
    return [f"bert.encoder.layer.{layer}.{BERT_LAYER[each]}" for each in parts]


class PairReader:
    """A twin's scores by the book: each pair alone, without padding. What rivals' scores are compared with."""

    def __init__(self, folder: Path, threads: int) -> None:
        self._tokenizer: Tokenizer = open_tokenizer(folder)
        self._session = import_onnxruntime().InferenceSession(
            str(folder / GRAPH), session_options(threads), providers=["CPUExecutionProvider"]
        )

    def score(self, instruction: str, candidates: Sequence[str]) -> FloatArray:
        """Scores (n,), 0..1."""
        logits = np.concatenate([self._logit(instruction, candidate) for candidate in candidates])
        return sigmoid(logits[:, 0])

    def _logit(self, instruction: str, candidate: str) -> FloatArray:
        encoded = self._tokenizer.encode(instruction, candidate)
        inputs = {
            "input_ids": encoded.ids,
            "attention_mask": encoded.attention_mask,
            "token_type_ids": encoded.type_ids,
        }
        (logits,) = self._session.run([OUTPUT], {name: np.array([values]) for name, values in inputs.items()})
        return logits


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
