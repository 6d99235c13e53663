"""The `cappy-train` command: one subcommand a stage."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from cappy_lite.errors import CappyError, InputValueError

if TYPE_CHECKING:  # they take seconds to load
    from cappy_train.cluster import Cluster
    from cappy_train.sampling import Decoding, Sampler
    from cappy_train.training import Settings

# What stages are added to.
Stages: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"

# The sources of the paper's decodings; `sampling`, which has them, takes a moment to load.
DECODINGS = ("beam", "sampling", "temperature", "top-k", "nucleus")

EXAMPLES = """\
examples:
  cappy-train instances --data rows.csv --templates templates.tar.gz --dataset ag_news --out ag_news.jsonl.gz
  cappy-train generator --data instances.jsonl.gz --out runs/generator
  cappy-train annotate --data ag_news.jsonl.gz --out pairs
  cappy-train pretrain --data pairs --dev dev.jsonl.gz --out runs/mini
  cappy-train export --run runs/mini --dev dev.jsonl.gz --out models/mini --base-model MiniLM-L6-H384 --licence MIT
  cappy-train import checkpoints/cappy-large --out models/cappy-large --quantise
"""

ADAPT_DESCRIPTION = """\
Adapts a model to a task, by the task's own instances with candidates: recorded ones, or sampled from a language model
first (--generator, --api). They are labelled by Rouge-L; choices are candidates too, right or wrong. It learns from
split train and stops early by split dev, or by a fifth of train where there is no dev; split test is for the report
alone. If nothing is better than the start, the result is the start. The same command goes on where it was killed."""

ADAPT_EXAMPLES = """\
examples:
  cappy-train adapt --data recorded.jsonl.gz --out models/mine
  cappy-train adapt --data 'examples/*.parquet' --model models/other --out models/mine --epochs 2
  cappy-train adapt --data examples.jsonl.gz --generator models/flan-t5-small --out models/mine
  cappy-train adapt --data examples.jsonl.gz --api http://localhost:8000/v1 --generator my-model --out models/mine
  cappy-lite rerank --model models/mine 'Name a fruit.' 'An apple.' 'A chair.'
"""

ANNOTATE_DESCRIPTION = """\
Makes regression data of instances: pairs of an instruction and a response with a score of 0 to 1, in Parquet shards.
References score 1, other choices 0, a response of another instance 0, and candidates their best Porter-stemmed Rouge-L
F-measure over the references. The same command goes on where it was killed, to the same bytes."""

ANNOTATE_EXAMPLES = """\
examples:
  cappy-train annotate --data sampled.jsonl.gz --out pairs
  cappy-train annotate --data 'sampled/*.parquet' more.jsonl --split train --out pairs
  cappy-train annotate --data /shared/sampled --out /shared/pairs --cluster auto    # docs/cluster.md
