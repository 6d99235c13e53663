"""The scorer network: its attention rule, and that it computes what transformers' BERT computes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_training import write_tiny_bert
from transformers import BertConfig, BertModel

from cappy_lite.packing import PackedRow, pack
from cappy_train.attention import attention_bias
from cappy_train.batches import Batch, collate
from cappy_train.network import ScorerNetwork, from_bert, packaged_minilm

CLS, SEP = 2, 3
INSTRUCTION = list(range(40, 60))
CANDIDATES = [[70, 71, 72], [80], list(range(90, 101)), [71, 72]]


@pytest.fixture(scope="module")
def bert_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_bert(tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="module")
def network(bert_folder: Path) -> ScorerNetwork:
    torch.manual_seed(0)
    network = from_bert(bert_folder)
    # A fresh head gives logits that hardly differ.
    torch.nn.init.normal_(network.head_dense.weight)
    torch.nn.init.normal_(network.head_output.weight)
    return network.eval()


def packed(instruction: list[int], candidates: list[list[int]]) -> PackedRow:
    (row,) = pack(instruction, candidates, cls_id=CLS, sep_id=SEP, max_tokens=160)
    return row


def batch_of(*rows: PackedRow, length: int | None = None) -> Batch:
    labels = [np.zeros(len(row.score_positions)) for row in rows]
    longest = max(len(row.input_ids) for row in rows)
    return collate(rows, labels, length or longest, max(len(row.score_positions) for row in rows))


def states(network: ScorerNetwork, batch: Batch) -> torch.Tensor:
    with torch.inference_mode():
        return network.encode(batch.input_ids, batch.position_ids, batch.token_type_ids, batch.segment_ids)


def logits(network: ScorerNetwork, batch: Batch) -> torch.Tensor:
    with torch.inference_mode():
        return batch.logits(network)


def bert_of(folder: Path) -> BertModel:
    sizes = json.loads((folder / "config.json").read_text())
    bert = BertModel(BertConfig(**sizes, attn_implementation="eager"), add_pooling_layer=False)
    missing, unknown = bert.load_state_dict(load_file(folder / "model.safetensors"), strict=False)
    assert not missing
    assert all(name.startswith("pooler") or name.endswith("position_ids") for name in unknown)
    return bert.eval()


def test_a_candidate_scores_the_same_alone_and_beside_others(network: ScorerNetwork) -> None:
    together = logits(network, batch_of(packed(INSTRUCTION, CANDIDATES)))[0]
    assert together.std() > 0.1
    for candidate, logit in zip(CANDIDATES, together, strict=True):
        alone = logits(network, batch_of(packed(INSTRUCTION, [candidate])))[0, 0]
        torch.testing.assert_close(alone, logit, atol=1e-5, rtol=0)


def test_the_order_of_candidates_does_not_matter(network: ScorerNetwork) -> None:
    forward = logits(network, batch_of(packed(INSTRUCTION, CANDIDATES)))[0]
    backward = logits(network, batch_of(packed(INSTRUCTION, CANDIDATES[::-1])))[0]
    torch.testing.assert_close(backward.flip(0), forward, atol=1e-5, rtol=0)


def test_candidates_do_not_touch_the_instructions_states(network: ScorerNetwork) -> None:
    length = len(INSTRUCTION) + 2
    some = states(network, batch_of(packed(INSTRUCTION, [[70, 71, 72], [80]])))[0]
    others = states(network, batch_of(packed(INSTRUCTION, [[90, 91, 92], [99]])))[0]
    torch.testing.assert_close(some[:length], others[:length], atol=1e-6, rtol=0)
    assert not torch.allclose(some[length:], others[length:], atol=1e-2)


def test_the_instruction_touches_the_candidates_score(network: ScorerNetwork) -> None:
    one = logits(network, batch_of(packed(INSTRUCTION, CANDIDATES)))
    other = logits(network, batch_of(packed(INSTRUCTION[::-1], CANDIDATES)))
    assert not torch.allclose(one, other, atol=1e-2)


def test_padding_changes_nothing(network: ScorerNetwork) -> None:
    short, long = packed(INSTRUCTION, [[80]]), packed(INSTRUCTION, CANDIDATES)
    alone = logits(network, batch_of(short))[0, 0]
    torch.testing.assert_close(logits(network, batch_of(short, length=96))[0, 0], alone, atol=1e-5, rtol=0)
    torch.testing.assert_close(logits(network, batch_of(long, short))[1, 0], alone, atol=1e-5, rtol=0)


def test_a_packed_row_is_what_bert_computes_under_the_same_mask(network: ScorerNetwork, bert_folder: Path) -> None:
    batch = batch_of(packed(INSTRUCTION, CANDIDATES))
    with torch.inference_mode():
        expected = bert_of(bert_folder)(
            input_ids=batch.input_ids,
            position_ids=batch.position_ids,
            token_type_ids=batch.token_type_ids,
            attention_mask=attention_bias(batch.segment_ids, torch.float32),
        ).last_hidden_state
    torch.testing.assert_close(states(network, batch), expected, atol=1e-5, rtol=0)


def test_a_lone_pair_is_what_bert_computes_but_for_one_block(network: ScorerNetwork, bert_folder: Path) -> None:
    """The block is the instruction looking ahead at the candidate."""
    row = packed(INSTRUCTION, CANDIDATES[:1])
    ids, types = torch.from_numpy(row.input_ids)[None], torch.from_numpy(row.token_type_ids)[None]
    length = len(INSTRUCTION) + 2
    visible = torch.ones(len(row.input_ids), len(row.input_ids), dtype=torch.bool)
    visible[:length, length:] = False
    bias = torch.zeros(visible.shape).masked_fill(~visible, float("-inf"))[None, None]
    with torch.inference_mode():
        expected = bert_of(bert_folder)(input_ids=ids, token_type_ids=types, attention_mask=bias).last_hidden_state
    torch.testing.assert_close(states(network, batch_of(row)), expected, atol=1e-5, rtol=0)


def test_gradients_in_bfloat16_are_those_in_float32(bert_folder: Path) -> None:
    """Over some thousands of tokens: sums over them must not be rounded at each."""
    torch.manual_seed(0)
    network = from_bert(bert_folder)
    torch.nn.init.normal_(network.head_output.weight)
    rows = [packed(torch.randint(40, 90, (60,)).tolist(), CANDIDATES) for _ in range(40)]
    batch = batch_of(*rows)
    found = {}
    for precision in (torch.float32, torch.bfloat16):
        network.precision = precision
        network.zero_grad()
        batch.logits(network).square().mean().backward()
        found[precision] = {name: weight.grad for name, weight in network.named_parameters()}
    for name, exact in found[torch.float32].items():
        # Keys' biases move all logits of a query alike, so their gradient is nothing but roundings.
        if not name.endswith("query_key_value.bias"):
            assert float((found[torch.bfloat16][name] - exact).norm() / exact.norm()) < 0.06, name


def test_attention_bias_by_hand() -> None:
    bias = attention_bias(torch.tensor([[0, 1, 2, -1]]), torch.float32)
    assert bias.shape == (1, 1, 4, 4)
    assert (bias[0, 0] == 0).tolist() == [
        [True, False, False, False],
        [True, True, False, False],
        [True, False, True, False],
        [True, False, False, True],
    ]


def test_the_packaged_minilm_is_read_as_transformers_reads_it() -> None:
    folder = packaged_minilm()
    network = from_bert(folder).eval()
    ids = torch.tensor([[101, 2054, 2003, 1996, 3007, 1997, 2605, 1029, 102, 3000, 102]])
    types = torch.tensor([[0] * 9 + [1] * 2])
    positions = torch.arange(ids.shape[1])[None]
    with torch.inference_mode():
        expected = bert_of(folder)(input_ids=ids, token_type_ids=types).last_hidden_state
        # In one segment all tokens see each other, as in BERT.
        found = network.encode(ids, positions, types, torch.zeros_like(ids))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
