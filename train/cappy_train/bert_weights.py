"""The weights of transformers' BERT and RoBERTa networks as those of a graph over packed rows.

Both are the same encoder, and both heads a linear layer, a tanh and another one. RoBERTa counts positions from its
padding token's id on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from torch import nn

from cappy_train.bert_names import LINEARS, NORMS, why_not_bert
from cappy_train.graph import EMBEDDING_INPUTS, GraphWeights, Linear, Norm

if TYPE_CHECKING:  # it takes seconds to load
    from cappy_train.checkpoint import Checkpoint

# By transformers' names: of a head's two layers, what they are called.
HEADS = {
    "bert": ("bert.pooler.dense", "classifier"),
    "roberta": ("classifier.dense", "classifier.out_proj"),
    "xlm-roberta": ("classifier.dense", "classifier.out_proj"),
}

FloatArray = npt.NDArray[np.float32]


def why_not_packed(checkpoint: Checkpoint) -> str:
    """What keeps a checkpoint from being written as a graph over packed rows, or ""."""
    return why_not_bert(checkpoint.network.config.to_dict())


def bert_graph_weights(checkpoint: Checkpoint) -> GraphWeights:
    """The weights of a checkpoint that `why_not_packed` says nothing of."""
    network = checkpoint.network
    config, body = network.config, network.base_model_prefix
    arrays: dict[str, FloatArray] = {name: weight.numpy() for name, weight in network.state_dict().items()}

    def linear(*names: str) -> Linear:
        """Of several layers, their outputs side by side."""
        weights, biases = ([arrays[f"{name}.{kind}"] for name in names] for kind in ("weight", "bias"))
        return Linear(np.concatenate(weights).T, np.concatenate(biases))

    def norm(name: str) -> Norm:
        return Norm(arrays[f"{name}.weight"], arrays[f"{name}.bias"])

    embeddings = {kind: arrays[f"{body}.embeddings.{kind}.weight"] for kind in EMBEDDING_INPUTS}
    positions = network.get_submodule(f"{body}.embeddings.position_embeddings")
    if isinstance(positions, nn.Embedding) and positions.padding_idx is not None:
        embeddings["position_embeddings"] = embeddings["position_embeddings"][positions.padding_idx + 1 :]
    if not checkpoint.reads_types:  # whatever its tokenizer says
        embeddings["token_type_embeddings"] = np.repeat(embeddings["token_type_embeddings"][:1], 2, axis=0)
    dense, output = HEADS[config.model_type]
    linears = {"head_dense": linear(dense), "head_output": linear(output)}
    norms = {"embedding_norm": norm(f"{body}.embeddings.LayerNorm")}
    for number in range(config.num_hidden_layers):
        theirs, ours = f"{body}.encoder.layer.{number}", f"layers.{number}"
        linears[f"{ours}.key_value"] = linear(*(f"{theirs}.{LINEARS[part]}" for part in ("key", "value")))
        for part in LINEARS.keys() - {"key", "value"}:
            linears[f"{ours}.{part}"] = linear(f"{theirs}.{LINEARS[part]}")
        for part, name in NORMS.items():
            norms[f"{ours}.{part}"] = norm(f"{theirs}.{name}")
    return GraphWeights(
        config.num_hidden_layers, config.num_attention_heads, config.layer_norm_eps, embeddings, linears, norms
    )
