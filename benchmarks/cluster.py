"""What a Ray cluster costs over one process, and a plan of the Cappy paper's 160 million pairs.

    python -m benchmarks.cluster [--output FILE]

Measures on this machine, with made-up data: annotation and rendering by one thread and on a local Ray cluster with all
CPUs, in turns; how much one process of a cluster can hand out or take in, which more CPUs don't help; what a
pipeline's start and a block cost; bytes; tokens a second of sampling by one thread and by one actor, from an untrained
generator of the sort that cappy-train generator makes; and those of pre-training on all CPUs. What the cluster gives is
compared with what this process gives before it is timed (samples, before their speed is told); exit status 1 at a
difference.

Then come plans, by these rates a core: what 160 million pairs take on CPUs alone, with that generator and the scorer
that was trained here, and with GPUs. What isn't measured is assumed, and every assumption is an option. Work is taken
to spread evenly over cores and GPUs, and a stage pays for all of its nodes. Markdown tables on stdout.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from itertools import count, islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from ray import cloudpickle

from benchmarks import training
from benchmarks.command import parser_with_output, write_output
from benchmarks.machine import describe_machine
from benchmarks.markdown import Median, rate, table
from benchmarks.rounds import Contestant, median_and_range, rates
from cappy_lite.session import available_cpus
from cappy_train.annotate import annotate
from cappy_train.cluster import LOCAL, Cluster, open_cluster
from cappy_train.generator import Settings as GeneratorSettings
from cappy_train.generator import save_model
from cappy_train.instances import Candidate, Instance, read_instances
from cappy_train.local_models import LocalModel
from cappy_train.network import packaged_minilm
from cappy_train.pretrain import pretrain
from cappy_train.rendering import render_instances
from cappy_train.sampling import Sampler
from cappy_train.seq2seq import seq2seq_from_bert, seq2seq_tokenizer
from cappy_train.shards import Shards
from cappy_train.training import CHECKPOINT, LOG, Settings
from cappy_train.workers import Here, Workers, one_thread_an_operation

T = TypeVar("T")
R = TypeVar("R")

PAIRS = 160_000_000
# The paper's decodings give 17 responses to an instruction; a reference and a wrong response make 19 pairs of it.
SAMPLES, PAIRS_AN_INSTANCE = 17, 19
# What is measured.
ANNOTATED_PAIRS = 400_000
RENDERED_ROWS = 20_000
SAMPLED_INSTANCES = 6
BLOCKS = 200
# Tokens a second are told every other step; the first time doesn't count.
TRAINING = Settings(steps=8, checkpoint_every=2)
GENERATOR = GeneratorSettings()
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


def assumed(value: float, text: str) -> Any:
    return field(default=value, metadata={"help": text})


@dataclass(frozen=True)
class Assumptions:
    """What a plan takes from nowhere; a weight is one of the network's layers, without its embeddings."""

    response_tokens: float = assumed(20.0, "tokens that a response takes, those that it waits for longer ones included")
    row_tokens: float = assumed(500.0, "tokens of an instruction with all its responses, as the scorer reads them")
    generator: float = assumed(3.0, "billions of weights of the model that GPUs sample")
    scorer: float = assumed(0.3, "billions of weights of the scorer that GPUs train")
    gpu_tflops: float = assumed(312.0, "a GPU's peak in bfloat16, TFLOP/s (an A100's, by its data sheet)")
    sampling_share: float = assumed(0.05, "of that peak, which sampling reaches; a token is 2 operations a weight")
    training_share: float = assumed(0.3, "of that peak, which training reaches; a token is 6 operations a weight")
    cpu_nodes: int = assumed(4, "nodes without GPUs")
    cores: int = assumed(16, "cores of such a node")
    gpu_nodes: int = assumed(1, "nodes with GPUs")
    gpus: int = assumed(8, "GPUs of such a node")
    core_price: float = assumed(0.05, "US dollars an hour of a core")
    gpu_price: float = assumed(2.0, "US dollars an hour of a GPU, its node included")


