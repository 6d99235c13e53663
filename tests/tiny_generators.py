"""Models that write text, seq2seq and causal, with random weights, as transformers saves them."""

from __future__ import annotations

import string
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from tokenizers import decoders as token_decoders
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    BartConfig,
    BertConfig,
    EncoderDecoderConfig,
    EncoderDecoderModel,
    GenerationConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    T5Config,
)

SPECIAL = ["<pad>", "</s>", "<unk>", "<s>"]
PAD, END, START = 0, 1, 3
WORDS = """a and answer ball blue car cat chef dog eats film from good green house in is it mountain movie name not of
on red runs say skis snow street sun the this to word yes you""".split()  # noqa: SIM905
CHAT = (
    "{% for message in messages %}<s> you {{ message.content }} {% endfor %}{% if add_generation_prompt %}it{% endif %}"
)
HEADS = {"num_attention_heads": 4}


def write_generator(folder: Path, kind: str, *, seed: int = 0, max_tokens: int = 160, chat: str | None = None) -> Path:
    """Writes the folder and returns it.

    Its own generation settings are such as would change every response, if they were heeded.
    """
    tokenizer = word_tokenizer(max_tokens, ends=kind in ("t5", "bart", "encoder-decoder"))
    tokenizer.chat_template = chat
    tokenizer.save_pretrained(folder)
    torch.manual_seed(seed)
    network = network_of(kind, len(tokenizer), max_tokens)
    with torch.no_grad():
        for name, weights in network.named_parameters():
            if "norm" not in name and weights.ndim > 1:
                weights.normal_(std=0.3)  # so that some words are likelier than others
    network.generation_config = GenerationConfig(
        eos_token_id=END,
        pad_token_id=PAD,
        bos_token_id=START,
        decoder_start_token_id=PAD,
        repetition_penalty=7.0,
        do_sample=True,
        temperature=0.01,
        num_beams=3,
    )
    network.save_pretrained(folder)
    return folder


def word_tokenizer(max_tokens: int, *, ends: bool) -> PreTrainedTokenizerFast:
    """Words, and letters for all others; `ends`: an end token follows each text, as T5 has it."""
    letters = string.ascii_letters + string.digits + string.punctuation
    vocabulary = {
        token: at for at, token in enumerate([*SPECIAL, *WORDS, *(one for one in letters if one not in WORDS)])
    }
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="<unk>", continuing_subword_prefix=""))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.decoder = token_decoders.WordPiece(prefix="##", cleanup=False)
    if ends:
        tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", END)])
    names = dict(zip(("pad_token", "eos_token", "unk_token", "bos_token"), SPECIAL, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=max_tokens, **names)


def network_of(kind: str, vocabulary: int, max_tokens: int) -> PreTrainedModel:
    special: dict[str, Any] = {"pad_token_id": PAD, "eos_token_id": END, "bos_token_id": START}
    sizes = {"vocab_size": vocabulary, "hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 48} | HEADS
    if kind == "t5":
        own = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "vocab_size": vocabulary}
        return AutoModelForSeq2SeqLM.from_config(T5Config(**own, **special, decoder_start_token_id=PAD))
    if kind == "bart":
        own = {"d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "vocab_size": vocabulary}
        own |= {
            f"{part}_{name}": size
            for part in ("encoder", "decoder")
            for name, size in (("attention_heads", 4), ("ffn_dim", 48))
        }
        return AutoModelForSeq2SeqLM.from_config(
            BartConfig(**own, **special, max_position_embeddings=max_tokens, decoder_start_token_id=END)
        )
    if kind == "encoder-decoder":
        part = BertConfig(**sizes, max_position_embeddings=max_tokens)
        config = EncoderDecoderConfig.from_encoder_decoder_configs(part, part, **special, decoder_start_token_id=START)
        return EncoderDecoderModel(config)
    if kind == "gpt2":
        own = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": max_tokens, "vocab_size": vocabulary}
        return AutoModelForCausalLM.from_config(GPT2Config(**own, **special))
    grouped = sizes | {"num_key_value_heads": 2, "max_position_embeddings": max_tokens}
    if kind == "llama":
        return AutoModelForCausalLM.from_config(LlamaConfig(**grouped, **special))
    assert kind == "mistral"
    return AutoModelForCausalLM.from_config(MistralConfig(**grouped, **special, sliding_window=8))
