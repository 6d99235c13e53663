"""How fast pre-training goes: tokens a second, beside a plain loop over the same rows, and as a share of the peak.

    python -m benchmarks.pretraining [--data PAIRS] [--output FILE]

A step is forward and backward over two batches, each of ours on a thread of its own, and an update by AdamW. The plain
loop is what PyTorch has for it: torch.autocast in bfloat16, each operation on all threads, padded rows,
scaled_dot_product_attention under a mask, all states of all layers. It takes the rows in the very batches that ours
has, which are of like length ("plain"), and in batches as they come ("plain, unsorted"). Tokens are counted without
padding. Before anything is timed, both networks must give the same logits in float32; exit status 1 if they don't. They
take turns. The peak is the fastest of several products of bfloat16 matrices, those of the network among them; what a
step reaches of it counts the products of its linear layers and of the tokens that see each other. Rows are made up, or
of PAIRS, a folder that cappy-train annotate wrote. Markdown table on stdout.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.command import parser_with_output, write_output
from benchmarks.corpus import SEED, synthetic_corpus
from benchmarks.machine import describe_machine
from benchmarks.markdown import rate, table
from benchmarks.rounds import Contestant, FloatArray, median_and_range, rates
from cappy_train.attention import attention_bias
from cappy_train.batches import Batch, LabelledRow, Packer, TokenRow
from cappy_train.network import NetworkConfig, ScorerNetwork, from_bert, packaged_minilm
from cappy_train.objective import objective
from cappy_train.streaming import ShardRows, by_length, draw_responses
from cappy_train.training import Settings, gradients_on_threads

# Those of a training run by default.
SETTINGS = Settings()
# Rows that batches are made of, as a training run looks so far ahead.
WINDOW = 4_000
# Of made-up rows: candidates, and words of the instruction and of a candidate, from and to.
CANDIDATES = 8
INSTRUCTION_WORDS = (10, 160)
CANDIDATE_WORDS = (1, 16)
SQUARES = (1024, 2048, 4096)
TOLERANCE = 1e-3


def main(argv: Sequence[str] | None = None) -> int:
    parser = parser_with_output(__doc__)
    parser.add_argument("--data", type=Path, metavar="PAIRS", help="a folder of annotate's shards; without it: made up")
    parser.add_argument("--base", type=Path, help="a BERT checkpoint's folder (default: MiniLM-L6-H384)")
    parser.add_argument("--batches", type=int, default=8, help="that are timed, an even number (default: %(default)s)")
    parser.add_argument(
        "--tokens", type=int, default=SETTINGS.batch_tokens, help="of a batch, about (default: %(default)s)"
    )
    parser.add_argument("--rounds", type=int, default=5, help="how often each is timed (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="default: %(default)s")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(SEED)
    base = arguments.base or packaged_minilm()
    packer = Packer(base / "tokenizer.json")
    network = from_bert(base)
    texts = of_shards(arguments.data) if arguments.data else made_up()
    rows = packer.token_rows(texts, [min(SETTINGS.short, network.config.positions)] * len(texts))
    report = {"data": arguments.data.name if arguments.data else "made up"} | measure(
        network, packer, rows, arguments.tokens, arguments.batches, arguments.rounds
    )
    report |= {"threads": arguments.threads, "cpu_capability": torch.backends.cpu.get_cpu_capability()}
    report |= describe_machine("cappy-lite", "torch", "numpy")
    print(show(report))
    write_output(arguments.output, report)
    return 0


def show(report: dict[str, Any]) -> str:
    lines = [
        [name, rate(values[0]), f"[{rate(values[1])}, {rate(values[2])}]", f"{report['shares'][name]:.0%}"]
        for name, values in report["rates"].items()
    ]
    ratios = [
        f"ours / {name}: {ratio[0]:.2f} times [{ratio[1]:.2f}, {ratio[2]:.2f}]"
        for name, ratio in report["ratios"].items()
    ]
    peak = f"Peak: {report['peak_gflops']:.0f} GFLOP/s, of {report['peak_shape']}"
    head = ["loop", "tokens/s", "[least, most]", "share of the peak"]
    return "\n".join([table(head, lines), "", *ratios, peak])


def of_shards(folder: Path) -> list[LabelledRow]:
    """The first rows that a training run reads of a folder."""
    rows = ShardRows(folder)
    read = (row for window in range(len(rows.sizes(0))) for row in rows.read(0, window))
    source = random.Random(SEED)
    return [draw_responses(row, SETTINGS.responses, source) for row in islice(read, WINDOW)]


def made_up() -> list[LabelledRow]:
    """Rows of words by Zipf's law, with as many candidates as a row takes."""
    generator = np.random.default_rng(SEED)
    lengths = generator.integers(*CANDIDATE_WORDS, (WINDOW, 1 + CANDIDATES))
    lengths[:, 0] = generator.integers(*INSTRUCTION_WORDS, WINDOW)
    texts = iter(synthetic_corpus(int(lengths.sum())).texts(lengths.reshape(-1)))
    labels = tuple(generator.random(CANDIDATES).tolist())
    return [LabelledRow(next(texts), tuple(islice(texts, CANDIDATES)), labels) for _ in range(WINDOW)]


