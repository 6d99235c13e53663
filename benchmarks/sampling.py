"""How fast responses are sampled, beside transformers' `generate` as anyone would call it.

    python -m benchmarks.sampling [--output FILE]

Two models of random weights, one in the shape of the generator that cappy-train makes (MiniLM's layers, 2 of them the
decoder) and a causal one of its size; their tokens follow Zipf's law, and a response ends after each with the same
probability. Instructions are made up. Ours is `LocalModel` with the paper's decodings, in bfloat16 and in float32. The
plain way calls `generate` for each decoding by itself, with num_return_sequences, for prompts in the order of the file,
in bfloat16; it gives no likelihoods under the model. Before anything is timed, beam searches in float32 must find the
same for both, prompt by prompt; exit status 1 if they don't. They take turns. Markdown table on stdout.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    GenerationConfig,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
)

from benchmarks.command import parser_with_output, write_output
from benchmarks.corpus import SEED, synthetic_corpus
from benchmarks.machine import describe_machine
from benchmarks.markdown import rate, table
from benchmarks.rounds import Contestant, median_and_range, rates
from cappy_train.checkpoint import quietly
from cappy_train.generator import save_model
from cappy_train.instances import Instance
from cappy_train.local_models import BATCH_TOKENS, LocalModel
from cappy_train.network import packaged_minilm
from cappy_train.sampling import MAX_NEW_TOKENS, PAPER, Decoding
from cappy_train.seq2seq import seq2seq_from_bert, seq2seq_tokenizer

KINDS = ("seq2seq", "causal")
DECODER_LAYERS = 2
# Words of an instruction, from and to.
INSTRUCTION_WORDS = (10, 160)
# Mean tokens of a response, if nothing cut it short.
RESPONSE_TOKENS = 12
# Prompts that the plain way answers at a time.
PLAIN_PROMPTS = 32
# Prompts whose beam searches are compared.
COMPARED = 4


def main(argv: Sequence[str] | None = None) -> int:
    parser = parser_with_output(__doc__)
    parser.add_argument("--base", type=Path, help="a BERT checkpoint's folder (default: MiniLM-L6-H384)")
    parser.add_argument("--instances", type=int, default=8, help="default: %(default)s")
    parser.add_argument("--batch-tokens", type=int, default=BATCH_TOKENS, help="of ours (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="how often each is timed (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="default: %(default)s")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(SEED)
    instances = made_up(arguments.instances)
    report: dict[str, Any] = {"instances": len(instances), "rounds": arguments.rounds, "threads": arguments.threads}
    report |= {"batch_tokens": arguments.batch_tokens, "models": {}}
    with tempfile.TemporaryDirectory() as folder, quietly():
        for kind in KINDS:
            path = Path(folder) / kind
            path.mkdir()
            write_model(kind, arguments.base or packaged_minilm(), path)
            report["models"][kind] = measure(path, kind, instances, arguments.batch_tokens, arguments.rounds)
    report |= {"cpu_capability": torch.backends.cpu.get_cpu_capability()}
    report |= describe_machine("cappy-lite", "torch", "transformers", "numpy")
    print(show(report))
    write_output(arguments.output, report)
    return 0


def show(report: dict[str, Any]) -> str:
    lines = []
    for kind, measured in report["models"].items():
        for way, (median, least, most) in measured["rates"].items():
            each = measured["tokens_a_response"][way]
            times = ["", ""]
            if way in measured["ratios"]:
                ratio, low, high = measured["ratios"][way]
                times = [f"{ratio:.2f}", f"[{low:.2f}, {high:.2f}]"]
            lines.append(
                [kind, way, rate(median), f"[{rate(least)}, {rate(most)}]", rate(median * each), f"{each:.1f}", *times]
            )
    head = ["model", "way", "responses/s", "[least, most]", "tokens/s", "tokens a response"]
    return table([*head, "ours is so many times as fast", "[least, most]"], lines)


def made_up(count: int) -> list[Instance]:
    """Instructions of words by Zipf's law."""
    lengths = np.random.default_rng(SEED).integers(*INSTRUCTION_WORDS, count)
    texts = synthetic_corpus(int(lengths.sum())).texts(lengths)
    return [Instance(str(number), "t", None, text, ("none",), (), None, "train") for number, text in enumerate(texts)]


# Models.


def write_model(kind: str, base: Path, out: Path) -> None:
    """A model of the shape of the BERT in `base`, whose tokens have frequencies by Zipf's law."""
    tokenizer = seq2seq_tokenizer(base)
    network = seq2seq_from_bert(base, decoder_layers=DECODER_LAYERS)
    frequencies = log_frequencies(network.config.vocab_size, tokenizer)
    if kind == "seq2seq":
        network.final_logits_bias.copy_(frequencies)
    else:
        network = causal(network.config, tokenizer, frequencies)
    save_model(network, tokenizer, out)


def causal(sizes: Any, tokenizer: PreTrainedTokenizerFast, frequencies: Tensor) -> Any:
    """A GPT-2 of these sizes, with as many layers as encoder and decoder have."""
    special = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    config = GPT2Config(
        vocab_size=sizes.vocab_size,
        n_embd=sizes.d_model,
        n_layer=sizes.encoder_layers + sizes.decoder_layers,
        n_head=sizes.encoder_attention_heads,
        n_positions=sizes.max_position_embeddings,
        **special,
    )
    network = GPT2LMHeadModel(config)
    network.generation_config = GenerationConfig(**special)
    # One number of the last state is 1, and its weights are the logarithms of the frequencies.
    last = network.transformer.ln_f
    with torch.no_grad():
        last.weight[0], last.bias[0] = 0.0, 1.0
        network.lm_head.weight[:, 0] = frequencies
    return network


