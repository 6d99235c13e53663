"""What a Ray cluster costs over this process, and a plan of the Cappy paper's 160 million pairs.

    python -m benchmarks.cluster [--rounds N] [--output FILE]

Measures on this machine, with made-up data: annotation and rendering by one thread and on a local Ray cluster with all
CPUs, what a pipeline's start and a block cost, the bytes of a pair, and the tokens a second of pre-training. Results of
both ways are compared before anything is timed. Then it prints the plan, what these rates make of 160 million pairs;
what isn't measured here is assumed, and each assumption is an option. Markdown tables on stdout.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median
from typing import Any

from benchmarks import training
from benchmarks.machine import describe_machine
from benchmarks.markdown import rate, table
from cappy_lite.session import available_cpus
from cappy_train.annotate import annotate
from cappy_train.cluster import LOCAL, Cluster, open_cluster
from cappy_train.pretrain import pretrain
from cappy_train.rendering import render_instances
from cappy_train.shards import Shards
from cappy_train.training import Settings

PAIRS = 160e6
# Of the paper's decodings, an instruction.
SAMPLES = 17
ANNOTATED_PAIRS = 400_000
RENDERED_ROWS = 20_000
TRAINING_STEPS = 12
TEMPLATES = """\
dataset: news
templates:
  a: !Template
    answer_choices: World ||| Sports ||| Business ||| Science
    id: a
    jinja: '{{text}} Which of {{answer_choices[:-1] | join(", ")}} or {{answer_choices[-1]}} is this about? |||
      {{answer_choices[label]}}'
    metadata: !TemplateMetadata {}
    name: which
    reference: ''