def in_order(rows: Sequence[TokenRow], tokens: int) -> list[list[TokenRow]]:
    """The rows in this order, in batches of at most so many tokens with padding."""
    batches: list[list[TokenRow]] = [[]]
    for row in rows:
        longest = max(row.length, *(other.length for other in batches[-1])) if batches[-1] else row.length
        if batches[-1] and longest * (len(batches[-1]) + 1) > tokens:
            batches.append([])
        batches[-1].append(row)
    return batches


# Loops.


class PlainNetwork(nn.Module):
    """The same network as anyone would write it; its weights have the same names."""

    def __init__(self, network: ScorerNetwork) -> None:
        super().__init__()
        config = network.config
        self.heads = config.heads
        self.word_embeddings = nn.Embedding(config.vocabulary, config.hidden)
        self.position_embeddings = nn.Embedding(config.positions, config.hidden)
        self.token_type_embeddings = nn.Embedding(2, config.hidden)
        self.embedding_norm = nn.LayerNorm(config.hidden, eps=config.layer_norm_eps)
        self.layers = nn.ModuleList(plain_layer(config) for _ in range(config.layers))
        self.head_dense = nn.Linear(config.hidden, config.hidden)
        self.head_output = nn.Linear(config.hidden, 1)
        self.load_state_dict(network.state_dict())

    def forward(self, batch: Batch) -> Tensor:
        states = self.embedding_norm(
            self.word_embeddings(batch.input_ids)
            + self.position_embeddings(batch.position_ids)
            + self.token_type_embeddings(batch.token_type_ids)
        )
        visible = attention_bias(batch.segment_ids, torch.float32) == 0
        for layer in self.layers:
            parts = layer["query_key_value"](states).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
            context = F.scaled_dot_product_attention(*parts, attn_mask=visible).transpose(1, 2).flatten(-2)
            states = layer["attention_norm"](states + layer["attention_output"](context))
            states = layer["output_norm"](states + layer["output"](F.gelu(layer["intermediate"](states))))
        last = states.flatten(0, 1)[batch.score_positions]
        return self.head_output(torch.tanh(self.head_dense(last))).squeeze(-1)


def plain_layer(config: NetworkConfig) -> nn.ModuleDict:
    hidden, wide, eps = config.hidden, config.feed_forward, config.layer_norm_eps
    return nn.ModuleDict(
        {
            "query_key_value": nn.Linear(hidden, 3 * hidden),
            "attention_output": nn.Linear(hidden, hidden),
            "attention_norm": nn.LayerNorm(hidden, eps=eps),
            "intermediate": nn.Linear(hidden, wide),
            "output": nn.Linear(wide, hidden),
            "output_norm": nn.LayerNorm(hidden, eps=eps),
        }
    )


class Plain:
    """The loop that ours is compared with."""

    def __init__(self, network: ScorerNetwork) -> None:
        self.network = PlainNetwork(network)
        self.network.word_embeddings.requires_grad_(False)
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=1e-5)

    def train(self, batches: Sequence[Batch]) -> None:
        for number, batch in enumerate(batches, 1):
            with torch.autocast("cpu", torch.bfloat16):
                logits = self.network(batch)
            loss(logits.float(), batch.labels).backward()
            if number % SETTINGS.batches_per_step == 0:
                self.optimizer.step()
                self.optimizer.zero_grad()


class Ours:
    """What cappy-train pretrain does for a step."""

    def __init__(self, network: ScorerNetwork) -> None:
        self.network = network
        network.precision = torch.bfloat16
        network.word_embeddings.requires_grad_(False)
        self.trained = [weight for weight in network.parameters() if weight.requires_grad]
        self.optimizer = torch.optim.AdamW(self.trained, lr=1e-5, fused=True)

    def train(self, batches: Sequence[Batch]) -> None:
        for start in range(0, len(batches), SETTINGS.batches_per_step):
            step = batches[start : start + SETTINGS.batches_per_step]
            gradients_on_threads(lambda batch: loss(batch.logits(self.network), batch.labels), step, self.trained)
            self.optimizer.step()
            self.optimizer.zero_grad()


def loss(logits: Tensor, labels: Tensor) -> Tensor:
    return objective(logits, labels, SETTINGS.losses, temperature=SETTINGS.temperature)


# Measurements.