@dataclass(frozen=True)
class Stage:
    """A stage of a plan.

    rate: units a second of a core or GPU; most: of all together, whatever their number; None: no bound is known.
    bytes: of what it writes.
    """

    name: str
    work: float
    unit: str
    rate: float
    measured: bool
    bytes: float
    most: float | None = None


def main(argv: Sequence[str] | None = None) -> int:
    parser = parser_with_output(__doc__)
    parser.add_argument(
        "--base", type=Path, help="BERT checkpoint's folder, of generator and scorer (default: MiniLM-L6-H384)"
    )
    parser.add_argument("--rounds", type=int, default=5, help="how often each is timed (default: %(default)s)")
    group = parser.add_argument_group("assumptions of the plans")
    for one in fields(Assumptions):
        group.add_argument(
            f"--{one.name.replace('_', '-')}",
            type=type(one.default),
            default=one.default,
            metavar="N",
            help=f"{one.metadata['help']} (default: %(default)s)",
        )
    arguments = parser.parse_args(argv)
    assumptions = Assumptions(**{one.name: getattr(arguments, one.name) for one in fields(Assumptions)})
    with tempfile.TemporaryDirectory() as folder:
        measured = measure(Path(folder), arguments.base or packaged_minilm(), arguments.rounds)
    report: dict[str, Any] = {"measured": measured, "assumptions": asdict(assumptions)}
    report["plans"] = {
        "cpus": plan(cpu_stages(measured, assumptions), assumptions, on_gpus=()),
        "gpus": plan(gpu_stages(measured, assumptions), assumptions, on_gpus=("sample", "pretrain")),
    }
    report |= describe_machine("cappy-lite", "numpy", "pyarrow", "ray", "torch", "transformers")
    print(show(report))
    write_output(arguments.output, report)
    return 0


# Measurements.


def measure(folder: Path, base: Path, rounds: int) -> dict[str, Any]:
    """Rates (median, least, most), seconds and bytes; see `show`."""
    jobs = {"annotate": annotation(folder), "instances": rendering(folder)}
    generator = write_generator(base, folder / "generator")
    measured: dict[str, Any] = {"cpus": available_cpus(), "rounds": rounds, "stages": {}}
    # Benchmarks aren't installed, so Ray's processes may not find this module by its name.
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    start = time.perf_counter()
    with open_cluster(LOCAL) as cluster:
        measured["ray_seconds"] = time.perf_counter() - start
        for name, job in jobs.items():
            measured["stages"][name] = measure_job(name, job, cluster, rounds)
        measured["stages"]["sample"] = measure_sampling(folder / "instances.parquet", generator, rounds)
        measured |= measure_overhead(cluster, rounds)
    shards = Shards(folder / "annotate")
    measured["bytes"] = {
        "rendered instance": (folder / "instances-rendered.parquet").stat().st_size / RENDERED_ROWS,
        "sampled pair": (folder / "instances.parquet").stat().st_size / shards.rows,
        "pair": sum(path.stat().st_size for path in shards.paths()) / shards.rows,
    }
    measured["stages"]["pretrain"] = measure_training(shards.folder, folder / "run", base)
    measured["bytes"]["checkpoint"] = (folder / "run" / CHECKPOINT).stat().st_size
    return measured


@dataclass(frozen=True)
class Job:
    """A stage over made-up data.

    run: does it and writes it to a path; work: how much that is; unit: of what.
    writes: the process that was started writes all of it.
    """

    run: Callable[[Path, Workers], object]
    out: Path
    work: int
    unit: str
    writes: bool


def annotation(folder: Path) -> Job:
    data = folder / "instances.parquet"
    training.write(data, training.with_candidates(training.made_up()), ANNOTATED_PAIRS)
    out = folder / "annotate"
    shards = annotate([data], out, threads=1)
    return Job(lambda path, workers: annotate([data], path, workers=workers), out, shards.rows, "pairs", writes=False)


