"""Rouge-L: how much of two texts is one common subsequence of words.

The definition is that of the rouge-score package (C.-Y. Lin, "ROUGE: a package for automatic evaluation of summaries",
2004), and every number equals its to the last bit: lower-cased runs of a-z and 0-9 are the words, `stem` reduces those
of more than three letters by Porter's stemmer in NLTK's default mode, and of several references the one with the
greatest F-measure counts, the first of equals. Rouge-Lsum, for summaries of several lines, is rouge-score's too.

rouge-score's words are ASCII alone, so that every text in another script scores 0; `tokenizer` offers others.

Two kernels compute it, one in C and its specification in Python. The environment variable CAPPY_LITE_KERNEL pins one
("c" or "python"); without it the C kernel is taken, and its absence warned of. `KERNEL` names the one in use.
"""

from __future__ import annotations

import importlib
import os
import warnings
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from itertools import chain
from operator import itemgetter
from queue import Empty, SimpleQueue
from threading import Event
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from cappy_lite.arguments import check_count, check_list
from cappy_lite.errors import InputTypeError, InputValueError
from cappy_lite.words import characters, unicode_words

FloatArray = npt.NDArray[np.float64]

Tokenize = Callable[[str], Iterable[Hashable]]
# "rouge", "unicode", "char", or a function from a text to its tokens.
Tokenizer = str | Tokenize

TOKENIZERS: dict[str, Tokenize] = {"unicode": unicode_words, "char": characters}

# What a thread takes at a time: so much that to wait for the GIL in between takes little of the time, and so little
# that no thread has it for long, or waits long for the last one.
SHARE_PAIRS = 4096
SHARE_CHARACTERS = 3 << 18
# By so many texts their mean length is judged.
SAMPLE = 64
# Words after which a thread forgets those that it has seen: it keeps memory flat, and costs reading them anew.
KNOWN_WORDS = 1 << 18
# What is kept between calls: so many workers at most, stemming or not, of so much memory each.
MOST_IDLE = 2
IDLE_BYTES = 1 << 23


class RougeL(NamedTuple):
    """Rouge-L of a prediction against a reference, each 0..1."""

    precision: float
    recall: float
    fmeasure: float


def rouge_l(
    prediction: str, references: str | Sequence[str], *, stem: bool = False, tokenizer: Tokenizer = "rouge"
) -> RougeL:
    """Rouge-L of a prediction against its best reference.

    Args:
        prediction: the text to judge. An empty text scores 0.
        references: one text, or several of which the one with the greatest F-measure counts.
        stem: whether words are Porter-stemmed first, so that "skis" and "skiing" are the same; with the tokenizer
            "rouge" alone.
        tokenizer: how a text becomes tokens. "rouge" is what the rouge-score package does. "unicode" takes words and
            digits of any script, and "char" each letter or digit, for Chinese, Japanese and Thai (cappy_lite.words
            defines both). Or any function from a text to its tokens, which may be whatever a dict takes as a key.

    Raises:
        InputTypeError: a text is not a str, or the tokenizer's answer no list of tokens.
        InputValueError: there is no reference, no such tokenizer, `stem` with another tokenizer than "rouge", or a
            tokenizer that raised.
    """
    return _score_one(_Worker.rouge_l, prediction, references, stem, tokenizer)


def rouge_lsum(
    prediction: str, references: str | Sequence[str], *, stem: bool = False, tokenizer: Tokenizer = "rouge"
) -> RougeL:
    """Rouge-Lsum of a summary against its best reference: each line of a text is a sentence.

    A reference's sentence shares with the prediction the union of the subsequences that it shares with the
    prediction's sentences; of each word no more count than either text has. (Lin 2004, section 3.2, as the rouge-score
    package has it.)

    Args:
        prediction, references, stem, tokenizer: as for `rouge_l`.

    Raises:
        InputTypeError, InputValueError: as for `rouge_l`; also if a line of more than some 90,000 words meets another.
    """
    return _score_one(_Worker.rouge_lsum, prediction, references, stem, tokenizer)


def rouge_l_pairs(
    predictions: Sequence[str],
    references: Sequence[str | Sequence[str]],
    *,
    stem: bool = False,
    tokenizer: Tokenizer = "rouge",
    threads: int | None = None,
) -> FloatArray:
    """Rouge-L of each prediction against its own references.

    Args:
        predictions: n texts.
        references: n entries, each a text or the texts of which the best counts.
        stem, tokenizer: as for `rouge_l`. A function is called by several threads if `threads` says so.
        threads: how many threads share the work; None: one.

    Returns:
        float64, (n, 3): precision, recall and F-measure, each 0..1.

    Raises:
        InputTypeError: a list is missing, or an item is not a str; the message has its index.
        InputValueError: the lengths differ, an entry of `references` is empty, an option has no such value, or the
            tokenizer raised.
    """
    return _score_pairs(_Worker.rouge_l, predictions, references, stem, tokenizer, threads)