def measure(
    network: ScorerNetwork, packer: Packer, rows: Sequence[TokenRow], tokens: int, count: int, rounds: int
) -> dict[str, Any]:
    """Tokens a second of each loop and what they were counted over, the ratios within rounds, and the peak."""
    source = random.Random(SEED)
    batches = by_length(rows, tokens)
    chosen = source.sample(batches, min(count, len(batches)))
    own_rows = [row for batch in chosen for row in batch]
    unsorted = in_order(source.sample(own_rows, len(own_rows)), tokens)
    sorted_batches, unsorted_batches = ([packer.batch(batch) for batch in each] for each in (chosen, unsorted))
    plain = Plain(network)
    check_same(plain.network, network, sorted_batches[0])
    ours = Ours(network)
    loops = {
        "ours": Contestant(partial(ours.train, sorted_batches), tokens_of(sorted_batches)),
        "plain": Contestant(partial(plain.train, sorted_batches), tokens_of(sorted_batches)),
        "plain, unsorted": Contestant(partial(plain.train, unsorted_batches), tokens_of(sorted_batches)),
    }
    for loop in (ours, plain):
        loop.train(sorted_batches[: SETTINGS.batches_per_step])  # kernels are made for each shape
    measured = dict(zip(loops, rates(list(loops.values()), rounds), strict=True))
    shape, peak = fastest_product(network.config, tokens, rounds)
    flops = {
        "ours": flops_a_token(network.config, sorted_batches, last_whole=False),
        "plain": flops_a_token(network.config, sorted_batches, last_whole=True),
        "plain, unsorted": flops_a_token(network.config, unsorted_batches, last_whole=True),
    }
    return {
        "rows": len(own_rows),
        "tokens": tokens_of(sorted_batches),
        "tokens_with_padding": sum(batch.input_ids.numel() for batch in sorted_batches),
        "tokens_with_padding_unsorted": sum(batch.input_ids.numel() for batch in unsorted_batches),
        "candidates": sum(int((~batch.labels.isnan()).sum()) for batch in sorted_batches),
        "shapes": [list(batch.input_ids.shape) for batch in sorted_batches],
        "rounds": rounds,
        "rates": {name: median_and_range(values) for name, values in measured.items()},
        "ratios": {
            name: median_and_range(measured["ours"] / values) for name, values in measured.items() if name != "ours"
        },
        "peak_gflops": peak / 1e9,
        "peak_shape": shape,
        "flops_a_token": flops,
        "shares": {name: float(np.median(values)) * flops[name] / peak for name, values in measured.items()},
    }


def check_same(plain: PlainNetwork, network: ScorerNetwork, batch: Batch) -> None:
    """Raises SystemExit if the networks' logits differ in float32."""
    present = ~batch.labels.isnan()
    with torch.inference_mode():
        difference = float((plain(batch) - batch.logits(network))[present].abs().nan_to_num(torch.inf).max())
    if difference > TOLERANCE:
        raise SystemExit(f"DIFFERENT: logits, by up to {difference:.2g}")


def tokens_of(batches: Sequence[Batch]) -> int:
    return sum(int((batch.segment_ids >= 0).sum()) for batch in batches)


def flops_a_token(config: NetworkConfig, batches: Sequence[Batch], *, last_whole: bool) -> float:
    """Operations of a token's products, forwards and twice that backwards; `last_whole`: in the last layer as well.

    Counted are linear layers, and queries with the keys and values that they see; not padding.
    """
    hidden, full = config.hidden, config.layers if last_whole else config.layers - 1
    layer = 4 * hidden**2 + 2 * hidden * config.feed_forward
    products = 0.0
    for batch in batches:
        present = batch.segment_ids >= 0
        seen = (attention_bias(batch.segment_ids, torch.float32)[:, 0] == 0).sum(-1)
        products += full * (int(present.sum()) * layer + 2 * hidden * int(seen[present].sum()))
        if not last_whole:
            positions = batch.score_positions[~batch.labels.isnan()]
            products += 2 * hidden**2 * int(present.sum())
            products += len(positions) * (layer - 2 * hidden**2) + 2 * hidden * int(seen.flatten()[positions].sum())
    return 3 * 2 * products / tokens_of(batches)


def fastest_product(config: NetworkConfig, tokens: int, rounds: int) -> tuple[str, float]:
    """The shape (m x k x n) of the product of bfloat16 matrices that is the fastest by its median, and FLOP/s."""
    hidden, wide = config.hidden, config.feed_forward
    shapes = [(size, size, size) for size in SQUARES]
    shapes += [(tokens, *pair) for pair in ((hidden, 3 * hidden), (hidden, hidden), (hidden, wide), (wide, hidden))]
    found = {shape: float(np.median(product_rates(*shape, rounds))) for shape in shapes}
    fastest = max(found, key=lambda shape: found[shape])
    return " x ".join(map(str, fastest)), found[fastest]


def product_rates(m: int, k: int, n: int, rounds: int) -> FloatArray:
    """FLOP/s of products of an (m, k) and an (n, k) matrix, the second transposed, as in a linear layer."""
    left, right = torch.randn(m, k, dtype=torch.bfloat16), torch.randn(n, k, dtype=torch.bfloat16)
    seconds = []
    for _ in range(1 + rounds):
        start = time.perf_counter()
        F.linear(left, right)
        seconds.append(time.perf_counter() - start)
    return 2 * m * k * n / np.array(seconds[1:])


if __name__ == "__main__":
    sys.exit(main())
