"""The command line: `cappy-lite rerank | score | rouge | models`.

Results go to stdout, everything else to stderr. Exit codes: 0 done, 1 bad data or model, 2 wrong usage, and as for
other Unix tools 130 after Ctrl-C and 141 when the reader of the output has gone.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import stat
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np

from cappy_lite import Scorer
from cappy_lite.engine import FloatArray
from cappy_lite.errors import CappyError, TruncationWarning
from cappy_lite.models import model_folder, read_config, shipped_models
from cappy_lite.rouge import RougeL, rouge_l, rouge_l_pairs, rouge_lsum, rouge_lsum_pairs
from cappy_lite.scorer import DEFAULT_MODEL
from cappy_lite.selection import rank

# Candidates that are scored between two steps of the progress bar.
CHUNK = 256
# Bytes of short records that are read, scored and written together.
BATCH_BYTES = 1 << 18

Record = dict[str, Any]
# Of stdin, with their numbers, counted from 1.
Lines = list[tuple[int, bytes]]
Compute = Callable[[list[Record]], Iterable[object]]


class _BadInput(Exception):
    """What was read can't be used; the message says why."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    arguments = _parser().parse_args(argv)
    if sys.stdin is None or sys.stdout is None:  # closed by the shell, as by <&- or >&-
        if sys.stderr is not None:
            _tell("error", "stdin or stdout is closed: leave both open, or connect them to /dev/null")
        return 1
    # UTF-8 in any locale; a lone surrogate becomes the JSON escape that it was.
    sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")  # type: ignore[union-attr]
    try:
        arguments.command(arguments)
        sys.stdout.flush()
    except BrokenPipeError:
        # Python flushes stdout once more at its exit, and would complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt:
        return 130
    except (CappyError, _BadInput, OSError) as error:
        _tell("error", str(error))
        return 1
    return 0


def _rerank(arguments: argparse.Namespace) -> None:
    def ranked(record: Record) -> list[dict[str, object]]:
        ranking = scorer.rerank(_instruction(record), _candidates(record), top_k=arguments.top_k)
        return [row._asdict() | {"score": round(row.score, 6)} for row in ranking]

    texts = _texts(arguments)
    scorer = Scorer(arguments.model, threads=arguments.threads)
    if texts is None:
        _each_record("ranked", lambda records: map(ranked, records), _lines())
        return
    instruction, candidates = texts
    scores = [score for chunk in _chunks_of_scores(scorer, instruction, candidates) for score in chunk]
    for row in rank(candidates, np.array(scores, dtype=np.float32), arguments.top_k):
        _write_score(row.score, row.text)


def _score(arguments: argparse.Namespace) -> None:
    def scores(record: Record) -> list[float]:
        return [round(score, 6) for score in scorer.score(_instruction(record), _candidates(record)).tolist()]

    texts = _texts(arguments)
    scorer = Scorer(arguments.model, threads=arguments.threads)
    if texts is None:
        _each_record("scores", lambda records: map(scores, records), _lines())
        return
    instruction, candidates = texts
    remaining = iter(candidates)
    for chunk in _chunks_of_scores(scorer, instruction, candidates):
        for score in chunk.tolist():
            _write_score(score, next(remaining))


def _rouge(arguments: argparse.Namespace) -> None:
    options = {"stem": arguments.stem, "tokenizer": arguments.tokenizer}
    if arguments.type == "rougeLsum":
        key, score, score_pairs = "rouge_lsum", rouge_lsum, rouge_lsum_pairs
    else:
        key, score, score_pairs = "rouge_l", rouge_l, rouge_l_pairs

    def rouge(records: list[Record]) -> list[dict[str, float]]:
        predictions, references = _values("prediction", records), _values("references", records)
        if len(records) == 1:  # so that errors name the record's values, and not their places in a batch
            return [score(predictions[0], references[0], **options)._asdict()]
        return [RougeL(*row)._asdict() for row in score_pairs(predictions, references, **options).tolist()]

    if arguments.stem and arguments.tokenizer != "rouge":
        arguments.parser.error("--stem works with --tokenizer rouge alone")
    if arguments.jsonl:
        if arguments.texts:
            arguments.parser.error("--jsonl reads its texts from stdin: give no others")
        _each_record(key, rouge, _batches_of_lines())
        return
    if len(arguments.texts) < 2:
        arguments.parser.error("give a prediction and at least one reference, or --jsonl")
    prediction, *references = arguments.texts
    for name, value in score(prediction, references, **options)._asdict().items():
        sys.stdout.write(f"{name}\t{value:.4f}\n")