def rouge_lsum_pairs(
    predictions: Sequence[str],
    references: Sequence[str | Sequence[str]],
    *,
    stem: bool = False,
    tokenizer: Tokenizer = "rouge",
    threads: int | None = None,
) -> FloatArray:
    """Rouge-Lsum of each summary against its own references.

    Args:
        predictions, references, stem, tokenizer, threads: as for `rouge_l_pairs`; each line of a text is a sentence.

    Returns:
        float64, (n, 3): precision, recall and F-measure, each 0..1.

    Raises:
        InputTypeError, InputValueError: as for `rouge_l_pairs` and `rouge_lsum`.
    """
    return _score_pairs(_Worker.rouge_lsum, predictions, references, stem, tokenizer, threads)


def rouge_l_against(
    references: str | Sequence[str],
    predictions: Sequence[str],
    *,
    stem: bool = False,
    tokenizer: Tokenizer = "rouge",
    threads: int | None = None,
) -> FloatArray:
    """Rouge-L of every prediction against the same references.

    Args:
        references: one text, or several of which the best counts, prediction by prediction.
        predictions: n texts.
        stem, tokenizer, threads: as for `rouge_l_pairs`.

    Returns:
        float64, (n, 3): precision, recall and F-measure, each 0..1.

    Raises:
        InputTypeError, InputValueError: as for `rouge_l_pairs`.
    """
    group = _check_references("references", references)
    texts = _listed("predictions", predictions, "str")
    return _score_pairs(_Worker.rouge_l, texts, [group] * len(texts), stem, tokenizer, threads)


