"""ModernBERT as a shared-instruction network: what transformers computes, trained, exported and run."""

from __future__ import annotations

import json
import multiprocessing
import shutil
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from test_training import SETTINGS, assert_same_weights, log_of, losses_of
from tiny_checkpoints import MAX_TOKENS, write_checkpoint
from tiny_training import write_tiny_pairs
from transformers import AutoModel, ModernBertModel

from cappy_lite import Scorer
from cappy_lite.errors import InputValueError
from cappy_lite.packing import PackedRow, groups_of, pack, row_alone, row_beside
from cappy_lite.session import Session
from cappy_train.adapt import adapt
from cappy_train.attention import attention_bias
from cappy_train.batches import Batch, Packer, collate
from cappy_train.export import export
from cappy_train.modern_network import ModernNetwork, from_modern_bert
from cappy_train.pretrain import pretrain
from cappy_train.quantise import observe, quantise
from cappy_train.read_back import in_float32, network_of
from cappy_train.shared_builds import from_saved, network_in, shared_graph, shared_weights
from cappy_train.trainable import network_scores
from cappy_train.training import parameter_groups, read_checkpoint, trained_network

CLS, SEP, WINDOW = 2, 3, 8
# Several windows long, as one of the candidates is.
INSTRUCTION = list(range(40, 100))
CANDIDATES = [[70, 71, 72], [80], list(range(90, 120)), [71, 72]]
IDENTITY = {"name": "tiny", "base_model": "random weights", "licence": "MIT"}
ASKED = [
    ("put the word together: the dog runs " * 2, ("the dog runs on the snow", "snow", "", "a child eats a house" * 2)),
    ("Say it.", ("snow", "The chef cooks!")),
    ("the dog runs in the snow and the child " * 6, ("a dog", "snow runs in the house")),
]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("base"), "modernbert")


@pytest.fixture(scope="module")
def network(base: Path) -> ModernNetwork:
    return steep(from_modern_bert(base))


def steep(network: ModernNetwork) -> ModernNetwork:
    """With a head whose logits differ, and types that do too."""
    torch.manual_seed(0)
    for weight in (network.head_dense.weight, network.head_output.weight, network.token_type_embeddings.weight):
        torch.nn.init.normal_(weight, std=0.2)
    return network.eval()


def of_layers(folder: Path, layers: int) -> ModernNetwork:
    return steep(from_modern_bert(write_checkpoint(folder, "modernbert", num_hidden_layers=layers)))


def packed(candidates: list[list[int]], instruction: list[int] = INSTRUCTION) -> PackedRow:
    (row,) = pack(instruction, candidates, cls_id=CLS, sep_id=SEP, max_tokens=MAX_TOKENS)
    return row


def batch_of(*rows: PackedRow, padding: int = 0) -> Batch:
    labels = [np.zeros(len(row.score_positions)) for row in rows]
    longest = max(len(row.input_ids) for row in rows)
    return collate(rows, labels, longest + padding, max(len(row.score_positions) for row in rows))


def states(network: ModernNetwork, batch: Batch) -> torch.Tensor:
    with torch.inference_mode():
        return network.encode(batch.input_ids, batch.position_ids, batch.token_type_ids, batch.segment_ids)


def logits(network: ModernNetwork, batch: Batch) -> torch.Tensor:
    with torch.inference_mode():
        return batch.logits(network)


@pytest.mark.parametrize("head", [False, True])
def test_states_of_an_instruction_are_those_of_transformers(base: Path, tmp_path: Path, head: bool) -> None:
    theirs = AutoModel.from_pretrained(base).eval()
    if not head:
        theirs.save_pretrained(tmp_path)
    ours = from_modern_bert(base if head else tmp_path).eval()
    assert ours.config.windows == (None, WINDOW, WINDOW, None)
    batch = batch_of(row_alone([CLS, *INSTRUCTION, *INSTRUCTION, SEP]))
    with torch.inference_mode():
        expected = theirs(input_ids=batch.input_ids).last_hidden_state
    torch.testing.assert_close(states(ours, batch), expected, atol=1e-5, rtol=0)


def test_a_packed_row_is_what_transformers_computes_under_the_same_masks(base: Path) -> None:
    """Windows are of positions: a candidate's first tokens are near its instruction's last, wherever it stands."""
    theirs: ModernBertModel = AutoModel.from_pretrained(base, attn_implementation="eager").eval()
    batch = batch_of(packed(CANDIDATES))
    masks = {
        kind: attention_bias(batch.segment_ids, torch.float32, position_ids=batch.position_ids, window=window)
        for kind, window in (("full_attention", None), ("sliding_attention", WINDOW))
    }
    with torch.inference_mode():
        expected = theirs(batch.input_ids, masks, batch.position_ids).last_hidden_state
    torch.testing.assert_close(states(from_modern_bert(base).eval(), batch), expected, atol=1e-5, rtol=0)


