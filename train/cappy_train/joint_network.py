"""A cross-encoder to be trained: any encoder of transformers with one output, which reads pairs of texts."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedConfig, PreTrainedModel
from transformers import PreTrainedTokenizerFast as FastTokenizer

from cappy_lite.errors import InputValueError
from cappy_lite.tokens import read_tokenizer
from cappy_train.batches import special_tokens
from cappy_train.checkpoint import Checkpoint, open_base, positions, quietly, save_tokenizer
from cappy_train.joint_batches import PairPacker
from cappy_train.trainable import TrainableNetwork

# What transformers notes in a config about where and how it was saved.
NOTES = ("_name_or_path", "architectures", "dtype", "transformers_version")
MODEL_INPUTS = ["input_ids", "attention_mask", "token_type_ids"]
# An encoder layer's weights have its number in their names.
LAYER = re.compile(r"\.(\d+)\.")


class JointNetwork(TrainableNetwork):
    """Pairs in, one logit a pair out; the score is the logit's sigmoid.

    What multiplies matrices in the encoder does so in `precision` (by torch.autocast); layer norms and the head compute
    in float32, and states between layers are float32 too.
    """

    graph = "joint"

    def __init__(self, transformer: PreTrainedModel, *, reads_types: bool) -> None:
        """Takes over a network with one output.

        reads_types: whether it tells an instruction's tokens from a candidate's by their type.
        """
        super().__init__()
        self.precision = torch.float32
        self._reads_types = reads_types
        self._recompute = False
        _exact_head(transformer)
        # Files lay weights at any address, and that decides which instructions add them up, so the last bit of sums.
        for weight in transformer.parameters():
            weight.data = weight.data.clone()
        self.transformer = transformer.train()  # as recomputing needs; dropout is off

    @property
    def recompute(self) -> bool:
        return self._recompute

    @recompute.setter
    def recompute(self, value: bool) -> None:
        self._recompute = value
        if value:
            # Its name, and the one that it had until lately.
            names = ("activation_checkpointing_enable", "gradient_checkpointing_enable")
            enable = next(getattr(self.transformer, name) for name in names if hasattr(self.transformer, name))
            enable({"use_reentrant": False})

    @property
    def max_tokens(self) -> int:
        return positions(self.transformer)

    def sizes(self) -> dict[str, Any]:
        config = self.transformer.config.to_dict()
        return {
            "config": {name: value for name, value in config.items() if name not in NOTES},
            "reads_types": self._reads_types,
        }

    @classmethod
    def of_sizes(cls, sizes: dict[str, Any]) -> JointNetwork:
        network = AutoModelForSequenceClassification.from_config(_config_of(sizes), dtype=torch.float32)
        return cls(network, reads_types=sizes["reads_types"])

    def packer(self, tokenizer: Path) -> PairPacker:
        padding = self.transformer.config.pad_token_id
        return PairPacker(tokenizer, padding=0 if padding is None else padding, max_tokens=self.max_tokens)

    def words(self) -> nn.Module:
        return self.transformer.get_input_embeddings()

    def layers_above(self, name: str) -> int:
        layers = self.transformer.config.num_hidden_layers
        encoder = f"transformer.{self.transformer.base_model_prefix}."
        numbers = {int(found[1]) for each, _ in self.named_parameters() if (found := LAYER.search(each))}
        if numbers != set(range(layers)):
            raise InputValueError(
                f"layer_decay is for networks whose layers are numbered, and of this one's {layers} there are numbers "
                f"{sorted(numbers)}: leave it at 1"
            )
        if found := LAYER.search(name):
            return layers - int(found[1])
        return layers + 1 if name.startswith(encoder) and "embed" in name else 0

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> Tensor:
        """Logits, (P,), of int64 inputs, (P, L) each; the mask has 0 for padding, which nothing sees, and 1 else."""
        types = {"token_type_ids": token_type_ids} if self._reads_types else {}
        with torch.autocast(input_ids.device.type, self.precision, enabled=self.precision != torch.float32):
            outputs = self.transformer(input_ids=input_ids, attention_mask=attention_mask, **types)
        return outputs.logits[:, 0]


class ExactLinear(nn.Linear):
    """Computes in float32, within torch.autocast too."""

    def forward(self, input: Tensor) -> Tensor:
        with torch.autocast(input.device.type, enabled=False):
            return F.linear(input.float(), self.weight, self.bias)


def from_encoder(folder: Path, tokenizer: Path) -> JointNetwork:
    """A network with the weights of a checkpoint of transformers, and its head or, without one of one output, a fresh.

    Args:
        folder: what `checkpoint.open_base` opens.
        tokenizer: where the checkpoint's tokenizer.json is written, as transformers has it.

    Raises:
        InputValueError: what `checkpoint.open_base` raises.
    """
    with quietly():
        checkpoint = open_base(folder)
    save_tokenizer(checkpoint.tokenizer, tokenizer)
    return JointNetwork(checkpoint.network, reads_types=checkpoint.reads_types)


def joint_checkpoint(sizes: dict[str, Any], weights: dict[str, Tensor], tokenizer: Path) -> Checkpoint:
    """A trained network as transformers has it, and its tokenizer.json, to be made a model folder.

    sizes, weights: of a JointNetwork.
    """
    network = AutoModelForSequenceClassification.from_config(
        _config_of(sizes), dtype=torch.float32, attn_implementation="eager"
    )
    network.load_state_dict({name.removeprefix("transformer."): weight for name, weight in weights.items()})
    begins, ends = special_tokens(tokenizer, read_tokenizer(tokenizer))
    fast = FastTokenizer(
        tokenizer_file=str(tokenizer), cls_token=begins, sep_token=ends, model_input_names=MODEL_INPUTS
    )
    return Checkpoint(network.eval(), fast, sizes["reads_types"], positions(network))


def _config_of(sizes: dict[str, Any]) -> PreTrainedConfig:
    config = dict(sizes["config"])
    return AutoConfig.for_model(config.pop("model_type"), **config)


def _exact_head(transformer: PreTrainedModel) -> None:
    """Has the linear layers outside the encoder compute in float32: bfloat16's steps are too coarse for a logit."""
    for name, module in transformer.named_modules():
        if isinstance(module, nn.Linear) and not name.startswith(f"{transformer.base_model_prefix}."):
            module.__class__ = ExactLinear