def rouge_l_matrix(
    texts: Sequence[str], *, stem: bool = False, tokenizer: Tokenizer = "rouge", threads: int | None = None
) -> FloatArray:
    """Rouge-L F-measure of every text with every other, each pair computed once.

    Args:
        texts: n texts.
        stem, tokenizer, threads: as for `rouge_l_pairs`.

    Returns:
        float64, (n, n), 0..1, symmetric. The diagonal is 1, and 0 for a text without words.

    Raises:
        InputTypeError, InputValueError: as for `rouge_l_pairs`.
    """
    checked = _check_texts("texts", texts)
    # A new one, that knows just these texts' words: the kernel lays out a row of memory for each.
    worker = _Worker(stem, _check_tokenizer(stem, tokenizer), _go_on)
    count = len(checked)
    blocks = -(-count // _kernel.MATRIX_ROWS)
    block_step = max(min(_check_threads(threads), blocks), 1)
    sequences = worker.read(checked)
    fmeasures = np.empty((count, count))
    first_blocks = iter(range(block_step))

    def score_blocks(watch: Watch) -> None:
        for first_block in first_blocks:
            _kernel.Scoring(watch).rouge_l_matrix(sequences, first_block, block_step, fmeasures)

    _run(score_blocks, block_step)
    return fmeasures


# Called from time to time by what takes long; raises to end it.
Watch = Callable[[], None]


class _Stopped(Exception):
    """Ends a thread whose result nobody waits for any more."""


def _go_on() -> None:
    """The watch of the main thread: that Python runs at all is enough for it to see a Ctrl-C."""


class _TokenReader:
    """Reads texts with a Python tokenizer; to be used as the kernel's Lexicon."""

    def __init__(self, tokenize: Tokenize, watch: Watch) -> None:
        self._tokenize = tokenize
        self._watch = watch
        self._ids: dict[Hashable, int] = {}

    @property
    def size(self) -> int:
        return len(self._ids)

    def read(self, texts: list[str]) -> Any:
        return _kernel.sequences([self._read_text(text) for text in texts])

    def _read_text(self, text: str) -> list[int]:
        ids = self._ids
        self._watch()
        try:
            tokens = self._tokenize(text)
        except Exception as error:
            raise InputValueError(
                f"tokenizer raised {type(error).__name__} for the text {_shortened(text)}: {error}"
            ) from error
        if isinstance(tokens, (str, bytes)) or not isinstance(tokens, Iterable):
            raise InputTypeError(f"tokenizer must return a list of tokens, not {type(tokens).__name__}")
        try:
            return [ids.setdefault(token, len(ids)) for token in tokens]
        except TypeError as error:
            raise InputTypeError(
                f"tokenizer must return tokens that a dict takes as keys, for the text {_shortened(text)}: {error}"
            ) from error


def _shortened(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")


class _Worker:
    """What one thread scores with: it has the words that it has read, and memory of its own."""

    def __init__(self, stem: bool, tokenize: Tokenize | None, watch: Watch) -> None:
        self._stem = stem
        self._tokenize = tokenize
        self._scoring = _kernel.Scoring(watch)
        self._reader = self._new_reader()

    def _new_reader(self) -> Any:
        if self._tokenize:
            return _TokenReader(self._tokenize, self._scoring.watch)
        return _kernel.Lexicon(self._stem)

    @classmethod
    def borrow(cls, stem: bool, tokenize: Tokenize | None, watch: Watch) -> _Worker:
        """One that idles, or a new one. It knows the words of earlier calls, which needn't be stemmed again."""
        if tokenize is None:
            try:
                worker = _idle[stem].pop()
            except IndexError:
                pass
            else:
                worker._scoring.watch = watch
                return worker
        return cls(stem, tokenize, watch)

    def give_back(self) -> None:
        """For later calls, if it isn't too large to keep."""
        self._scoring.watch = _go_on
        if self._tokenize:
            return
        if len(_idle[self._stem]) < MOST_IDLE and self._reader.bytes + self._scoring.bytes <= IDLE_BYTES:
            _idle[self._stem].append(self)

    def forget(self) -> None:
        """Keeps memory flat, if there is much to forget."""
        if self._reader.size > KNOWN_WORDS:
            self._reader = self._new_reader()

    def read(self, texts: list[str]) -> Any:
        return self._reader.read(texts)

    def rouge_l(self, predictions: list[Any], references: list[Any], start: int, stop: int, scores: FloatArray) -> bool:
        """Scores of the pairs from start to stop; or nothing, and False, if the texts are not all str."""
        if not self._tokenize:
            done: bool = self._scoring.rouge_l_texts(self._reader, predictions, references, start, stop, scores)
            return done
        some, others = predictions[start:stop], references[start:stop]
        if not (_kernel.all_texts(some) and _kernel.all_texts(others)):
            return False
        self._scoring.rouge_l_pairs(self.read(some), self.read(others), scores)
        return True

    def rouge_lsum(
        self, predictions: list[Any], references: list[Any], start: int, stop: int, scores: FloatArray
    ) -> bool:
        """The same for Rouge-Lsum."""
        arguments: list[Any] = []
        for texts in (predictions[start:stop], references[start:stop]):
            if not _kernel.all_texts(texts):
                return False
            sentences = [[line for line in text.split("\n") if line] for text in texts]
            lines = list(chain.from_iterable(sentences))
            arguments += [self.read(lines), list(map(len, sentences))]
        self._scoring.rouge_lsum_pairs(*arguments, scores)
        return True


# Workers between two calls, by `stem`.
_idle: dict[bool, list[_Worker]] = {False: [], True: []}

# One of _Worker's two.
Score = Callable[[_Worker, list[Any], list[Any], int, int, FloatArray], bool]


def _score_one(score: Score, prediction: object, references: object, stem: bool, tokenizer: Tokenizer) -> RougeL:
    if not isinstance(prediction, str):
        raise _not_text("prediction", prediction)
    group = list(_check_references("references", references))
    worker = _Worker.borrow(stem, _check_tokenizer(stem, tokenizer), _go_on)
    scores = np.empty((len(group), 3))
    score(worker, [prediction] * len(group), group, 0, len(group), scores)
    worker.give_back()
    # max keeps the first of equals.
    return RougeL(*max(scores.tolist(), key=itemgetter(2)))


def _score_pairs(
    score: Score, predictions: object, references: object, stem: bool, tokenizer: Tokenizer, threads: int | None
) -> FloatArray:
    texts: list[Any] = _listed("predictions", predictions, "str")
    groups: list[Any] = _listed("references", references, "str or of lists of str")
    if len(texts) != len(groups):
        raise InputValueError(
            f"predictions and references must have the same length: they have {len(texts)} and {len(groups)}"
        )
    tokenize = _check_tokenizer(stem, tokenizer)
    count, workers = len(texts), _check_threads(threads)
    shares: SimpleQueue[tuple[int, int]] = SimpleQueue()
    for share in _shares(texts):
        shares.put(share)
    scores = np.empty((count, 3))

    def score_shares(watch: Watch) -> None:
        worker = _Worker.borrow(stem, tokenize, watch)
        for start, stop in _taken(shares):
            watch()
            worker.forget()
            if len(texts) != count or len(groups) != count:
                raise InputValueError("predictions and references must keep their lengths while they are scored")
            if not score(worker, texts, groups, start, stop, scores[start:stop]):
                _score_best(score, worker, texts, groups, start, stop, scores[start:stop])
        worker.give_back()

    _run(score_shares, min(workers, max(shares.qsize(), 1)))
    return scores


def _shares(texts: list[Any]) -> Iterator[tuple[int, int]]:
    """Starts and ends of what is scored at a time."""
    characters = sum(len(text) for text in texts[:SAMPLE] if isinstance(text, str))
    share = min(SHARE_PAIRS, SHARE_CHARACTERS * SAMPLE // max(characters, 1) + 1)
    for start in range(0, len(texts), share):
        yield start, min(start + share, len(texts))


def _taken(shares: SimpleQueue[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Shares until there are no more; several threads may take from the same."""
    while True:
        try:
            yield shares.get_nowait()
        except Empty:
            return


def _score_best(
    score: Score, worker: _Worker, predictions: list[str], groups: list[Any], start: int, stop: int, scores: FloatArray
) -> None:
    """Scores of each prediction's best reference, the first of equals."""
    texts = predictions[start:stop]
    _check_all_texts("predictions", texts, start)
    references = [
        _check_references(f"references[{index}]", group) for index, group in enumerate(groups[start:stop], start)
    ]
    counts = [len(group) for group in references]
    repeated = [text for text, count in zip(texts, counts, strict=True) for _ in range(count)]
    each = np.empty((len(repeated), 3))
    score(worker, repeated, list(chain.from_iterable(references)), 0, len(repeated), each)
    starts = np.cumsum([0, *counts[:-1]])
    best = np.maximum.reduceat(each[:, 2], starts)
    places = np.flatnonzero(each[:, 2] == np.repeat(best, counts))
    # The first place from the start of each group on.
    scores[:] = each[places[np.searchsorted(places, starts)]]


def _run(work: Callable[[Watch], None], threads: int) -> None:
    """Calls `work` in each of the threads, which share it among themselves; the kernel releases the GIL."""
    if threads == 1:
        work(_go_on)
        return
    stopped = Event()

    def watch() -> None:
        if stopped.is_set():
            raise _Stopped

    with ThreadPoolExecutor(threads) as pool:
        try:
            for done in as_completed([pool.submit(work, watch) for _ in range(threads)]):
                done.result()  # raises what the thread raised
        finally:
            stopped.set()


def _not_text(name: str, value: object) -> InputTypeError:
    return InputTypeError(f"{name} must be a str, not {type(value).__name__}")


def _check_texts(name: str, values: object) -> list[str]:
    """A list of the texts. Unlike a model, Rouge-L reads any str: a lone surrogate separates words."""
    texts = _listed(name, values, "str")
    _check_all_texts(name, texts)
    return texts


def _check_all_texts(name: str, values: list[Any], first: int = 0) -> None:
    """`first`: the place of the first of the values in what the user calls `name`."""
    if not _kernel.all_texts(values):
        index = next(index for index, value in enumerate(values) if not isinstance(value, str))
        raise _not_text(f"{name}[{first + index}]", values[index])


def _listed(name: str, values: object, of: str) -> list[Any]:
    """The values as a list: the caller's own if it is one, since copying millions of texts takes its time."""
    return values if type(values) is list else check_list(name, values, of=of)


def _check_references(name: str, value: object) -> tuple[str, ...]:
    """One prediction's references."""
    if isinstance(value, str):
        return (value,)
    references = tuple(_check_texts(name, value))
    if not references:
        raise InputValueError(f"{name} is empty: give at least one reference")
    return references


def _check_tokenizer(stem: object, tokenizer: object) -> Tokenize | None:
    """The function that makes tokens; None for rouge-score's, which the kernel makes."""
    if not isinstance(stem, bool):
        raise InputTypeError(f"stem must be True or False, not {stem!r}")
    if tokenizer == "rouge":
        return None
    if stem:
        raise InputValueError("stem=True works with tokenizer='rouge' alone: Porter's stemmer knows ASCII words")
    tokenize = TOKENIZERS.get(tokenizer) if isinstance(tokenizer, str) else tokenizer
    if not callable(tokenize):
        raise InputValueError(f"tokenizer must be 'rouge', 'unicode', 'char' or a function, not {tokenizer!r}")
    return tokenize


def _check_threads(threads: int | None) -> int:
    return 1 if threads is None else check_count("threads", threads)


def _choose_kernel() -> tuple[str, ModuleType]:
    pinned = os.environ.get("CAPPY_LITE_KERNEL")
    if pinned not in (None, "c", "python"):
        raise InputValueError(f"the environment variable CAPPY_LITE_KERNEL must be 'c' or 'python', not {pinned!r}")
    if pinned != "python":
        try:
            return "c", importlib.import_module("cappy_lite._kernel")
        except ImportError as error:
            if pinned == "c":
                raise
            warnings.warn(
                f"cappy-lite's C kernel can't be loaded ({error}); Rouge-L falls back to Python, which is far slower. "
                "Install a compiler and reinstall cappy-lite, or set CAPPY_LITE_KERNEL=python.",
                RuntimeWarning,
                stacklevel=2,
            )
    return "python", importlib.import_module("cappy_lite._kernel_py")


KERNEL, _kernel = _choose_kernel()