"""

EVALUATE_DESCRIPTION = """\
Evaluates model folders on instances: picks among choices, among recorded candidates, or of a reference among other
instances' references, beside single systems, self-scores, consensus, simple rules, random and oracle, with intervals;
best-of-n curves, calibration and task by task. Writes report.json, report.md and report.html, a page with plots that
needs nothing else."""

EVALUATE_EXAMPLES = """\
examples:
  cappy-train evaluate --model cappy-mini --data t0_heldout.jsonl.gz --out reports/t0
  cappy-train evaluate --model models/mine --data sampled --split dev --out reports/mine
  cappy-train evaluate --model cappy-mini models/adapted --data sampled/*.parquet --out reports/before-and-after
"""

IMPORT_DESCRIPTION = """\
Makes a model folder of a cross-encoder that transformers saved: a sequence-classification checkpoint with one output,
such as the published Cappy checkpoints, of the families BERT (MiniLM among them), RoBERTa, XLM-RoBERTa, DeBERTa v2 and
v3, and ModernBERT. The graph is compared with transformers' own output, and the folder is written whole or not at all.
No code that comes with a checkpoint is run."""

IMPORT_EXAMPLES = """\
examples:
  cappy-train import checkpoints/cappy-large --out models/cappy-large --licence Apache-2.0
  cappy-train import checkpoints/my-reranker --out models/my-reranker --activation sigmoid --quantise
  cappy-train import checkpoints/my-reranker --out models/my-reranker --quantise --calibrate instances.jsonl.gz
  cappy-train import hub:owner/name --out models/name
  cappy-lite rerank --model models/cappy-large 'Name a fruit.' 'An apple.' 'A chair.'
"""

SAMPLE_DESCRIPTION = """\
Has a language model answer instances: its responses become candidates beside those that are there, in Parquet shards of
instances. With --model alone the model is one of Hugging Face's, seq2seq or causal, on this machine; with --api it is
one behind an OpenAI-compatible web API. By default the Cappy paper's decodings: beam search once, and four samples each
of plain sampling, temperature 0.9, top-k 40 and nucleus 0.95, of at most 64 tokens. The same command goes on where it
was killed or reached its spending limit."""

SAMPLE_EXAMPLES = """\
examples:
  cappy-train sample --data instances.jsonl.gz --model models/flan-t5-small --out sampled
  cappy-train sample --data 'instances/*.parquet' --split train --model hub:google/flan-t5-small --out sampled
  cappy-train sample --data instances.jsonl.gz --api http://localhost:8000/v1 --model my-model --out sampled
  cappy-train sample --data instances.jsonl.gz --api https://api.openai.com/v1 --model gpt-4.1-nano --out sampled \\
    --max-requests 1000
  cappy-train sample --data /shared/in.parquet --model /shared/T0_3B --out /shared/sampled --cluster auto --actors 8
  cappy-train annotate --data sampled --out pairs
"""

INSTANCES_DESCRIPTION = """\
Makes a file of instances (instruction, right responses, choices), which the other stages read. With --templates: from
the rows of a data set (JSON Lines, JSON, CSV or Parquet, gzip too; a folder that Hugging Face datasets saved; or
hub:NAME, which datasets downloads) and its PromptSource templates. Without: from files of FLAN or
Super-NaturalInstructions, or of instances, which are checked and put together."""

INSTANCES_EXAMPLES = """\
examples:
  cappy-train instances --data 'ag_news-*.csv' --templates templates.tar.gz --dataset ag_news --out ag_news.jsonl.gz
  cappy-train instances --data hub:nyu-mll/glue --templates promptsource/templates --dataset glue --subset mrpc \\
    --one-per-row --out mrpc.parquet
  cappy-train instances --data 'natural-instructions/tasks/*.json' --out superni.jsonl.gz
  cappy-train instances --data '/shared/rows/*.parquet' --templates templates.tar.gz --dataset imdb \\
    --out /shared/imdb.parquet --cluster auto
  cappy-train instances --list     # the data sets of the Cappy paper
"""

GENERATOR_DESCRIPTION = """\
Trains a small seq2seq on instances of many tasks, instruction to response: a language model of your own, to sample
candidates from where no larger one is at hand. It starts from a BERT checkpoint. --out becomes a folder that
transformers loads, and `cappy-train sample --model` with it; the same command goes on where it was killed."""

GENERATOR_EXAMPLES = """\
examples:
  cappy-train generator --data instances.jsonl.gz --out runs/generator
  cappy-train generator --data 'data/*.parquet' --out runs/generator --steps 2000
"""


DISTRACTORS_DESCRIPTION = """\
Gives instances candidates without a language model, which annotate then labels: answers of similar and of other
instances, spans of the instruction, damaged references, and texts that are no answers. Instances of split train get
them after those that they have; others pass as they are."""

DISTRACTORS_EXAMPLES = """\
examples:
  cappy-train distractors --data 'instances/*.parquet' --out distractors.parquet
  cappy-train distractors --default-data data --out default.parquet   # what the default model is trained on
  cappy-train distractors --default-data data --hold-out topic --out without-topics.parquet
"""

PRETRAIN_DESCRIPTION = """\
Trains a scorer on the labelled pairs that annotate wrote, from an encoder such as BERT. The same command goes on where
it was killed, to the same weights. On several devices: accelerate launch -m cappy_train.cli pretrain ..., or
torchrun."""

PRETRAIN_EXAMPLES = """\
examples:
  cappy-train pretrain --data pairs --dev instances.parquet --out runs/mine
  cappy-train pretrain --data pairs --out runs/paper --losses squared=1 --epochs 2
  cappy-train pretrain --data pairs --out runs/modern --base hub:answerdotai/ModernBERT-base
  cappy-train pretrain --data pairs --out runs/joint --graph joint --base hub:microsoft/deberta-v3-small
  accelerate launch --num_processes 8 -m cappy_train.cli pretrain --data pairs --out runs/mine --batches-per-step 16
  cappy-train pretrain --data /shared/pairs --out /shared/runs/mine --cluster auto --batches-per-step 16
"""


AVERAGE_DESCRIPTION = """\
Averages weights: of a run and the encoder that it started from, or of runs of one start. Such a mean can be better than
either, most of all on tasks that training never saw; shares are chosen on dev. The result is a folder as a run leaves
one."""

AVERAGE_EXAMPLES = """\
examples:
  cappy-train average --networks runs/mine=0.8 MiniLM-L6-H384=0.2 --dev instances.parquet --out runs/averaged
  cappy-train average --networks runs/first runs/second --out runs/averaged
  cappy-train export --run runs/averaged --dev instances.parquet --out models/mine --base-model MiniLM-L6-H384 \\
    --licence Apache-2.0
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code: 0, or 1 after an error, or 130 after Ctrl-C."""
    arguments = _parser().parse_args(argv)
    try:
        arguments.run_stage(arguments)
    except CappyError as error:
        print(f"cappy-train: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="cappy-train",
        description="Train a scorer, or import one, and make a model folder of it.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    stages = parser.add_subparsers(required=True, metavar="STAGE")
    for add_stage in (
        _add_instances,
        _add_sample,
        _add_annotate,
        _add_generator,
        _add_distractors,
        _add_pretrain,
        _add_average,
        _add_export,
        _add_evaluate,
        _add_adapt,
        _add_import,
    ):
        add_stage(stages)
    return parser


def _stage(
    stages: Stages,
    name: str,
    run: Callable[[argparse.Namespace], None],
    *,
    help: str,
    description: str | None = None,
    examples: str | None = None,
) -> argparse.ArgumentParser:
    """A stage's parser, to which its options are added; `run` does the stage's work."""
    parser = stages.add_parser(
        name,
        help=help,
        description=description,
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run_stage=run)
    return parser


def _add_instances(stages: Stages) -> None:
    parser = _stage(
        stages,
        "instances",
        _instances,
        help="make a file of instances, from rows and PromptSource templates, FLAN or Super-NaturalInstructions",
        description=INSTANCES_DESCRIPTION,
        examples=INSTANCES_EXAMPLES,
    )
    parser.add_argument("--data", nargs="+", metavar="ROWS", help="files or patterns (quoted), or a data set's folder")
    parser.add_argument("--out", type=Path, metavar="FILE", help="the file to write: .jsonl, .jsonl.gz or .parquet")
    parser.add_argument("--split", help="the rows' split (default: train; without --templates, what the files say)")
    parser.add_argument("--list", action="store_true", help="print the data sets of the Cappy paper, and end")
    rows = parser.add_argument_group("rows and templates")
    rows.add_argument("--templates", type=Path, help="folder, tar or zip archive of PromptSource's YAML files, or one")
    rows.add_argument("--dataset", metavar="NAME", help="the data set, as its templates call it")
    rows.add_argument("--subset", metavar="NAME", help="its subset, if it has any")
    rows.add_argument(
        "--template", action="append", metavar="NAME", help="use this template; may be repeated (default: all)"
    )
    rows.add_argument(
        "--divide",
        nargs=3,
        type=float,
        metavar=("TRAIN", "DEV", "TEST"),
        help="draw each row's split in these proportions, such as 60 20 20 (default: all are of --split)",
    )
    rows.add_argument("--one-per-row", action="store_true", help="one template a row, drawn at random (default: all)")
    rows.add_argument("--seed", type=int, default=0, help="of all that is drawn at random (default: %(default)s)")
    rows.add_argument(
        "--cut",
        type=int,
        metavar="N",
        help="cut each value that a template prints to N characters; PromptSource's default is 2048 (default: whole)",
    )
    others = parser.add_argument_group("without templates")
    others.add_argument(
        "--format", choices=["instances", "flan", "superni"], help="what the files hold (default: told by their keys)"
    )
    others.add_argument(
        "--examples",
        type=int,
        default=0,
        metavar="N",
        help="of Super-NaturalInstructions: show N positive examples in each instruction (default: %(default)s)",
    )
    _add_cluster(parser)


def _add_cluster(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--cluster",
        metavar="ADDRESS",
        help="work on a Ray cluster: local (start one here), auto (the one that this machine is part of), or the "
        "host:port of its head; needs the extra [cluster], and files on storage that all its machines share",
    )


@contextmanager
def _cluster(arguments: argparse.Namespace, *, actors: int | None = None) -> Iterator[Cluster | None]:
    """The cluster that --cluster names; None without it."""
    if arguments.cluster is None:
        yield None
        return
    try:
        from cappy_train.cluster import open_cluster
    except ModuleNotFoundError as error:
        raise InputValueError(f"--cluster needs Ray ({error}): pip install 'cappy-lite[cluster]'") from error
    with open_cluster(arguments.cluster, actors=actors) as cluster:
        yield cluster


def _instances(arguments: argparse.Namespace) -> None:
    if arguments.list:
        from cappy_train.paper import listed

        print(listed())
        return
    if arguments.data is None or arguments.out is None:
        raise InputValueError("give --data and --out, or --list")
    data = arguments.data[0] if len(arguments.data) == 1 else arguments.data
    from cappy_train.rendering import convert_instances, render_instances

    if arguments.templates is None:
        if arguments.dataset is not None:
            raise InputValueError("--dataset names the templates to use: give --templates too")
        if arguments.divide is not None:
            raise InputValueError("--divide is for rows, which --templates makes instances of: give --templates too")
        if arguments.cluster is not None:
            raise InputValueError("--cluster renders templates: without --templates there is nothing to share out")
        count = convert_instances(
            data, arguments.out, format=arguments.format, split=arguments.split, examples=arguments.examples
        )
        print(f"{count:,} instances", file=sys.stderr)
        return
    if arguments.dataset is None:
        raise InputValueError("--templates needs --dataset, which says whose templates to use")
    with _cluster(arguments) as cluster:
        done = render_instances(
            data,
            arguments.templates,
            arguments.dataset,
            arguments.out,
            subset=arguments.subset,
            names=arguments.template,
            one_per_row=arguments.one_per_row,
            seed=arguments.seed,
            split=arguments.split or "train",
            shares=None if arguments.divide is None else tuple(arguments.divide),
            longest=arguments.cut,
            workers=cluster,
        )
    print(done, file=sys.stderr)


def _add_sample(stages: Stages) -> None:
    sample = _stage(
        stages,
        "sample",
        _sample,
        help="have a language model answer instances, into Parquet shards of instances",
        description=SAMPLE_DESCRIPTION,
        examples=SAMPLE_EXAMPLES,
    )
    sample.add_argument(
        "--data", nargs="+", required=True, metavar="IN", help="files, patterns (quoted) or folders of shards"
    )
    sample.add_argument("--out", type=Path, required=True, help="folder for the shards")
    sample.add_argument(
        "--model",
        required=True,
        metavar="NAME",
        help="the model's folder; hub:owner/name, which is downloaded; or, with --api, its name there",
    )
    sample.add_argument("--split", choices=["train", "dev", "test"], help="this split alone (default: all)")
    sample.add_argument("--limit", type=int, metavar="N", help="N instances alone, drawn evenly over tasks")
    sample.add_argument(
        "--decodings",
        nargs="+",
        metavar="NAME",
        choices=DECODINGS,
        help=f"some of {', '.join(DECODINGS)} (default: all; with --api all but beam and top-k, which such APIs lack)",
    )
    sample.add_argument("--samples", type=int, metavar="N", help="responses of each, one of beam (default: 4)")
    sample.add_argument("--max-new-tokens", type=int, metavar="N", help="the longest response (default: 64)")
    sample.add_argument(
        "--shard-instances", type=int, default=256, metavar="N", help="instances a shard (default: %(default)s)"
    )
    local = sample.add_argument_group("local models")
    local.add_argument("--seed", type=int, help="of all that is drawn (default: 0)")
    local.add_argument(
        "--batch-tokens",
        type=int,
        metavar="N",
        help="tokens of prompts and responses at a time; memory grows with it (default: 16384)",
    )
    local.add_argument(
        "--precision",
        choices=["float32", "bfloat16"],
        help="what to compute in (default: bfloat16 where the processor has instructions for it)",
    )
    web = sample.add_argument_group("web APIs")
    web.add_argument("--api", metavar="URL", help="address of the API, such as http://localhost:8000/v1")
    web.add_argument(
        "--key-variable", metavar="NAME", help="environment variable that has the key (default: OPENAI_API_KEY)"
    )
    web.add_argument("--concurrency", type=int, metavar="N", help="requests at a time (default: 16)")
    web.add_argument("--time-out", type=float, metavar="SECONDS", help="until a request has failed (default: 120)")
    web.add_argument("--max-requests", type=int, metavar="N", help="the most requests that the job may make in all")
    web.add_argument("--max-tokens", type=int, metavar="N", help="the most tokens that the job may spend in all")
    _add_cluster(sample)
    sample.add_argument(
        "--actors",
        type=int,
        metavar="N",
        help="with --cluster: processes that each open the model, on a GPU of its own if there are any (default: 1)",
    )


LOCAL_OPTIONS = ("seed", "batch_tokens", "precision")
WEB_OPTIONS = ("concurrency", "time_out", "max_requests", "max_tokens")


def _sample(arguments: argparse.Namespace) -> None:
    for name in (*WEB_OPTIONS, "key_variable") if arguments.api is None else LOCAL_OPTIONS:
        if getattr(arguments, name) is not None:
            kind = "web APIs: give --api too" if arguments.api is None else "local models, which --api is not"
            raise InputValueError(f"--{name.replace('_', '-')} is for {kind}")
    if arguments.cluster is not None and arguments.api is not None:
        raise InputValueError("--cluster is for local models: an API is asked by one process, --concurrency at a time")
    if arguments.cluster is None and arguments.actors is not None:
        raise InputValueError("--actors needs --cluster")
    from cappy_train.sampling import sample

    with _cluster(arguments, actors=arguments.actors or 1) as cluster:
        shards = sample(
            arguments.data,
            arguments.out,
            _sampler(arguments),
            split=arguments.split,
            limit=arguments.limit,
            shard_instances=arguments.shard_instances,
            workers=cluster,
        )
    counts = ", ".join(f"{name.replace('_', ' ')} {count:,}" for name, count in shards.manifest["counts"].items())
    print(f"{arguments.out}: {counts}", file=sys.stderr)
    for note in shards.manifest["notes"]:
        print(f"not answered: {note}", file=sys.stderr)


def _sampler(arguments: argparse.Namespace) -> Sampler:
    """The model to sample; with --cluster it is opened there, by each process that samples."""
    from cappy_train.sampling import PAPER

    names = ("max_new_tokens", *(LOCAL_OPTIONS if arguments.api is None else WEB_OPTIONS))
    options = {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}
    if arguments.api is None:
        from cappy_train.local_models import LocalModel

        open_model = partial(LocalModel, arguments.model, decodings=_chosen(PAPER, arguments), **options)
        if arguments.cluster is None:
            return open_model()
        from cappy_train.cluster import RemoteModel

        return RemoteModel(open_model)
    from cappy_train.web_models import OFFERED, WebModel

    variable = arguments.key_variable or "OPENAI_API_KEY"
    key = os.environ.get(variable)
    if arguments.key_variable and not key:
        raise InputValueError(f"the environment variable {variable}, which --key-variable names, is not set")
    decodings = _chosen(PAPER if arguments.decodings else OFFERED, arguments)
    return WebModel(arguments.api, arguments.model, key=key, decodings=decodings, **options)


def _chosen(decodings: Sequence[Decoding], arguments: argparse.Namespace) -> list[Decoding]:
    """Those that were named, each with as many samples as were asked for."""
    return [
        decoding if arguments.samples is None or decoding.beams > 1 else replace(decoding, samples=arguments.samples)
        for decoding in decodings
        if arguments.decodings is None or decoding.source in arguments.decodings
    ]


def _add_annotate(stages: Stages) -> None:
    annotate = _stage(
        stages,
        "annotate",
        _annotate,
        help="label the candidates of instances by Rouge-L, into Parquet shards",
        description=ANNOTATE_DESCRIPTION,
        examples=ANNOTATE_EXAMPLES,
    )
    annotate.add_argument(
        "--data", nargs="+", required=True, metavar="IN", help="files or globs: JSON Lines, plain or gzip, or Parquet"
    )
    annotate.add_argument("--out", type=Path, required=True, help="folder for the shards")
    annotate.add_argument("--split", choices=["train", "dev", "test"], help="this split alone (default: all)")
    annotate.add_argument(
        "--seed", type=int, default=0, help="of responses drawn from other instances (default: %(default)s)"
    )
    annotate.add_argument("--skip-bad-rows", action="store_true", help="leave out rows that are no valid instances")
    annotate.add_argument(
        "--shard-instances",
        type=int,
        default=4096,
        metavar="N",
        help="input rows a shard; memory grows with it (default: %(default)s)",
    )
    annotate.add_argument("--threads", type=int, metavar="N", help="threads to compute on (default: all)")
    _add_cluster(annotate)


def _annotate(arguments: argparse.Namespace) -> None:
    from cappy_train.annotate import annotate

    with _cluster(arguments) as cluster:
        shards = annotate(
            arguments.data,
            arguments.out,
            seed=arguments.seed,
            split=arguments.split,
            shard_instances=arguments.shard_instances,
            skip_bad_rows=arguments.skip_bad_rows,
            threads=arguments.threads,
            workers=cluster,
        )
    counts = ", ".join(f"{name.replace('_', ' ')} {count:,}" for name, count in shards.manifest["counts"].items())
    print(f"{arguments.out}: {shards.rows:,} pairs ({counts})", file=sys.stderr)
    for note in shards.manifest["notes"]:
        print(f"left out: {note}", file=sys.stderr)


def _add_generator(stages: Stages) -> None:
    generator = _stage(
        stages,
        "generator",
        _generator,
        help="train a small seq2seq to sample candidates from",
        description=GENERATOR_DESCRIPTION,
        examples=GENERATOR_EXAMPLES,
    )
    generator.add_argument(
        "--data", nargs="+", required=True, metavar="IN", help="files of instances: split train is trained on"
    )
    generator.add_argument("--out", type=Path, required=True, help="folder of the run, and of the model at its end")
    generator.add_argument(
        "--base",
        type=Path,
        help="folder of the BERT checkpoint to start from (default: the MiniLM of the extra [train])",
    )
    generator.add_argument("--steps", type=int, help="optimizer steps (default: one pass over the data)")
    generator.add_argument("--per-task", type=int, metavar="N", help="at most N instances of a task (default: 1000)")
    generator.add_argument("--learning-rate", type=float, help="peak learning rate")
    generator.add_argument("--seed", type=int, help="of what is drawn and of the order of batches")


def _generator(arguments: argparse.Namespace) -> None:
    from cappy_train.generator import Settings, train_generator
    from cappy_train.network import packaged_minilm

    given = {field.name: getattr(arguments, field.name, None) for field in fields(Settings)}
    settings = Settings(**{name: value for name, value in given.items() if value is not None})
    train_generator(arguments.data, arguments.base or packaged_minilm(), arguments.out, settings)


def _add_distractors(stages: Stages) -> None:
    parser = _stage(
        stages,
        "distractors",
        _distractors,
        help="give instances candidates without a language model: neighbours' answers, damaged references, ...",
        description=DISTRACTORS_DESCRIPTION,
        examples=DISTRACTORS_EXAMPLES,
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--data", nargs="+", metavar="IN", help="files of instances, or patterns (quoted)")
    source.add_argument(
        "--default-data",
        type=Path,
        metavar="FOLDER",
        help="choose the default model's instances from the files of a folder, dev ones too",
    )
    parser.add_argument(
        "--hold-out",
        metavar="NAME",
        help="of the default data: train on nothing of this group of tasks, whose questions become split dev; "
        "sets (one of each kind), sentiment, topic, intent or yes-no",
    )
    parser.add_argument(
        "--out", type=Path, required=True, metavar="FILE", help="the file to write: .jsonl, .jsonl.gz or .parquet"
    )
    parser.add_argument("--seed", type=int, default=0, help="of all that is drawn at random (default: %(default)s)")


def _distractors(arguments: argparse.Namespace) -> None:
    from cappy_train.distractors import write_default_data, write_distractors

    if arguments.default_data is not None:
        count, removed = write_default_data(
            arguments.default_data, arguments.out, seed=arguments.seed, hold_out=arguments.hold_out
        )
        by_set = "".join(f"\n  of {name}: {number:,}" for name, number in removed.most_common())
        left_out = f"; left out as near-duplicates of test items: {removed.total():,}{by_set}"
    elif arguments.hold_out is not None:
        raise InputValueError("--hold-out names a group of the default data: give --default-data in place of --data")
    else:
        count, left_out = write_distractors(arguments.data, arguments.out, seed=arguments.seed), ""
    print(f"{arguments.out}: {count:,} instances{left_out}", file=sys.stderr)


def _add_pretrain(stages: Stages) -> None:
    parser = _stage(
        stages,
        "pretrain",
        _pretrain,
        help="train a scorer on labelled pairs; goes on where a run was killed",
        description=PRETRAIN_DESCRIPTION,
        examples=PRETRAIN_EXAMPLES,
    )
    parser.add_argument("--data", type=Path, required=True, metavar="PAIRS", help="folder that annotate wrote")
    parser.add_argument("--out", type=Path, required=True, metavar="RUN", help="folder of the run")
    parser.add_argument("--dev", nargs="+", metavar="IN", help="files of instances, whose split dev is evaluated on")
    parser.add_argument(
        "--base",
        help="checkpoint to start from: a folder, or hub:owner/name; or what to train further: a shipped model's "
        "name, a folder that export made, or another run's (default: MiniLM-L6-H384, which the extra [train] has)",
    )
    parser.add_argument(
        "--graph",
        choices=["shared", "joint"],
        default="shared",
        help="shared: reads an instruction once for all its candidates; BERT, MiniLM, RoBERTa, XLM-RoBERTa or "
        "ModernBERT. joint: an ordinary cross-encoder; DeBERTa too (default: %(default)s)",
    )
    parser.add_argument(
        "--choice-weight",
        type=float,
        default=1.0,
        metavar="X",
        help="how often an epoch has an instance with choices, where it has others once (default: %(default)s)",
    )
    add_settings(parser)
    _add_cluster(parser)
    parser.add_argument(
        "--processes",
        type=int,
        metavar="N",
        help="with --cluster: how many train together (default: one a GPU; without any, one a machine)",
    )


def add_settings(parser: argparse.ArgumentParser) -> None:
    """The options of every stage that trains; what isn't given is as `training.Settings` has it."""
    group = parser.add_argument_group("training (docs/training.md has the defaults)")
    numbers: dict[str, tuple[type, str]] = {
        "seed": (int, "of the order of the data, of what is drawn from it, and of a new head"),
        "epochs": (float, "passes over the data"),
        "steps": (int, "optimizer steps, instead of --epochs"),
        "batch-tokens": (int, "tokens of a batch, padding included"),
        "batches-per-step": (int, "batches whose gradients make one step, over all processes"),
        "responses": (int, "the most responses that an instruction keeps in a pass"),
        "short": (int, "tokens of most instructions with a response; what is longer is cut"),
        "long": (int, "the same of the others"),
        "long-share": (float, "the share of the others"),
        "temperature": (float, "of the listwise loss' target"),
        "learning-rate": (float, "peak learning rate"),
        "warmup": (float, "share of the run until the peak"),
        "weight-decay": (float, "AdamW's"),
        "layer-decay": (float, "a layer's learning rate as a share of the next one's"),
        "average": (float, "what a moving average of the weights keeps each step; 0: no average"),
        "checkpoint-every": (int, "steps between checkpoints"),
        "evaluate-every": (int, "steps between evaluations"),
        "patience": (int, "stop after so many evaluations without a better one, and take the best"),
    }
    for name, (kind, text) in numbers.items():
        group.add_argument(f"--{name}", type=kind, metavar="N" if kind is int else "X", help=text)
    group.add_argument(
        "--losses",
        nargs="+",
        metavar="NAME=WEIGHT",
        help="what is made small: squared, cross_entropy, listwise, pairwise (default: cross_entropy=1 listwise=1)",
    )
    group.add_argument("--precision", choices=["bfloat16", "float32"], help="what the encoder computes in")
    group.add_argument(
        "--recompute", action="store_true", default=None, help="less memory, a third slower: keep no states"
    )


def settings_of(arguments: argparse.Namespace) -> Settings:
    """The settings that `add_settings` read."""
    from cappy_train.training import Settings

    given = {field.name: getattr(arguments, field.name) for field in fields(Settings)}
    if given["losses"] is not None:
        given["losses"] = dict(_weighted(text, "--losses", "squared=0.5") for text in given["losses"])
    return Settings(**{name: value for name, value in given.items() if value is not None})


def _weighted(text: str, option: str, example: str) -> tuple[str, float]:
    """A name and its weight, 1 where none is given."""
    name, given, weight = text.rpartition("=")
    try:
        return (name, float(weight)) if given else (text, 1.0)
    except ValueError:
        raise InputValueError(f"{option} {text}: give a name, or name=number, such as {example}") from None


def _add_evaluate(stages: Stages) -> None:
    parser = _stage(
        stages,
        "evaluate",
        _evaluate,
        help="report how good a model's picks are, beside single systems and simple rules",
        description=EVALUATE_DESCRIPTION,
        examples=EVALUATE_EXAMPLES,
    )
    parser.add_argument(
        "--model",
        nargs="+",
        action="extend",
        required=True,
        metavar="NAME|FOLDER",
        help="shipped models' names or model folders",
    )
    parser.add_argument("--data", nargs="+", required=True, metavar="INSTANCES", help="files, folders of shards, globs")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="folder for the report; a new one")
    parser.add_argument(
        "--split", choices=["train", "dev", "test"], default="test", help="evaluate this split (default: %(default)s)"
    )
    parser.add_argument("--limit", type=int, metavar="N", help="at most N questions a table, spread over tasks")
    parser.add_argument(
        "--seed", type=int, default=0, help="of distractors and of the bootstrap (default: %(default)s)"
    )


def _evaluate(arguments: argparse.Namespace) -> None:
    from cappy_train.evaluation import evaluate
    from cappy_train.report import averages

    report = evaluate(
        arguments.model,
        arguments.data,
        arguments.out,
        split=arguments.split,
        limit=arguments.limit,
        seed=arguments.seed,
    )
    print(averages(report))
    print(f"{arguments.out / 'report.html'} has the rest", file=sys.stderr)


def _pretrain(arguments: argparse.Namespace) -> None:
    # Imported here: torch takes seconds to load, and --help needs none of it.
    from cappy_train.pretrain import PACKAGED, pretrain

    if arguments.processes is not None and arguments.cluster is None:
        raise InputValueError("--processes needs --cluster: without it, accelerate launch starts several")
    work = partial(
        pretrain,
        arguments.data,
        arguments.out,
        dev=arguments.dev,
        base=arguments.base or PACKAGED,
        graph=arguments.graph,
        choice_weight=arguments.choice_weight,
        settings=settings_of(arguments),
    )
    with _cluster(arguments) as cluster:
        if cluster is None:
            work()
        else:
            cluster.train(work, arguments.out, processes=arguments.processes)


def _add_average(stages: Stages) -> None:
    parser = _stage(
        stages,
        "average",
        _average,
        help="average the weights of runs, or of a run and what it started from",
        description=AVERAGE_DESCRIPTION,
        examples=AVERAGE_EXAMPLES,
    )
    parser.add_argument(
        "--networks",
        nargs="+",
        action="extend",
        required=True,
        metavar="NAME[=SHARE]",
        help="runs, and what pretrain takes as --base, with their shares (default: 1 each); one must be a run",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="RUN", help="the folder to write, to export")
    parser.add_argument("--dev", nargs="+", metavar="IN", help="files of instances, whose split dev is evaluated on")


def _average(arguments: argparse.Namespace) -> None:
    from cappy_train.averaging import average

    networks = [_weighted(text, "--networks", "runs/mine=0.8") for text in arguments.networks]
    figures = average(networks, arguments.out, dev=arguments.dev)
    print(json.dumps({name: round(value, 5) for name, value in figures.items()}))


def _add_export(stages: Stages) -> None:
    export = _stage(stages, "export", _export, help="make a model folder from a run, quantised and checked")
    export.add_argument("--run", type=Path, required=True, help="folder of the training run")
    export.add_argument(
        "--dev",
        nargs="+",
        required=True,
        metavar="IN",
        help="files of instances, whose split dev calibrates and proves",
    )
    export.add_argument("--out", type=Path, required=True, help="the model folder to write")
    export.add_argument("--base-model", required=True, help="what the run started from, for config and model card")
    export.add_argument("--licence", required=True, help="licence of the model, such as Apache-2.0")
    export.add_argument("--name", help="name of the model (default: the name of --out)")
    export.add_argument(
        "--notes",
        type=Path,
        metavar="FILE",
        help="Markdown for the model card, such as what the network learned from, and what was seen of it",
    )
    export.add_argument("--float32", action="store_true", help="don't round weights to 8 bits")


def _export(arguments: argparse.Namespace) -> None:
    from cappy_train.export import export
    from cappy_train.files import text_of

    export(
        arguments.run,
        arguments.dev,
        arguments.out,
        name=arguments.name or arguments.out.resolve().name,
        base_model=arguments.base_model,
        licence=arguments.licence,
        notes=text_of(arguments.notes) if arguments.notes else "",
        float32=arguments.float32,
    )


def _add_import(stages: Stages) -> None:
    joint = _stage(
        stages,
        "import",
        _import,
        help="make a model folder of a Hugging Face cross-encoder",
        description=IMPORT_DESCRIPTION,
        examples=IMPORT_EXAMPLES,
    )
    joint.add_argument(
        "source", metavar="SOURCE", help="folder of the checkpoint; or hub:owner/name, which is downloaded"
    )
    joint.add_argument("--out", type=Path, required=True, help="the model folder to write; it must not exist")
    joint.add_argument("--quantise", action="store_true", help="round weights to 8 bits: a quarter of the size, faster")
    joint.add_argument(
        "--calibrate",
        type=Path,
        metavar="FILE",
        help="texts of the model's own sort that --quantise fits 8 bits to, instances as JSON Lines (docs/joint.md): "
        "runs several times as fast as without; for BERT, MiniLM, RoBERTa and XLM-RoBERTa",
    )
    joint.add_argument(
        "--activation",
        choices=["identity", "sigmoid"],
        default="identity",
        help="what becomes of an output: identity keeps it, as for Cappy, which was trained to give scores; sigmoid "
        "takes it to 0..1, for networks trained with a cross-entropy; ranks are the same (default: %(default)s)",
    )
    joint.add_argument(
        "--max-tokens",
        type=int,
        metavar="N",
        help="read at most N tokens of instruction and candidate (default: as many as the checkpoint can, at most 512)",
    )
    joint.add_argument("--name", help="name of the model (default: the name of --out)")
    joint.add_argument("--base-model", help="where it comes from, for config and model card (default: SOURCE's name)")
    joint.add_argument("--licence", default="not stated", help="licence of the checkpoint (default: %(default)s)")


def _import(arguments: argparse.Namespace) -> None:
    from cappy_train.import_checkpoint import import_checkpoint

    import_checkpoint(
        arguments.source,
        arguments.out,
        name=arguments.name or arguments.out.resolve().name,
        base_model=arguments.base_model or arguments.source.removeprefix("hub:").rstrip("/").rpartition("/")[2],
        licence=arguments.licence,
        activation=arguments.activation,
        max_tokens=arguments.max_tokens,
        quantise=arguments.quantise,
        calibrate=arguments.calibrate,
    )


def _add_adapt(stages: Stages) -> None:
    parser = _stage(
        stages,
        "adapt",
        _adapt,
        help="fine-tune a model on a task's own instances with candidates, into a model folder with a report",
        description=ADAPT_DESCRIPTION,
        examples=ADAPT_EXAMPLES,
    )
    parser.add_argument("--data", nargs="+", required=True, metavar="INSTANCES", help="files, folders of shards, globs")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="model folder to write; a new one")
    parser.add_argument(
        "--model",
        default="cappy-mini",
        metavar="NAME|FOLDER",
        help="what to start from: a shipped model, or a folder that export or adapt made (default: %(default)s)",
    )
    parser.add_argument(
        "--run",
        type=Path,
        metavar="FOLDER",
        help="folder for checkpoints and sampled candidates (default: --out with .run)",
    )
    parser.add_argument(
        "--generator",
        metavar="NAME",
        help="a language model that answers the instances first: its folder; hub:owner/name, which is downloaded; or, "
        "with --api, its name there (default: candidates are recorded). For other decodings and limits, sample first",
    )
    parser.add_argument(
        "--api", metavar="URL", help="address of the generator's web API; its key is in the variable OPENAI_API_KEY"
    )
    parser.add_argument("--epochs", type=float, metavar="X", help="the most passes over the instances (default: 3)")
    parser.add_argument(
        "--learning-rate", type=float, default=5e-5, metavar="X", help="the peak (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of all that is drawn at random (default: %(default)s)")


def _adapt(arguments: argparse.Namespace) -> None:
    if arguments.api is not None and arguments.generator is None:
        raise InputValueError("--api needs --generator: the model's name there")
    if arguments.out.exists():  # told before a language model is loaded
        raise InputValueError(f"{arguments.out} exists: give --out a new folder")
    from cappy_train.adapt import adapt, markdown

    sampler: Sampler | None = None
    if arguments.api is not None:
        from cappy_train.web_models import WebModel

        sampler = WebModel(arguments.api, arguments.generator, key=os.environ.get("OPENAI_API_KEY"))
    elif arguments.generator is not None:
        from cappy_train.local_models import LocalModel

        sampler = LocalModel(arguments.generator, seed=arguments.seed)
    report = adapt(
        arguments.data,
        arguments.out,
        model=arguments.model,
        run=arguments.run,
        sampler=sampler,
        epochs=arguments.epochs,
        learning_rate=arguments.learning_rate,
        seed=arguments.seed,
    )
    print(markdown(report))


if __name__ == "__main__":
    sys.exit(main())
