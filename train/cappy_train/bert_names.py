"""Networks of BERT's build by transformers' names: BERT, MiniLM, RoBERTa and XLM-RoBERTa are the same encoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# By their types in config.json; MiniLM's are bert or xlm-roberta.
FAMILIES = ("bert", "roberta", "xlm-roberta")
# Of these, positions count on from the padding token's id.
OFFSET_FAMILIES = ("roberta", "xlm-roberta")
# What an encoder layer's parts are called.
LINEARS = {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "attention_output": "attention.output.dense",
    "intermediate": "intermediate.dense",
    "output": "output.dense",
}
NORMS = {"attention_norm": "attention.output.LayerNorm", "output_norm": "output.LayerNorm"}
# Widths are read in whole vectors by the runtime's operators.
LANES = 16


def why_not_bert(config: Mapping[str, Any]) -> str:
    """What makes a network with this config.json one of another build than BERT's, or ""."""
    kind = config.get("model_type", "bert")
    if kind not in FAMILIES:
        return f"it is of type {kind}, not {', '.join(FAMILIES)}"
    if config.get("hidden_act", "gelu") != "gelu":
        return f"its activation is {config['hidden_act']}, not gelu"
    if obstacle := odd_widths(config["hidden_size"], config["intermediate_size"]):
        return obstacle
    if config.get("position_embedding_type", "absolute") != "absolute" or config.get("is_decoder"):
        return "its attention isn't BERT's own"
    return ""


def odd_widths(hidden: int, feed_forward: int) -> str:
    """What keeps a network of such widths from the runtime's operators, or ""."""
    if hidden % LANES or feed_forward % LANES:
        return f"its widths, {hidden} and {feed_forward}, aren't multiples of {LANES}"
    return ""