def test_a_window_by_hand() -> None:
    segments, positions = torch.tensor([[0, 0, 0, 1, 1, 2]]), torch.tensor([[0, 1, 2, 3, 4, 3]])
    bias = attention_bias(segments, torch.float32, position_ids=positions, window=1)
    assert (bias[0, 0] == 0).int().tolist() == [
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [0, 1, 1, 0, 0, 0],
        [0, 0, 1, 1, 1, 0],
        [0, 0, 0, 1, 1, 0],
        [0, 0, 1, 0, 0, 1],
    ]


def test_a_candidates_score_depends_on_no_other(network: ModernNetwork) -> None:
    together = logits(network, batch_of(packed(CANDIDATES), padding=20))[0]
    assert together.std() > 0.05
    backwards = logits(network, batch_of(packed(CANDIDATES[::-1])))[0].flip(0)
    torch.testing.assert_close(backwards, together, atol=1e-5, rtol=0)
    for candidate, logit in zip(CANDIDATES, together, strict=True):
        torch.testing.assert_close(logits(network, batch_of(packed([candidate])))[0, 0], logit, atol=1e-5, rtol=0)


def test_gradients_in_bfloat16_and_of_states_computed_again(base: Path) -> None:
    network = steep(from_modern_bert(base)).train()
    batch = batch_of(*(packed(CANDIDATES, torch.randint(40, 200, (60,)).tolist()) for _ in range(6)))

    def gradients() -> dict[str, torch.Tensor]:
        network.zero_grad()
        batch.logits(network).square().mean().backward()
        return {name: weight.grad.clone() for name, weight in network.named_parameters() if weight.grad is not None}

    exact = gradients()
    assert exact.keys() == {name for name, _ in network.named_parameters()}
    network.recompute = True
    for name, gradient in gradients().items():
        torch.testing.assert_close(gradient, exact[name])
    network.precision = torch.bfloat16
    for name, gradient in gradients().items():
        assert float((gradient - exact[name]).norm() / exact[name].norm()) < 0.06, name


def test_layers_far_from_the_head_learn_slower(network: ModernNetwork) -> None:
    scales, groups = parameter_groups(network, replace(SETTINGS, layer_decay=0.5))
    names = {id(weight): name for name, weight in network.named_parameters()}
    rate = {names[id(weight)]: scale for scale, group in zip(scales, groups, strict=True) for weight in group["params"]}
    assert rate["head_dense.weight"] == rate["final_norm.weight"] == 1
    assert rate["layers.3.output.weight"] == 0.5
    assert rate["layers.0.query_key_value.weight"] == 0.0625
    assert rate["embedding_norm.weight"] == rate["token_type_embeddings.weight"] == 0.03125


@pytest.mark.parametrize("layers", [1, 3, 4])  # of three, the last one has a window
def test_the_graph_is_the_network_in_any_row(tmp_path: Path, layers: int) -> None:
    network = of_layers(tmp_path, layers)
    graph = shared_graph(shared_weights(network))
    onnx.checker.check_model(graph)
    session = Session(graph.SerializeToString(), 1)
    row = packed(CANDIDATES)
    expected = logits(network, batch_of(row))[0].numpy()
    np.testing.assert_allclose(session.run(row), expected, atol=1e-5)
    alone = [session.run(packed([candidate]))[0] for candidate in CANDIDATES]
    np.testing.assert_allclose(alone, expected, atol=1e-5)
    (group,) = groups_of(INSTRUCTION, CANDIDATES, cls_id=CLS, sep_id=SEP, max_tokens=MAX_TOKENS)
    context = session.keep(row_alone(group.head))
    np.testing.assert_allclose(session.run(row_beside(group), context), expected, atol=1e-5)
    again = network_in(graph)
    assert again.sizes() == network.sizes()
    assert all(torch.equal(weight, again.state_dict()[name]) for name, weight in network.state_dict().items())