def _models(arguments: argparse.Namespace) -> None:
    rows = [("name", "MB", "max tokens", "licence", "made from")]
    for name in shipped_models():
        config = read_config(model_folder(name))
        megabytes = sum(file.size for file in config.files.values()) / 1e6
        rows.append((name, f"{megabytes:.1f}", str(config.max_tokens), config.licence, config.base_model))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        sys.stdout.write("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() + "\n")


def _texts(arguments: argparse.Namespace) -> tuple[str, list[str]] | None:
    """The instruction and the candidates, from the arguments, a file and the lines on stdin; None for JSON Lines."""
    if arguments.jsonl:
        if arguments.texts or arguments.instruction_file:
            arguments.parser.error("--jsonl reads its texts from stdin: give no others")
        return None
    candidates = list(arguments.texts)
    if arguments.instruction_file:
        with _named(str(arguments.instruction_file)):
            instruction = _decoded(arguments.instruction_file.read_bytes())
    elif candidates:
        instruction = candidates.pop(0)
    else:
        arguments.parser.error("give an instruction, --instruction-file or --jsonl")
    return instruction, candidates or list(_candidate_lines())


def _candidate_lines() -> Iterator[str]:
    for number, line in enumerate(sys.stdin.buffer, 1):
        with _named(f"line {number}"):
            candidate = _decoded(line)
        if candidate.strip():
            yield candidate


def _decoded(data: bytes) -> str:
    """Text of a line or a file, without its end, and without the mark that some editors put first."""
    try:
        return data.decode("utf-8-sig").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise _BadInput(f"not UTF-8 at byte {error.start + 1}: convert it first") from None


def _lines() -> Iterator[Lines]:
    """Each line of stdin, on its own."""
    for numbered in enumerate(sys.stdin.buffer, 1):
        yield [numbered]


def _batches_of_lines() -> Iterator[Lines]:
    """The lines of stdin, together as many as have arrived and a batch may have."""
    stdin = cast(io.BufferedReader, sys.stdin.buffer)
    number = 1
    begun: list[bytes] = []  # of a line that has not ended
    while data := stdin.read1(BATCH_BYTES):
        ended, newline, rest = data.rpartition(b"\n")
        if newline:
            lines = io.BytesIO(b"".join([*begun, ended, newline])).readlines()
            yield list(enumerate(lines, number))
            number, begun = number + len(lines), []
        begun.append(rest)
    if last := b"".join(begun):
        yield [(number, last)]


def _each_record(key: str, compute: Compute, batches: Iterator[Lines]) -> None:
    """Copies JSON objects from stdin to stdout, each batch as soon as its records have their results under `key`."""
    with _Progress(_stdin_size()) as progress:
        for lines in batches:
            for records in _completed(key, compute, lines):
                progress.clear()
                sys.stdout.writelines(_ENCODER.encode(record) + "\n" for record in records)
                sys.stdout.flush()
            progress.add(sum(len(line) for _, line in lines))


def _completed(key: str, compute: Compute, lines: Lines) -> Iterator[list[Record]]:
    """The records of the lines, together; or, where one is bad, one by one up to that, which is named."""
    try:
        with _named(f"line {lines[0][0]}"):
            texts = [_decoded(line) for _, line in lines]
            records = [_record(text) for text in texts if text.strip()]
            for record, result in zip(records, compute(records), strict=True):
                record[key] = result
    except _BadInput:
        if len(lines) == 1:
            raise
        for line in lines:
            yield from _completed(key, compute, [line])
    else:
        yield records


def _record(text: str) -> Record:
    try:
        record = _DECODER.decode(text)
    except json.JSONDecodeError as error:
        raise _BadInput(f"not JSON: {error.msg} at column {error.colno}") from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, or thousands of brackets
        raise _BadInput(f"not JSON that can be read: {error}") from None
    if not isinstance(record, dict):
        raise _BadInput("not a JSON object")
    return record


def _no_constant(name: str) -> None:
    """Python reads NaN and infinities where JSON has none; what is written must be JSON again."""
    raise ValueError(f"{name} is no JSON value")


_DECODER = json.JSONDecoder(parse_constant=_no_constant)
_ENCODER = json.JSONEncoder(ensure_ascii=False)


def _instruction(record: Record) -> str:
    if not isinstance(record.get("instruction"), str):
        raise _BadInput("needs an 'instruction', a string")
    return str(record["instruction"])


def _candidates(record: Record) -> list[str]:
    """The candidates' texts; each may stand alone or as an object's "text", as in training data."""
    items = record.get("candidates")
    if not isinstance(items, list):
        raise _BadInput("needs 'candidates', a list")
    texts = []
    for index, item in enumerate(items):
        text = item.get("text") if isinstance(item, dict) else item
        if not isinstance(text, str):
            raise _BadInput(f"candidates[{index}] must be a string, or an object with a string 'text'")
        texts.append(text)
    return texts


def _values(name: str, records: list[Record]) -> list[Any]:
    for record in records:
        if name not in record:
            raise _BadInput(f"has no {name!r}")
    return [record[name] for record in records]


def _chunks_of_scores(scorer: Scorer, instruction: str, candidates: list[str]) -> Iterator[FloatArray]:
    with _Progress(len(candidates)) as progress:
        for start in range(0, len(candidates), CHUNK):
            chunk = candidates[start : start + CHUNK]
            with _named(f"candidates {start + 1} to {start + len(chunk)}"):
                scores = scorer.score(instruction, chunk)
            progress.clear()
            yield scores
            progress.add(len(chunk))


@contextmanager
def _named(place: str) -> Iterator[None]:
    """Puts `place` before what goes wrong inside, and tells of truncated text in a line of its own."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", TruncationWarning)
        try:
            yield
        except (CappyError, _BadInput) as error:
            raise _BadInput(f"{place}: {error}") from error
    for warning in caught:
        _tell("warning", f"{place}: {warning.message}")


class _Progress:
    """A bar on stderr for work that takes more than a second, if a person can see it there."""

    WIDTH = 30

    def __init__(self, total: int | None) -> None:
        self._total, self._done, self._drawn = total, 0, False
        self._next = time.monotonic() + 1 if total and sys.stderr.isatty() else float("inf")

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.clear()

    def add(self, amount: int) -> None:
        self._done += amount
        if self._total and time.monotonic() >= self._next:
            self._next, self._drawn = time.monotonic() + 0.2, True
            share = min(self._done / self._total, 1.0)
            sys.stderr.write(f"\r[{'#' * int(share * self.WIDTH):<{self.WIDTH}}] {share:4.0%}")
            sys.stderr.flush()

    def clear(self) -> None:
        if self._drawn:
            self._drawn = False
            sys.stderr.write("\r\033[K")
            sys.stderr.flush()


def _stdin_size() -> int | None:
    """Bytes on stdin, where that is a file; a pipe's are not known."""
    status = os.fstat(sys.stdin.fileno())
    return status.st_size if stat.S_ISREG(status.st_mode) else None


def _write_score(score: float, text: str) -> None:
    sys.stdout.write(f"{score:.4f}\t{text}\n")


def _tell(kind: str, message: str) -> None:
    sys.stderr.write(f"cappy-lite: {kind}: {' '.join(message.split())}\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="cappy-lite",
        description="Scores and ranks candidate answers to an instruction, on this machine's CPU.",
        epilog="cappy-lite COMMAND --help has examples.",
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, command, summary, example in (
        ("rerank", _rerank, "rank candidates, best first", RERANK_EXAMPLES),
        ("score", _score, "score candidates from 0 to 1, in their order", SCORE_EXAMPLES),
    ):
        scoring = _command(commands, name, command, summary, example)
        scoring.add_argument(
            "texts",
            nargs="*",
            metavar="TEXT",
            help="the instruction, then its candidates; without candidates, stdin has one a line, blank ones aside",
        )
        scoring.add_argument(
            "--instruction-file", type=Path, metavar="FILE", help="read the instruction here; every TEXT is a candidate"
        )
        scoring.add_argument(
            "--jsonl",
            action="store_true",
            help="read JSON Lines on stdin, each an object with instruction and candidates (strings, or objects with "
            f"text); write each with its result added as {'ranked' if name == 'rerank' else 'scores'}",
        )
        if name == "rerank":
            scoring.add_argument("--top-k", type=_count, metavar="N", help="write only the best N")
        scoring.add_argument(
            "--model", default=DEFAULT_MODEL, help="a shipped model's name or a model folder (default: %(default)s)"
        )
        scoring.add_argument("--threads", type=_count, metavar="N", help="threads to compute on (default: all)")
    rouge = _command(commands, "rouge", _rouge, "Rouge-L of a prediction against its best reference", ROUGE_EXAMPLES)
    rouge.add_argument("texts", nargs="*", metavar="TEXT", help="the prediction, then one or more references")
    rouge.add_argument(
        "--type",
        choices=["rougeL", "rougeLsum"],
        default="rougeL",
        help="rougeLsum is for summaries, each of whose lines is a sentence (default: %(default)s)",
    )
    rouge.add_argument("--stem", action="store_true", help="compare words by their Porter stems")
    rouge.add_argument(
        "--tokenizer",
        choices=["rouge", "unicode", "char"],
        default="rouge",
        help="what is compared: runs of ASCII letters and digits, as in the rouge-score package; words of any script; "
        "or characters, for Chinese, Japanese and Thai (default: %(default)s)",
    )
    rouge.add_argument(
        "--jsonl",
        action="store_true",
        help="read JSON Lines on stdin, each an object with prediction and references (a string or a list of them); "
        "write each with rouge_l or rouge_lsum added",
    )
    _command(commands, "models", _models, "list the models that are installed", MODELS_EXAMPLES)
    return parser


def _command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    command: Callable[[argparse.Namespace], None],
    summary: str,
    examples: str,
) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        name,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}.",
        epilog=f"examples:\n{examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(command=command, parser=parser)
    return parser


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, not {text!r}")
    return int(text)


RERANK_EXAMPLES = """\
  cappy-lite rerank 'Name a fruit.' 'An apple.' 'A chair.'
  cappy-lite rerank 'Name a fruit.' --top-k 1 < one_candidate_a_line.txt
  cappy-lite rerank --instruction-file task.txt -- '- a candidate with a leading dash'
  echo '{"id": 7, "instruction": "Name a fruit.", "candidates": ["An apple.", "A chair."]}' |
      cappy-lite rerank --jsonl"""

SCORE_EXAMPLES = """\
  cappy-lite score 'Name a fruit.' 'An apple.' 'A chair.'
  cappy-lite score --instruction-file task.txt < one_candidate_a_line.txt
  cappy-lite score --jsonl --model runs/my-model < tasks.jsonl > scored.jsonl"""

ROUGE_EXAMPLES = """\
  cappy-lite rouge --stem 'The skier skis.' 'A skier was skiing.' 'Skiers ski.'
  echo '{"prediction": "An apple.", "references": ["Apple.", "A red apple."]}' | cappy-lite rouge --jsonl"""

MODELS_EXAMPLES = "  cappy-lite models"


if __name__ == "__main__":
    sys.exit(main())
