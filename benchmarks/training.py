"""How fast the training system's stages are. Annotation: pairs a second, from a Parquet file of instances to shards.

    python -m benchmarks.training [--data FILE] [--output FILE]

Instances are FILE's (JSON Lines, .gz or not, or Parquet), repeated under new ids until there are enough; those without
candidates get damaged references for such. Or they are made up. The scores of a sample are compared with rouge-score's
before anything is timed; exit status 1 at a difference. Each round annotates everything into a new folder, digests of
the inputs and fsync included; with all threads and with one, in turns. Markdown table on stdout.
"""

from __future__ import annotations

import random
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from itertools import chain, count, cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from rouge_score.rouge_scorer import RougeScorer
from tqdm import tqdm

from benchmarks.command import parser_with_output, write_output
from benchmarks.corpus import SEED, synthetic_corpus
from benchmarks.machine import describe_machine, memory_mib
from benchmarks.markdown import rate, table
from benchmarks.rounds import Contestant, FloatArray, check_equal, median_and_range, rates
from cappy_lite.rouge import KERNEL
from cappy_lite.session import available_cpus
from cappy_train.annotate import annotate
from cappy_train.distractors import damage
from cappy_train.instance_tables import SCHEMA, find_inputs, read_blocks
from cappy_train.shards import Shards

CANDIDATES = 16
# Rows of the Parquet file that are made at a time.
ROWS = 1024
# Of made-up instances: words of the instruction, and of a reference, from and to.
INSTRUCTION_WORDS = (40, 200)
REFERENCE_WORDS = (5, 40)
MADE_UP = 4_000
# Candidates that are compared with rouge-score.
SAMPLE = 2_000

Instance = dict[str, Any]


def main(argv: Sequence[str] | None = None) -> int:
    parser = parser_with_output(__doc__)
    parser.add_argument("--data", type=Path, metavar="FILE", help="instances; without it: made up")
    parser.add_argument("--pairs", type=int, default=1_500_000, help="about so many (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="how often each is timed (default: %(default)s)")
    parser.add_argument("--folder", type=Path, help="where files are written and removed (default: a temporary folder)")
    arguments = parser.parse_args(argv)
    instances = with_candidates(read(arguments.data) if arguments.data else made_up())
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        path = Path(folder) / "instances.parquet"
        write(path, instances, arguments.pairs)
        check_sample(path, Path(folder) / "checked")
        report = {"data": str(arguments.data.name) if arguments.data else "made up", "kernel": KERNEL} | measure(
            path, Path(folder), arguments.rounds
        )
    report |= describe_machine("cappy-lite", "numpy", "pyarrow", "rouge-score")
    print(table(["threads", "pairs/s", "[least, most]"], [show(*one) for one in report["rates"].items()]))
    write_output(arguments.output, report)
    return 0


def show(threads: str, values: Sequence[float]) -> list[str]:
    return [threads, rate(values[0]), f"[{rate(values[1])}, {rate(values[2])}]"]


def read(path: Path) -> list[Instance]:
    """The instances of a file."""
    return list(chain.from_iterable(block.table.to_pylist() for block in read_blocks(find_inputs([path]), ROWS)))


def made_up() -> list[Instance]:
    """Instances of words by Zipf's law, without candidates."""
    generator = np.random.default_rng(SEED)
    lengths = np.stack(
        [generator.integers(low, high, MADE_UP) for low, high in (INSTRUCTION_WORDS, REFERENCE_WORDS)], axis=1
    )
    parts = synthetic_corpus(int(lengths.sum())).texts(lengths.reshape(-1))
    return [
        {
            "id": str(number),
            "task": f"task {number % 20}",
            "instruction": parts[2 * number],
            "references": [parts[2 * number + 1]],
            "choices": None,
            "candidates": [],
            "split": "train",
        }
        for number in range(MADE_UP)
    ]


def with_candidates(instances: list[Instance]) -> list[Instance]:
    """The instances; those without choices and candidates with references that were damaged once to three times."""
    source = random.Random(SEED)
    for instance in instances:
        if instance["choices"] is None and not instance["candidates"]:
            instance["candidates"] = [
                {"text": damaged(source.choice(instance["references"]), source), "source": f"damage {number}"}
                for number in range(CANDIDATES)
            ]
    return instances


def damaged(text: str, source: random.Random) -> str:
    for _ in range(source.randint(1, 3)):
        text = damage(text, "something else that was said", source)
    return text


def write(path: Path, instances: list[Instance], pairs: int) -> None:
    """A Parquet file of about so many pairs: the instances, again and again under new ids."""
    each = sum(len(one["references"]) + len(one["candidates"]) + 1 for one in instances) / len(instances)
    rows = (one | {"id": f"{one['id']}#{number}"} for number, one in zip(count(), cycle(instances)))
    wanted = islice(rows, max(int(pairs / each), 2))
    with pq.ParquetWriter(path, SCHEMA, compression="zstd") as writer:
        while part := list(islice(wanted, ROWS)):
            writer.write_table(pa.Table.from_pylist(part, schema=SCHEMA))


def check_sample(path: Path, out: Path) -> None:
    """Raises SystemExit if a candidate's score isn't rouge-score's, as float32."""
    shards = annotate([path], out)
    instances = {one["id"]: one for one in next(read_blocks([path], ROWS)).table.to_pylist()}
    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    pairs = [
        pair
        for pair in shards.read(shards.row_groups()[0]).to_pylist()
        if pair["source"] not in ("reference", "choice", "random") and instances[pair["instance_id"]]["choices"] is None
    ]
    sample = random.Random(SEED).sample(pairs, min(SAMPLE, len(pairs)))
    theirs = [
        scorer.score_multi(instances[pair["instance_id"]]["references"], pair["response"])["rougeL"].fmeasure
        for pair in tqdm(sample, desc="rouge-score", leave=False)
    ]
    check_equal(np.array([pair["score"] for pair in sample]), np.float32(theirs).astype(float), "score")


def measure(path: Path, folder: Path, rounds: int) -> dict[str, Any]:
    """Pairs a second, and what they were counted over."""
    shards = Shards(folder / "checked")
    outs = (folder / f"round-{number}" for number in count())
    threads = sorted({1, available_cpus()})
    contestants = [
        Contestant(partial(annotate, [path], threads=number), shards.rows, lambda: (next(outs),)) for number in threads
    ]
    measured: FloatArray = rates(contestants, rounds)
    return {
        "pairs": shards.rows,
        "counts": shards.manifest["counts"],
        "input_bytes": path.stat().st_size,
        "output_bytes": sum(shard["bytes"] for shard in shards.manifest["shards"]),
        "mean_characters": {name: round(mean_length(shards, name), 1) for name in ("instruction", "response")},
        "rounds": rounds,
        "rates": {str(number): median_and_range(row) for number, row in zip(threads, measured, strict=True)},
        "peak_memory_mib": round(memory_mib("VmHWM"), 1),
    }


def mean_length(shards: Shards, column: str) -> float:
    """Of a column's texts, in characters, over the first row group."""
    return float(pc.mean(pc.utf8_length(shards.read(shards.row_groups()[0])[column])).as_py())


if __name__ == "__main__":
    sys.exit(main())
