"""How fast Rouge-L is: from texts to scores beside other packages, and its longest common subsequence beside rapidfuzz.

    python -m benchmarks.kernel [--data FILE] [--callgrind] [--output FILE] [--plot FILE] [--docs FILE]

Texts are cut from FILE's instances (JSON Lines, .gz or not), or made up. Numbers are compared before anything is timed,
with rouge-score's and with rapidfuzz's to the last bit; exit status 1 at a difference. Rounds take turns among the
contestants, each on one thread unless the table says otherwise. Markdown tables on stdout.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import product
from pathlib import Path

from tqdm import tqdm

from benchmarks.command import parser_with_output, write_output
from benchmarks.corpus import Corpus, read_corpus, synthetic_corpus
from benchmarks.kernel.end_to_end import end_to_end
from benchmarks.kernel.instructions import LOOPS, instructions_a_word
from benchmarks.kernel.report import Report, plot, tables, write_docs
from benchmarks.kernel.rivals import NEAREST, RIVALS, STANDARD
from benchmarks.kernel.subsequence import SHAPES, subsequence_alone
from benchmarks.machine import describe_machine
from cappy_lite.rouge import KERNEL

# Tokens of a text, from and to.
CLASSES = ((10, 20), (50, 100), (1_000, 5_000))
LENGTHS = (10, 30, 64, 65, 200, 2_000)
# That all batches are cut from.
WORDS = 2_400_000


def main(argv: Sequence[str] | None = None) -> None:
    parser = parser_with_output(__doc__)
    parser.add_argument("--data", type=Path, metavar="FILE", help="instances to cut texts from; without it: made up")
    parser.add_argument("--rounds", type=int, default=7, help="how often each contestant is timed (%(default)s)")
    parser.add_argument("--callgrind", action="store_true", help="count instructions too; needs valgrind")
    parser.add_argument("--load", type=Path, metavar="FILE", help="show an earlier run's --output, measure nothing")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw pairs a second over length, .svg or .png")
    parser.add_argument("--docs", type=Path, metavar="FILE", help="renew the tables in this Markdown file")
    arguments = parser.parse_args(argv)

    if arguments.load:
        report: Report = json.loads(arguments.load.read_text(encoding="utf-8"))
    else:
        corpus = read_corpus(arguments.data, WORDS) if arguments.data else synthetic_corpus(WORDS)
        if len(corpus) < WORDS:
            parser.error(f"--data {arguments.data} has {len(corpus):,} words on different lines: give {WORDS:,}")
        report = measure(corpus, arguments.rounds, callgrind=arguments.callgrind)
    print(tables(report))
    write_output(arguments.output, report)
    if arguments.plot:
        plot(report, arguments.plot)
    if arguments.docs:
        write_docs(report, arguments.docs)


def measure(corpus: Corpus, rounds: int, *, callgrind: bool) -> Report:
    """Everything, with progress on stderr."""
    classes = list(product((False, True), CLASSES))
    lengths = list(product((False, True), LENGTHS))
    shapes = list(product(SHAPES, LENGTHS))
    return {
        "benchmark": "kernel",
        "data": corpus.name,
        "kernel": KERNEL,
        "rounds": rounds,
        "machine": describe_machine("cappy-lite", *(rival.package for rival in RIVALS), "rapidfuzz", "nltk", "numpy"),
        "classes": [
            end_to_end(corpus, tokens, stem, RIVALS, rounds) for stem, tokens in tqdm(classes, desc="end to end")
        ],
        "lengths": [
            end_to_end(corpus, (length, length), stem, (STANDARD, NEAREST), rounds)
            for stem, length in tqdm(lengths, desc="by length")
        ],
        "subsequences": [
            subsequence_alone(corpus, length, shape, rounds) for shape, length in tqdm(shapes, desc="subsequence alone")
        ],
        "instructions_a_word": {
            loop.name: instructions_a_word(loop) for loop in tqdm(LOOPS if callgrind else (), desc="callgrind")
        },
    }


if __name__ == "__main__":
    main()
