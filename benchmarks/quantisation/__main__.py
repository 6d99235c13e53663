"""Ways to quantise the scorer's weights: time, size, accuracy on dev, and what neighbours do to scores.

    python -m benchmarks.quantisation --data FOLDER [--model NAME|FOLDER | --run RUN] [--questions N] [--json FILE]

Each scheme makes a graph of the same float32 weights: a training run's, or those of a model folder, read back from its
8 bits. Every 20th dev question calibrates, as in export; of the others N of each set are asked. Markdown tables on
stdout, progress on stderr. Times want an idle machine and a few minutes, all else takes long: `--only` measures one or
the other, and `--load` takes what it leaves out from an earlier run.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx
from tqdm import tqdm

from benchmarks.machine import describe_machine
from benchmarks.markdown import renew
from benchmarks.quantisation.measures import (
    dev_figures,
    difference,
    open_graph,
    rows_of,
    score_all,
    steadiness,
    times,
    timing_row,
)
from benchmarks.quantisation.report import START, Report, SchemeResult, tables
from benchmarks.quantisation.schemes import FLOAT32, SHIPPED, Material, Scheme, schemes
from benchmarks.quantisation.sources import Source, dev_sets, of_model, of_run, split
from benchmarks.scorer.sizes import equal_candidates
from cappy_lite.models import GRAPH_FILE
from cappy_lite.session import available_cpus
from cappy_train.batches import Packer
from cappy_train.evaluate import Question
from cappy_train.export import FLOAT_GRAPH_FILE
from cappy_train.graph import packed_graph
from cappy_train.graph_builder import save_graph
from cappy_train.quantise import observe

SIZES = (equal_candidates(256, 32, 16), equal_candidates(64, 8, 16))
SCHEMES = schemes()
# Of each set, the first so many questions show how steady scores are: every candidate is scored alone too.
STEADY_QUESTIONS = 15


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="the training files, whose dev splits are read")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--model", default="cappy-mini", help="a shipped model's name or a model folder")
    source.add_argument("--run", type=Path, help="a training run's folder")
    parser.add_argument("--questions", type=int, default=400, metavar="N", help="of each dev set (%(default)s)")
    parser.add_argument("--threads", type=int, default=available_cpus(), help="of every graph (%(default)s)")
    parser.add_argument("--seconds", type=float, default=40, help="about how long a size is timed (%(default)s)")
    parser.add_argument("--only", choices=["times", "scores"], help="measure these alone")
    parser.add_argument("--load", type=Path, metavar="FILE", help="an earlier --json; without --only, measure nothing")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything as JSON")
    parser.add_argument("--docs", type=Path, metavar="FILE", help="renew the tables in this Markdown file")
    arguments = parser.parse_args(argv)

    earlier: Report | None = json.loads(arguments.load.read_text(encoding="utf-8")) if arguments.load else None
    if earlier is None or arguments.only:
        if arguments.data is None:
            parser.error("--data is needed to measure")
        from_where = of_run(arguments.run) if arguments.run else of_model(arguments.model)
        sets = dev_sets(arguments.data)
        report = measure(
            from_where,
            sets,
            questions=arguments.questions,
            threads=arguments.threads,
            seconds=None if arguments.only == "scores" else arguments.seconds,
            scores=arguments.only != "times",
        )
        report = joined(earlier, report, arguments.only) if earlier else report
    else:
        report = earlier
    print(tables(report))
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    if arguments.docs:
        renew(arguments.docs, START, tables(report))


def measure(
    source: Source,
    sets: Mapping[str, Sequence[Question]],
    *,
    questions: int,
    threads: int,
    seconds: float | None,
    scores: bool,
) -> Report:
    """Times, if `seconds` are given for a size, and scores; progress on stderr."""
    packer = Packer(source.tokenizer)
    calibrating, asked = split(sets, questions)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        onnx.save(packed_graph(source.weights), folder / FLOAT_GRAPH_FILE)
        rows = [row for question in rows_of(packer, calibrating, source.max_tokens) for row in question]
        material = Material(source.weights, observe(folder / FLOAT_GRAPH_FILE, rows), rows)
        paths = {scheme.name: write(scheme, material, folder / f"{number}") for number, scheme in numbered(SCHEMES)}
        results: dict[str, SchemeResult] = {
            scheme.name: {
                "name": scheme.name,
                "megabytes": sum(file.stat().st_size for file in paths[scheme.name].parent.iterdir()) / 1e6,
                "as_shipped": scheme.same_time,
            }
            for scheme in SCHEMES
        }
        if seconds is not None:
            measure_times(results, paths, source.tokenizer, threads, seconds)
        if scores:
            measure_scores(results, paths, packer, asked, source.max_tokens, threads)
    return {
        "benchmark": "quantisation",
        "model": source.name,
        "weights": source.described,
        "threads": threads,
        "machine": describe_machine("cappy-lite", "onnxruntime", "numpy"),
        "calibrating_rows": len(rows),
        "questions": {name: len(members) for name, members in asked.items()},
        "schemes": list(results.values()),
    }


def numbered(schemes: Sequence[Scheme]) -> enumerate[Scheme]:
    return enumerate(tqdm(schemes, "graphs", unit="scheme"))


def write(scheme: Scheme, material: Material, folder: Path) -> Path:
    """Saves a scheme's graph in a folder of its own."""
    folder.mkdir()
    save_graph(scheme.make(material), folder / GRAPH_FILE)
    return folder / GRAPH_FILE


