"""From lists of texts to an array of scores: `rouge_l_pairs` beside other packages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from benchmarks.corpus import SEED, Corpus
from benchmarks.kernel.report import FAR, LARGE, EndToEnd
from benchmarks.kernel.rivals import STANDARD, Rival
from benchmarks.rounds import Contestant, FloatArray, check_equal, median_and_range, rates, time_once
from cappy_lite import rouge
from cappy_lite.rouge import rouge_l_pairs

# A rival scores as many pairs as take it this long.
RIVAL_SECONDS = 0.5
# A range of lengths has so many parts, and so many pairs in a row have texts of each part.
PARTS = 5

# Predictions, and the reference of each.
Texts = tuple[list[str], list[str]]


def end_to_end(corpus: Corpus, tokens: tuple[int, int], stem: bool, rivals: Sequence[Rival], rounds: int) -> EndToEnd:
    """Rates of `rouge_l_pairs`, of a first call and of later ones, of two threads for a large batch, and of the rivals.

    Raises:
        SystemExit: a number is not rouge-score's to the last bit.
    """
    texts = draw_pairs(corpus, *tokens)
    ours = rouge_l_pairs(*texts, stem=stem)
    rivals = [rival for rival in rivals if rival.stems or not stem]
    calls = [partial(rival.score, stem) for rival in rivals]
    shares = [first_pairs(texts, affordable_pairs(call, texts)) for call in calls]
    theirs = [call(*share) for call, share in zip(calls, shares, strict=True)]
    check_equal(ours, theirs[rivals.index(STANDARD)], f"{tokens} tokens, stem={stem}, beside rouge-score")

    large: Texts = (texts[0] * LARGE, texts[1] * LARGE)
    one_thread, two_threads = (partial(rouge_l_pairs, stem=stem, threads=threads) for threads in (1, 2))
    contestants = [
        Contestant(one_thread, len(ours), partial(first_time, texts)),
        Contestant(one_thread, len(ours), partial(once_more, one_thread, texts)),
        Contestant(one_thread, len(ours) * LARGE, partial(once_more, two_threads, large)),
        Contestant(two_threads, len(ours) * LARGE, partial(once_more, two_threads, large)),
    ]
    contestants += [
        Contestant(call, len(share[0]), partial(fresh, share)) for call, share in zip(calls, shares, strict=True)
    ]
    first, known, large_by_one, large_by_two, *rest = rates(contestants, rounds)
    return {
        "tokens": tokens,
        "stem": stem,
        "pairs": len(ours),
        "pairs_per_second": float(np.median(first)),
        "known_words": median_and_range(known / first),
        "two_threads": median_and_range(large_by_two / large_by_one),
        "rivals": [
            {
                "package": rival.package,
                "definition": rival.definition,
                "pairs": len(scores),
                "pairs_per_second": float(np.median(rate)),
                "times_as_fast": median_and_range(first / rate),
                "other_bits": int((scores != ours[: len(scores)]).any(axis=1).sum()),
                "far_off": int((np.abs(scores - ours[: len(scores)])[:, 2] > FAR).sum()),
            }
            for rival, scores, rate in zip(rivals, theirs, rest, strict=True)
        ],
    }


def draw_pairs(corpus: Corpus, shortest: int, longest: int) -> Texts:
    """As many pairs as the corpus surely has, of texts of random lengths."""
    # A text is longer than the middle of its part of the range by a fifth of the mean length at most.
    count = len(corpus) * PARTS // (PARTS + 1) // (shortest + longest) // PARTS * PARTS
    generator = np.random.default_rng(SEED)
    # The few pairs that a slow rival scores should be as much work, each, as all: any PARTS in a row have, on either
    # side, a text of each part of the range, and the same parts meet.
    parts = np.arange(count)[:, None] * (1, 2) % PARTS
    places = (parts + generator.random((count, 2))) / PARTS
    places = places[np.argsort(np.arange(count) // PARTS + generator.random(count))]
    lengths = shortest + (places * (longest + 1 - shortest)).astype(np.int64)
    texts = corpus.texts(lengths.ravel())
    return texts[::2], texts[1::2]


def first_pairs(texts: Texts, count: int) -> Texts:
    return texts[0][:count], texts[1][:count]


def fresh(texts: Texts) -> Texts:
    """New str objects: one that was read before may have kept its UTF-8."""
    predictions, references = ([text[:1] + text[1:] for text in side] for side in texts)
    return predictions, references


def first_time(texts: Texts) -> Texts:
    """As for a process' first call, which knows no words: what idles between calls is dropped."""
    for workers in rouge._idle.values():
        workers.clear()
    return fresh(texts)


def once_more(call: Callable[..., object], texts: Texts) -> Texts:
    """As for calls behind this one, whose words have been met."""
    call(*texts)
    return fresh(texts)


def affordable_pairs(call: Callable[..., FloatArray], texts: Texts) -> int:
    """How many of the pairs take a rival about RIVAL_SECONDS."""
    total = len(texts[0])
    count = PARTS
    while True:
        seconds = time_once(Contestant(partial(call, *first_pairs(texts, count)), count))
        if seconds > RIVAL_SECONDS / 8 or count == total:
            return min(max(int(count * RIVAL_SECONDS / seconds) // PARTS, 1) * PARTS, total)
        count = min(8 * count, total)
