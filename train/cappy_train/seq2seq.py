"""A seq2seq made of a BERT checkpoint: BART's form, which every tool that reads transformers' models runs."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file
from tokenizers import decoders, processors
from torch import Tensor
from transformers import BartConfig, BartForConditionalGeneration, GenerationConfig, PreTrainedTokenizerFast

from cappy_lite.errors import InputValueError
from cappy_lite.tokens import read_tokenizer

# BART's position embeddings begin with two that no token has.
POSITION_OFFSET = 2


def seq2seq_from_bert(base: Path, *, decoder_layers: int) -> BartForConditionalGeneration:
    """A BART made of the layers of the BERT in `base`: its upper ones become the decoder, the others the encoder.

    The two have the same layers (post-norm, GELU, learned positions), so the encoder computes what BERT's lower layers
    do, tokens all of type 0. A layer of the decoder has its attention to the encoder from the same layer's attention to
    itself (Rothe et al., 2020, begin that at random). Word embeddings are one matrix: of encoder, decoder and output.

    Args:
        base: config.json, model.safetensors and tokenizer.json of a BERT checkpoint, as transformers saves a BertModel.
        decoder_layers: fewer than the checkpoint has.

    Raises:
        InputValueError: a file is missing, or the checkpoint has too few layers.
    """
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        if not (base / name).is_file():
            raise InputValueError(f"{base / name} is missing: give the folder of a BERT checkpoint with its tokenizer")
    sizes = json.loads((base / "config.json").read_text(encoding="utf-8"))
    layers = sizes["num_hidden_layers"]
    if not 1 <= decoder_layers < layers:
        raise InputValueError(
            f"decoder_layers is {decoder_layers}: {base} has {layers} layers, so give 1 to {layers - 1}"
        )
    encoder_layers = layers - decoder_layers
    tokenizer = seq2seq_tokenizer(base)
    config = BartConfig(
        vocab_size=sizes["vocab_size"],
        d_model=sizes["hidden_size"],
        encoder_layers=encoder_layers,
        decoder_layers=decoder_layers,
        encoder_attention_heads=sizes["num_attention_heads"],
        decoder_attention_heads=sizes["num_attention_heads"],
        encoder_ffn_dim=sizes["intermediate_size"],
        decoder_ffn_dim=sizes["intermediate_size"],
        max_position_embeddings=sizes["max_position_embeddings"],
        dropout=0.0,
        bos_token_id=tokenizer.bos_token_id,
        decoder_start_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        forced_eos_token_id=None,
    )
    network = BartForConditionalGeneration(config)
    network.generation_config = GenerationConfig(
        bos_token_id=config.bos_token_id,
        decoder_start_token_id=config.decoder_start_token_id,
        eos_token_id=config.eos_token_id,
        pad_token_id=config.pad_token_id,
    )
    weights = network.state_dict()
    weights.update(_bart_weights(load_file(base / "model.safetensors"), encoder_layers, layers))
    network.load_state_dict(weights)
    return network


def seq2seq_tokenizer(base: Path, *, max_tokens: int = 512) -> PreTrainedTokenizerFast:
    """The tokenizer of a BERT checkpoint as a seq2seq's: a text is [CLS] text [SEP], and [SEP] ends a response."""
    tokenizer = read_tokenizer(base / "tokenizer.json")
    special = [(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=special)
    tokenizer.decoder = decoders.WordPiece()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=max_tokens,
        model_input_names=["input_ids", "attention_mask"],
        # Without this, "[SEP]" in a text would become the token that ends it.
        split_special_tokens=True,
        bos_token="[CLS]",
        eos_token="[SEP]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        pad_token="[PAD]",
        unk_token="[UNK]",
    )


def _bart_weights(bert: dict[str, Tensor], encoder_layers: int, layers: int) -> dict[str, Tensor]:
    words = bert["embeddings.word_embeddings.weight"]
    weights = {f"model.{name}.weight": words for name in ("shared", "encoder.embed_tokens", "decoder.embed_tokens")} | {
        "lm_head.weight": words
    }
    # Every token is of type 0, so that type's embedding is part of each position's.
    positions = bert["embeddings.position_embeddings.weight"] + bert["embeddings.token_type_embeddings.weight"][0]
    for part, own_layers in (("encoder", range(encoder_layers)), ("decoder", range(encoder_layers, layers))):
        prefix = f"model.{part}"
        weights[f"{prefix}.embed_positions.weight"] = torch.cat(
            [positions.new_zeros(POSITION_OFFSET, positions.shape[1]), positions]
        )
        for kind in ("weight", "bias"):
            weights[f"{prefix}.layernorm_embedding.{kind}"] = bert[f"embeddings.LayerNorm.{kind}"]
            for number, layer in enumerate(own_layers):
                modules = _encoder_modules() | (_cross_attention_modules() if part == "decoder" else {})
                for ours, theirs in modules.items():
                    source = bert[f"encoder.layer.{layer}.{theirs}.{kind}"]
                    weights[f"{prefix}.layers.{number}.{ours}.{kind}"] = source
    return weights


def _encoder_modules() -> dict[str, str]:
    return _attention_modules("self_attn", "self_attn_layer_norm") | {
        "fc1": "intermediate.dense",
        "fc2": "output.dense",
        "final_layer_norm": "output.LayerNorm",
    }


def _cross_attention_modules() -> dict[str, str]:
    return _attention_modules("encoder_attn", "encoder_attn_layer_norm")


def _attention_modules(attention: str, norm: str) -> dict[str, str]:
    return {
        f"{attention}.q_proj": "attention.self.query",
        f"{attention}.k_proj": "attention.self.key",
        f"{attention}.v_proj": "attention.self.value",
        f"{attention}.out_proj": "attention.output.dense",
        norm: "attention.output.LayerNorm",
    }