def test_eight_bits_keep_the_scores(network: ModernNetwork, tmp_path: Path) -> None:
    """Attention stays in float32, so what is round about a row may move a rounding, and no more."""
    weights, path = shared_weights(network), tmp_path / "graph.onnx"
    onnx.save(shared_graph(weights), path)
    rows = [packed(CANDIDATES, list(range(start, start + 60))) for start in range(40, 140, 5)]
    graph = shared_graph(quantise(weights, observe(path, rows)))
    session = Session(graph.SerializeToString(), 1)
    row = packed(CANDIDATES)
    found, expected = session.run(row), logits(network, batch_of(row))[0].numpy()
    assert 0 < np.abs(found - expected).max() < 0.2 * expected.std()
    alone = [session.run(packed([candidate]))[0] for candidate in CANDIDATES]
    np.testing.assert_allclose(alone, found, atol=0.02)
    with pytest.raises(InputValueError, match=r"can't be read from 8 bits: put its model\.fp32\.onnx beside"):
        network_in(graph)


@pytest.mark.parametrize(("window", "spans"), [(-1, "spans"), (1 << 40, "spans"), (WINDOW, "score_spans")])
def test_the_operator_refuses_windows_that_it_cannot_have(network: ModernNetwork, window: int, spans: str) -> None:
    """All tokens of a segment must ask, for a window is told by their places."""
    graph = shared_graph(shared_weights(network))
    (node,) = (node for node in graph.graph.node if node.name == "layers.1.context")
    (attribute,) = (each for each in node.attribute if each.name == "window")
    attribute.i, node.input[5] = window, spans
    with pytest.raises(Exception, match="cappy: not so: "):
        Session(graph.SerializeToString(), 1).run(packed(CANDIDATES))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    write_tiny_pairs(folder, count=80, shard_instances=16)
    return folder


@pytest.fixture(scope="module")
def run(folder: Path, base: Path, network: ModernNetwork) -> Path:
    """One that goes on from another, whose head has scores that differ."""
    other = folder / "other"
    other.mkdir()
    shutil.copyfile(base / "tokenizer.json", other / "tokenizer.json")
    torch.save({"sizes": network.sizes(), "network": network.state_dict()}, other / "checkpoint.pt")
    settings = replace(SETTINGS, steps=90, batch_tokens=1000, checkpoint_every=30, evaluate_every=90, long=150)
    instances = folder / "instances.jsonl.gz"
    pretrain(folder / "pairs", folder / "run", dev=instances, base=str(other), settings=settings)
    return folder / "run"


@pytest.fixture(scope="module")
def model(run: Path, folder: Path) -> Path:
    export(run, folder / "instances.jsonl.gz", folder / "model", float32=True, **IDENTITY)
    return folder / "model"


