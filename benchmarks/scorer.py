"""The time of `Scorer.rerank` against the same weights read as an ordinary cross-encoder.

    python -m benchmarks.scorer [--model NAME|FOLDER] [--rounds N] [--threads N] [--json FILE]

A 200-word instruction with 16 short candidates. The cross-encoder reads every candidate beside the whole instruction,
[CLS] instruction [SEP] candidate [SEP], in one padded batch; its graph is the model's own with another front, at the
same precision, in a session of the same options, and both times run from text to scores. Its scores mean little, for
the weights were trained with another attention rule. Rounds alternate between the two. A table on stdout, then
everything as one JSON line, which comes last.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from itertools import cycle, islice
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from tokenizers import Tokenizer

from benchmarks.machine import describe_machine
from cappy_lite import Scorer
from cappy_lite.models import GRAPH_FILE, TOKENIZER_FILE, canonical, model_folder, read_config
from cappy_lite.packing import pack
from cappy_lite.session import available_cpus, import_onnxruntime, session_options
from cappy_lite.tokens import TextEncoder
from cappy_train.graph import joint_twin, read_weights

FloatArray = npt.NDArray[np.float32]

STORY = """Skiers came early to the mountain that morning, because fresh snow had fallen all night and the lifts would
open an hour before the usual time. The owner of the small hotel at the foot of the slope had cooked soup for them, and
his daughter carried the bowls from table to table while she told everyone which paths were closed. An old man, who had
skied here for sixty winters, drew a map on a napkin and marked the place where the wind had left bare ice."""
INSTRUCTION = f"Read the passage and answer the question: what did the old man warn the visitors about? {STORY}"
WORDS = 200
CANDIDATES = [
    "Bare ice left by the wind.",
    "He warned them about ice on the slope.",
    "The soup was too hot.",
    "Closed paths.",
    "That the lifts would open late.",
    "The daughter of the hotel's owner.",
    "Fresh snow that had fallen all night.",
    "A place where the wind had blown the snow away.",
    "Sixty winters of skiing.",
    "Nothing at all.",
    "The map on the napkin was wrong.",
    "Wolves in the forest behind the hotel.",
    "An avalanche on the northern side.",
    "He told them to eat before skiing.",
    "The hotel would close at noon.",
    "The wind.",
]
# What neighbours may move a score by; padding may move the cross-encoder's by more, through an 8-bit rounding.
TOLERANCE = 1e-6
JOINT_TOLERANCE = 1e-2


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scorer", description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="cappy-mini", help="a shipped model's name or a model folder")
    parser.add_argument("--rounds", type=int, default=25, help="how often each of the two is timed")
    parser.add_argument("--threads", type=int, default=available_cpus(), help="threads that each may use")
    parser.add_argument("--json", type=Path, help="also write the JSON line to this file")
    arguments = parser.parse_args(argv)

    instruction = " ".join(islice(cycle(INSTRUCTION.split()), WORDS))
    folder = model_folder(canonical(arguments.model))
    scorer = Scorer(arguments.model, threads=arguments.threads)
    joint = JointScorer(folder, arguments.threads)
    check_steady(lambda candidates: scorer.score(instruction, candidates), TOLERANCE)
    check_steady(lambda candidates: joint.score(instruction, candidates), JOINT_TOLERANCE)

    shared_seconds, joint_seconds = alternate(
        lambda: scorer.rerank(instruction, CANDIDATES), lambda: joint.score(instruction, CANDIDATES), arguments.rounds
    )
    ratios = joint_seconds / shared_seconds
    report = {
        "benchmark": "scorer",
        "model": read_config(folder).name,
        "threads": arguments.threads,
        "rounds": arguments.rounds,
        "instruction_words": WORDS,
        "candidates": len(CANDIDATES),
        "shared_tokens": shared_tokens(folder, instruction),
        "joint_tokens": int(joint.inputs(instruction, CANDIDATES)["input_ids"].size),
        "shared_ms": 1e3 * float(np.median(shared_seconds)),
        "joint_ms": 1e3 * float(np.median(joint_seconds)),
        "ratio": float(np.median(ratios)),
        "ratio_quartiles": [float(np.quantile(ratios, share)) for share in (0.25, 0.75)],
        "machine": describe_machine("cappy-lite", "onnxruntime", "tokenizers", "numpy"),
    }
    print(table(report))
    line = json.dumps(report)
    if arguments.json:
        arguments.json.write_text(line + "\n", encoding="utf-8")
    print(line)


class JointScorer:
    """A model folder's weights as an ordinary cross-encoder, with the tokenizers library's own pairs and padding."""

    def __init__(self, folder: Path, threads: int) -> None:
        max_tokens = read_config(folder).max_tokens
        self._tokenizer = Tokenizer.from_file(str(folder / TOKENIZER_FILE))
        self._tokenizer.enable_truncation(max_tokens)
        self._tokenizer.enable_padding()
        twin = joint_twin(read_weights(onnx.load(folder / GRAPH_FILE))).SerializeToString()
        self._session = import_onnxruntime().InferenceSession(
            twin, session_options(threads), providers=["CPUExecutionProvider"]
        )

    def score(self, instruction: str, candidates: Sequence[str]) -> FloatArray:
        """Scores (n,), 0..1."""
        (logits,) = self._session.run(["logits"], self.inputs(instruction, candidates))
        return 1 / (1 + np.exp(-logits))

    def inputs(self, instruction: str, candidates: Sequence[str]) -> dict[str, npt.NDArray[np.int64]]:
        """Token arrays (n, tokens of the longest pair)."""
        encoded = self._tokenizer.encode_batch([(instruction, candidate) for candidate in candidates])
        return {
            "input_ids": np.array([one.ids for one in encoded]),
            "attention_mask": np.array([one.attention_mask for one in encoded]),
            "token_type_ids": np.array([one.type_ids for one in encoded]),
        }


def check_steady(score: Callable[[Sequence[str]], FloatArray], tolerance: float) -> None:
    """Raises AssertionError unless a candidate's score is the same alone and beside others: then the times compare."""
    alone = [score([candidate])[0] for candidate in CANDIDATES]
    np.testing.assert_allclose(score(CANDIDATES), alone, rtol=0, atol=tolerance)


