"""The parts of the scorer's benchmark do what they say; no other package needs to be installed for that."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from tiny_checkpoints import write_checkpoint
from tiny_joint import write_tiny_joint
from tiny_model import tiny_tokenizer, write_config
from tiny_training import tiny_network
from tokenizers import Tokenizer, processors

from benchmarks import markdown, scorer_soak
from benchmarks.corpus import Corpus, synthetic_corpus
from benchmarks.scorer import __main__ as command
from benchmarks.scorer import floor, processes, report, rivals, side_by_side, throughput
from benchmarks.scorer.rivals import FLOAT32, GRAPH, INT8, JOINT, RIVALS, STANDARD, Rival, Score, open_cappy, why_not
from benchmarks.scorer.sizes import (
    Question,
    Size,
    count_tokens,
    draw,
    equal_candidates,
    mixed_candidates,
    open_tokenizer,
)
from benchmarks.scorer.twins import PairReader, bert_config, bert_weights, write_twins
from cappy_lite import Scorer
from cappy_lite.errors import InputValueError
from cappy_lite.tokens import TextEncoder
from cappy_train.batches import Packer
from cappy_train.evaluate import Question as DevQuestion
from cappy_train.export import packed_rows
from cappy_train.graph import GraphWeights, Linear, float_weights, graph_weights, packed_graph, read_weights
from cappy_train.network import ScorerNetwork
from cappy_train.quantise import observe, quantise
from cappy_train.shared_builds import from_saved, shared_graph, shared_weights

SMALL = equal_candidates(20, 3, 6)
MIXED = mixed_candidates(12, 5, 2, 9)


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return synthetic_corpus(3_000)


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> ScorerNetwork:
    return tiny_network(tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """One that joins pairs by itself, as rivals expect."""
    tokenizer = tiny_tokenizer()
    special = [(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=special
    )
    return tokenizer


@pytest.fixture(scope="module")
def models(
    network: ScorerNetwork, tokenizer: Tokenizer, corpus: Corpus, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """A model folder in 8 bits, and one in float32."""
    root = tmp_path_factory.mktemp("models")
    weights = graph_weights(network)
    graph = packed_graph(weights)
    tokenizer.save(str(root / "tokenizer.json"))
    instruction, candidates = draw(corpus, open_tokenizer(root), SMALL)
    question = DevQuestion("task", None, instruction, tuple(candidates), np.zeros(3), "group", "generation")
    rows = packed_rows(Packer(root / "tokenizer.json"), question, 160)
    onnx.save(graph, root / "exact.onnx")
    quantised = packed_graph(quantise(weights, observe(root / "exact.onnx", rows)))
    folders = {precision: root / precision for precision in (INT8, FLOAT32)}
    for folder, model in zip(folders.values(), (quantised, graph), strict=True):
        folder.mkdir()
        onnx.save(model, folder / "model.onnx")
        tokenizer.save(str(folder / "tokenizer.json"))
        (folder / "README.md").write_text("# Tiny\n")
        write_config(folder)
    return folders


@pytest.fixture(scope="module")
def twins(models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of the twins, by the precision of the model that they were made from."""
    root = tmp_path_factory.mktemp("twins")
    for precision, model in models.items():
        write_twins(model, root / precision)
    return {precision: root / precision for precision in models}


@pytest.fixture
def question(corpus: Corpus, models: dict[str, Path]) -> Question:
    return draw(corpus, open_tokenizer(models[INT8]), MIXED)


def test_a_model_that_others_cannot_read_is_refused(tmp_path: Path) -> None:
    modern, joint = write_checkpoint(tmp_path / "modern", "modernbert"), write_tiny_joint(tmp_path / "joint")
    onnx.save(shared_graph(shared_weights(from_saved(modern))), modern / "model.onnx")
    (modern / "README.md").write_text("# Tiny\n")
    write_config(modern)
    for model in (modern, joint):
        with pytest.raises(InputValueError, match=rf"{model.name} holds no shared model of BERT's build"):
            write_twins(model, tmp_path / "twins")
        assert not (tmp_path / "twins").exists()


# Sizes


