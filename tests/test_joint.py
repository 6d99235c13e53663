"""Joint models through everything that scores: pairs, cuts, what a score may depend on, and what is said when."""

from __future__ import annotations

import json
import pickle
import shutil
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from tiny_joint import tiny_pair_tokenizer, write_tiny_joint
from tiny_model import WORDS, write_config
from tokenizers import Tokenizer, processors

import cappy_lite
import cappy_lite.joint as joint_module
from cappy_lite import Scorer
from cappy_lite.cli import main
from cappy_lite.errors import ModelError, TruncationWarning
from cappy_lite.joint import RUN_TOKENS, Pair, PairEncoder, open_joint_session, rows_of, run_pairs
from cappy_lite.packing import PackedRow
from cappy_lite.session import Session

INSTRUCTION = "put the word together: dog runs"
CANDIDATES = ["the dog runs on the street", "a cat", "snow", "the child eats pasta in the old house", ""]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_joint(tmp_path_factory.mktemp("models") / "joint")


@pytest.fixture(scope="module")
def scorer(model: Path) -> Scorer:
    return Scorer(model, threads=1)


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[list[Pair]]:
    """What is run, in the order in which it is."""
    seen: list[list[Pair]] = []

    def watched(session: object, pairs: list[Pair]) -> np.ndarray:
        seen.append(list(pairs))
        return run_pairs(session, pairs)

    monkeypatch.setattr(joint_module, "run_pairs", watched)
    return seen


def texts(count: int, seed: int = 0) -> list[str]:
    """Different texts of one to thirty words."""
    random = np.random.default_rng(seed)
    return [" ".join(random.choice(WORDS, size=1 + index % 30)) + f" {index}" for index in range(count)]


def words(count: int) -> str:
    """A text of so many tokens."""
    return " ".join(["snow", "sun", "ski"][index % 3] for index in range(count))


def alone(model: Path, instruction: str, candidate: str) -> float:
    """The graph's output for one pair, as the tokenizers library joins it."""
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    pair = tokenizer.encode(instruction, candidate)
    inputs = {"input_ids": np.array([pair.ids]), "token_type_ids": np.array([pair.type_ids])}
    return float(open_joint_session(model / "model.onnx", 1).run(None, inputs)[0][0])


# Scores


def test_scores_are_the_graphs_outputs_for_each_pair(scorer: Scorer, model: Path) -> None:
    expected = [alone(model, INSTRUCTION, candidate) for candidate in CANDIDATES]
    scores = scorer.score(INSTRUCTION, CANDIDATES)
    assert (scores.dtype, scores.shape) == (np.float32, (5,))
    assert np.abs(expected).max() > 1  # no sigmoid
    np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-5)


def test_a_sigmoid_is_applied_where_the_config_says_so(scorer: Scorer, tmp_path: Path) -> None:
    other = Scorer(write_tiny_joint(tmp_path / "sigmoid", score_activation="sigmoid"), threads=1)
    logits = scorer.score(INSTRUCTION, CANDIDATES).astype(np.float64)
    np.testing.assert_allclose(other.score(INSTRUCTION, CANDIDATES), 1 / (1 + np.exp(-logits)), rtol=0, atol=1e-6)


def test_a_score_depends_on_no_other_candidate_and_on_no_order(scorer: Scorer, model: Path) -> None:
    candidates = texts(200)
    scores = scorer.score(INSTRUCTION, candidates)
    order = np.random.default_rng(0).permutation(len(candidates))
    shuffled = scorer.score(INSTRUCTION, [candidates[index] for index in order])
    np.testing.assert_allclose(shuffled, scores[order], rtol=0, atol=1e-5)
    one_by_one = np.concatenate([scorer.score(INSTRUCTION, [candidate]) for candidate in candidates])
    np.testing.assert_allclose(one_by_one, scores, rtol=0, atol=1e-5)
    threaded = Scorer(model, threads=3).score(INSTRUCTION, candidates)
    np.testing.assert_allclose(threaded, scores, rtol=0, atol=1e-5)


def test_many_threads_may_share_a_scorer(scorer: Scorer) -> None:
    groups = [texts(40, seed) for seed in range(8)]
    expected = [scorer.score(INSTRUCTION, group) for group in groups]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda group: scorer.score(INSTRUCTION, group), groups))
    np.testing.assert_array_equal(found, expected)