def rendering(folder: Path) -> Job:
    data, templates = folder / "rows.jsonl", folder / "templates.yaml"
    templates.write_text(TEMPLATES, encoding="utf-8")
    texts = [one["instruction"] for one in training.made_up()]
    with data.open("w", encoding="utf-8") as file:
        for number in range(RENDERED_ROWS):
            file.write(json.dumps({"text": texts[number % len(texts)], "label": number % 4}) + "\n")

    def run(path: Path, workers: Workers) -> None:
        render_instances(data, templates, "news", path, workers=workers)

    out = folder / "instances-rendered.parquet"
    run(out, Here())
    return Job(run, out, RENDERED_ROWS, "rows", writes=True)


class Recording:
    """Works here; then has what was worked on, and gives the same results for nothing."""

    def __init__(self) -> None:
        self.items: Callable[[], Iterable[Any]] | None = None
        self._results: list[Any] = []

    def map(self, work: Callable[[T], R], items: Callable[[], Iterable[T]]) -> Generator[R]:
        if self.items is None:
            self.items, self._results = items, [work(item) for item in items()]
        yield from self._results


def measure_job(name: str, job: Job, cluster: Cluster, rounds: int) -> dict[str, Any]:
    """Units a second here and on the cluster, and the most that one process can hand out or take in.

    Raises:
        SystemExit: what the cluster gives isn't what is given here.
    """
    outs: Iterator[tuple[Path]] = ((job.out.with_name(f"{number}-{job.out.name}"),) for number in count())
    recording = Recording()
    (there,), (here,) = next(outs), next(outs)
    job.run(there, cluster)
    job.run(here, recording)
    for path in (there, here):
        if contents(path) != contents(job.out):
            raise SystemExit(f"DIFFERENT: {path.name}, which {name} made, from {job.out.name}")
    assert recording.items is not None
    contestants = [
        Contestant(lambda path: job.run(path, Here()), job.work, lambda: next(outs)),
        Contestant(lambda path: job.run(path, cluster), job.work, lambda: next(outs)),
        Contestant(partial(drain, cluster, recording.items), job.work),
    ]
    if job.writes:
        contestants.append(Contestant(lambda path: job.run(path, recording), job.work, lambda: next(outs)))
    one, many, *bounds = map(median_and_range, rates(contestants, rounds))
    return {"work": job.work, "unit": job.unit, "one": one, "cluster": many, "most": min(bounds)}


def contents(path: Path) -> dict[str, bytes]:
    """The file, or the folder's files."""
    files = path.iterdir() if path.is_dir() else [path]
    return {"" if file == path else file.name: file.read_bytes() for file in files if file.is_file()}


def drain(cluster: Cluster, items: Callable[[], Iterable[Any]]) -> None:
    """One process reads the items and hands them out, for nothing."""
    for _ in cluster.map(bool, items):
        pass


def measure_overhead(cluster: Cluster, rounds: int) -> dict[str, Median]:
    """Seconds that a pipeline takes to start and end, and that a block takes besides its work."""
    pipelines = [Contestant(partial(drain, cluster, partial(range, blocks)), 1) for blocks in (1, 1 + BLOCKS)]
    one, many = 1 / rates(pipelines, rounds)
    return {"pipeline_seconds": median_and_range(one), "block_seconds": median_and_range((many - one) / BLOCKS)}


def write_generator(base: Path, out: Path) -> Path:
    """An untrained generator, as cappy-train generator begins."""
    network = seq2seq_from_bert(base, decoder_layers=GENERATOR.decoder_layers)
    out.mkdir()
    save_model(network, seq2seq_tokenizer(base, max_tokens=GENERATOR.instruction_tokens), out)
    return out


class Sampling:
    """Samples and measures, with a model that the process opens by the first call."""

    def __init__(self, open_model: Callable[[], Sampler]) -> None:
        self._open_model = open_model
        self._model: Sampler | None = None

    def __call__(self, instances: Sequence[Instance]) -> tuple[list[list[Candidate]], float]:
        """The candidates, and tokens a second."""
        if self._model is None:
            self._model = self._open_model()
            self._model.sample(instances[:1])
        tokens: list[int] = []
        start = time.perf_counter()
        sampled = self._model.sample(instances, advance=lambda _, more: tokens.append(more))
        return sampled.candidates, sum(tokens) / (time.perf_counter() - start)


