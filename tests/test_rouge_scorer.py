"""The drop-in class: equal to rouge-score's own beside it, and what it refuses."""

from __future__ import annotations

import pickle
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import nltk
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rouge_score import rouge_scorer as original
from rouge_score import scoring
from rouge_score.tokenizers import DefaultTokenizer

from cappy_lite import rouge_scorer
from cappy_lite.errors import InputTypeError, InputValueError
from cappy_lite.rouge_scorer import RougeScorer, Score

TYPES = ("rougeL", "rougeLsum")

TARGETS = [
    "The skier was skiing down the mountain.\nIt had snowed.\n\nShe was happy.",
    "A skier skis. The mountain is high.",
    "\n\n",
    "",
    "Snow, snow; snow! \nThe mountains' snows.",
]
PREDICTIONS = [
    "It had snowed on the mountain.\nThe skier skied down happily.",
    "The skier is skiing. It snowed.",
    "",
    "\n...\n",
    "snow snow the snow\n\nmountain\nmountains",
]

# Few words, so that texts share many; some of them are one stem, one is no word, and newlines may follow each other.
WORDS = ["the", "cat", "cats", "skiing", "skis", "a", "Sat.", "on", "-", "it's", "mat", "\n", "\n\n", "e\u0301te\u0301"]
texts = st.one_of(
    st.lists(st.sampled_from(WORDS), max_size=20).map(" ".join),
    st.text(st.characters(), max_size=30),  # surrogates too
)


class Spaces:
    """Tokens that tell spaces, newlines and all other characters that separate lines apart."""

    def tokenize(self, text: str) -> list[str]:
        return text.split(" ")


class Numbers:
    """Tokens that aren't str."""

    def tokenize(self, text: str) -> tuple[int, ...]:
        return tuple(map(len, text.split()))


class Failing:
    def tokenize(self, text: str) -> list[str]:
        raise LookupError("no vocabulary")


def both(rouge_types: Any, **options: Any) -> tuple[RougeScorer, original.RougeScorer]:
    return RougeScorer(rouge_types, **options), original.RougeScorer(rouge_types, **options)


def assert_same(ours: dict[str, Score], theirs: dict[str, scoring.Score]) -> None:
    assert list(ours) == list(theirs)
    assert ours == theirs  # the same numbers, or tuples of them would differ
    assert {type(score) for score in ours.values()} == {Score}
    assert {type(number) for score in ours.values() for number in score} == {float}


# Beside rouge-score


@pytest.mark.parametrize("rouge_types", [TYPES, TYPES[::-1], TYPES[:1], TYPES[1:], ["rougeL", "rougeL"]])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_stemmer": True},
        {"tokenizer": Spaces()},
        {"tokenizer": Numbers()},
        {"tokenizer": DefaultTokenizer(use_stemmer=True)},
        {"tokenizer": Spaces(), "use_stemmer": True},  # which it overrides
    ],
)
def test_scores_are_those_of_rouge_score(rouge_types: Any, options: dict[str, Any]) -> None:
    ours, theirs = both(rouge_types, **options)
    for prediction in [*PREDICTIONS, *TARGETS]:
        for target in TARGETS:
            assert_same(ours.score(target, prediction), theirs.score(target, prediction))
        assert_same(ours.score_multi(TARGETS, prediction), theirs.score_multi(TARGETS, prediction))


@given(st.lists(texts, min_size=1, max_size=4), texts, st.booleans())
def test_any_text(targets: list[str], prediction: str, use_stemmer: bool) -> None:
    ours, theirs = both(TYPES, use_stemmer=use_stemmer)
    assert_same(ours.score(targets[0], prediction), theirs.score(targets[0], prediction))
    assert_same(ours.score_multi(targets, prediction), theirs.score_multi(targets, prediction))


@given(texts, texts, st.sampled_from([Spaces(), Numbers()]))
def test_any_text_with_another_tokenizer(target: str, prediction: str, tokenizer: rouge_scorer.Tokenizer) -> None:
    ours, theirs = both(TYPES, tokenizer=tokenizer)
    assert_same(ours.score(target, prediction), theirs.score(target, prediction))