@pytest.mark.parametrize("size", [SMALL, MIXED, equal_candidates(1, 2, 1)], ids=lambda size: size.name)
def test_texts_have_exact_lengths_as_the_scorer_reads_them(size: Size, corpus: Corpus, models: dict[str, Path]) -> None:
    instruction, candidates = draw(corpus, open_tokenizer(models[INT8]), size)
    encoder = TextEncoder(models[INT8] / "tokenizer.json", cls_token="[CLS]", sep_token="[SEP]")
    assert len(encoder.encode(instruction)) == size.instruction
    assert tuple(len(encoder.encode(candidate)) for candidate in candidates) == size.candidates
    assert len({instruction, *candidates}) == 1 + len(candidates)


def test_texts_that_are_read_otherwise_where_they_are_cut_are_passed_over(models: dict[str, Path]) -> None:
    corpus = Corpus("test", "house dog house house cat house house sun", 8)
    tokenizer = open_tokenizer(models[INT8])
    assert count_tokens(tokenizer, "house dog") == 2
    assert draw(corpus, tokenizer, Size("", 2, (2, 1))) == ("house dog", ["house house", "cat"])
    with pytest.raises(ValueError, match="too little text for another of 2 tokens"):
        draw(corpus, tokenizer, Size("", 2, (2, 1, 2, 2)))


def test_mixed_lengths_are_spread_by_their_logarithm() -> None:
    size = mixed_candidates(7, 2_000, 2, 63)
    assert size == mixed_candidates(7, 2_000, 2, 63)
    lengths = np.array(size.candidates)
    assert (size.instruction, len(lengths), lengths.min(), lengths.max()) == (7, 2_000, 2, 63)
    counts = [((low <= lengths) & (lengths < 2 * low)).sum() for low in (2, 4, 8, 16, 32)]
    assert min(counts) > 300


# Twins


def test_weights_are_read_back_from_a_graph(network: ScorerNetwork, models: dict[str, Path]) -> None:
    expected = graph_weights(network)
    exact, rounded = (
        float_weights(read_weights(onnx.load(models[precision] / "model.onnx"))) for precision in (FLOAT32, INT8)
    )
    assert (exact.layers, exact.heads) == (expected.layers, expected.heads) == (rounded.layers, rounded.heads)
    assert exact.layer_norm_eps == pytest.approx(expected.layer_norm_eps)
    for mine, near, theirs in zip(arrays(exact), arrays(rounded), arrays(expected), strict=True):
        np.testing.assert_array_equal(mine, theirs)
        assert np.abs(near - theirs).mean() <= 0.05 * np.abs(theirs).mean()


def arrays(weights: GraphWeights) -> list[np.ndarray]:
    found = [weights.embeddings[name] for name in sorted(weights.embeddings)]
    for name in sorted(weights.linears):
        linear = weights.linears[name]
        assert isinstance(linear, Linear)
        found += [linear.weight] if name.startswith("layers") else [linear.weight, linear.bias]
    for name in sorted(weights.norms):
        found += [weights.norms[name].gain, weights.norms[name].bias]
    return found


def test_the_twin_is_the_network_without_its_attention_rule(
    network: ScorerNetwork, twins: dict[str, Path], models: dict[str, Path], question: Question
) -> None:
    """In one segment all tokens see each other, and [CLS] comes first."""
    packer = Packer(models[FLOAT32] / "tokenizer.json")
    expected = []
    for candidate in question[1]:
        one = DevQuestion("task", None, question[0], (candidate,), np.zeros(1), "group", "generation")
        (row,) = packed_rows(packer, one, 160)
        arrays = (row.input_ids, row.position_ids, row.token_type_ids, np.zeros_like(row.segment_ids))
        with torch.inference_mode():
            logits = network(*(torch.from_numpy(array)[None] for array in arrays), torch.zeros(1, dtype=torch.int64))
        expected.append(logits.sigmoid().item())
    assert np.std(expected) > 0.005
    scores = PairReader(twins[FLOAT32] / FLOAT32, 1).score(*question)
    np.testing.assert_allclose(scores, expected, atol=1e-5)
    rounded = PairReader(twins[INT8] / INT8, 1).score(*question)
    np.testing.assert_allclose(rounded, expected, atol=0.05)
    assert np.abs(rounded - expected).max() > 1e-5


