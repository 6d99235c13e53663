"""Checkpoints of every family, saved by transformers, become model folders that give transformers' own outputs."""

from __future__ import annotations

import collections
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_checkpoints import FAMILIES, MAX_TOKENS, write_checkpoint
from tokenizers import Tokenizer, processors
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from cappy_lite import Scorer
from cappy_lite.cli import main as cappy_lite_main
from cappy_lite.errors import InputValueError, ModelError
from cappy_lite.models import check_files, read_config
from cappy_train.bert_weights import HEADS
from cappy_train.cli import main
from cappy_train.export import seal
from cappy_train.import_checkpoint import JointParity, check_joint_parity, import_checkpoint
from cappy_train.joint_quantise import quantise_graph
from cappy_train.quantisation_texts import MOST_INSTANCES, read_quantisation_texts

INSTRUCTION = "which of these is about snow: the dog runs"
CANDIDATES = [
    "snow",
    "the dog",
    "",
    "the dog runs in the snow, and runs, and runs until it is night",
    "a b c d e f g h",
    "Ünïcödé 東京 🐕",
    "where is it?",
    "the snow",
]
IDENTITY = {"name": "tiny", "base_model": "random weights", "licence": "MIT"}


@pytest.fixture(scope="module", params=FAMILIES)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("checkpoints") / request.param, request.param)


