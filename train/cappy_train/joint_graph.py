"""A transformers network as an ONNX graph over pairs, in float32.

PyTorch's exporter follows the network's own code, so that every family is exported by the same few lines. What makes
the graph fast is put into the network first, in place: linear layers as Gemm reads them, attention and GELU as ONNX
Runtime's own operators.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.onnx import ops
from transformers import AttentionInterface, PreTrainedModel
from transformers.activations import GELUActivation

from cappy_lite.session import OUTPUT
from cappy_train.graph_builder import RUNTIME_DOMAIN

# ONNX Runtime reads this since 1.14.
OPSET = 18
FUSED = "cappy_fused"


def export_graph(network: PreTrainedModel, path: Path, *, reads_types: bool, max_tokens: int) -> None:
    """Writes the graph of a network with one output; its weights go into a file beside it.

    int64 inputs `input_ids` and, with `reads_types`, `token_type_ids`, (B, L) each, without padding; output `logits`,
    float32 (B,). The network is used up: it can be exported, but no longer run.
    """
    _use_runtime_operators(network)
    names = ["input_ids", "token_type_ids"] if reads_types else ["input_ids"]
    shape = {0: Dim("pairs"), 1: Dim("tokens", max=max_tokens)}
    torch.onnx.export(
        _OneOutput(network).eval(),
        kwargs={name: torch.ones(2, 3, dtype=torch.int64) for name in names},
        f=path,
        input_names=names,
        output_names=[OUTPUT],
        opset_version=OPSET,
        dynamic_shapes=dict.fromkeys(names, shape),
        external_data=True,
        verbose=False,
    )
    _strip(path)


def _strip(path: Path) -> None:
    """Takes out of the graph what PyTorch notes about its making: lines of code, with this machine's paths."""
    model = onnx.load(path, load_external_data=False)
    graph = model.graph
    for part in (model, graph, *graph.node, *graph.initializer, *graph.input, *graph.output):
        del part.metadata_props[:]
    del graph.value_info[:]
    path.write_bytes(model.SerializeToString())


def _use_runtime_operators(network: PreTrainedModel) -> None:
    AttentionInterface.register(FUSED, _fused_attention)
    if network._supports_attention_backend:
        network.set_attn_implementation(FUSED)
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear):
                setattr(parent, name, GemmLinear(child))
            elif isinstance(child, GELUActivation):
                setattr(parent, name, RuntimeGelu())


class GemmLinear(nn.Module):
    """A linear layer that is exported as one Gemm over all tokens, its weight (in, out)."""

    weight: Tensor
    bias: Tensor

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        bias = torch.zeros(linear.out_features) if linear.bias is None else linear.bias.detach()
        self.register_buffer("weight", linear.weight.detach().T.contiguous())
        self.register_buffer("bias", bias)

    def forward(self, states: Tensor) -> Tensor:
        flat = torch.addmm(self.bias, states.reshape(-1, states.shape[-1]), self.weight)
        return flat.reshape(*states.shape[:-1], flat.shape[-1])


class RuntimeGelu(nn.Module):
    """The exact GELU, exported as one node."""

    def forward(self, states: Tensor) -> Tensor:
        return ops.symbolic(f"{RUNTIME_DOMAIN}::Gelu", (states,), dtype=states.dtype, shape=states.shape, version=1)


class _OneOutput(nn.Module):
    """The network as a function of what the graph reads, to what it gives."""

    def __init__(self, network: PreTrainedModel) -> None:
        super().__init__()
        self.network = network

    def forward(self, input_ids: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        types = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        return self.network(input_ids=input_ids, **types).logits[:, 0]


def _fused_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention as transformers calls it, (B, heads, L, width) each, as one node. Without padding there is no mask.

    sliding_window: if given, a token sees others less than this far away.
    """
    heads, width = query.shape[1], query.shape[3]
    inputs: list[Tensor | None] = [states.transpose(1, 2).flatten(2) for states in (query, key, value)]
    if sliding_window is not None:
        places = torch.arange(query.shape[2])
        visible = (places[:, None] - places[None, :]).abs() < sliding_window
        inputs += [None, None, torch.where(visible, 0.0, -torch.inf)[None, None]]
    context = ops.symbolic(
        f"{RUNTIME_DOMAIN}::MultiHeadAttention",
        inputs,
        {"num_heads": heads, "scale": float(width**-0.5 if scaling is None else scaling)},
        dtype=torch.float32,
        shape=(query.shape[0], query.shape[2], heads * width),
        version=1,
    )
    return context.unflatten(2, (heads, width)), None
