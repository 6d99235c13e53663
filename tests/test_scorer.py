"""Scores and rankings: the same alone, beside others, in any order, process and thread; and what callers may pass."""

from __future__ import annotations

import pickle
import random
import warnings
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pytest
from tiny_model import WORDS, write_tiny_model

import cappy_lite
from cappy_lite import Ranked, Scorer
from cappy_lite import engine as engine_module
from cappy_lite import session as session_module
from cappy_lite.errors import InputTypeError, InputValueError, ModelError, TruncationWarning
from cappy_lite.packing import ROW_TOKENS, PackedRow, pack
from cappy_lite.session import Session
from cappy_lite.tokens import TextEncoder

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

FloatArray = npt.NDArray[np.float32]

INSTRUCTION = "Put the concepts together to form a sentence: ski, mountain, skier"
CANDIDATES = ["Skier skis down the mountain.", "A mountain.", "The chef cooks pasta.", "", "xyz 42!"]


@pytest.fixture(scope="module")
def scorer(tiny_model: Path) -> Scorer:
    return Scorer(tiny_model, threads=1)


def texts(count: int, seed: int = 0) -> list[str]:
    """Different texts of 1 to 12 words."""
    choose = random.Random(seed)
    return [f"{index} {' '.join(choose.choices(WORDS, k=choose.randint(1, 12)))}" for index in range(count)]


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[PackedRow]:
    """The rows that the model really reads from here on."""
    seen: list[PackedRow] = []
    tensors = Session.tensors

    def recorded(
        self: Session, names: list[str], row: PackedRow, context: FloatArray | None = None, *, kept_tokens: int = 0
    ) -> list[FloatArray]:
        seen.append(row)
        return tensors(self, names, row, context, kept_tokens=kept_tokens)

    monkeypatch.setattr(Session, "tensors", recorded)
    return seen


def test_scores_are_one_float32_for_each_candidate(scorer: Scorer) -> None:
    scores = scorer.score(INSTRUCTION, CANDIDATES)
    assert scores.dtype == np.float32
    assert scores.shape == (len(CANDIDATES),)
    assert ((scores > 0) & (scores < 1)).all()
    assert len(set(scores.tolist())) == len(CANDIDATES)


def test_scores_depend_on_the_instruction(scorer: Scorer) -> None:
    assert (scorer.score(INSTRUCTION, CANDIDATES) != scorer.score("Name a film", CANDIDATES)).all()


def test_a_score_is_the_same_alone_and_beside_others(scorer: Scorer) -> None:
    candidates = texts(300)
    together = scorer.score(INSTRUCTION, candidates)
    alone = np.concatenate([scorer.score(INSTRUCTION, [candidate]) for candidate in candidates])
    np.testing.assert_allclose(together, alone, rtol=0, atol=1e-5)


def test_a_score_is_the_same_in_any_order(scorer: Scorer) -> None:
    candidates = texts(200)
    order = np.random.default_rng(0).permutation(len(candidates))
    shuffled = scorer.score(INSTRUCTION, [candidates[index] for index in order])
    np.testing.assert_allclose(shuffled, scorer.score(INSTRUCTION, candidates)[order], rtol=0, atol=1e-5)


@pytest.mark.parametrize("row_tokens", [1, 50, 333, 5000])
def test_a_score_is_the_same_however_rows_are_split(scorer: Scorer, tiny_model: Path, row_tokens: int) -> None:
    candidates = texts(200)
    encoder = TextEncoder(tiny_model / "tokenizer.json", cls_token="[CLS]", sep_token="[SEP]")
    session = Session(tiny_model / "model.onnx", threads=1)
    logits = np.empty(len(candidates), dtype=np.float32)
    for row in pack(
        encoder.encode(INSTRUCTION),
        [encoder.encode(candidate) for candidate in candidates],
        cls_id=encoder.cls_id,
        sep_id=encoder.sep_id,
        max_tokens=160,
        row_tokens=row_tokens,
    ):
        logits[row.candidate_indices] = session.run(row)
    np.testing.assert_allclose(scorer.score(INSTRUCTION, candidates), 1 / (1 + np.exp(-logits)), rtol=0, atol=1e-5)


@pytest.mark.parametrize("threads", [2, 5, None])
def test_a_score_is_the_same_with_any_number_of_threads(scorer: Scorer, tiny_model: Path, threads: int | None) -> None:
    candidates = texts(100)
    other = Scorer(tiny_model, threads=threads)
    np.testing.assert_allclose(
        other.score(INSTRUCTION, candidates), scorer.score(INSTRUCTION, candidates), rtol=0, atol=1e-5
    )


