"""How much memory Rouge-L takes, and whether it stays the same however many pairs are scored.

    python -m benchmarks.kernel_memory --pairs 10000000 --stem

Every pair has words that none before it had: the worst case for a kernel that remembers words. The pairs are scored in
rounds, one call each. One JSON line at the end, sizes in MiB: `resident`, the process's after each round, with the
round's texts gone again; `scoring`, the most that a call took beside the texts.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

from tqdm import tqdm

from benchmarks.machine import describe_machine, memory_mib
from cappy_lite.rouge import KERNEL, rouge_l_pairs

# Of a text; a pair's texts share half of them.
WORDS = 10
LETTERS = str.maketrans("0123456789", "ghijklmnop")


def make_pairs(start: int, stop: int) -> tuple[list[str], list[str]]:
    """Predictions and references of the pairs from start to stop; the same number gives the same words."""

    def text(first: int) -> str:
        return " ".join([f"{number:x}" for number in range(first, first + WORDS)]).translate(LETTERS)

    # From a million on, so that all words have about as many letters.
    firsts = [1_000_000 + number * WORDS * 2 for number in range(start, stop)]
    return [text(first) for first in firsts], [text(first + WORDS // 2) for first in firsts]


def score_round(start: int, stop: int, stem: bool, threads: int) -> float:
    """How much scoring the pairs took at most, if it was more than anything before."""
    predictions, references = make_pairs(start, stop)
    before = memory_mib("VmRSS")
    rouge_l_pairs(predictions, references, stem=stem, threads=threads)
    return memory_mib("VmHWM") - before


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=1_000_000, help="how many in all (default: %(default)s)")
    parser.add_argument("--round", type=int, default=100_000, help="how many at a time (default: %(default)s)")
    parser.add_argument("--stem", action="store_true", help="Porter-stem the words")
    parser.add_argument("--threads", type=int, default=1, help="how many score (default: %(default)s)")
    arguments = parser.parse_args(argv)
    resident: list[float] = []
    scoring: list[float] = []
    for start in tqdm(range(0, arguments.pairs, arguments.round), desc="rounds", leave=False):
        stop = min(start + arguments.round, arguments.pairs)
        scoring.append(score_round(start, stop, arguments.stem, arguments.threads))
        resident.append(memory_mib("VmRSS"))
    report = vars(arguments) | {
        "kernel": KERNEL,
        "resident": [round(size, 1) for size in resident],
        "scoring": round(max(scoring), 1),
    }
    print(json.dumps(report | describe_machine("cappy-lite", "numpy")))
    return 0


if __name__ == "__main__":
    sys.exit(main())