"""


@dataclass(frozen=True)
class Plan:
    """What isn't measured here. Weights are in billions, of the network's layers without its embeddings.

    response_tokens: mean tokens of a sampled response.
    generator, scorer: weights of the model that is sampled, and of the one that is trained on GPUs.
    gpu_tflops: a GPU's dense bf16 peak in TFLOP/s.
    sampling_share, training_share: of that peak, which sampling and training reach.
    row_tokens: tokens of an instruction with all its responses.
    cpu_price, gpu_price: of an hour, in US dollars; a CPU is a core.
    cpus, gpus: of the cluster.
    """

    response_tokens: float = 20
    generator: float = 3.0
    scorer: float = 0.3
    gpu_tflops: float = 312
    sampling_share: float = 0.05
    training_share: float = 0.3
    row_tokens: float = 500
    cpu_price: float = 0.05
    gpu_price: float = 2.0
    cpus: int = 64
    gpus: int = 8


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="how often each is timed (default: %(default)s)")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write everything as JSON")
    for name, value in vars(Plan()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value, help="default: %(default)s")
    arguments = parser.parse_args(argv)
    plan = Plan(**{name: getattr(arguments, name) for name in vars(Plan())})
    with tempfile.TemporaryDirectory() as folder:
        measured = measure(Path(folder), arguments.rounds)
    print(overheads(measured))
    print()
    print(planned(measured, plan))
    if arguments.output:
        report = measured | {"plan": vars(plan)} | describe_machine("cappy-lite", "pyarrow", "ray", "torch")
        arguments.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return 0


def measure(folder: Path, rounds: int) -> dict[str, Any]:
    """Seconds of a round and what was done in it, by stage and place; and other rates of this machine."""
    stages = {"annotate": annotation(folder), "instances": rendering(folder)}
    measured: dict[str, Any] = {"cpus": available_cpus()}
    for stage, (run, work, _) in stages.items():
        run("here", None)
        measured[stage] = {"work": work(), "one": seconds(lambda run=run: run("one", None), rounds)}
    begin = time.perf_counter()
    with open_cluster(LOCAL) as cluster:
        measured["connect_seconds"] = time.perf_counter() - begin
        for stage, (run, _, same) in stages.items():
            run("cluster", cluster)
            if not same():
                raise SystemExit(f"DIFFERENT: {stage} on the cluster from {stage} here")
            measured[stage]["cluster"] = seconds(lambda run=run: run("again", cluster), rounds)
        empty = seconds(lambda: list(cluster.map(abs, lambda: range(1))), rounds)
        many = seconds(lambda: list(cluster.map(abs, lambda: range(200))), rounds)
        measured["start_seconds"] = empty
        measured["item_seconds"] = [(all_ - one) / 199 for all_, one in zip(many, empty, strict=True)]
    shards = Shards(folder / "annotate-here")
    measured["pair_bytes"] = sum(shard["bytes"] for shard in shards.manifest["shards"]) / shards.rows
    measured["instance_pairs"] = shards.rows / shards.manifest["counts"]["instances"]
    measured["training_tokens"] = training_rate(folder)
    return measured


Run = Callable[[str, Cluster | None], None]


def annotation(folder: Path) -> tuple[Run, Callable[[], int], Callable[[], bool]]:
    """A call that annotates, here by one thread; the pairs it makes; and whether here and cluster gave the same."""
    data = folder / "instances.parquet"
    training.write(data, training.with_candidates(training.made_up()), ANNOTATED_PAIRS)
    runs = iter(range(1 << 30))

    def run(place: str, cluster: Cluster | None) -> None:
        name = f"annotate-{place}" if place in ("here", "cluster") else f"annotate-{next(runs)}"
        annotate([data], folder / name, threads=1, workers=cluster)

    def same() -> bool:
        one, other = (
            [path.read_bytes() for path in sorted((folder / f"annotate-{place}").glob("*.*"))]
            for place in ("here", "cluster")
        )
        return one == other

    return run, lambda: Shards(folder / "annotate-here").rows, same


def rendering(folder: Path) -> tuple[Run, Callable[[], int], Callable[[], bool]]:
    """The same of rendering; the work is rows."""
    data, templates = folder / "rows.jsonl", folder / "templates.yaml"
    templates.write_text(TEMPLATES, encoding="utf-8")
    texts = [one["instruction"] for one in training.made_up()]
    with data.open("w", encoding="utf-8") as file:
        for number in range(RENDERED_ROWS):
            file.write(json.dumps({"text": texts[number % len(texts)], "label": number % 4}) + "\n")

    def run(place: str, cluster: Cluster | None) -> None:
        render_instances(data, templates, "news", folder / f"rendered-{place}.parquet", workers=cluster)

    def same() -> bool:
        one, other = ((folder / f"rendered-{place}.parquet").read_bytes() for place in ("here", "cluster"))
        return one == other

    return run, lambda: RENDERED_ROWS, same


def training_rate(folder: Path) -> float:
    """Tokens a second of pre-training MiniLM-L6-H384 on the annotated pairs, on all CPUs, the first steps left out."""
    settings = Settings(steps=TRAINING_STEPS, checkpoint_every=TRAINING_STEPS // 3)
    pretrain(folder / "annotate-here", folder / "run", settings=settings)
    lines = [json.loads(line) for line in (folder / "run" / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    return mean(line["tokens_per_second"] for line in lines[1:])


def seconds(call: Callable[[], object], rounds: int) -> list[float]:
    times = []
    for _ in range(rounds):
        begin = time.perf_counter()
        call()
        times.append(time.perf_counter() - begin)
    return times


def overheads(measured: dict[str, Any]) -> str:
    rows = []
    for stage, unit in (("annotate", "pairs"), ("instances", "rows")):
        work = measured[stage]["work"]
        one, many = (spread([work / each for each in measured[stage][place]]) for place in ("one", "cluster"))
        rows.append([stage, f"{work:,} {unit}", f"{one} {unit}/s", f"{many} {unit}/s"])
    head = ["stage", "of", "this process, one thread", f"local Ray, {measured['cpus']} CPUs"]
    start = spread(measured["start_seconds"])
    item = spread([each * 1000 for each in measured["item_seconds"]])
    return (
        f"{table(head, rows)}\n\nRay starts in {measured['connect_seconds']:.1f} s; a pipeline starts and ends in "
        f"{start} s; a block costs {item} ms more than its work."
    )


def spread(values: Sequence[float]) -> str:
    return f"{rate(median(values))} [{rate(min(values))}, {rate(max(values))}]"


def planned(measured: dict[str, Any], plan: Plan) -> str:
    """The table of the plan; a stage's unit is a core or a GPU."""
    instances = PAIRS / measured["instance_pairs"]
    generated = instances * SAMPLES * plan.response_tokens
    sampling = plan.gpu_tflops * plan.sampling_share * 1e12 / (2 * plan.generator * 1e9)
    gpu_training = plan.gpu_tflops * plan.training_share * 1e12 / (6 * plan.scorer * 1e9)
    tokens = instances * plan.row_tokens
    rates = {stage: measured[stage]["work"] / median(measured[stage]["one"]) for stage in ("annotate", "instances")}
    small = measured["training_tokens"] / measured["cpus"]
    stages = [
        ("instances", instances, "instances", rates["instances"], "measured", False),
        (f"sample, {plan.generator:g} B weights", generated, "tokens", sampling, "assumed", True),
        ("annotate", PAIRS, "pairs", rates["annotate"], "measured", False),
        ("pretrain, MiniLM-L6", tokens, "tokens", small, "measured", False),
        (f"pretrain, {plan.scorer:g} B weights", tokens, "tokens", gpu_training, "assumed", True),
    ]
    rows = []
    for stage, work, unit, each, source, on_gpu in stages:
        hours = work / each / 3600
        machines, price = (plan.gpus, plan.gpu_price) if on_gpu else (plan.cpus, plan.cpu_price)
        kind = "GPU" if on_gpu else "core"
        rows.append(
            [
                stage,
                f"{rate(work / 1e6)} million {unit}",
                f"{rate(each)} {unit}/s a {kind}, {source}",
                f"{rate(hours)} {kind} hours",
                f"{rate(hours / machines)} h on {machines} {kind}s",
                f"${rate(hours * price)}",
            ]
        )
    head = ["stage", "work", "rate", "time", "on the cluster", "price"]
    storage = PAIRS * measured["pair_bytes"] / 1e9
    return f"{table(head, rows)}\n\nThe pairs take {rate(storage)} GB ({rate(measured['pair_bytes'])} bytes a pair)."


if __name__ == "__main__":
    sys.exit(main())