@pytest.mark.parametrize(("twin", "tolerance"), [(INT8, 0.01), (FLOAT32, 1e-5)])
def test_the_twin_says_the_same_of_a_padded_batch_and_of_one_pair(
    twin: str, tolerance: float, twins: dict[str, Path], question: Question
) -> None:
    folder = twins[INT8] / twin
    expected = PairReader(folder, 1).score(*question)
    tokenizer = open_tokenizer(folder)
    tokenizer.enable_padding()
    instruction, candidates = question
    encoded = tokenizer.encode_batch([(instruction, candidate) for candidate in candidates])
    inputs = {
        "input_ids": np.array([one.ids for one in encoded]),
        "attention_mask": np.array([one.attention_mask for one in encoded]),
        "token_type_ids": np.array([one.type_ids for one in encoded]),
    }
    assert inputs["attention_mask"].min() == 0
    (logits,) = session_of(folder).run(None, inputs)
    assert logits.shape == (len(candidates), 1)
    np.testing.assert_allclose(rivals.sigmoid(logits[:, 0]), expected, atol=tolerance)


@pytest.mark.parametrize("twin", [INT8, FLOAT32])
def test_the_twin_of_our_own_says_the_same_pair_by_pair(twin: str, twins: dict[str, Path], question: Question) -> None:
    folder = twins[INT8] / (twin + JOINT)
    graph = onnx.load(folder / GRAPH)
    assert {"segments", "context"} <= {each.name for each in graph.graph.input}
    assert ("AttentionToBytes" in {node.op_type for node in graph.graph.node}) == (twin == INT8)
    expected = PairReader(twins[INT8] / twin, 1).score(*question)
    scores = Scorer(folder, threads=1).score(*question)
    np.testing.assert_allclose(scores, expected, atol=side_by_side.TOLERANCES[twin])


def test_the_twin_of_standard_operators_says_the_same(twins: dict[str, Path], question: Question) -> None:
    folder = twins[INT8] / (INT8 + STANDARD)
    graph = onnx.load(folder / GRAPH)
    assert "QGemm" not in {node.op_type for node in graph.graph.node}
    shutil.copyfile(twins[INT8] / INT8 / "tokenizer.json", folder / "tokenizer.json")
    expected = PairReader(twins[INT8] / INT8, 1).score(*question)
    np.testing.assert_allclose(PairReader(folder, 1).score(*question), expected, atol=1e-3)


def session_of(folder: Path) -> onnxruntime.InferenceSession:
    model = onnx.load(folder / "model.onnx")
    onnx.checker.check_model(model)
    read = {name for node in model.graph.node for name in node.input}
    assert {each.name for each in model.graph.initializer} <= read
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def test_weights_have_the_names_and_shapes_of_transformers(twins: dict[str, Path], models: dict[str, Path]) -> None:
    weights = float_weights(read_weights(onnx.load(models[INT8] / "model.onnx")))
    config, named = bert_config(weights), bert_weights(weights)
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    assert json.loads((twins[INT8] / FLOAT32 / "config.json").read_text()) == config
    shapes = {name: array.shape for name, array in named.items()}
    layer = "bert.encoder.layer.1"
    expected = {
        "bert.embeddings.word_embeddings.weight": (config["vocab_size"], hidden),
        "bert.embeddings.position_embeddings.weight": (160, hidden),
        "bert.embeddings.token_type_embeddings.weight": (2, hidden),
        "bert.embeddings.LayerNorm.weight": (hidden,),
        f"{layer}.attention.self.query.weight": (hidden, hidden),
        f"{layer}.attention.output.dense.bias": (hidden,),
        f"{layer}.attention.output.LayerNorm.weight": (hidden,),
        f"{layer}.intermediate.dense.weight": (inner, hidden),
        f"{layer}.output.dense.weight": (hidden, inner),
        f"{layer}.output.LayerNorm.bias": (hidden,),
        "bert.pooler.dense.weight": (hidden, hidden),
        "classifier.weight": (1, hidden),
        "classifier.bias": (1,),
    }
    assert expected.items() <= shapes.items()
    assert len(shapes) == 5 + config["num_hidden_layers"] * 16 + 4