def log_frequencies(vocabulary: int, tokenizer: PreTrainedTokenizerFast) -> Tensor:
    """(vocabulary,): by Zipf's law in random order, but for the end token."""
    shares = (1 / (1 + torch.randperm(vocabulary))).float()
    shares[tokenizer.eos_token_id] = 0.0
    shares /= shares.sum()
    shares[tokenizer.eos_token_id] = 1 / (RESPONSE_TOKENS - 1)
    return shares.log()


# Ways to sample.


class Ours:
    """LocalModel; `tokens` are a response's in the mean, by the last call."""

    def __init__(self, folder: Path, precision: str, batch_tokens: int) -> None:
        self.model = LocalModel(folder, precision=precision, batch_tokens=batch_tokens, max_new_tokens=MAX_NEW_TOKENS)
        self.tokens = 0.0

    def sample(self, instances: Sequence[Instance]) -> None:
        counts: list[int] = []
        sampled = self.model.sample(instances, advance=lambda _, tokens: counts.append(tokens))
        self.tokens = sum(counts) / sum(map(len, sampled.candidates))


class Plain:
    """What anyone would write."""

    def __init__(self, folder: Path, kind: str, precision: torch.dtype) -> None:
        loader: Any = AutoModelForSeq2SeqLM if kind == "seq2seq" else AutoModelForCausalLM
        side = "right" if kind == "seq2seq" else "left"
        self.network = loader.from_pretrained(folder, dtype=precision).eval()
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder, padding_side=side)
        self.longest = self.tokenizer.model_max_length - MAX_NEW_TOKENS
        self.tokens = 0.0

    def sample(self, instances: Sequence[Instance]) -> None:
        written: list[int] = []
        for start in range(0, len(instances), PLAIN_PROMPTS):
            texts = [instance.instruction for instance in instances[start : start + PLAIN_PROMPTS]]
            for decoding in PAPER:
                responses = self.respond(texts, decoding)
                self.tokenizer.batch_decode(responses, skip_special_tokens=True)
                ended = (responses == self.tokenizer.eos_token_id).int()
                # An end counts, what is behind it doesn't.
                written += (ended.cumsum(-1) - ended == 0).sum(-1).tolist()
        self.tokens = sum(written) / len(written)

    @torch.inference_mode()
    def respond(self, texts: list[str], decoding: Decoding) -> Tensor:
        inputs = self.tokenizer(texts, padding=True, truncation=True, max_length=self.longest, return_tensors="pt")
        if decoding.beams > 1:
            options: dict[str, Any] = {"num_beams": decoding.beams, "do_sample": False}
        else:
            options = {
                "do_sample": True,
                "num_return_sequences": decoding.samples,
                "temperature": decoding.temperature,
                "top_k": decoding.top_k or 0,
                "top_p": decoding.top_p or 1.0,
            }
        written: Tensor = self.network.generate(**inputs, max_new_tokens=MAX_NEW_TOKENS, **options)
        return written[:, 1 if self.network.config.is_encoder_decoder else inputs["input_ids"].shape[1] :]


def measure(folder: Path, kind: str, instances: Sequence[Instance], batch_tokens: int, rounds: int) -> dict[str, Any]:
    """Responses a second of each way, tokens a response, and how many times as fast ours is, within rounds."""
    check_same(folder, kind, instances[:COMPARED])
    ways: dict[str, Ours | Plain] = {
        "ours": Ours(folder, "bfloat16", batch_tokens),
        "ours, float32": Ours(folder, "float32", batch_tokens),
        "plain": Plain(folder, kind, torch.bfloat16),
    }
    responses = len(instances) * sum(decoding.samples for decoding in PAPER)
    contestants = [Contestant(partial(way.sample, instances), responses) for way in ways.values()]
    for way in ways.values():
        way.sample(instances[:COMPARED])  # kernels are made for each shape
    measured = dict(zip(ways, rates(contestants, rounds), strict=True))
    return {
        "responses": responses,
        "rates": {name: median_and_range(values) for name, values in measured.items()},
        "tokens_a_response": {name: way.tokens for name, way in ways.items()},
        "ratios": {
            name: median_and_range(measured["ours"] / values) for name, values in measured.items() if name != "ours"
        },
    }


def check_same(folder: Path, kind: str, instances: Sequence[Instance]) -> None:
    """Raises SystemExit if a beam search of ours finds another response than `generate` for the prompt alone."""
    beam = PAPER[0]
    model = LocalModel(folder, precision="float32", decodings=[beam], max_new_tokens=MAX_NEW_TOKENS)
    plain = Plain(folder, kind, torch.float32)
    for instance, (ours,) in zip(instances, model.sample(instances).candidates, strict=True):
        (theirs,) = plain.tokenizer.batch_decode(plain.respond([instance.instruction], beam), skip_special_tokens=True)
        if ours.text != theirs.strip():
            raise SystemExit(f"DIFFERENT: {kind}, instance {instance.id}: ours {ours.text!r}, theirs {theirs!r}")


if __name__ == "__main__":
    sys.exit(main())