def test_pairs_of_one_length_run_together_within_a_limit(model: Path) -> None:
    session = open_joint_session(model / "model.onnx", 1)

    shapes = []

    class Watched:
        get_inputs = session.get_inputs

        def run(self, outputs: list[str], inputs: dict[str, np.ndarray]) -> object:
            shapes.append(inputs["input_ids"].shape)
            return session.run(outputs, inputs)

    lengths = [20, 7, 20, 150, 7] * 30
    pairs = [Pair(np.full(length, 5), np.zeros(length, np.int64)) for length in lengths]
    assert run_pairs(Watched(), pairs).shape == (150,)
    assert sum(count for count, _ in shapes) == 150
    assert max(count * length for count, length in shapes) <= RUN_TOKENS
    assert len(shapes) == sum(-(-count // (RUN_TOKENS // length)) for length, count in ((7, 60), (20, 60), (150, 30)))


def test_identical_candidates_are_read_once(scorer: Scorer, runs: list[list[Pair]]) -> None:
    scores = scorer.score(INSTRUCTION, ["yes", "no", "yes", "yes", "no", "it is"])
    assert [len(pairs) for pairs in runs] == [3]
    assert scores[0] == scores[2] == scores[3]
    assert scores[1] == scores[4]


def test_nothing_is_read_without_candidates(scorer: Scorer, runs: list[list[Pair]]) -> None:
    assert scorer.score(INSTRUCTION, []).shape == (0,)
    assert scorer.rerank(INSTRUCTION, []) == []
    assert runs == []


def test_thousands_of_candidates_are_never_all_token_ids_at_once(scorer: Scorer, runs: list[list[Pair]]) -> None:
    scores = scorer.score(INSTRUCTION, [f"the {number}" for number in range(3000)])
    assert scores.shape == (3000,)
    assert [len(pairs) for pairs in runs] == [1024, 1024, 952]


def test_score_many_and_rerank_are_score(scorer: Scorer) -> None:
    instructions = [INSTRUCTION, "", "Is it good?"]
    candidates = [CANDIDATES, texts(50), []]
    for scores, instruction, group in zip(
        scorer.score_many(instructions, candidates), instructions, candidates, strict=True
    ):
        np.testing.assert_array_equal(scores, scorer.score(instruction, group))
    ranking = scorer.rerank(INSTRUCTION, CANDIDATES, top_k=2)
    expected = scorer.score(INSTRUCTION, CANDIDATES)
    assert [row.index for row in ranking] == np.argsort(-expected, kind="stable")[:2].tolist()
    assert cappy_lite.rerank(INSTRUCTION, CANDIDATES, top_k=2, model=scorer) == ranking


def test_a_scorer_pickles_by_its_model(scorer: Scorer) -> None:
    copy = pickle.loads(pickle.dumps(scorer))
    np.testing.assert_array_equal(copy.score(INSTRUCTION, CANDIDATES), scorer.score(INSTRUCTION, CANDIDATES))


def test_command_line(model: Path, scorer: Scorer, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["score", INSTRUCTION, *CANDIDATES, "--model", str(model)]) == 0
    done = capsys.readouterr()
    assert done.err == ""
    found = [float(line.partition("\t")[0]) for line in done.out.splitlines()]
    np.testing.assert_allclose(found, scorer.score(INSTRUCTION, CANDIDATES), atol=1e-4)
    assert main(["rerank", INSTRUCTION, *CANDIDATES, "--top-k", "1", "--model", str(model)]) == 0
    best = scorer.rerank(INSTRUCTION, CANDIDATES, top_k=1)[0]
    assert capsys.readouterr().out == f"{best.score:.4f}\t{best.text}\n"


# Pairs


def bert(tokenizer: Tokenizer) -> processors.PostProcessor:
    special = [(token, tokenizer.token_to_id(token)) for token in ("[SEP]", "[CLS]")]
    return processors.BertProcessing(*special)


def roberta(tokenizer: Tokenizer) -> processors.PostProcessor:
    special = [(token, tokenizer.token_to_id(token)) for token in ("[SEP]", "[CLS]")]
    return processors.RobertaProcessing(*special)


def template(tokenizer: Tokenizer) -> processors.PostProcessor:
    special = [(token, tokenizer.token_to_id(token)) for token in ("[SEP]", "[CLS]", "[PAD]")]
    return processors.TemplateProcessing(
        single="$A", pair="[CLS]:0 [PAD]:1 $A:1 [SEP]:0 [SEP]:1 [PAD]:0 $B:0", special_tokens=special
    )


@pytest.mark.parametrize("post_processor", [bert, roberta, template])
def test_pairs_are_joined_as_the_tokenizer_joins_them(
    tmp_path: Path, post_processor: Callable[[Tokenizer], processors.PostProcessor]
) -> None:
    tokenizer = tiny_pair_tokenizer()
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.post_processor = post_processor(tokenizer)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    encoder = PairEncoder(tmp_path / "tokenizer.json", 160)
    for instruction, candidate in [(INSTRUCTION, "a cat"), ("", "a cat"), (INSTRUCTION, ""), ("", ""), ("?", "!")]:
        expected = tokenizer.encode(instruction, candidate)
        pair = encoder.pair(encoder.encode(instruction), encoder.encode(candidate))
        assert pair.input_ids.tolist() == expected.ids
        assert pair.token_type_ids.tolist() == expected.type_ids


def test_special_tokens_in_a_text_are_text(scorer: Scorer, runs: list[list[Pair]]) -> None:
    scorer.score("[CLS] Is it good? [SEP]", ["[SEP] [PAD]"])
    [[pair]] = runs
    special = np.flatnonzero(pair.input_ids < 4)  # [PAD], [UNK], [CLS] and [SEP] come first in the vocabulary
    assert pair.input_ids[special].tolist() == [2, 3, 3]


def test_a_tokenizer_that_turns_pairs_round_is_named(tmp_path: Path) -> None:
    tokenizer = tiny_pair_tokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A", pair="$B $A")
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ModelError, match=r"tokenizer\.json doesn't join two texts to a pair, the first one first"):
        PairEncoder(tmp_path / "tokenizer.json", 160)


def test_a_model_that_reads_too_little_is_named(tmp_path: Path) -> None:
    folder = write_tiny_joint(tmp_path / "short", max_tokens=132)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TruncationWarning)
        assert Scorer(folder).score(words(200), ["yes"]).shape == (1,)
    tiny_pair_tokenizer().save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ModelError, match=r"with max_tokens 131 in config\.json, there is no room for a candidate"):
        PairEncoder(tmp_path / "tokenizer.json", 131)