# Rivals


def test_a_rival_that_is_missing_or_does_not_open_is_named(twins: dict[str, Path]) -> None:
    def fail(folder: Path, threads: int | None) -> Score:
        raise RuntimeError(f"no {folder}/model.bin\nand more")

    def here(folder: Path, threads: int | None) -> Score:
        return PairReader(folder, threads or 1).score

    assert why_not(Rival("here", ("onnxruntime",), INT8, here), twins[INT8], 1) == ""
    absent = Rival("absent", ("onnxruntime", "no_such_package.part"), INT8, fail)
    assert why_not(absent, twins[INT8], 1) == "no_such_package.part is not installed"
    broken = Rival("broken", ("onnxruntime",), FLOAT32, fail)
    assert why_not(broken, twins[INT8], 1) == "can't be opened: RuntimeError: no /float32/model.bin"


def test_rivals_that_are_installed_score_as_their_twin(twins: dict[str, Path], question: Question) -> None:
    """PyTorch's and OpenVINO's ways take too long to import."""
    light = [rival for rival in RIVALS if rival.modules in (("flashrank",), ("fastembed",)) and not rival.missing()]
    for rival in light:
        folder = twins[INT8] / rival.twin
        scores = rival.open(folder, 1)(*question)
        np.testing.assert_allclose(
            scores, PairReader(folder, 1).score(*question), atol=side_by_side.TOLERANCES[rival.twin]
        )


# The floor


def test_the_floor_multiplies_what_the_rule_needs() -> None:
    network = floor.Network(layers=2, heads=2, hidden=8, feed_forward=32)
    multiplied = floor.products(network, Size("", 10, (3, 3)))
    tokens, head, own = 12 + 4 + 4, 12, 4
    first = tokens * (8 * 24 + 8 * 8 + 2 * 8 * 32)
    first += 2 * tokens * 8 * head  # with the instruction's keys, and then its values
    first += 2 * 2 * own * 8 * own  # each candidate with its own
    last = tokens * 8 * 16 + 2 * (2 * 8 * 8 + 2 * 8 * 32)
    last += 2 * 2 * 8 * (head + own)
    assert sum(product.multiplications for product in multiplied) == first + last + 2 * (8 * 8 + 8)
    assert [(p.rows, p.inner, p.columns) for p in multiplied if p.linear and p.rows == tokens] == [
        *((tokens, 8, 24), (tokens, 8, 8), (tokens, 8, 32), (tokens, 32, 8)),
        (tokens, 8, 16),
    ]


def test_candidates_of_mixed_lengths_count_as_equal_ones_with_as_much_work() -> None:
    assert floor.mean_length(np.array([4, 4, 4])) == 4
    own = np.array([2, 4, 6, 50])
    assert floor.mean_length(own) == round((np.square(own).sum() / 4) ** 0.5)


@pytest.mark.parametrize("kind", floor.KINDS)
def test_the_floor_runs_every_product(kind: str, tmp_path: Path) -> None:
    multiplied = floor.products(floor.Network(3, 2, 8, 32), Size("", 10, (3, 3)))
    graph = floor.FloorGraph(kind)
    for product in multiplied:
        graph.add(product)
    model = graph.model()
    onnx.checker.check_model(model)
    shapes = {name: value.shape for name, value in graph.inputs().items()}
    shapes |= {each.name: numpy_helper.to_array(each).shape for each in model.graph.initializer}
    for product, node in zip(multiplied, model.graph.node, strict=True):
        one, other = node.input[0], node.input[3 if node.op_type == "QGemm" else 1]
        assert shapes[one][-2:] == (product.rows, product.inner)
        assert shapes[other][-2:] == (product.inner, product.columns)

    options = onnxruntime.SessionOptions()
    options.enable_profiling = True
    options.profile_file_prefix = str(tmp_path / "profile")
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    session.run(None, dict(graph.inputs()))
    events = json.loads(Path(session.end_profiling()).read_text())
    ran = {event["name"] for event in events if event["cat"] == "Node" and event["name"].endswith("_kernel_time")}
    assert ran == {f"{node.name}_kernel_time" for node in model.graph.node}
    floor.open_floor(multiplied, kind, 1)()


