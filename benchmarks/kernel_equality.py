"""Whether our Rouge-L equals the rouge-score package's, to the last bit, on every reference/candidate pair of a file.

    python -m benchmarks.kernel_equality --data FILE

FILE holds instances (JSON Lines, .gz or not; keys `references` and `candidates`). Every pair alone, and every candidate
against all its references, stemmed and not. Exit status 1 at the first difference; one JSON line at the end.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenizers import DefaultTokenizer, Tokenizer
from tqdm import tqdm

from benchmarks.machine import describe_machine
from cappy_lite.rouge import KERNEL, rouge_l_pairs
from cappy_train.instances import read_instances

# A candidate and the references that it is scored against.
Item = tuple[str, tuple[str, ...]]


class RememberingTokenizer(Tokenizer):  # type: ignore[misc]  # rouge-score has no types
    """rouge-score's own tokenizer, asked once for each text: stemming would take most of the time."""

    def __init__(self, stem: bool) -> None:
        self._tokenizer = DefaultTokenizer(use_stemmer=stem)
        self._known: dict[str, list[str]] = {}

    def tokenize(self, text: str) -> list[str]:
        if text not in self._known:
            self._known[text] = self._tokenizer.tokenize(text)
        return self._known[text]


def read_items(path: Path) -> tuple[list[Item], list[Item]]:
    """Every reference/candidate pair, and every candidate with all its references."""
    pairs: list[Item] = []
    groups: list[Item] = []
    for instance in read_instances(path):
        references = tuple(instance.references)
        for candidate in instance.candidates:
            groups.append((candidate.text, references))
            pairs.extend((candidate.text, (reference,)) for reference in references)
    return pairs, groups


def first_difference(items: Sequence[Item], stem: bool) -> str | None:
    """What differs at the first item where rouge-score and ours are not the same bits; None if nothing does."""
    ours = rouge_l_pairs([text for text, _ in items], [references for _, references in items], stem=stem)
    scorer = RougeScorer(["rougeL"], tokenizer=RememberingTokenizer(stem))
    for (text, references), row in zip(tqdm(items, desc="rouge-score", leave=False), ours, strict=True):
        theirs = np.array(scorer.score_multi(references, text)["rougeL"], dtype=np.float64)
        if theirs.tobytes() != row.tobytes():
            return f"{text!r} against {references!r}, stem={stem}: rouge-score {theirs.tolist()}, ours {row.tolist()}"
    return None


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, metavar="FILE", help="instances, JSON Lines, .gz or not")
    arguments = parser.parse_args(argv)
    pairs, groups = read_items(arguments.data)
    for stem in (False, True):
        for what, items in (("pairs", pairs), ("candidates with all references", groups)):
            difference = first_difference(items, stem)
            if difference:
                print(f"DIFFERENT: {difference}")
                return 1
            print(f"equal: {len(items):,} {what}, {'stemmed' if stem else 'not stemmed'}")
    report = {"pairs": len(pairs), "candidates": len(groups), "kernel": KERNEL}
    print(json.dumps(report | describe_machine("cappy-lite", "rouge-score", "nltk", "numpy")))
    return 0


if __name__ == "__main__":
    sys.exit(main())