# Length


@pytest.mark.parametrize(
    ("instruction", "candidate", "kept"),
    [
        (100, 57, (100, 57)),  # 160 tokens with three special ones
        (101, 57, (101, 56)),
        (500, 10, (147, 10)),
        (500, 29, (128, 29)),
        (500, 30, (128, 29)),
        (500, 500, (128, 29)),
        (100, 500, (100, 57)),
        (0, 500, (0, 157)),
        (500, 0, (157, 0)),
    ],
)
def test_the_candidate_comes_first(scorer: Scorer, instruction: int, candidate: int, kept: tuple[int, int]) -> None:
    cut = scorer._engine._encoder.cut_lengths(instruction, candidate)
    assert (cut.instruction, cut.candidate) == kept


def test_a_long_instruction_loses_its_middle_and_a_long_candidate_its_end(scorer: Scorer) -> None:
    encoder = scorer._engine._encoder
    pair = encoder.pair(range(1000, 1500), range(2000, 2500))
    assert pair.input_ids.tolist() == [2, *range(1000, 1064), *range(1436, 1500), 3, *range(2000, 2029), 3]
    assert pair.token_type_ids.tolist() == [0] * 130 + [1] * 30


def test_cuts_are_counted_in_one_warning_at_the_callers_line(scorer: Scorer, model: Path) -> None:
    calls: list[Callable[[], object]] = [
        lambda: scorer.score(words(150), [words(20), words(30), "yes", words(50), words(50)]),
        lambda: cappy_lite.score(words(150), [words(20), words(30), "yes", words(50), words(50)], model=scorer),
    ]
    for call in calls:
        with pytest.warns(TruncationWarning) as caught:
            call()
        [warning] = caught
        assert str(warning.message) == (
            "text was cut, since the model reads 160 tokens: 3 of 5 candidates lost their ends (at most 21 tokens), "
            "1 of 1 instructions lost their middle (at most 22 tokens)"
        )
        assert warning.filename == __file__


def test_a_cut_beside_one_candidate_leaves_the_others_scores(scorer: Scorer) -> None:
    with pytest.warns(TruncationWarning):
        scores = scorer.score(words(140), ["yes", words(100), "no"])
    np.testing.assert_allclose(scores[[0, 2]], scorer.score(words(140), ["yes", "no"]), rtol=0, atol=1e-5)


# Packed rows