# Measuring


def fake(name: str, score: Score, *, exact: bool = True) -> Rival:
    return Rival(name, (), INT8, lambda folder, threads: score, exact)


def test_one_size_side_by_side(question: Question) -> None:
    def right(instruction: str, candidates: Sequence[str]) -> np.ndarray:
        return np.array([sum(map(ord, candidate)) / 10_000 for candidate in candidates], np.float32)

    def near(instruction: str, candidates: Sequence[str]) -> np.ndarray:
        return right(instruction, candidates) + np.float32(0.02)

    def reverse(instruction: str, candidates: Sequence[str]) -> np.ndarray:
        return -right(instruction, candidates) / 10

    floors = {"slow": lambda: sum(range(100_000)), "fast": lambda: None}
    measured = side_by_side.beside_the_floor(MIXED, question, right, floors, 0)
    assert (measured["floor"], measured["rivals"]) == ("fast", [])
    assert measured["floors"]["slow"] > measured["floors"]["fast"]
    assert measured["milliseconds"] * measured["candidates_per_second"] == pytest.approx(5_000)

    close, other = (
        side_by_side.side_by_side(MIXED, question, right, rival, rival.open(Path(), 1), right(*question), 0)
        for rival in (fake("near", near), fake("reverse", reverse, exact=False))
    )
    assert close["off_by"] == pytest.approx(0.02)
    assert close["rounds"] == side_by_side.LEAST_ROUNDS
    assert (close["rank_correlation"], other["rank_correlation"]) == (pytest.approx(1), pytest.approx(-1))
    for middle, low, high in (measured["times_the_floor"], close["times_as_fast"]):
        assert 0 < low <= middle <= high


def test_wrong_scores_are_caught(question: Question) -> None:
    def right(instruction: str, candidates: Sequence[str]) -> np.ndarray:
        return np.full(len(candidates), 0.5, np.float32)

    def off(instruction: str, candidates: Sequence[str]) -> np.ndarray:
        return right(instruction, candidates) + np.float32(0.1)

    def by_neighbours(instruction: str, candidates: Sequence[str]) -> np.ndarray:
        return right(instruction, candidates) + np.float32(1e-3 * len(candidates))

    with pytest.raises(SystemExit, match=r"DIFFERENT: rival, int8, 12 tokens, 5 of 2 to 9: scores off by 0.1"):
        side_by_side.side_by_side(MIXED, question, right, fake("rival", off), off, right(*question), 0)
    with pytest.raises(SystemExit, match=r"DIFFERENT: cappy-lite's scores move by 0.004 beside others"):
        side_by_side.beside_the_floor(MIXED, question, by_neighbours, {}, 0)


def test_a_fresh_process_says_what_it_took(models: dict[str, Path], question: Question) -> None:
    reading = processes.start(rivals.CAPPY, models[INT8], [question])
    assert 0 < reading["seconds"] < 60
    assert 10 < reading["before"] <= reading["peak"]


def test_callers_share_the_calls(question: Question) -> None:
    calls: list[Question] = []

    def score(instruction: str, candidates: list[str]) -> np.ndarray:
        calls.append((instruction, candidates))
        return np.zeros(len(candidates), np.float32)

    measured = throughput.throughput(score, 3, question, 0)
    rounds = side_by_side.LEAST_ROUNDS + 1  # one finds out how many
    assert calls == [question] * throughput.CALLS * len(throughput.CALLERS) * rounds
    assert measured["threads"] == 3
    assert list(measured["scores_per_second"]) == ["1", "2", "4", "8"]