def test_a_score_is_the_same_when_many_threads_share_a_scorer(scorer: Scorer) -> None:
    groups = [texts(40, seed) for seed in range(16)]
    expected = [scorer.score(INSTRUCTION, group) for group in groups]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda group: scorer.score(INSTRUCTION, group), groups))
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


def test_score_many_is_score_for_each(scorer: Scorer) -> None:
    instructions = [INSTRUCTION, "", "Is it good?", "word " * 140]
    candidates = [CANDIDATES, texts(50), [], ["yes"]]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TruncationWarning)
        together = scorer.score_many(instructions, candidates)
        for scores, instruction, group in zip(together, instructions, candidates, strict=True):
            np.testing.assert_array_equal(scores, scorer.score(instruction, group))
    assert scorer.score_many([], []) == []


def test_short_instructions_share_a_row(scorer: Scorer, runs: list[PackedRow]) -> None:
    instructions = [f"Is {number} good?" for number in range(60)]
    candidates = [[f"yes {number}", "no"][: 1 + number % 2] for number in range(60)]
    together = scorer.score_many(instructions, candidates)
    assert len(runs) == -(-sum(len(row.input_ids) for row in runs) // ROW_TOKENS)
    for scores, instruction, group in zip(together, instructions, candidates, strict=True):
        np.testing.assert_allclose(scores, scorer.score(instruction, group), rtol=0, atol=1e-6)


# A handle


def test_a_handle_scores_as_its_scorer(scorer: Scorer, runs: list[PackedRow]) -> None:
    groups = [["yes"], CANDIDATES, texts(300), [], ["yes", "yes", "no"]]
    with scorer.instruction(INSTRUCTION) as handle:
        found = [handle.score(group) for group in groups]
        ranking = handle.rerank(CANDIDATES, top_k=2)
    heads = [int((row.token_type_ids == 0).sum()) for row in runs]
    assert heads[0] > 0
    assert sum(heads[1:]) == 0  # the instruction was read once
    for scores, group in zip(found, groups, strict=True):
        np.testing.assert_allclose(scores, scorer.score(INSTRUCTION, group), rtol=0, atol=1e-6)
    assert [row.index for row in ranking] == [row.index for row in scorer.rerank(INSTRUCTION, CANDIDATES, top_k=2)]


def test_a_handle_reads_an_instruction_once_for_each_of_its_cuts(scorer: Scorer, runs: list[PackedRow]) -> None:
    candidates = ["yes", words(60), "no", words(59), words(100)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TruncationWarning)
        with scorer.instruction(words(140)) as handle:
            first, second = handle.score(candidates), handle.score(candidates)
            cuts = {int((row.token_type_ids == 0).sum()) for row in runs} - {0}
            assert len(cuts) == 2
            assert sum((row.token_type_ids == 0).any() for row in runs) == 2
        expected = scorer.score(words(140), candidates)
    np.testing.assert_array_equal(first, second)
    np.testing.assert_allclose(first, expected, rtol=0, atol=1e-6)


def test_threads_may_share_a_handle(scorer: Scorer) -> None:
    groups = [texts(40, seed) for seed in range(12)]
    with scorer.instruction(INSTRUCTION) as handle, ThreadPoolExecutor(6) as pool:
        found = list(pool.map(handle.score, groups))
    for scores, group in zip(found, groups, strict=True):
        np.testing.assert_allclose(scores, scorer.score(INSTRUCTION, group), rtol=0, atol=1e-6)


def test_a_closed_handle_says_so(scorer: Scorer) -> None:
    handle = scorer.instruction(INSTRUCTION)
    handle.close()
    handle.close()
    with pytest.raises(InputValueError, match="this instruction is closed: open another with"):
        handle.score(CANDIDATES)


def test_a_handle_names_what_is_wrong(scorer: Scorer) -> None:
    for wrong in (None, 3, ["a"]):
        with pytest.raises(InputTypeError, match="text must be a str"):
            scorer.instruction(wrong)  # type: ignore[arg-type]
    with scorer.instruction(INSTRUCTION) as handle:
        with pytest.raises(InputTypeError, match="candidates must be a list of str"):
            handle.score("yes")
        with pytest.raises(InputValueError, match="top_k must be at least 1"):
            handle.rerank(CANDIDATES, top_k=0)
        with pytest.warns(TruncationWarning) as caught:
            handle.score([words(200)])
    assert [warning.filename for warning in caught] == [__file__]


def test_identical_candidates_are_read_once(scorer: Scorer, runs: list[PackedRow]) -> None:
    scores = scorer.score(INSTRUCTION, ["yes", "no", "yes", "yes", "no", "it is"])
    assert sum(len(row.score_positions) for row in runs) == 3
    assert scores[0] == scores[2] == scores[3]
    assert scores[1] == scores[4]
    np.testing.assert_array_equal(scores[[0, 1, 5]], scorer.score(INSTRUCTION, ["yes", "no", "it is"]))


def test_nothing_is_read_without_candidates(scorer: Scorer, runs: list[PackedRow]) -> None:
    scores = scorer.score(INSTRUCTION, [])
    assert scores.dtype == np.float32
    assert scores.shape == (0,)
    assert scorer.rerank(INSTRUCTION, []) == []
    assert runs == []


def test_ten_thousand_candidates_are_never_all_in_memory(scorer: Scorer, monkeypatch: pytest.MonkeyPatch) -> None:
    encode = TextEncoder.encode
    rows: list[weakref.ref[npt.NDArray[np.int64]]] = []
    lengths, rows_alive, texts_waiting = [], [], []
    encoded = scored = 0

    def watched_encode(self: TextEncoder, text: str) -> list[int]:
        nonlocal encoded
        encoded += 1
        return encode(self, text)

    def watched_run(
        self: Session, names: list[str], row: PackedRow, context: FloatArray | None = None, *, kept_tokens: int = 0
    ) -> list[FloatArray]:
        nonlocal scored
        rows.append(weakref.ref(row.input_ids))
        rows_alive.append(sum(one() is not None for one in rows))
        texts_waiting.append(encoded - 1 - scored)  # one of the encoded is the instruction
        lengths.append(len(row.input_ids))
        scored += len(row.score_positions)
        return tensors(self, names, row, context, kept_tokens=kept_tokens)

    tensors = Session.tensors
    monkeypatch.setattr(TextEncoder, "encode", watched_encode)
    monkeypatch.setattr(Session, "tensors", watched_run)
    assert scorer.score(INSTRUCTION, [f"the {number}" for number in range(10_000)]).shape == (10_000,)
    assert scored == 10_000 + 1  # the instruction's own row
    assert max(lengths) <= ROW_TOKENS
    assert max(rows_alive) <= 2
    assert max(texts_waiting) <= engine_module.CHUNK_CANDIDATES


def test_an_instruction_is_encoded_once(scorer: Scorer, monkeypatch: pytest.MonkeyPatch) -> None:
    encode, seen = TextEncoder.encode, []

    def watched(self: TextEncoder, text: str) -> list[int]:
        seen.append(text)
        return encode(self, text)

    monkeypatch.setattr(TextEncoder, "encode", watched)
    scorer.score(INSTRUCTION, [f"the {number}" for number in range(2000)])
    assert seen.count(INSTRUCTION) == 1


def test_special_tokens_in_a_text_are_text(scorer: Scorer, runs: list[PackedRow]) -> None:
    scorer.score("[CLS] Is it good? [SEP]", ["[SEP]", "[PAD] yes [UNK]"])
    [row] = runs
    special = np.flatnonzero(row.input_ids < 4)  # [PAD], [UNK], [CLS] and [SEP] come first in the vocabulary
    assert special.tolist() == [0, row.segment_ids.tolist().index(1) - 1, *row.score_positions]


# Ranking


def test_rerank_puts_the_best_first(scorer: Scorer) -> None:
    ranking = scorer.rerank(INSTRUCTION, CANDIDATES)
    scores = scorer.score(INSTRUCTION, CANDIDATES)
    assert sorted(row.index for row in ranking) == list(range(len(CANDIDATES)))
    assert [row.score for row in ranking] == sorted(scores.tolist(), reverse=True)
    for row in ranking:
        assert isinstance(row, Ranked)
        assert (type(row.index), type(row.score)) == (int, float)
        assert row == (row.index, CANDIDATES[row.index], float(scores[row.index]))


def test_ties_keep_the_order_of_the_input(scorer: Scorer) -> None:
    ranking = scorer.rerank(INSTRUCTION, ["no", "yes", "no", "yes", "no"])
    assert [row.index for row in ranking] in ([0, 2, 4, 1, 3], [1, 3, 0, 2, 4])


@pytest.mark.parametrize("top_k", [1, 2, 5, 6, np.int64(3)])
def test_top_k_is_the_head_of_the_ranking(scorer: Scorer, top_k: int) -> None:
    assert scorer.rerank(INSTRUCTION, CANDIDATES, top_k=top_k) == scorer.rerank(INSTRUCTION, CANDIDATES)[:top_k]


# What callers pass


@pytest.mark.parametrize("kind", [list, tuple, np.array, iter])
def test_any_ordered_collection_will_do(scorer: Scorer, kind: Callable[[list[str]], list[str]]) -> None:
    np.testing.assert_array_equal(scorer.score(INSTRUCTION, kind(CANDIDATES)), scorer.score(INSTRUCTION, CANDIDATES))


def test_the_callers_lists_are_left_alone(scorer: Scorer) -> None:
    candidates, instructions, groups = list(CANDIDATES), ["a", "b"], [["c", "d"], ["e"]]
    ranking = scorer.rerank(INSTRUCTION, candidates)
    scorer.score(INSTRUCTION, candidates)
    scorer.score_many(instructions, groups)
    assert candidates == CANDIDATES
    assert (instructions, groups) == (["a", "b"], [["c", "d"], ["e"]])
    ranking.clear()
    assert len(scorer.rerank(INSTRUCTION, candidates)) == len(CANDIDATES)


@pytest.mark.parametrize(
    ("instruction", "candidates", "error", "message"),
    [
        ("a", "b", InputTypeError, "candidates must be a list of str, not a single str: put it in a list"),
        ("a", None, InputTypeError, "candidates must be a list of str, not NoneType"),
        ("a", b"b", InputTypeError, "candidates must be a list of str, not bytes"),
        ("a", {"b"}, InputTypeError, "candidates must be a list of str, not set"),
        ("a", {"b": 1}, InputTypeError, "candidates must be a list of str, not dict"),
        ("a", 3, InputTypeError, "candidates must be a list of str, not int"),
        ("a", ["b", None], InputTypeError, "candidates[1] must be a str, not NoneType"),
        ("a", ["b", "c", 3.5], InputTypeError, "candidates[2] must be a str, not float"),
        ("a", [["b"]], InputTypeError, "candidates[0] must be a str, not list"),
        (None, ["b"], InputTypeError, "instruction must be a str, not NoneType"),
        (["a"], ["b"], InputTypeError, "instruction must be a str, not list"),
        ("a", ["b", "c\ud800"], InputValueError, "candidates[1] has a lone surrogate at character 1"),
        ("\udfff", ["b"], InputValueError, "instruction has a lone surrogate at character 0"),
    ],
)
def test_wrong_texts_are_named(
    scorer: Scorer, instruction: str, candidates: list[str], error: type[Exception], message: str
) -> None:
    for call in (scorer.score, scorer.rerank):
        with pytest.raises(error) as caught:
            call(instruction, candidates)
        assert message in str(caught.value)


@pytest.mark.parametrize(
    ("instructions", "candidates", "error", "message"),
    [
        ("a", [["b"]], InputTypeError, "instructions must be a list of str, not a single str"),
        (["a"], "b", InputTypeError, "candidates must be a list of lists of str, not a single str"),
        (["a"], ["b"], InputTypeError, "candidates[0] must be a list of str, not a single str"),
        (["a"], [["b", 1]], InputTypeError, "candidates[0][1] must be a str, not int"),
        (["a", 2], [["b"], ["c"]], InputTypeError, "instructions[1] must be a str, not int"),
        (["a", "b"], [["c"]], InputValueError, "candidates has 1 lists for 2 instructions"),
    ],
)
def test_wrong_groups_are_named(
    scorer: Scorer, instructions: list[str], candidates: list[list[str]], error: type[Exception], message: str
) -> None:
    with pytest.raises(error) as caught:
        scorer.score_many(instructions, candidates)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("count", "error", "message"),
    [
        (0, InputValueError, "must be at least 1, or None, not 0"),
        (-3, InputValueError, "must be at least 1, or None, not -3"),
        (2.0, InputTypeError, "must be an int or None, not float"),
        ("2", InputTypeError, "must be an int or None, not str"),
        (True, InputTypeError, "must be an int or None, not bool"),
    ],
)
def test_wrong_counts_are_named(
    scorer: Scorer, tiny_model: Path, count: int, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=f"top_k {message}"):
        scorer.rerank(INSTRUCTION, CANDIDATES, top_k=count)
    with pytest.raises(error, match=f"threads {message}"):
        Scorer(tiny_model, threads=count)


