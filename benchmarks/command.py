"""What the command lines of benchmarks have in common."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path


def parser_with_output(description: str | None) -> argparse.ArgumentParser:
    """A benchmark's parser, by its module's docstring; `--output` is the file that `write_output` writes."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, metavar="FILE", help="write everything as JSON")
    return parser


def write_output(path: Path | None, report: Mapping[str, object]) -> None:
    """Writes a report as JSON, if a file for it was named."""
    if path:
        path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