def own_scorer(folder: Path) -> Scorer:
    """A model's, without the calibration of its scores."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"calibration": None}))
    return Scorer(folder, threads=1)


def test_it_learns(run: Path) -> None:
    assert losses_of(run)[-1] < losses_of(run)[0] - 0.05
    (figures,) = (line for line in log_of(run) if "dev_gain" in line)
    assert figures["choice_dev_accuracy"] >= 0


def test_a_run_that_is_killed_ends_with_the_same_weights(folder: Path, base: Path, tmp_path: Path) -> None:
    settings = replace(SETTINGS, steps=12, batch_tokens=1000, checkpoint_every=2, average=0.9)
    arguments = {"base": str(base), "settings": settings}
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["cappy_train.pretrain", "transformers"])

    def start(out: Path) -> multiprocessing.process.BaseProcess:
        process = context.Process(target=pretrain, args=(folder / "pairs", out), kwargs=arguments)
        process.start()
        return process

    whole, killed = start(tmp_path / "whole"), tmp_path / "killed"
    whole.join()
    process = start(killed)
    while process.is_alive() and not (killed / "checkpoint.pt").exists():
        time.sleep(0.005)
    process.kill()
    process.join()
    assert 0 < read_checkpoint(killed / "checkpoint.pt")["step"] < 12
    process = start(killed)
    process.join()
    assert process.exitcode == whole.exitcode == 0
    assert_same_weights(tmp_path / "whole", killed)


def test_weights_do_not_depend_on_the_number_of_threads(folder: Path, base: Path, tmp_path: Path) -> None:
    before = torch.get_num_threads()
    settings = replace(SETTINGS, steps=2, batches_per_step=3, average=0.5)
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            pretrain(folder / "pairs", tmp_path / str(threads), base=str(base), settings=settings)
    finally:
        torch.set_num_threads(before)
    assert_same_weights(tmp_path / "1", tmp_path / "3")
    assert bool(trained_network(tmp_path / "1").token_type_embeddings.weight.any())  # which start as zeros


@pytest.mark.filterwarnings("ignore:.*tokens")
def test_the_runtime_gives_the_networks_scores(run: Path, model: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    assert (config["graph"], config["max_tokens"]) == ("shared", 150)  # as training read
    assert config["parity"]["network_difference"] < 1e-5
    assert config["parity"]["quantised_difference"] == 0
    card = (model / "README.md").read_text()
    assert "A ModernBERT encoder of 4 layers" in card
    assert "All weights are float32." in card
    assert "8 bits" not in card
    expected = network_scores(trained_network(run), Packer(run / "tokenizer.json"), ASKED, 150)
    scorer = own_scorer(model)
    instructions, candidates = zip(*ASKED, strict=True)
    together = scorer.score_many(instructions, candidates)
    for number, (instruction, own) in enumerate(ASKED):
        assert expected[number].std() > 1e-3
        kept = scorer.instruction(instruction)
        for found in (
            together[number],
            scorer.score(instruction, own),
            kept.score(own),
            [kept.score([candidate])[0] for candidate in own],
        ):
            np.testing.assert_allclose(found, expected[number], atol=1e-5)


@pytest.mark.filterwarnings("ignore:.*tokens")
def test_a_model_in_eight_bits(run: Path, folder: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    export(run, folder / "instances.jsonl.gz", model, **IDENTITY)
    assert json.loads((model / "config.json").read_text())["parity"]["quantised_difference"] > 0
    expected = network_scores(trained_network(run), Packer(run / "tokenizer.json"), ASKED, 150)
    scorer = own_scorer(model)
    for (instruction, candidates), own in zip(ASKED, expected, strict=True):
        np.testing.assert_allclose(scorer.score(instruction, candidates), own, atol=0.05)
    exact = trained_network(run).state_dict()
    assert all(torch.equal(weight, exact[name]) for name, weight in network_of(model).state_dict().items())
    (model / "model.fp32.onnx").unlink()
    with pytest.raises(InputValueError, match=r"model: .* put its model\.fp32\.onnx beside"):
        network_of(model)


def test_a_model_is_trained_further(folder: Path, run: Path, model: Path, tmp_path: Path) -> None:
    settings = replace(SETTINGS, steps=1, learning_rate=1e-9, long=150)
    pretrain(folder / "pairs", tmp_path / "again", base=str(model), settings=settings)
    again, before = trained_network(tmp_path / "again"), trained_network(run)
    assert again.max_tokens == 150
    assert again.state_dict().keys() == before.state_dict().keys()
    for name, weight in again.state_dict().items():
        torch.testing.assert_close(weight, before.state_dict()[name], atol=1e-6, rtol=0)
    with pytest.raises(InputValueError, match="reads 150 tokens at most"):
        pretrain(folder / "pairs", tmp_path / "longer", base=str(model), settings=replace(settings, long=151))


def test_a_model_is_adapted(folder: Path, model: Path, tmp_path: Path) -> None:
    adapt(folder / "instances.jsonl.gz", tmp_path / "adapted", model=model, epochs=0.5, learning_rate=3e-3)
    assert in_float32(tmp_path / "adapted")
    assert len(Scorer(tmp_path / "adapted", threads=1).score("Say it.", ["snow", "dog"])) == 2


def test_a_config_as_it_was_first_published(base: Path, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").symlink_to(base / "model.safetensors")
    values = json.loads((base / "config.json").read_text())
    del values["layer_types"], values["rope_parameters"]
    values |= {"global_attn_every_n_layers": 2, "global_rope_theta": 900.0, "local_rope_theta": 80.0}
    values |= {"layer_norm_eps": 1e-5, "repad_logits_with_grad": False, "position_embedding_type": "absolute"}
    (tmp_path / "config.json").write_text(json.dumps(values))
    config = from_modern_bert(tmp_path).config
    assert config.windows == (None, WINDOW, None, WINDOW)
    assert config.thetas == (900.0, 80.0, 900.0, 80.0)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"hidden_activation": "relu"}, "activation is relu"),
        ({"norm_bias": True}, r"biases \(norm_bias\)"),
        ({"local_attention": 1}, "windows are empty"),
        ({"intermediate_size": 40}, "multiples of 16"),
        ({"num_attention_heads": 32}, "twice its 32 heads"),
        ({"num_hidden_layers": 5, "layer_types": None}, r"lacks the weights 'model\.layers\.4"),
        (
            {
                "rope_parameters": {
                    "full_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4},
                    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
                }
            },
            r"scaled \(linear\)",
        ),
        ({"vocab_size": "many"}, "config.json can't be read"),
    ],
)
def test_what_a_network_does_otherwise_is_named(
    base: Path, tmp_path: Path, change: dict[str, object], words: str
) -> None:
    (tmp_path / "model.safetensors").symlink_to(base / "model.safetensors")
    config = json.loads((base / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(InputValueError, match=words):
        from_saved(tmp_path)