@pytest.fixture
def packed(tiny_model: Path, tmp_path: Path) -> Path:
    """A joint model whose graph reads packed rows."""
    folder = write_tiny_joint(tmp_path / "packed")
    shutil.copyfile(tiny_model / "model.onnx", folder / "model.onnx")
    write_config(folder, graph="joint", score_activation="identity")
    return folder


def lone_pair(session: Session, encoder: PairEncoder, candidate: str) -> float:
    """The graph's output for one pair, all of whose tokens see each other, at its first token."""
    pair = encoder.pair(encoder.encode(INSTRUCTION), encoder.encode(candidate))
    length = len(pair.input_ids)
    row = PackedRow(
        input_ids=pair.input_ids,
        position_ids=np.arange(length),
        token_type_ids=pair.token_type_ids,
        segments=np.array([[0, length, 0, 0]]),
        score_spans=np.array([[0, 1]]),
        score_positions=np.array([0]),
        candidate_indices=np.array([0]),
    )
    return float(session.run(row)[0])


def test_pairs_of_any_lengths_share_a_row_and_see_nothing_of_each_other(packed: Path) -> None:
    candidates = texts(80)
    encoder, session = PairEncoder(packed / "tokenizer.json", 160), Session(packed / "model.onnx", 1)
    expected = [lone_pair(session, encoder, candidate) for candidate in candidates]
    assert np.std(expected) > 0.01
    scorer = Scorer(packed, threads=1)
    scores = scorer.score(INSTRUCTION, candidates)
    np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-5)
    order = np.random.default_rng(0).permutation(len(candidates))
    shuffled = scorer.score(INSTRUCTION, [candidates[index] for index in order])
    np.testing.assert_allclose(shuffled, scores[order], rtol=0, atol=1e-5)


def test_rows_of_pairs_end_at_a_limit() -> None:
    lengths = [200, 7, 300, 6, 600, 1, 511, 1, 512]
    pairs = [Pair(np.full(length, length), np.zeros(length, np.int64)) for length in lengths]
    rows = list(rows_of(pairs))
    assert [len(row.input_ids) for row in rows] == [507, 6, 600, 512, 1, 512]
    assert np.concatenate([row.candidate_indices for row in rows]).tolist() == list(range(len(pairs)))
    for row in rows:
        assert (row.position_ids[row.score_positions] == 0).all()
        own = [row.input_ids[first:end] for first, end, _, _ in row.segments]
        assert all(len(ids) == ids[0] for ids in own)


# Folders


def test_where_the_score_is_read_is_the_graphs_own_business(tmp_path: Path) -> None:
    folder = write_tiny_joint(tmp_path / "joint")
    config = json.loads((folder / "config.json").read_text())
    del config["score_position"]
    (folder / "config.json").write_text(json.dumps(config))
    assert Scorer(folder).score(INSTRUCTION, ["yes"]).shape == (1,)


def test_a_graph_without_types_reads_none(tmp_path: Path) -> None:
    folder = write_tiny_joint(tmp_path / "joint")
    model = onnx.load(folder / "model.onnx")
    states = next(node for node in model.graph.node if node.op_type == "Sum")
    del model.graph.input[1]
    states.input.remove("type_states")
    model.graph.node.remove(next(node for node in model.graph.node if "type_states" in node.output))
    onnx.save(model, folder / "model.onnx")
    write_config(folder, graph="joint", score_activation="identity")
    assert Scorer(folder).score(INSTRUCTION, CANDIDATES).shape == (5,)


def test_a_graph_that_reads_neither_rows_nor_pairs_is_named(tmp_path: Path) -> None:
    folder = write_tiny_joint(tmp_path / "joint")
    model = onnx.load(folder / "model.onnx")
    model.graph.input.append(helper.make_tensor_value_info("attention_mask", TensorProto.INT64, ["pairs", "tokens"]))
    onnx.save(model, folder / "model.onnx")
    write_config(folder, graph="joint", score_activation="identity")
    with pytest.raises(ModelError, match=r"model\.onnx reads neither packed rows nor pairs: for pairs, it") as caught:
        Scorer(folder)
    assert "attention_mask tensor(int64)" in str(caught.value)


def test_a_graph_over_pairs_is_no_shared_one(tmp_path: Path) -> None:
    folder = write_tiny_joint(tmp_path / "joint", graph="shared", special_tokens={"cls": "[CLS]", "sep": "[SEP]"})
    with pytest.raises(ModelError, match=r"model\.onnx doesn't read packed rows"):
        Scorer(folder)