def measure_sampling(data: Path, generator: Path, rounds: int) -> dict[str, Any]:
    """Tokens a second by the paper's decodings: one thread of this process, and one actor, which has one.

    Raises:
        SystemExit: the actor's candidates are others.
    """
    instances = list(islice(read_instances(data), SAMPLED_INSTANCES))
    open_model = partial(LocalModel, generator)
    there = list(Cluster(actors=1).map(Sampling(open_model), lambda: [instances] * rounds))
    sampling = Sampling(open_model)
    with one_thread_an_operation():
        here = [sampling(instances) for _ in range(rounds)]
    if any(candidates != here[0][0] for candidates, _ in (*here, *there)):
        raise SystemExit("DIFFERENT: the candidates that an actor samples from those that are sampled here")
    one, actor = (median_and_range(np.array([speed for _, speed in runs])) for runs in (here, there))
    return {"work": len(instances), "unit": "tokens", "one": one, "cluster": actor}


def measure_training(pairs: Path, run: Path, base: Path) -> dict[str, Any]:
    """Tokens a second of pre-training on as many threads as PyTorch takes, the first steps left out."""
    pretrain(pairs, run, base=str(base), settings=TRAINING)
    lines = [json.loads(line) for line in (run / LOG).read_text(encoding="utf-8").splitlines()]
    speeds = np.array([line["tokens_per_second"] for line in lines[1:]])
    return {
        "work": TRAINING.steps,
        "unit": "tokens",
        "threads": torch.get_num_threads(),
        "all": median_and_range(speeds),
    }


# Plans.


def cpu_stages(measured: dict[str, Any], assumptions: Assumptions) -> list[Stage]:
    """All stages with rates that were measured, a core's."""
    stages, sizes = measured["stages"], measured["bytes"]
    instances = PAIRS / PAIRS_AN_INSTANCE
    sampled, read = instances * SAMPLES * assumptions.response_tokens, instances * assumptions.row_tokens
    training_rate = stages["pretrain"]["all"][0] / stages["pretrain"]["threads"]
    rendering, annotation = stages["instances"], stages["annotate"]
    return [
        Stage(
            "instances",
            instances,
            "instances",
            rendering["one"][0],
            True,
            instances * sizes["rendered instance"],
            rendering["most"][0],
        ),
        Stage("sample", sampled, "tokens", stages["sample"]["one"][0], True, PAIRS * sizes["sampled pair"]),
        Stage("annotate", PAIRS, "pairs", annotation["one"][0], True, PAIRS * sizes["pair"], annotation["most"][0]),
        Stage("pretrain", read, "tokens", training_rate, True, sizes["checkpoint"]),
    ]


def gpu_stages(measured: dict[str, Any], assumptions: Assumptions) -> list[Stage]:
    """The same, but sampling and training at a share of a GPU's peak."""
    instances, sample, annotation, pretraining = cpu_stages(measured, assumptions)
    peak = assumptions.gpu_tflops * 1e12
    sampling_rate = peak * assumptions.sampling_share / (2 * assumptions.generator * 1e9)
    training_rate = peak * assumptions.training_share / (6 * assumptions.scorer * 1e9)
    # Weights and two moments, in float32.
    checkpoint = 12 * assumptions.scorer * 1e9
    return [
        instances,
        Stage("sample", sample.work, "tokens", sampling_rate, False, sample.bytes),
        annotation,
        Stage("pretrain", pretraining.work, "tokens", training_rate, False, checkpoint),
    ]


