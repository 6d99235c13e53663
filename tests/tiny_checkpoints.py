"""Cross-encoders of every family that can be imported, with random weights, as transformers saves them."""

from __future__ import annotations

import string
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertTokenizer,
    DebertaV2Config,
    DebertaV2Tokenizer,
    ModernBertConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaTokenizer,
    XLMRobertaConfig,
    XLMRobertaTokenizer,
)

MAX_TOKENS = 160
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
# Wide, so that outputs differ from pair to pair.
SPREAD = {"initializer_range": 0.2}
BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())
MERGES = [("t", "h"), ("th", "e"), ("Ġ", "the"), ("i", "n"), ("Ġ", "a")]
ROBERTA_SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
BERT_SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def write_checkpoint(folder: Path, family: str, *, seed: int = 0, **changes: object) -> Path:
    """Writes the folder and returns it; `changes` replace values of the network's config."""
    config, tokenizer = FAMILIES[family](changes)
    torch.manual_seed(seed)
    network = AutoModelForSequenceClassification.from_config(config)
    with torch.no_grad():
        for name, weights in network.named_parameters():
            if name.endswith("bias"):  # all zero otherwise
                weights.normal_(std=0.1)
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _bert(changes: dict[str, object]) -> tuple[PreTrainedConfig, PreTrainedTokenizerFast]:
    letters = "abcdefghijklmnopqrstuvwxyz0123456789.,:?!"
    tokens = [*BERT_SPECIAL, *letters, *(f"##{letter}" for letter in letters), "the", "snow", "dog", "runs"]
    tokenizer = BertTokenizer({token: at for at, token in enumerate(tokens)}, model_max_length=MAX_TOKENS)
    sizes = {"vocab_size": len(tokens), "max_position_embeddings": MAX_TOKENS, "num_labels": 1}
    return BertConfig(**SIZES | SPREAD | sizes | changes), tokenizer


def _roberta(changes: dict[str, object]) -> tuple[PreTrainedConfig, PreTrainedTokenizerFast]:
    tokens = [*ROBERTA_SPECIAL, *BYTES, *("".join(merge) for merge in MERGES)]
    vocabulary = {token: at for at, token in enumerate(tokens)}
    return (
        RobertaConfig(**_roberta_sizes(len(tokens)) | changes),
        RobertaTokenizer(vocabulary, MERGES, model_max_length=MAX_TOKENS),
    )


def _xlm_roberta(changes: dict[str, object]) -> tuple[PreTrainedConfig, PreTrainedTokenizerFast]:
    pieces = [*ROBERTA_SPECIAL[:4], *_pieces()]
    tokenizer = XLMRobertaTokenizer(
        [(piece, -float(at)) for at, piece in enumerate(pieces)], model_max_length=MAX_TOKENS
    )
    return XLMRobertaConfig(**_roberta_sizes(len(tokenizer)) | changes), tokenizer


def _deberta_v3(changes: dict[str, object]) -> tuple[PreTrainedConfig, PreTrainedTokenizerFast]:
    pieces = [(piece, 0.0) for piece in BERT_SPECIAL] + [(piece, -1.0 - at) for at, piece in enumerate(_pieces())]
    tokenizer = DebertaV2Tokenizer(pieces, model_max_length=MAX_TOKENS)
    own = {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": MAX_TOKENS,
        "num_labels": 1,
        "relative_attention": True,
        "pos_att_type": ["p2c", "c2p"],
        "position_buckets": 16,
        "norm_rel_ebd": "layer_norm",
        "share_att_key": True,
        "position_biased_input": False,
        "type_vocab_size": 0,
    }
    return DebertaV2Config(**SIZES | SPREAD | own | changes), tokenizer


def _modernbert(changes: dict[str, object]) -> tuple[PreTrainedConfig, PreTrainedTokenizerFast]:
    tokens = [*BERT_SPECIAL, *BYTES, *("".join(merge) for merge in MERGES)]
    vocabulary = {token: at for at, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocabulary, MERGES))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0",
        pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
        special_tokens=[(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")],
    )
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), BERT_SPECIAL, strict=True))
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_input_names=["input_ids", "attention_mask"],
        model_max_length=MAX_TOKENS,
        **names,
    )
    own = {
        "num_hidden_layers": 4,  # two that see all, two that see a window
        "vocab_size": len(tokens),
        "max_position_embeddings": MAX_TOKENS,
        "num_labels": 1,
        "local_attention": 16,
        "pad_token_id": 0,
        "bos_token_id": 2,
        "cls_token_id": 2,
        "eos_token_id": 3,
        "sep_token_id": 3,
    }
    return ModernBertConfig(**SIZES | SPREAD | own | changes), fast


def _roberta_sizes(vocabulary: int) -> dict[str, object]:
    """RoBERTa counts positions from the padding token's id, 1, on."""
    own = {"vocab_size": vocabulary, "max_position_embeddings": MAX_TOKENS + 2, "type_vocab_size": 1, "num_labels": 1}
    return SIZES | SPREAD | own


def _pieces() -> list[str]:
    """Of a sentencepiece vocabulary: whole words, and letters for all others."""
    letters = string.ascii_letters + string.digits + string.punctuation
    return ["▁the", "▁snow", "▁dog", "▁runs", "▁", *letters]


FAMILIES = {
    "bert": _bert,
    "roberta": _roberta,
    "xlm-roberta": _xlm_roberta,
    "deberta-v3": _deberta_v3,
    "modernbert": _modernbert,
}