# Length


def words(count: int) -> str:
    """A text of so many tokens."""
    return " ".join(["snow", "sun", "ski"][index % 3] for index in range(count))


def test_what_fits_is_read_whole_and_quietly(scorer: Scorer, runs: list[PackedRow]) -> None:
    scorer.score(words(120), [words(37), words(1)])
    assert [len(row.input_ids) for row in runs] == [160 + 2]


def test_cuts_are_counted_in_one_warning_at_the_callers_line(scorer: Scorer) -> None:
    candidates = [words(20), words(30), "yes", words(50), words(50)]
    with pytest.warns(TruncationWarning) as caught:
        scorer.score(words(150), candidates)
    [warning] = caught
    assert str(warning.message) == (
        "text was cut, since the model reads 160 tokens: 3 of 5 candidates lost their ends (at most 21 tokens), "
        "1 of 1 instructions lost their middle (at most 22 tokens)"
    )
    assert warning.filename == __file__


def test_every_way_in_warns_once_at_the_callers_line(scorer: Scorer) -> None:
    calls: list[Callable[[], object]] = [
        lambda: scorer.score("Is it?", [words(200)]),
        lambda: scorer.rerank("Is it?", [words(200), words(300)]),
        lambda: scorer.score_many(["Is it?", words(200), ""], [[words(200)], ["yes"], ["no"]]),
        lambda: cappy_lite.score("Is it?", [words(200)], model=scorer),
        lambda: cappy_lite.rerank("Is it?", [words(200)], model=scorer),
    ]
    for call in calls:
        with pytest.warns(TruncationWarning) as caught:
            call()
        assert [warning.filename for warning in caught] == [__file__]


