"""Whether memory stays the same, and scores too, over very many calls of one scorer.

    python -m benchmarks.scorer_soak [--reranks 100000] [--model NAME|FOLDER] [--threads N] [--output FILE]

Every call has an instruction and candidates of other lengths than the last one, from a few words to what the model
reads at most; some texts are cut. Lines on stdout say what is resident meanwhile; JSON comes last, sizes in MiB.
Exit status 1 if a probe's scores change.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from benchmarks.corpus import SEED, Corpus, synthetic_corpus
from benchmarks.machine import describe_machine, memory_mib
from cappy_lite import Scorer
from cappy_lite.errors import TruncationWarning
from cappy_lite.session import available_cpus

# In words, one to two tokens each.
INSTRUCTION_WORDS, CANDIDATE_WORDS, MOST_CANDIDATES = 400, 60, 16
WORDS = 200_000
# How often memory is looked at, and how many calls come before the first time: these may still grow tables.
READINGS, WARM_UP = 50, 0.02

Question = tuple[str, list[str]]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reranks", type=int, default=100_000, help="how many calls (%(default)s)")
    parser.add_argument("--model", default="cappy-mini", help="a shipped model's name or a model folder")
    parser.add_argument("--threads", type=int, default=available_cpus(), help="that a call computes on (%(default)s)")
    parser.add_argument("--output", type=Path, metavar="FILE", help="also write the JSON to this file")
    arguments = parser.parse_args(argv)
    scorer = Scorer(arguments.model, threads=arguments.threads)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TruncationWarning)
        measured = soak(scorer, arguments.reranks)
    report = measured | {
        "model": arguments.model,
        "threads": arguments.threads,
        "machine": describe_machine("cappy-lite", "onnxruntime", "tokenizers", "numpy"),
    }
    line = json.dumps(report)
    if arguments.output:
        arguments.output.write_text(line + "\n", encoding="utf-8")
    print(line)
    return 0 if measured["same_scores"] else 1


def soak(scorer: Scorer, reranks: int) -> dict[str, object]:
    """Calls `rerank` so often. resident: (calls so far, MiB)."""
    corpus = synthetic_corpus(WORDS)
    asked = questions(corpus)
    probe = next(asked)
    expected = scorer.rerank(*probe)
    same, candidates, resident = True, 0, []
    readings = set(np.linspace(reranks * WARM_UP, reranks, READINGS).astype(int).tolist())
    start = time.perf_counter()
    for count in tqdm(range(1, reranks + 1), desc="reranks"):
        question = next(asked)
        scorer.rerank(*question)
        candidates += len(question[1])
        if count in readings:
            same = same and scorer.rerank(*probe) == expected
            resident.append((count, round(memory_mib("VmRSS"), 1)))
            tqdm.write(f"{count:>9,} reranks: {resident[-1][1]:.1f} MiB", file=sys.stdout)
    return {
        "reranks": reranks,
        "candidates": candidates,
        "seconds": round(time.perf_counter() - start, 1),
        "same_scores": same,
        "resident": resident,
        "first": resident[0][1],
        "last": resident[-1][1],
        "peak": round(memory_mib("VmHWM"), 1),
    }


def questions(corpus: Corpus) -> Iterator[Question]:
    """Questions without end, of random lengths: short ones are as frequent as long ones that are twice as long."""
    generator = np.random.default_rng(SEED)
    words = corpus.texts(np.ones(len(corpus), dtype=np.int64))

    def text(most: int) -> str:
        length = log_uniform(most)
        first = int(generator.integers(len(words) - length))
        return "".join(words[first : first + length])

    def log_uniform(most: int) -> int:
        return int(most ** generator.random())

    while True:
        yield text(INSTRUCTION_WORDS), [text(CANDIDATE_WORDS) for _ in range(log_uniform(MOST_CANDIDATES))]


if __name__ == "__main__":
    sys.exit(main())
