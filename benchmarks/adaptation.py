"""What adapting a scorer takes, beside fine-tuning the generator whose candidates it picks from: time and peak memory.

    python -m benchmarks.adaptation [--instances N] [--generators NAME ...] [--output FILE]

Instances are made up: an instruction of 100 tokens, a reference, and 16 candidates, the reference with more or fewer of
its words replaced. `cappy_train.adapt` adapts the shipped model to them, from reading the file to the checked model
folder. A generator is a T5 with random weights in the shape of FLAN-T5-small or FLAN-T5-base, which transformers trains
on as many instructions and references by AdamW in float32; a few steps are enough for its peak, and tell how long a
pass takes. Each in a process of its own. Markdown table on stdout.
"""

from __future__ import annotations

import multiprocessing
import random
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.command import parser_with_output, write_output
from benchmarks.machine import describe_machine
from benchmarks.markdown import table
from cappy_lite.models import TOKENIZER_FILE, canonical, model_folder
from cappy_lite.session import available_cpus
from cappy_lite.tokens import read_tokenizer
from cappy_train.adapt import adapt, peak_memory_mib
from cappy_train.instances import Candidate, Instance, write_instances

SEED = 0
INSTRUCTION_TOKENS = 100
CANDIDATES = 16
CANDIDATE_TOKENS = 16
# Of T5's configuration, what these two differ in.
GENERATORS = {
    "FLAN-T5-small": {"d_model": 512, "d_ff": 1024, "num_layers": 8, "num_heads": 6},
    "FLAN-T5-base": {"d_model": 768, "d_ff": 2048, "num_layers": 12, "num_heads": 12},
}
GENERATOR_BATCH = 8


def main(argv: Sequence[str] | None = None) -> int:
    parser = parser_with_output(__doc__)
    parser.add_argument("--instances", type=int, default=1000, help="how many (default: %(default)s)")
    parser.add_argument("--model", default="cappy-mini", help="what is adapted (default: %(default)s)")
    parser.add_argument("--epochs", type=float, default=3.0, help="passes over them (default: %(default)s)")
    parser.add_argument(
        "--generators", nargs="*", choices=list(GENERATORS), default=list(GENERATORS), help="these alone"
    )
    parser.add_argument("--steps", type=int, default=3, help="steps of a generator (default: %(default)s)")
    arguments = parser.parse_args(argv)
    report: dict[str, Any] = {
        "instances": arguments.instances,
        "instruction_tokens": INSTRUCTION_TOKENS,
        "candidates": CANDIDATES,
        "candidate_tokens": CANDIDATE_TOKENS,
        "epochs": arguments.epochs,
        "threads": available_cpus(),
        "adapted": in_own_process(adapted, arguments.instances, arguments.model, arguments.epochs),
        "generators": {
            name: in_own_process(fine_tuned, GENERATORS[name], arguments.instances, arguments.steps)
            for name in arguments.generators
        },
    }
    report |= describe_machine("cappy-lite", "torch", "transformers")
    print(shown(report))
    write_output(arguments.output, report)
    return 0


def in_own_process(function: Callable[..., dict[str, Any]], *given: object) -> dict[str, Any]:
    """The result of a function, in a process that does nothing else, so that its peak of memory is the function's."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *given).result()


def adapted(count: int, model: str, epochs: float) -> dict[str, Any]:
    """Adapts a model to made-up instances: all of it in seconds, by stage, and the peak of memory."""
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "made-up.parquet"
        write_instances(data, made_up(count, model_folder(canonical(model))))
        begun = time.perf_counter()
        report = adapt(data, Path(folder) / "model", model=model, epochs=epochs, seed=SEED)
        seconds = time.perf_counter() - begun
    return {
        "seconds": round(seconds, 1),
        "stages": report["seconds"],
        "steps": report["training"]["steps"],
        "kept_start": report["kept_start"],
        "peak_memory_mib": round(peak_memory_mib()),
    }


def made_up(count: int, model: Path) -> list[Instance]:
    """Instances of words that are one token each."""
    rng = random.Random(SEED)
    vocabulary = read_tokenizer(model / TOKENIZER_FILE).get_vocab()
    words = sorted(word for word in vocabulary if word.isascii() and word.isalpha() and len(word) > 2)
    instances = []
    for number in range(count):
        reference = rng.choices(words, k=CANDIDATE_TOKENS)
        candidates = []
        for source in range(CANDIDATES):
            share = rng.random()
            text = [rng.choice(words) if rng.random() < share else word for word in reference]
            candidates.append(Candidate(" ".join(text), f"sample {source}"))
        # The instruction has the reference's words in it, or nothing could be learned.
        rest = rng.choices(words, k=INSTRUCTION_TOKENS - CANDIDATE_TOKENS)
        instances.append(
            Instance(
                id=str(number),
                task="made up",
                template=None,
                instruction=" ".join([*rest, *reference]),
                references=(" ".join(reference),),
                candidates=tuple(candidates),
                choices=None,
                split="train",
            )
        )
    return instances


def fine_tuned(shape: dict[str, int], count: int, steps: int) -> dict[str, Any]:
    """Some steps of a T5 with random weights; `seconds` is a pass over `count` instances, by the fastest step."""
    import torch
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(SEED)
    config = T5Config(vocab_size=32128, d_kv=64, feed_forward_proj="gated-gelu", decoder_start_token_id=0, **shape)
    generator = T5ForConditionalGeneration(config).train()
    optimizer = torch.optim.AdamW(generator.parameters(), lr=1e-4)
    taken = []
    for _ in range(steps):
        begun = time.perf_counter()
        instructions = torch.randint(config.vocab_size, (GENERATOR_BATCH, INSTRUCTION_TOKENS))
        references = torch.randint(config.vocab_size, (GENERATOR_BATCH, CANDIDATE_TOKENS))
        generator(input_ids=instructions, labels=references).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        taken.append(time.perf_counter() - begun)
    step = min(taken)
    return {
        "parameters": sum(weight.numel() for weight in generator.parameters()),
        "seconds_a_step": round(step, 2),
        "seconds": round(step * count / GENERATOR_BATCH, 1),
        "peak_memory_mib": round(peak_memory_mib()),
    }


def shown(report: dict[str, Any]) -> str:
    own = report["adapted"]
    rows = [
        ["adapting the scorer", f"{own['seconds']:,.0f} s, {report['epochs']:g} passes", f"{own['peak_memory_mib']:,}"]
    ]
    rows += [
        [
            f"fine-tuning {name} ({one['parameters'] / 1e6:.0f} million weights)",
            f"{one['seconds']:,.0f} s a pass",
            f"{one['peak_memory_mib']:,}",
        ]
        for name, one in report["generators"].items()
    ]
    return table(["", "time", "peak memory, MiB"], rows)


if __name__ == "__main__":
    sys.exit(main())
