"""How fast the scorer is: beside other packages on the same weights, and beside what its multiplications take alone.

    python -m benchmarks.scorer [--model NAME|FOLDER] [--data FILE] [--threads N] [--output FILE] [--plot FILE]

The model's weights are written as an ordinary cross-encoder, in 8 bits and in float32, for the packages that read an
instruction again with every candidate. Scores are compared before anything is timed; exit status 1 at a difference.
Then contestants take turns. Also cold start and memory of fresh processes, and throughput of one scorer that several
threads call. Markdown tables on stdout, progress on stderr.
"""

from __future__ import annotations

import gc
import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from benchmarks.command import parser_with_output, write_output
from benchmarks.corpus import Corpus, read_corpus, synthetic_corpus
from benchmarks.machine import describe_machine
from benchmarks.scorer.floor import KINDS, Network, open_floor, products
from benchmarks.scorer.processes import cold_starts, memories
from benchmarks.scorer.report import Report, plot, tables, write_docs
from benchmarks.scorer.rivals import CAPPY, FLASHRANK, FLOAT32, INT8, RIVALS, FloatArray, open_cappy, why_not
from benchmarks.scorer.side_by_side import beside_the_floor, side_by_side
from benchmarks.scorer.sizes import FIRST, LARGE, SIZES, THROUGHPUT, Question, draw, open_tokenizer
from benchmarks.scorer.throughput import throughput
from benchmarks.scorer.twins import PairReader, write_twins
from cappy_lite.models import canonical, model_folder, read_config
from cappy_lite.session import available_cpus

# That all texts are cut from.
WORDS = 60_000
# Fresh processes of each scorer, to time their start and to see their memory.
STARTS, MEMORY_STARTS = 11, 3
PACKAGES = (
    *("cappy-lite", "onnxruntime", "tokenizers", "numpy", "flashrank", "fastembed", "sentence-transformers"),
    *("transformers", "torch", "optimum-onnx", "optimum-intel", "openvino"),
)


def main(argv: Sequence[str] | None = None) -> None:
    parser = parser_with_output(__doc__)
    parser.add_argument("--model", default="cappy-mini", help="a shipped model's name or a model folder")
    parser.add_argument("--data", type=Path, metavar="FILE", help="instances to cut texts from; without it: made up")
    parser.add_argument("--threads", type=int, default=available_cpus(), help="that each may use (%(default)s)")
    parser.add_argument("--seconds", type=float, default=10, help="about how long a pair is timed (%(default)s)")
    parser.add_argument("--load", type=Path, metavar="FILE", help="show an earlier run's --output, measure nothing")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw candidates a second by size, .svg or .png")
    parser.add_argument("--docs", type=Path, metavar="FILE", help="renew the tables in this Markdown file")
    arguments = parser.parse_args(argv)

    if arguments.load:
        report: Report = json.loads(arguments.load.read_text(encoding="utf-8"))
    else:
        corpus = read_corpus(arguments.data, WORDS) if arguments.data else synthetic_corpus(WORDS)
        folder = model_folder(canonical(arguments.model))
        report = measure(folder, corpus, arguments.threads, arguments.seconds)
    print(tables(report))
    write_output(arguments.output, report)
    if arguments.plot:
        plot(report, arguments.plot)
    if arguments.docs:
        write_docs(report, arguments.docs)


def measure(model: Path, corpus: Corpus, threads: int, seconds: float) -> Report:
    """Everything, with progress on stderr."""
    os.environ["RAYON_NUM_THREADS"] = str(threads)  # on which rivals' tokenizers work
    tokenizer = open_tokenizer(model)
    with tempfile.TemporaryDirectory() as name:
        twins = Path(name)
        network = Network.of(write_twins(model, twins))
        reasons = {rival: why_not(rival, twins, threads) for rival in tqdm(RIVALS, desc="opening")}
        left_out = {f"{rival.name}, {rival.twin}": why for rival, why in reasons.items() if why}
        rivals = [rival for rival, why in reasons.items() if not why]
        questions = [draw(corpus, tokenizer, size) for size in SIZES]
        right = {twin: right_scores(PairReader(twins / twin, threads), questions) for twin in (INT8, FLOAT32)}
        ours = open_cappy(model, threads)
        sizes = []
        for size, question in zip(tqdm(SIZES, desc="floor"), questions, strict=True):
            floors = {kind: open_floor(products(network, size), kind, threads) for kind in KINDS}
            sizes.append(beside_the_floor(size, question, ours, floors, seconds))
        for rival in tqdm(rivals, desc="side by side"):
            # One at a time: ONNX Runtime's default is to keep the memory of the largest batch for good.
            score = rival.open(twins / rival.twin, threads)
            for size, question, result, scores in zip(SIZES, questions, sizes, right[rival.twin], strict=True):
                result["rivals"].append(side_by_side(size, question, ours, rival, score, scores, seconds))
            del score
            gc.collect()
        folders = {CAPPY: model}
        folders |= {f"{FLASHRANK}, {rival.twin}": twins / rival.twin for rival in rivals if rival.name == FLASHRANK}
        first, large = (draw(corpus, tokenizer, size) for size in (FIRST, LARGE))
        called = draw(corpus, tokenizer, THROUGHPUT)
        return {
            "benchmark": "scorer",
            "model": read_config(model).name,
            "data": corpus.name,
            "threads": threads,
            "machine": describe_machine(*PACKAGES),
            "left_out": left_out,
            "sizes": sizes,
            "first": FIRST.name,
            "large": LARGE.name,
            "cold_starts": cold_starts(folders, first, STARTS),
            "memory": memories(folders, first, large, MEMORY_STARTS),
            "throughput_size": THROUGHPUT.name,
            "throughput": [
                throughput(open_cappy(model, each), each, called, seconds)
                for each in tqdm(sorted({1, threads}), desc="throughput")
            ],
        }


def right_scores(reader: PairReader, questions: Sequence[Question]) -> list[FloatArray]:
    return [reader.score(*question) for question in tqdm(questions, desc="scores")]


if __name__ == "__main__":
    main()
