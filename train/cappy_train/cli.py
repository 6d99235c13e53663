"""The `cappy-train` command: one subcommand a stage."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from cappy_lite.errors import CappyError

EXAMPLES = """\
examples:
  cappy-train pretrain --data data --out runs/mini
  cappy-train export --run runs/mini --data data --out models/mini --base-model MiniLM-L6-H384 --licence Apache-2.0
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
        description="Train a scorer and make a model folder of it.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    stages = parser.add_subparsers(required=True, metavar="STAGE")

    pretrain = stages.add_parser("pretrain", help="train a scorer on regression data; goes on where a run was killed")
    pretrain.add_argument("--data", type=Path, required=True, help="folder with the training files")
    pretrain.add_argument("--out", type=Path, required=True, help="folder of the run")
    pretrain.add_argument(
        "--base",
        type=Path,
        help="folder of the BERT checkpoint to start from (default: the MiniLM of the extra [train])",
    )
    pretrain.add_argument("--steps", type=int, help="optimizer steps (default: one pass over the data)")
    pretrain.add_argument("--learning-rate", type=float, help="peak learning rate")
    pretrain.add_argument("--seed", type=int, help="of data, batches and the new head")
    pretrain.set_defaults(run_stage=_pretrain)

    export = stages.add_parser("export", help="make a model folder from a run, quantised and checked")
    export.add_argument("--run", type=Path, required=True, help="folder of the training run")
    export.add_argument("--data", type=Path, required=True, help="folder with the training files: dev splits calibrate")
    export.add_argument("--out", type=Path, required=True, help="the model folder to write")
    export.add_argument("--base-model", required=True, help="what the run started from, for config and model card")
    export.add_argument("--licence", required=True, help="licence of the model, such as Apache-2.0")
    export.add_argument("--name", help="name of the model (default: the name of --out)")
    export.set_defaults(run_stage=_export)
    return parser


def _pretrain(arguments: argparse.Namespace) -> None:
    # Imported here: torch takes seconds to load, and --help needs none of it.
    from cappy_train.network import packaged_minilm
    from cappy_train.pretrain import Settings, pretrain

    given = {field.name: getattr(arguments, field.name, None) for field in fields(Settings)}
    settings = Settings(**{name: value for name, value in given.items() if value is not None})
    pretrain(arguments.data, arguments.base or packaged_minilm(), arguments.out, settings)


def _export(arguments: argparse.Namespace) -> None:
    from cappy_train.export import export

    export(
        arguments.run,
        arguments.data,
        arguments.out,
        name=arguments.name or arguments.out.resolve().name,
        base_model=arguments.base_model,
        licence=arguments.licence,
    )


if __name__ == "__main__":
    sys.exit(main())