def plan(stages: Sequence[Stage], assumptions: Assumptions, *, on_gpus: Sequence[str]) -> list[dict[str, Any]]:
    """What each stage takes: hours of one core or GPU, nodes, hours on all of them, bytes, dollars."""
    rows = []
    for stage in stages:
        gpu = stage.name in on_gpus
        nodes, each = (assumptions.gpu_nodes, assumptions.gpus) if gpu else (assumptions.cpu_nodes, assumptions.cores)
        hours = stage.work / stage.rate / 3600
        spread = max(hours / (nodes * each), 0 if stage.most is None else stage.work / stage.most / 3600)
        price = assumptions.gpu_price if gpu else assumptions.core_price
        rows.append(
            asdict(stage)
            | {
                "on": "GPU" if gpu else "core",
                "hours_of_one": hours,
                "nodes": nodes,
                "on_a_node": each,
                "hours": spread,
                "dollars": spread * nodes * each * price,
            }
        )
    return rows


# What is printed.


def show(report: dict[str, Any]) -> str:
    measured, assumptions = report["measured"], report["assumptions"]
    return "\n\n".join(
        [
            show_rates(measured),
            show_overhead(measured),
            f"{PAIRS / 1e6:.0f} million pairs on CPUs alone, our generator and scorer:",
            show_plan(report["plans"]["cpus"]),
            f"With GPUs, a generator of {assumptions['generator']:g} and a scorer of {assumptions['scorer']:g} billion "
            "weights:",
            show_plan(report["plans"]["gpus"]),
        ]
    )


def show_rates(measured: dict[str, Any]) -> str:
    stages, cpus = measured["stages"], measured["cpus"]
    rows = [
        [
            f"{name}, {stages[name]['work']:,} {stages[name]['unit']}",
            *(f"{with_range(stages[name][key])} {stages[name]['unit']}/s" for key in ("one", "cluster", "most")),
        ]
        for name in ("instances", "annotate")
    ]
    sample, pretraining = stages["sample"], stages["pretrain"]
    one, actor = (f"{with_range(sample[key])} tokens/s" for key in ("one", "cluster"))
    rows.append([f"sample, {sample['work']:,} instances", one, f"{actor} (one actor)", ""])
    together = f"{with_range(pretraining['all'])} tokens/s (threads: {pretraining['threads']})"
    rows.append([f"pretrain, {pretraining['work']:,} steps", together, "", ""])
    head = ["stage", "this process, one thread", f"local Ray, CPUs: {cpus}", "at most, by one process' part"]
    return table(head, rows)


def show_overhead(measured: dict[str, Any]) -> str:
    block = with_range([1000 * value for value in measured["block_seconds"]])
    sizes = ", ".join(f"{name} {rate(size)}" for name, size in measured["bytes"].items())
    return (
        f"Ray starts in {measured['ray_seconds']:.1f} s; a pipeline starts and ends in "
        f"{with_range(measured['pipeline_seconds'])} s; a block takes {block} ms besides its work.\nBytes: {sizes}."
    )


def show_plan(rows: Sequence[dict[str, Any]]) -> str:
    lines = [
        [
            row["name"],
            f"{rate(row['work'] / 1e6)} million {row['unit']}",
            f"{rate(row['rate'])} {row['unit']}/s a {row['on']}, {'measured' if row['measured'] else 'assumed'}",
            f"{rate(row['hours_of_one'])} {row['on']} hours",
            f"{row['nodes']} of {row['on_a_node']} {row['on']}s",
            f"{rate(row['hours'])} h",
            f"{rate(row['bytes'] / 1e9)} GB",
            f"${rate(row['dollars'])}",
        ]
        for row in rows
    ]
    hours, size, dollars = (sum(row[key] for row in rows) for key in ("hours", "bytes", "dollars"))
    lines.append(["all", "", "", "", "", f"{rate(hours)} h", f"{rate(size / 1e9)} GB", f"${rate(dollars)}"])
    return table(["stage", "work", "rate", "work in hours", "nodes", "time", "storage", "cost"], lines)


def with_range(values: Median) -> str:
    return f"{rate(values[0])} [{rate(values[1])}, {rate(values[2])}]"


if __name__ == "__main__":
    sys.exit(main())