def test_a_cut_beside_one_candidate_leaves_the_others_scores(scorer: Scorer) -> None:
    with pytest.warns(TruncationWarning):
        scores = scorer.score(words(140), ["yes", words(100), "no"])
    np.testing.assert_allclose(scores[[0, 2]], scorer.score(words(140), ["yes", "no"]), rtol=0, atol=1e-5)


# The shared models of score() and rerank()


def test_functions_agree_with_the_scorer(scorer: Scorer, tiny_model: Path) -> None:
    expected = scorer.score(INSTRUCTION, CANDIDATES)
    for model in (scorer, tiny_model, str(tiny_model)):
        np.testing.assert_allclose(cappy_lite.score(INSTRUCTION, CANDIDATES, model=model), expected, rtol=0, atol=1e-5)
        ranking = cappy_lite.rerank(INSTRUCTION, CANDIDATES, top_k=2, model=model)
        assert [row.index for row in ranking] == np.argsort(-expected, kind="stable")[:2].tolist()


def test_a_model_is_opened_once_for_all_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, opened = write_tiny_model(tmp_path / "tiny"), []
    open_session = session_module.open_session

    def watched(graph: Path, threads: int, *, packed: bool) -> InferenceSession:
        opened.append(graph)
        return open_session(graph, threads, packed=packed)

    monkeypatch.setattr(session_module, "open_session", watched)
    monkeypatch.chdir(tmp_path)
    models: list[str | Path] = [folder, str(folder), "tiny", Path("tiny")]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda index: cappy_lite.score("a", ["b"], model=models[index % 4]), range(32)))
    assert opened == [folder / "model.onnx"]


@pytest.mark.parametrize("model", [3, b"tiny", ["tiny"]])
def test_a_model_of_a_wrong_type_is_named(model: str) -> None:
    with pytest.raises(InputTypeError, match="model must be a shipped model's name, a folder's path or an open Scorer"):
        cappy_lite.score("a", ["b"], model=model)


# Other processes


def test_a_scorer_pickles_by_its_model(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tiny_model.parent)
    scorer = Scorer("tiny", threads=2)
    monkeypatch.chdir(tmp_path)
    data = pickle.dumps(scorer)
    assert len(data) < 500
    copy = pickle.loads(data)
    assert repr(copy) == repr(scorer) == f"Scorer({str(tiny_model)!r}, threads=2)"
    np.testing.assert_array_equal(copy.score(INSTRUCTION, CANDIDATES), scorer.score(INSTRUCTION, CANDIDATES))


def test_a_pickled_scorer_needs_its_folder(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path / "tiny")
    data = pickle.dumps(Scorer(folder))
    folder.rename(tmp_path / "elsewhere")
    with pytest.raises(ModelError, match="unknown model"):
        pickle.loads(data)
