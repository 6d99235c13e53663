"""The shared-instruction scorer network of ModernBERT's build (Warner et al., 2024).

Positions turn queries and keys instead of being added to embeddings (RoPE), most layers see a window of positions
alone, layers normalise what they read, feed-forward parts are gated, and nothing has a bias but the head.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cappy_lite.errors import InputValueError
from cappy_train.attention import Sight
from cappy_train.bert_names import odd_widths
from cappy_train.network import Linear, NetworkConfig, PackedNetwork, attended, read_saved, states_at
from cappy_train.norms import LayerNorm

# By transformers' name.
MODEL_TYPE = "modernbert"
BUILD = "ModernBERT"
# What a layer's parts are called by transformers.
LAYER_NAMES = {
    "attention_norm": "attn_norm",
    "query_key_value": "attn.Wqkv",
    "attention_output": "attn.Wo",
    "feed_forward_norm": "mlp_norm",
    "intermediate": "mlp.Wi",
    "output": "mlp.Wo",
}
NAMES = {
    "word_embeddings": "embeddings.tok_embeddings",
    "embedding_norm": "embeddings.norm",
    "final_norm": "final_norm",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModernConfig(NetworkConfig):
    """Sizes of the encoder.

    positions: the most that it is to read; it has no table of them.
    windows: for each layer, how many positions away a token sees others; None: all.
    thetas: for each layer, the base of its rotary embedding's wavelengths.
    """

    windows: tuple[int | None, ...]
    thetas: tuple[float, ...]

    def to_dict(self) -> dict[str, Any]:
        return {"build": BUILD, **asdict(self)}

    @classmethod
    def of_dict(cls, sizes: Mapping[str, Any]) -> ModernConfig:
        """What `to_dict` gave, or what JSON made of that."""
        own = {name: value for name, value in sizes.items() if name != "build"}
        return cls(**own | {name: tuple(own[name]) for name in ("windows", "thetas")})


def frequencies(width: int, theta: float) -> Tensor:
    """By how much each pair of a head's numbers turns from one position to the next, (width / 2,) float32."""
    return 1 / theta ** (torch.arange(0, width, 2, dtype=torch.float32) / width)


class Rotation:
    """Rotary position embedding (Su et al., 2021): pairs of a head's numbers, half its width apart, turn by angles."""

    def __init__(self, position_ids: Tensor, width: int, theta: float) -> None:
        """position_ids: (B, L) int64. width, theta: see `frequencies`."""
        angles = position_ids[..., None] * frequencies(width, theta).to(position_ids.device)
        # (B, L, 1, width / 2): alike for all heads.
        self._cos, self._sin = angles.cos().unsqueeze(-2), angles.sin().unsqueeze(-2)

    def turned(self, states: Tensor, positions: Tensor | None = None) -> Tensor:
        """The states (B, L, heads * width) of all tokens; or (B, K, heads * width), of those at `positions`."""
        cos, sin = states_at(self._cos, positions), states_at(self._sin, positions)
        first, second = states.unflatten(-1, (-1, 2, cos.shape[-1])).unbind(-2)
        # In float32, as the angles are.
        turned = torch.stack((first * cos - second * sin, second * cos + first * sin), -2)
        return turned.flatten(-3).to(states.dtype)


class RotatedSight(Sight):
    """Attention whose queries and keys are turned first."""

    def __init__(
        self,
        segment_ids: Tensor,
        position_ids: Tensor,
        heads: int,
        dtype: torch.dtype,
        *,
        window: int | None,
        rotation: Rotation,
    ) -> None:
        super().__init__(segment_ids, heads, dtype, position_ids=position_ids, window=window)
        self._rotation = rotation

    def attend(self, query_key_value: Tensor) -> Tensor:
        hidden = query_key_value.shape[-1] // 3
        query_key, value = query_key_value.split((2 * hidden, hidden), -1)
        return super().attend(torch.cat((self._rotation.turned(query_key), value), -1))

    def attend_at(self, positions: Tensor, query: Tensor, key_value: Tensor) -> Tensor:
        key, value = key_value.chunk(2, -1)
        key_value = torch.cat((self._rotation.turned(key), value), -1)
        return super().attend_at(positions, self._rotation.turned(query, positions), key_value)


class ModernLayer(nn.Module):
    """One pre-norm transformer layer. States are float32; what multiplies matrices has the sight's precision."""

    def __init__(self, config: ModernConfig, *, first: bool) -> None:
        """first: the first layer's attention reads the embeddings, which are normalised already."""
        super().__init__()
        hidden, eps = config.hidden, config.layer_norm_eps
        self.attention_norm = nn.Identity() if first else LayerNorm(hidden, eps=eps, bias=False)
        self.query_key_value = Linear(hidden, 3 * hidden, bias=False)
        self.attention_output = Linear(hidden, hidden, bias=False)
        self.feed_forward_norm = LayerNorm(hidden, eps=eps, bias=False)
        self.intermediate = Linear(hidden, 2 * config.feed_forward, bias=False)
        self.output = Linear(config.feed_forward, hidden, bias=False)

    def forward(self, states: Tensor, sight: Sight, positions: Tensor | None = None) -> Tensor:
        """The next states, (B, L, hidden), of all tokens; or of those at `positions`, (B, K), as (B, K, hidden)."""
        read = self.attention_norm(states).to(sight.dtype)
        context = attended(self.query_key_value, read, states_at(read, positions), sight, positions)
        states = states_at(states, positions) + self.attention_output(context)
        value, gate = self.intermediate(self.feed_forward_norm(states).to(sight.dtype)).chunk(2, -1)
        return states + self.output(F.gelu(value) * gate)