def shared_tokens(folder: Path, instruction: str) -> int:
    """Tokens that the shared graph reads."""
    config = read_config(folder)
    encoder = TextEncoder(folder / TOKENIZER_FILE, cls_token=config.cls_token, sep_token=config.sep_token)
    rows = pack(
        encoder.encode(instruction),
        [encoder.encode(candidate) for candidate in CANDIDATES],
        cls_id=encoder.cls_id,
        sep_id=encoder.sep_id,
        max_tokens=config.max_tokens,
    )
    return sum(len(row.input_ids) for row in rows)


def alternate(
    first: Callable[[], object], second: Callable[[], object], rounds: int
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Seconds of each call, (rounds,); they take turns, so that a busy moment of the machine hits both."""
    seconds = np.empty((rounds, 2))
    for row in seconds:
        for column, call in enumerate((first, second)):
            start = time.perf_counter()
            call()
            row[column] = time.perf_counter() - start
    return seconds[:, 0], seconds[:, 1]


def table(report: dict[str, object]) -> str:
    return "\n".join(
        [
            f"{report['model']}: {WORDS}-word instruction, {len(CANDIDATES)} candidates, threads: {report['threads']}",
            f"{'':32}{'tokens':>8}{'median ms':>12}",
            f"{'rerank (instruction read once)':32}{report['shared_tokens']:>8}{report['shared_ms']:>12.1f}",
            f"{'ordinary cross-encoder':32}{report['joint_tokens']:>8}{report['joint_ms']:>12.1f}",
            f"times as fast, median of rounds: {report['ratio']:.1f}",
        ]
    )


if __name__ == "__main__":
    main()