@pytest.fixture(scope="module")
def model(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    import_checkpoint(str(checkpoint), folder, **IDENTITY)
    return folder


@pytest.fixture(scope="module")
def quantised(checkpoint: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny-8-bits"
    if checkpoint.name in HEADS:
        import_checkpoint(str(checkpoint), folder, quantise=True, **IDENTITY)
    else:  # the same, without exporting it again
        shutil.copytree(model, folder)
        quantise_graph(folder / "model.onnx")
        seal(folder)
    return folder


@pytest.fixture(scope="module")
def instances(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file to calibrate with."""
    return write_instances(tmp_path_factory.mktemp("instances") / "instances.jsonl", 60)


def write_instances(path: Path, count: int) -> Path:
    random = np.random.default_rng(0)

    def text(words: int) -> str:
        return " ".join(random.choice(["snow", "the", "dog", "runs", "a", "in", "b7?"], size=words))

    lines = [
        {
            "id": str(number),
            "task": "test",
            "instruction": text(1 + number % 40),
            "references": [text(1 + number % 7)],
            "choices": None,
            "candidates": [{"text": text(1 + number % 13), "source": "test"}],
            "split": "train",
        }
        for number in range(count)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture(scope="module", params=HEADS)
def of_berts_build(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("checkpoints") / request.param, request.param)


@pytest.fixture(scope="module")
def calibrated(of_berts_build: Path, instances: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny-calibrated"
    import_checkpoint(str(of_berts_build), folder, quantise=True, calibrate=instances, **IDENTITY)
    return folder


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint to copy and damage."""
    return write_checkpoint(tmp_path_factory.mktemp("checkpoints") / "bert", "bert")


def transformers_scores(checkpoint: Path, instruction: str, candidates: list[str]) -> np.ndarray:
    """As its users get them: in one padded batch."""
    network = AutoModelForSequenceClassification.from_pretrained(checkpoint).eval()
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    batch = tokenizer([instruction] * len(candidates), candidates, padding=True, return_tensors="pt")
    with torch.inference_mode():
        return network(**batch).logits[:, 0].numpy()


def error_of(source: Path | str, out: Path) -> str:
    """What the import raises, on one line; it leaves nothing."""
    with pytest.raises(InputValueError) as caught:
        import_checkpoint(str(source), out, **IDENTITY)
    assert not list(out.parent.glob(f"{out.name}*"))
    return str(caught.value)


def change_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_scores_are_those_of_transformers(checkpoint: Path, model: Path) -> None:
    expected = transformers_scores(checkpoint, INSTRUCTION, CANDIDATES)
    assert expected.std() > 0.02
    scores = Scorer(model, threads=1).score(INSTRUCTION, CANDIDATES)
    np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-4)


def test_scores_of_the_longest_pairs_are_those_of_transformers(checkpoint: Path, model: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    instruction = "snow"
    while len(tokenizer(f"{instruction} snow", "the dog runs")["input_ids"]) <= MAX_TOKENS:
        instruction += " snow"
    expected = transformers_scores(checkpoint, instruction, ["the dog runs", "snow"])
    scores = Scorer(model, threads=1).score(instruction, ["the dog runs", "snow"])
    np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-4)


def test_8_bits_give_nearly_the_same_scores(checkpoint: Path, quantised: Path) -> None:
    expected = transformers_scores(checkpoint, INSTRUCTION, CANDIDATES)
    scores = Scorer(quantised, threads=1).score(INSTRUCTION, CANDIDATES)
    assert 0 < np.abs(scores - expected).mean() < 0.04  # of outputs up to 2
    assert np.corrcoef(scores, expected)[0, 1] > 0.97


def test_calibrated_8_bits_give_nearly_the_same_scores(of_berts_build: Path, calibrated: Path) -> None:
    expected = transformers_scores(of_berts_build, INSTRUCTION, CANDIDATES)
    scores = Scorer(calibrated, threads=1).score(INSTRUCTION, CANDIDATES)
    assert 0 < np.abs(scores - expected).mean() < 0.04
    assert np.corrcoef(scores, expected)[0, 1] > 0.97
    parity = JointParity(**json.loads((calibrated / "config.json").read_text())["parity"])
    check_joint_parity(parity, largest_output=1.0)
    assert parity.pairs > 40  # some of them of the file
    assert "calibrated on texts" in (calibrated / "README.md").read_text()
    check_files(calibrated, read_config(calibrated))
    operators = collections.Counter(node.op_type for node in onnx.load(calibrated / "model.onnx").graph.node)
    assert operators["AttentionToBytes"] == operators["LinearGeluToBytes"] == 2
    assert (operators["Linear"], operators["Gemm"]) == (8, 2)


def test_a_calibrated_score_is_the_same_to_the_last_bit_whatever_else_is_scored(calibrated: Path) -> None:
    candidates = [
        " ".join(["snow", "the", "dog"][(number + at) % 3] for at in range(1 + number // 3)) for number in range(60)
    ]
    scorer = Scorer(calibrated, threads=1)
    scores = scorer.score(INSTRUCTION, candidates)
    order = np.random.default_rng(0).permutation(len(candidates))
    shuffled = scorer.score(INSTRUCTION, [candidates[index] for index in order])
    np.testing.assert_array_equal(shuffled, scores[order])
    alone = [scorer.score(INSTRUCTION, [candidate])[0] for candidate in candidates]
    np.testing.assert_array_equal(alone, scores)
    np.testing.assert_array_equal(Scorer(calibrated, threads=3).score(INSTRUCTION, candidates), scores)


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        ("deberta-v3", {}, "it is of type deberta-v2"),
        ("modernbert", {}, "it is of type modernbert"),
        ("bert", {"hidden_act": "gelu_new"}, "its activation is gelu_new"),
        ("bert", {"hidden_size": 24}, "its widths, 24 and 48"),
    ],
)
def test_networks_of_another_build_cannot_be_calibrated(
    family: str, changes: dict[str, object], message: str, instances: Path, tmp_path: Path
) -> None:
    source = write_checkpoint(tmp_path / "checkpoint", family, **changes)
    with pytest.raises(InputValueError, match=f"can't be calibrated: {message}.* Only networks of BERT's build"):
        import_checkpoint(str(source), tmp_path / "out", quantise=True, calibrate=instances, **IDENTITY)


def test_a_network_that_is_nearly_bert_is_read_in_pairs_of_one_length(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "checkpoint", "bert", hidden_act="gelu_new")
    import_checkpoint(str(source), tmp_path / "out", **IDENTITY)
    expected = transformers_scores(source, INSTRUCTION, CANDIDATES)
    scores = Scorer(tmp_path / "out", threads=1).score(INSTRUCTION, CANDIDATES)
    np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-4)


def test_a_file_that_cannot_calibrate_is_explained(bert: Path, instances: Path, tmp_path: Path) -> None:
    few = write_instances(tmp_path / "few.jsonl", 15)
    with pytest.raises(InputValueError, match=r"few\.jsonl has 15 instances, and scales .* take 16 at least"):
        import_checkpoint(str(bert), tmp_path / "out", quantise=True, calibrate=few, **IDENTITY)
    with pytest.raises(InputValueError, match=r"none\.jsonl: no such file"):
        import_checkpoint(str(bert), tmp_path / "out", quantise=True, calibrate=tmp_path / "none.jsonl", **IDENTITY)
    with pytest.raises(InputValueError, match="8 bits, which weren't asked for"):
        import_checkpoint(str(bert), tmp_path / "out", calibrate=instances, **IDENTITY)
    assert not list(tmp_path.glob("out*"))


def test_quantisation_texts_are_drawn_from_the_whole_file(tmp_path: Path) -> None:
    many = write_instances(tmp_path / "many.jsonl", 3 * MOST_INSTANCES)
    texts = read_quantisation_texts(many)
    assert len(texts.pairs) <= 2 * MOST_INSTANCES
    places = {json.loads(line)["instruction"]: at for at, line in enumerate(many.read_text().splitlines())}
    drawn, held_out = ([places[pair[0]] for pair in part] for part in (texts.pairs, texts.held_out))
    assert min(drawn) < MOST_INSTANCES / 2
    assert max(drawn) > 2.5 * MOST_INSTANCES
    assert 2 < len(drawn) / len(held_out) < 4
    assert read_quantisation_texts(many) == texts


def test_a_roberta_without_types_ignores_those_of_its_tokenizer(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "checkpoint", "roberta")
    tokenizer = json.loads((source / "tokenizer.json").read_text())
    special = {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
    pair = "<s>:0 $A:0 </s>:0 </s>:0 $B:1 </s>:1"
    post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair=pair, special_tokens=list(special.items())
    )
    changed = Tokenizer.from_file(str(source / "tokenizer.json"))
    changed.post_processor = post_processor
    changed.save(str(source / "tokenizer.json"))
    import_checkpoint(str(source), tmp_path / "out", **IDENTITY)
    expected = transformers_scores(source, INSTRUCTION, CANDIDATES)
    np.testing.assert_allclose(Scorer(tmp_path / "out").score(INSTRUCTION, CANDIDATES), expected, rtol=0, atol=1e-4)


def test_the_folder_says_what_it_holds(model: Path, quantised: Path) -> None:
    for folder in (model, quantised):
        config = read_config(folder)
        check_files(folder, config)
        assert (config.graph, config.score_activation, config.max_tokens) == ("joint", "identity", MAX_TOKENS)
        assert set(config.files) == {"model.onnx", "model.onnx.data", "tokenizer.json", "README.md"}
        assert {path.name for path in folder.iterdir()} == {*config.files, "config.json"}
        card = (folder / "README.md").read_text()
        assert "random weights" in card
        assert "{" not in card
    parity = JointParity(**json.loads((model / "config.json").read_text())["parity"])
    check_joint_parity(parity, largest_output=1.0)
    assert parity.quantised_difference is None
    assert parity.network_difference < 1e-5
    assert (quantised / "model.onnx.data").stat().st_size < (model / "model.onnx.data").stat().st_size * 0.6


def optimised_operators(model: Path, folder: Path) -> collections.Counter[str]:
    """Of the nodes that ONNX Runtime runs."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # a warning that the optimised file is for this machine alone
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    onnxruntime.InferenceSession(str(model / "model.onnx"), options, providers=["CPUExecutionProvider"])
    return collections.Counter(
        node.op_type for node in onnx.load(folder / "optimised.onnx", load_external_data=False).graph.node
    )


def test_the_graph_is_lean(checkpoint: Path, model: Path, quantised: Path, tmp_path: Path) -> None:
    family = checkpoint.name
    layers = 4 if family == "modernbert" else 2
    linears = 4 if family == "modernbert" else 6  # of one layer
    if family in HEADS:
        exact = collections.Counter(node.op_type for node in onnx.load(model / "model.onnx").graph.node)
        assert exact["Gelu"] == exact["Attention"] == layers
        assert exact["LayerNormalization"] == 2 * layers + 1
        assert exact["Gemm"] == 5 * layers + 2  # keys and values in one
    else:
        exact = optimised_operators(model, tmp_path)
        assert exact["Gelu"] == layers + (family == "modernbert")  # which has one in its head
        assert exact["MultiHeadAttention"] == (0 if family == "deberta-v3" else layers)
        assert exact["SkipLayerNormalization"] + exact["LayerNormalization"] >= 2 * layers
        assert exact["Gemm"] + exact["FusedGemm"] >= linears * layers + 1
        assert exact["MatMul"] == 0 or family == "deberta-v3"  # whose attention has no operator
    eight_bits = optimised_operators(quantised, tmp_path)
    assert eight_bits["MatMulIntegerToFloat"] == linears * layers
    assert 0 < eight_bits["Gemm"] + eight_bits["FusedGemm"] <= 2


def test_the_graph_tells_nothing_of_the_machine_that_made_it(model: Path) -> None:
    content = (model / "model.onnx").read_bytes()
    for trace in (b".py", b"site-packages", b"stack_trace"):
        assert trace not in content


# What can't be imported


@pytest.fixture
def damaged(bert: Path, tmp_path: Path) -> Path:
    return shutil.copytree(bert, tmp_path / "damaged")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"id2label": {"0": "no", "1": "yes"}, "label2id": {"no": 0, "yes": 1}}, "has 2 outputs, which are classes"),
        ({"model_type": "t5", "architectures": ["T5ForConditionalGeneration"]}, "is a text-to-text checkpoint (t5)"),
        ({"model_type": "bart", "is_encoder_decoder": True}, "is a text-to-text checkpoint (bart)"),
        ({"model_type": "gpt2"}, "is of type gpt2, which can't be imported; these can: bert, deberta-v2, modernbert"),
        ({"model_type": None}, "is of type None, which can't be imported"),
        ({"auto_map": {"AutoModel": "code.Model"}}, "needs Python code of its own, which is never run"),
        ({"architectures": ["BertForMaskedLM"]}, "has no head that gives a score (BertForMaskedLM)"),
        ({"architectures": None}, "has no head that gives a score (of no stated architecture)"),
        ({"num_hidden_layers": 3}, "lacks weights that its config.json tells of, such as bert.encoder.layer.2."),
        ({"intermediate_size": 50}, "its weights can't be read"),
    ],
)
def test_a_config_that_cannot_be_imported_is_explained(damaged: Path, changes: dict[str, object], message: str) -> None:
    change_config(damaged, **changes)
    found = error_of(damaged, damaged.parent / "out")
    assert found.startswith(str(damaged))
    assert message in found


def test_a_folder_that_is_no_checkpoint_is_named(tmp_path: Path) -> None:
    assert "is no folder: give a checkpoint's folder, or hub:owner/name" in error_of(
        tmp_path / "none", tmp_path / "out"
    )
    assert "config.json is missing" in error_of(tmp_path, tmp_path / "out")
    (tmp_path / "config.json").write_text("{")
    assert "config.json is not JSON" in error_of(tmp_path, tmp_path / "out")


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_a_truncated_file_is_named(damaged: Path, name: str) -> None:
    (damaged / name).write_bytes((damaged / name).read_bytes()[:-100])
    assert "can't be read" in error_of(damaged, damaged.parent / "out")


def test_missing_weights_are_named(damaged: Path) -> None:
    (damaged / "model.safetensors").unlink()
    assert "its weights can't be read" in error_of(damaged, damaged.parent / "out")


def test_a_missing_or_slow_tokenizer_is_named(damaged: Path) -> None:
    (damaged / "tokenizer.json").unlink()
    assert "has no tokenizer, and tokenizer.json is needed" in error_of(damaged, damaged.parent / "out")
    (damaged / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\nthe\n")
    message = error_of(damaged, damaged.parent / "out")
    assert (
        "has only a slow tokenizer (vocab.txt), and tokenizer.json is needed: with transformers, AutoTokenizer"
        in message
    )


def test_a_hub_name_that_cannot_be_downloaded_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    message = error_of("hub:nobody/nothing-of-this-name", tmp_path / "out")
    assert "can't be downloaded" in message
    assert "download the folder and give its path" in message


def test_weights_that_are_no_numbers_are_refused(damaged: Path) -> None:
    weights = load_file(damaged / "model.safetensors")
    weights["classifier.weight"][:] = float("nan")
    save_file(weights, damaged / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="the checkpoint is damaged"):
        import_checkpoint(str(damaged), damaged.parent / "out", **IDENTITY)
    assert not list(damaged.parent.glob("out*"))


def test_an_existing_folder_is_left_alone(bert: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(InputValueError, match="exists: give --out a new folder"):
        import_checkpoint(str(bert), tmp_path, **IDENTITY)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_wrong_values_are_named(bert: Path, tmp_path: Path) -> None:
    with pytest.raises(InputValueError, match="reads at most 160 tokens: lower max_tokens 161"):
        import_checkpoint(str(bert), tmp_path / "out", max_tokens=161, **IDENTITY)
    with pytest.raises(ModelError, match=r"with max_tokens 131 in config\.json, there is no room for a candidate"):
        import_checkpoint(str(bert), tmp_path / "out", max_tokens=131, **IDENTITY)
    with pytest.raises(InputValueError, match="activation must be one of sigmoid, identity, not 'tanh'"):
        import_checkpoint(str(bert), tmp_path / "out", activation="tanh", **IDENTITY)
    assert not list(tmp_path.iterdir())


def test_parity_at_its_limits() -> None:
    parity = JointParity(network_difference=1e-4, quantised_difference=0.025, spread=0.1, pairs=10)
    check_joint_parity(parity, largest_output=1.0)
    check_joint_parity(replace(parity, network_difference=9e-4), largest_output=10.0)
    for worse in (
        {"network_difference": 1.1e-4},
        {"network_difference": float("nan")},
        {"quantised_difference": 0.0251},
        {"quantised_difference": float("nan")},
    ):
        with pytest.raises(ModelError):
            check_joint_parity(replace(parity, **worse), largest_output=1.0)


# The command line


def test_command_line(bert: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "mine"
    command = ["import", str(bert), "--out", str(out), "--activation", "sigmoid", "--quantise", "--max-tokens", "150"]
    assert main(command) == 0
    assert capfd.readouterr() == ("", "")
    config = read_config(out)
    check_files(out, config)
    assert json.loads((out / "config.json").read_text())["parity"]["quantised_difference"] > 0
    assert "8-bit" in (out / "README.md").read_text()
    assert (config.name, config.base_model, config.licence) == ("mine", "bert", "not stated")
    assert (config.max_tokens, config.score_activation) == (150, "sigmoid")
    logits = transformers_scores(bert, INSTRUCTION, CANDIDATES)
    capfd.readouterr()
    assert cappy_lite_main(["score", INSTRUCTION, *CANDIDATES, "--model", str(out)]) == 0
    found = [float(line.partition("\t")[0]) for line in capfd.readouterr().out.splitlines()]
    np.testing.assert_allclose(found, 1 / (1 + np.exp(-logits)), atol=0.02)
    assert main(command) == 1
    assert "exists: give --out a new folder" in capfd.readouterr().err