class ModernNetwork(PackedNetwork):
    """The network of ModernBERT's build.

    ModernBERT has no token types. Here are two that start as zeros, so that training can tell candidates from
    instructions also where a window holds neither's beginning nor its end.
    """

    build = BUILD
    config: ModernConfig

    def __init__(self, config: ModernConfig) -> None:
        super().__init__(config)
        nn.init.zeros_(self.token_type_embeddings.weight)
        self.embedding_norm = nn.LayerNorm(config.hidden, eps=config.layer_norm_eps, bias=False)
        self.layers.extend(ModernLayer(config, first=not number) for number in range(config.layers))
        self.final_norm = nn.LayerNorm(config.hidden, eps=config.layer_norm_eps, bias=False)

    @classmethod
    def of_sizes(cls, sizes: dict[str, Any]) -> ModernNetwork:
        return cls(ModernConfig.of_dict(sizes))

    def embedded(self, input_ids: Tensor, position_ids: Tensor, token_type_ids: Tensor) -> Tensor:
        return self.embedding_norm(self.word_embeddings(input_ids) + self.token_type_embeddings(token_type_ids))

    def sights(self, position_ids: Tensor, segment_ids: Tensor) -> Sequence[Sight]:
        config = self.config
        width = config.hidden // config.heads
        kinds = list(zip(config.windows, config.thetas, strict=True))
        made = {
            (window, theta): RotatedSight(
                segment_ids,
                position_ids,
                config.heads,
                self.precision,
                window=window,
                rotation=Rotation(position_ids, width, theta),
            )
            for window, theta in set(kinds)
        }
        return [made[kind] for kind in kinds]


def from_modern_bert(folder: Path) -> ModernNetwork:
    """A network with the encoder weights of a ModernBERT, and a fresh head drawn from torch's global generator.

    Args:
        folder: config.json and model.safetensors as transformers saves it, with any head or none.

    Raises:
        InputValueError: a file is missing or damaged, or the checkpoint does something otherwise than ModernBERT.
    """
    from transformers import ModernBertConfig  # takes seconds to load

    values, saved = read_saved(folder)
    try:
        config = ModernBertConfig.from_dict(values).to_dict()  # older ones have other names and fewer values
    except Exception as error:  # of many kinds
        raise InputValueError(f"{folder / 'config.json'} can't be read ({error}): save it again") from error
    if obstacle := why_not_modern(config):
        raise InputValueError(
            f"{folder} can't become a shared-instruction network: {obstacle}. It can be trained as an ordinary "
            "cross-encoder (--graph joint)"
        )
    try:
        weights = _encoder_weights(saved, config["num_hidden_layers"])
    except KeyError as error:
        raise InputValueError(f"{folder / 'model.safetensors'} lacks the weights {error}: save it again") from error
    kinds = config["layer_types"]
    windows = {"sliding_attention": config["local_attention"] // 2, "full_attention": None}
    network = ModernNetwork(
        ModernConfig(
            vocabulary=len(weights["word_embeddings.weight"]),
            hidden=config["hidden_size"],
            layers=len(kinds),
            heads=config["num_attention_heads"],
            feed_forward=config["intermediate_size"],
            positions=config["max_position_embeddings"],
            layer_norm_eps=config["norm_eps"],
            windows=tuple(windows[kind] for kind in kinds),
            thetas=tuple(float(config["rope_parameters"][kind]["rope_theta"]) for kind in kinds),
        )
    )
    network.load_state_dict(network.state_dict() | weights)
    network.draw_head()
    return network


def why_not_modern(config: Mapping[str, Any]) -> str:
    """What a network with this config.json, of transformers 5, does otherwise than the published ModernBERTs, or ""."""
    if config["hidden_activation"] != "gelu":
        return f"its activation is {config['hidden_activation']}, not gelu"
    for name in ("attention_bias", "mlp_bias", "norm_bias"):
        if config[name]:
            return f"it has biases ({name})"
    for kind in sorted(set(config["layer_types"])):
        if config["rope_parameters"][kind]["rope_type"] != "default":
            return f"its positions are scaled ({config['rope_parameters'][kind]['rope_type']})"
    if config["local_attention"] < 2:
        return f"its windows are empty (local_attention {config['local_attention']})"
    if config["hidden_size"] % (2 * config["num_attention_heads"]):
        return f"its width {config['hidden_size']} isn't a multiple of twice its {config['num_attention_heads']} heads"
    return odd_widths(config["hidden_size"], config["intermediate_size"])


def _encoder_weights(saved: Mapping[str, Tensor], layers: int) -> dict[str, Tensor]:
    """The encoder's weights by our names, of all of a checkpoint by transformers', which may have a prefix.

    Raises:
        KeyError: one is missing.
    """
    table = f"{NAMES['word_embeddings']}.weight"
    (prefix,) = {name.removesuffix(table) for name in saved if name.endswith(table)} or {""}
    names = NAMES | {
        f"layers.{number}.{ours}": f"layers.{number}.{theirs}"
        for number in range(layers)
        for ours, theirs in LAYER_NAMES.items()
    }
    del names["layers.0.attention_norm"]
    return {f"{ours}.weight": saved[f"{prefix}{theirs}.weight"] for ours, theirs in names.items()}