def test_the_command_measures_writes_and_shows_again(
    tmp_path: Path, models: dict[str, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RAYON_NUM_THREADS", "1")  # the command sets it
    for name, value in {"WORDS": 3_000, "SIZES": (SMALL, MIXED), "STARTS": 1, "MEMORY_STARTS": 1}.items():
        monkeypatch.setattr(command, name, value)
    for name in ("FIRST", "LARGE", "THROUGHPUT"):
        monkeypatch.setattr(command, name, SMALL)
    by_the_book = Rival("by the book", (), INT8, lambda folder, threads: PairReader(folder, threads or 1).score)
    monkeypatch.setattr(command, "RIVALS", (by_the_book, Rival("absent", ("no_such_package",), INT8, open_cappy)))
    written, drawn, docs = tmp_path / "scorer.json", tmp_path / "scorer.svg", tmp_path / "scorer.md"
    docs.write_text(f"# Before\n{report.START}\nold\n{markdown.END}\nafter\n")
    arguments = ["--model", str(models[INT8]), "--threads", "1", "--seconds", "0", "--output", str(written)]
    command.main([*arguments, "--plot", str(drawn), "--docs", str(docs)])
    printed = capsys.readouterr().out
    measured = json.loads(written.read_text())

    assert os.environ["RAYON_NUM_THREADS"] == "1"
    assert (measured["model"], measured["data"], measured["threads"]) == ("tiny", "synthetic", 1)
    assert measured["left_out"] == {"absent, int8": "no_such_package is not installed"}
    assert [(size["instruction"], len(size["candidates"])) for size in measured["sizes"]] == [(20, 3), (12, 5)]
    assert all(set(size["floors"]) == set(floor.KINDS) for size in measured["sizes"])
    assert [[rival["name"] for rival in size["rivals"]] for size in measured["sizes"]] == [["by the book"]] * 2
    assert all(rival["off_by"] == 0 for size in measured["sizes"] for rival in size["rivals"])
    assert [one["name"] for one in measured["cold_starts"]] == [one["name"] for one in measured["memory"]]
    assert measured["cold_starts"][0]["ours_by_its"] == [1, 1, 1]
    assert [one["threads"] for one in measured["throughput"]] == [1]

    assert docs.read_text() == f"# Before\n{report.START}\n\n{printed}\n{markdown.END}\nafter\n"
    assert "| **cappy-lite** | its own |" in printed
    assert "Left out: absent, int8 (no_such_package is not installed)." in printed
    first_plot = drawn.read_bytes()
    assert first_plot.startswith(b"<?xml")
    command.main(["--load", str(written), "--plot", str(drawn)])
    assert capsys.readouterr().out == printed
    assert drawn.read_bytes() == first_plot


# The soak


def test_a_soak_reads_memory_and_scores_the_probe_again(
    models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written = tmp_path / "soak.json"
    arguments = ["--reranks", "60", "--model", str(models[INT8]), "--threads", "1", "--output", str(written)]
    assert scorer_soak.main(arguments) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    measured = json.loads(written.read_text())
    assert json.loads(last) == measured
    assert (measured["reranks"], measured["same_scores"]) == (60, True)
    assert measured["resident"][-1][0] == 60
    assert 1 < len(lines) == len(measured["resident"]) <= scorer_soak.READINGS
    assert measured["resident"][0][1] == measured["first"] > 10
    assert measured["peak"] >= measured["last"]


@pytest.mark.filterwarnings("ignore::cappy_lite.errors.TruncationWarning")
def test_a_soak_tells_when_scores_drift(models: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    exact, calls = Scorer.rerank, []

    def drifting(self: Scorer, instruction: str, candidates: list[str]) -> object:
        calls.append(instruction)
        return [one._replace(score=one.score + 1e-9 * len(calls)) for one in exact(self, instruction, candidates)]

    monkeypatch.setattr(Scorer, "rerank", drifting)
    assert not scorer_soak.soak(Scorer(models[INT8], threads=1), 10)["same_scores"]
    assert len(set(calls)) > 5


def test_questions_of_a_soak_differ_in_size() -> None:
    asked = scorer_soak.questions(synthetic_corpus(3_000))
    sizes = [
        (len(instruction.split()), len(candidates)) for instruction, candidates in (next(asked) for _ in range(300))
    ]
    instructions, counts = (np.array(values) for values in zip(*sizes, strict=True))
    assert instructions.min() < 3
    assert instructions.max() > 300
    assert counts.min() == 1
    assert counts.max() > 12