@pytest.fixture(scope="module")
def punkt(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """NLTK's data for finding sentences, with one abbreviation."""
    root = tmp_path_factory.mktemp("nltk_data")
    folder = root / "tokenizers" / "punkt_tab" / "english"
    folder.mkdir(parents=True)
    for name in ("collocations.tab", "sent_starters.txt", "ortho_context.tab"):
        (folder / name).write_text("")
    (folder / "abbrev_types.txt").write_text("dr\n")
    nltk.data.path.insert(0, str(root))
    yield
    nltk.data.path.remove(str(root))


SENTENCES = [
    "Dr. Skier skis. She was\nhappy. It\v snowed!",
    "It snowed! It snowed! She was happy\n\n. Dr. Skier skied.",
    "It snowed on Dr. Skier\nand on the mat. \n\n A cat\vsat. It is. the end.",
    "\v\v\n. \r\n A. \v\r B.",
    "no end",
    ". . .",
    "",
]


@pytest.mark.usefixtures("punkt")
@pytest.mark.parametrize(
    "options", [{}, {"use_stemmer": True}, {"tokenizer": Spaces()}, {"tokenizer": DefaultTokenizer()}]
)
def test_split_summaries(options: dict[str, Any]) -> None:
    assert nltk.sent_tokenize(SENTENCES[0]) == ["Dr. Skier skis.", "She was\nhappy.", "It\v snowed!"]
    ours, theirs = both(TYPES, split_summaries=True, **options)
    for prediction in SENTENCES:
        for target in SENTENCES:
            assert_same(ours.score(target, prediction), theirs.score(target, prediction))
        assert_same(ours.score_multi(SENTENCES, prediction), theirs.score_multi(SENTENCES, prediction))


@pytest.mark.usefixtures("punkt")
@given(
    *[st.lists(st.sampled_from(["a", "b", "Dr. ", ". ", "! ", "\n", "\v", "\r", " "]), max_size=20).map("".join)] * 2,
    st.sampled_from([None, Spaces()]),
)
def test_any_sentences(target: str, prediction: str, tokenizer: rouge_scorer.Tokenizer | None) -> None:
    ours, theirs = both(["rougeLsum"], split_summaries=True, tokenizer=tokenizer)
    assert_same(ours.score(target, prediction), theirs.score(target, prediction))


@pytest.mark.usefixtures("punkt")
def test_sentences_are_not_lines() -> None:
    target, prediction = "First sentence. Second Sentence.", "Second sentence. First Sentence."
    assert RougeScorer(["rougeLsum"]).score(target, prediction)["rougeLsum"].fmeasure == 0.5
    assert RougeScorer(["rougeLsum"], split_summaries=True).score(target, prediction)["rougeLsum"].fmeasure == 1.0


def test_bytes_are_decoded() -> None:
    ours, theirs = both(TYPES)
    target, prediction = "Le chat \u00e9tait assis\nla".encode(), b"le chat assis\nla"
    assert_same(ours.score(target, prediction), theirs.score(target, prediction))
    assert ours.score_multi([target, "le chat"], prediction) == ours.score_multi(
        [target.decode(), "le chat"], prediction.decode()
    )


def test_its_scores_can_be_aggregated_by_rouge_score() -> None:
    aggregator = scoring.BootstrapAggregator(n_samples=2)
    for _ in range(2):
        aggregator.add_scores(RougeScorer(["rougeL"]).score("a b", "a"))
    assert aggregator.aggregate()["rougeL"].mid == Score(1.0, 0.5, 2 / 3)


# What rouge-score's own tests expect


@pytest.mark.parametrize(
    ("target", "prediction", "expected"),
    [
        ("testing one two", "testing one", (1, 2 / 3, 4 / 5)),
        ("testing one two", "testing two", (1, 2 / 3, 4 / 5)),
        ("testing one two", "", (0, 0, 0)),
    ],
)
def test_rouge_l(target: str, prediction: str, expected: tuple[float, float, float]) -> None:
    assert RougeScorer(["rougeL"]).score(target, prediction) == {"rougeL": pytest.approx(expected)}


@pytest.mark.parametrize(
    ("target", "prediction", "expected"),
    [
        ("w1 w2 w3 w4 w5", "w1 w2 w6 w7 w8\nw1 w3 w8 w9 w5", (0.4, 0.8, 8 / 15)),  # the example of the Rouge paper
        ("First sentence.\nSecond Sentence.", "Second sentence.\nFirst Sentence.", (1, 1, 1)),
        ("First sentence. Second Sentence.", "Second sentence. First Sentence.", (0.5, 0.5, 0.5)),
        ("testing one two", "", (0, 0, 0)),
        ("w1 w2 w3 w4 w5", "", (0, 0, 0)),
        ("", "w1", (0, 0, 0)),
        ("w1 w2 w3 w4 w5", "/", (0, 0, 0)),
    ],
)
def test_rouge_lsum(target: str, prediction: str, expected: tuple[float, float, float]) -> None:
    for use_stemmer in (False, True):
        scorer = RougeScorer(["rougeLsum"], use_stemmer=use_stemmer)
        assert scorer.score(target, prediction) == {"rougeLsum": pytest.approx(expected)}


def test_best_target() -> None:
    result = RougeScorer(["rougeL"]).score_multi(["first text", "first something"], "text first")
    assert result["rougeL"].fmeasure == pytest.approx(0.5)


def test_each_type_has_its_own_best_target() -> None:
    result = RougeScorer(TYPES).score_multi(["b c", "c\nb\na"], "a\nb\nc")
    assert result == {"rougeL": (2 / 3, 1.0, 0.8), "rougeLsum": (1.0, 1.0, 1.0)}


# How it may be used


def test_results_have_names() -> None:
    result = RougeScorer(["rougeL"]).score(target="a b c", prediction="a b")
    assert repr(result) == "{'rougeL': Score(precision=1.0, recall=0.6666666666666666, fmeasure=0.8)}"


@pytest.mark.parametrize("tokenizer", [None, Spaces()])
def test_it_can_be_pickled(tokenizer: rouge_scorer.Tokenizer | None) -> None:
    scorer = RougeScorer(TYPES, use_stemmer=True, tokenizer=tokenizer)
    again = pickle.loads(pickle.dumps(scorer))
    assert again.rouge_types == list(TYPES)
    for target, prediction in zip(TARGETS, PREDICTIONS, strict=True):
        assert again.score(target, prediction) == scorer.score(target, prediction)
    score = scorer.score("a", "a")["rougeL"]
    assert pickle.loads(pickle.dumps(score)) == score


def test_threads_may_share_one() -> None:
    scorer = RougeScorer(TYPES, use_stemmer=True)
    pairs = [
        (target * repeats, prediction) for repeats in range(20) for target in TARGETS for prediction in PREDICTIONS
    ]
    expected = [scorer.score(*pair) for pair in pairs]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda pair: scorer.score(*pair), pairs * 3)) == expected * 3


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        *[
            (
                lambda name=name: RougeScorer(["rougeL", name]),
                InputValueError,
                rf"rouge_types\[1\] must be 'rougeL' or 'rougeLsum', not {name!r}: the rouge-score package has",
            )
            for name in ("rouge1", "rouge2", "rougen", "rouge0", "rouge10", "rougel", "", None)
        ],
        (lambda: RougeScorer("rougeL"), InputTypeError, "rouge_types must be a list of str, not a single str"),
        (lambda: RougeScorer(None), InputTypeError, "rouge_types must be a list of str, not NoneType"),
        (
            lambda: RougeScorer(["rougeL"], tokenizer=str.split),
            InputTypeError,
            r"tokenizer must be an object with a method tokenize\(text\), or None, not method_descriptor",
        ),
        (lambda: RougeScorer(TYPES).score(None, "a"), InputTypeError, "target must be a str, not NoneType"),
        (lambda: RougeScorer(TYPES).score("a", ["a"]), InputTypeError, "prediction must be a str, not list"),
        (lambda: RougeScorer(TYPES).score(b"\xff", "a"), InputValueError, "target is bytes that aren't UTF-8 at 0"),
        (lambda: RougeScorer(TYPES).score_multi([], "a"), InputValueError, "targets is empty: give at least one"),
        (
            lambda: RougeScorer(TYPES).score_multi("a", "a"),
            InputTypeError,
            "targets must be a list of str, not a single",
        ),
        (lambda: RougeScorer(TYPES).score_multi(["a", 1], "a"), InputTypeError, r"targets\[1\] must be a str, not int"),
        (lambda: RougeScorer(TYPES).score_multi(["a"], 1), InputTypeError, "prediction must be a str, not int"),
        (
            lambda: RougeScorer(TYPES, tokenizer=Failing()).score("some target", "a"),
            InputValueError,
            "tokenizer raised LookupError for the text 'a': no vocabulary",
        ),
    ],
)
def test_bad_arguments_are_named(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_missing_nltk_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    scorer = RougeScorer(TYPES, split_summaries=True)
    monkeypatch.setitem(sys.modules, "nltk", None)
    with pytest.raises(InputValueError, match=r"split_summaries=True needs NLTK, .*: pip install nltk"):
        scorer.score("a", "a")
    assert RougeScorer(["rougeL"], split_summaries=True).score("a", "a")["rougeL"].fmeasure == 1.0


SPLIT_WITHOUT_DATA = """
import nltk
from cappy_lite.rouge_scorer import RougeScorer
nltk.data.path.clear()
RougeScorer(["rougeLsum"], split_summaries=True).score("a", "a")
"""


def test_missing_data_of_nltk_is_named(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SPLIT_WITHOUT_DATA], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.stderr.splitlines()[-1] == (
        "cappy_lite.errors.InputValueError: split_summaries=True needs NLTK's data punkt_tab, which isn't found: "
        "python -m nltk.downloader punkt_tab"
    )


def test_it_loads_nothing_heavy(tmp_path: Path) -> None:
    program = (
        "import sys; from cappy_lite import rouge_scorer; rouge_scorer.RougeScorer(['rougeL']).score('a', 'a');"
        "print(*{name.partition('.')[0] for name in sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert not set(done.stdout.split()) & {"onnxruntime", "tokenizers", "torch", "nltk", "rouge_score", "absl"}


# README


def test_the_readme_shows_what_it_gives(capsys: pytest.CaptureFixture[str]) -> None:
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    section = readme.split("\n## Rouge-L\n")[1].split("\n## ")[0]
    examples = re.findall(r"^```python\n(.+?)^```\n\n((?: {4}[^\n]+\n)+)", section, re.DOTALL | re.MULTILINE)
    assert len(examples) == section.count("```python") == 2
    for program, shown in examples:
        exec(program, {})
        assert capsys.readouterr().out == textwrap.dedent(shown)