def measure_times(
    results: Mapping[str, SchemeResult], paths: Mapping[str, Path], tokenizer: Path, threads: int, seconds: float
) -> None:
    opened = {
        scheme.name: open_graph(paths[scheme.name], threads, own=scheme.own)
        for scheme in SCHEMES
        if not scheme.same_time
    }
    for size in tqdm(SIZES, "times"):
        for name, time in times(opened, SHIPPED, timing_row(tokenizer, size), seconds).items():
            results[name].setdefault("times", {})[size.name] = time


def measure_scores(
    results: Mapping[str, SchemeResult],
    paths: Mapping[str, Path],
    packer: Packer,
    asked: Mapping[str, Sequence[Question]],
    max_tokens: int,
    threads: int,
) -> None:
    rows = {name: rows_of(packer, members, max_tokens) for name, members in asked.items()}
    scored = {}
    for scheme in tqdm(SCHEMES, "scores", unit="scheme"):
        run = open_graph(paths[scheme.name], threads, own=scheme.own)
        own = scored[scheme.name] = {name: score_all(run, members, scheme.name) for name, members in rows.items()}
        first = [question for members in asked.values() for question in members[:STEADY_QUESTIONS]]
        together = [scores for members in own.values() for scores in members[:STEADY_QUESTIONS]]
        results[scheme.name]["steadiness"] = steadiness(run, packer, first, together, max_tokens)
        exact = [scores for members in scored[FLOAT32].values() for scores in members]
        results[scheme.name]["difference"] = difference([s for members in own.values() for s in members], exact)
    for set_name, members in asked.items():
        figures = dev_figures(members, {name: own[set_name] for name, own in scored.items()}, FLOAT32)
        for name, figure in figures.items():
            results[name].setdefault("dev", {})[set_name] = figure


def joined(earlier: Report, later: Report, only: str) -> Report:
    """The later report, which has times or scores alone, with the others from the earlier one."""
    before = {one["name"]: one for one in earlier["schemes"]}
    results = [{**before.get(one["name"], {}), **one} for one in later["schemes"]]
    if only == "scores":
        return {**later, "schemes": results, "threads": earlier["threads"], "machine": earlier["machine"]}
    return {**later, "schemes": results, "questions": earlier["questions"]}


if __name__ == "__main__":
    main()
