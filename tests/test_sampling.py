"""Sampling from local models: likelihoods, decodings, and folders that end alike however often a job was killed."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections import Counter
from itertools import chain
from pathlib import Path
from shutil import copytree
from typing import Any

import numpy as np
import pytest
import torch
from tiny_checkpoints import write_checkpoint
from tiny_generators import CHAT, END, write_generator
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    LogitsProcessorList,
    PreTrainedTokenizerBase,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from cappy_lite.errors import InputTypeError, InputValueError, ModelError
from cappy_train.annotate import annotate
from cappy_train.cli import DECODINGS, main
from cappy_train.decoding import HalfHaveEnded, Writer
from cappy_train.drawing import draw
from cappy_train.instances import Candidate, Instance, read_instances, write_instances
from cappy_train.local_models import LocalModel
from cappy_train.sampling import PAPER, Decoding, allotted, sample
from cappy_train.shards import Shards

SEQ2SEQ = ("t5", "bart", "encoder-decoder")
KINDS = (*SEQ2SEQ, "gpt2", "llama", "mistral")
INSTRUCTIONS = [
    "name a dog",
    "say yes",
    "the cat runs on the snow and it is good",
    "a",
    "is this a good film about you",
]


def instances(texts: list[str] = INSTRUCTIONS) -> list[Instance]:
    return [Instance(f"i{at}", "t", "ask", text, ("it is",), (), None, "train") for at, text in enumerate(texts)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("generators")
    return {kind: write_generator(folder / kind, kind) for kind in KINDS}


def opened(folder: Path, **options: Any) -> LocalModel:
    return LocalModel(folder, **{"precision": "float32", "max_new_tokens": 12} | options)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("kind", KINDS)
def test_likelihoods_are_those_of_the_networks_own_forward_pass(
    folders: dict[str, Path], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without generate, without a cache and without padding: of each token after all that stand before it."""
    written: list[list[int]] = []
    decode = PreTrainedTokenizerBase.batch_decode

    def seen(tokenizer: PreTrainedTokenizerBase, rows: list[list[int]], **options: Any) -> list[str]:
        written.extend(rows)
        return decode(tokenizer, rows, **options)

    monkeypatch.setattr(PreTrainedTokenizerBase, "batch_decode", seen)
    tokenizer: Any = AutoTokenizer.from_pretrained(folders[kind])
    loader: Any = AutoModelForSeq2SeqLM if kind in SEQ2SEQ else AutoModelForCausalLM
    network = loader.from_pretrained(folders[kind], dtype=torch.float32)
    sampled = opened(folders[kind], batch_tokens=1 << 20).sample(instances())
    prompts = [tokenizer(text)["input_ids"] for text in INSTRUCTIONS]
    tokens, ended = iter(written), 0
    for at in sorted(range(len(prompts)), key=lambda at: -len(prompts[at])):
        assert [one.source for one in sampled.candidates[at]] == [
            "beam",
            *(name for name in DECODINGS[1:] for _ in range(4)),
        ]
        for one, said in zip(sampled.candidates[at], tokens, strict=False):
            assert one.text == tokenizer.decode(said, skip_special_tokens=True).strip()
            row = said if len(said) == 12 else [*said, END]
            ended += len(said) < 12
            with torch.inference_mode():
                if kind in SEQ2SEQ:
                    start = network.generation_config.decoder_start_token_id
                    answer = torch.tensor([[start, *row]])
                    logits = network(torch.tensor([prompts[at]]), decoder_input_ids=answer).logits[0]
                else:
                    logits = network(torch.tensor([prompts[at] + row])).logits[0, len(prompts[at]) - 1 :]
            likelihoods = logits.double().log_softmax(-1)[range(len(row)), row]
            assert one.log_likelihood == pytest.approx(float(likelihoods.sum()), abs=1e-3)
            assert one.mean_log_likelihood == pytest.approx(float(likelihoods.mean()), abs=1e-4)
    assert len(written) == 5 * 17
    assert ended > 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_beam_search_is_transformers_own(folders: dict[str, Path], kind: str) -> None:
    tokenizer: Any = AutoTokenizer.from_pretrained(folders[kind])
    loader: Any = AutoModelForSeq2SeqLM if kind in SEQ2SEQ else AutoModelForCausalLM
    network = loader.from_pretrained(folders[kind], dtype=torch.float32)
    network.generation_config.repetition_penalty, network.generation_config.temperature = 1.0, 1.0
    found = opened(folders[kind], decodings=PAPER[:1]).sample(instances()).candidates
    for instance, (candidate,) in zip(instances(), found, strict=True):
        ids = tokenizer(instance.instruction, return_tensors="pt")
        output = network.generate(**ids, num_beams=4, max_new_tokens=12, do_sample=False)[0]
        output = output if kind in SEQ2SEQ else output[ids["input_ids"].shape[1] :]
        assert candidate.text == tokenizer.decode(output, skip_special_tokens=True)


@pytest.mark.parametrize("kind", KINDS)
def test_responses_do_not_depend_on_their_neighbours(folders: dict[str, Path], kind: str) -> None:
    model = opened(folders[kind], batch_tokens=100_000)
    together = model.sample(instances())
    for at, instance in enumerate(instances()):
        (alone,) = model.sample([instance]).candidates
        assert [one.text for one in alone] == [one.text for one in together.candidates[at]]
        for one, other in zip(alone, together.candidates[at], strict=True):
            assert one.log_likelihood == pytest.approx(other.log_likelihood, abs=1e-3)
    told: list[tuple[int, int]] = []
    small = opened(folders[kind], batch_tokens=1).sample(instances(), advance=lambda *done: told.append(done))
    assert [[c.text for c in some] for some in small.candidates] == [[c.text for c in s] for s in together.candidates]
    assert [count for count, _ in told] == [1] * 5
    assert model.sample(instances()) == together
    other = opened(folders[kind], seed=1).sample(instances()).candidates[0]
    assert other[0] == pytest.approx(together.candidates[0][0]) or other[0].text == together.candidates[0][0].text
    assert [one.text for one in other[1:]] != [one.text for one in together.candidates[0][1:]]


@pytest.mark.parametrize("kind", KINDS)
def test_rows_that_have_ended_leave_the_batch(
    folders: dict[str, Path], kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the others get is what they get beside them."""
    folder = copytree(folders[kind], tmp_path / kind)
    settings = json.loads((folder / "generation_config.json").read_text())
    settings["eos_token_id"] = [END, *range(8, 140, 12)]
    (folder / "generation_config.json").write_text(json.dumps(settings))
    # Nearly any token may follow: responses of very different lengths.
    decodings = [
        PAPER[0],
        Decoding("hot", samples=12, temperature=9.0),
        Decoding("nucleus", temperature=9.0, top_p=0.9),
    ]
    model = opened(folder, decodings=decodings, max_new_tokens=40, batch_tokens=1 << 20)
    rows: list[int] = []
    write = Writer.__call__

    def seen(writer: Writer, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        rows.append(len(scores))
        return write(writer, input_ids, scores)

    monkeypatch.setattr(Writer, "__call__", seen)
    given = instances([text for text in INSTRUCTIONS if text != "a"])
    left = model.sample(given).candidates
    assert rows == sorted(rows, reverse=True)
    assert len(set(rows)) > 2
    monkeypatch.setattr(HalfHaveEnded, "__call__", lambda _, ids, scores: torch.zeros(len(ids), dtype=torch.bool))
    rows.clear()
    stayed = model.sample(given).candidates
    assert set(rows) == {4 * 17}
    for one, other in zip(chain(*left), chain(*stayed), strict=True):
        assert one.text == other.text
        assert one.log_likelihood == pytest.approx(other.log_likelihood, abs=1e-3)
        assert one.mean_log_likelihood == pytest.approx(other.mean_log_likelihood, abs=1e-4)


@pytest.mark.parametrize("kind", ["t5", "gpt2"])
def test_threads_change_nothing(folders: dict[str, Path], kind: str) -> None:
    model, before = opened(folders[kind], batch_tokens=1), torch.get_num_threads()
    sampled = []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            sampled.append(model.sample(instances()))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert sampled[0] == sampled[1]


@pytest.mark.parametrize(
    "decoding",
    [*PAPER[1:], Decoding("few", top_k=20), Decoding("all", temperature=0.5, top_k=700, top_p=0.4)],
)
@pytest.mark.parametrize("spread", [0.1, 4.0])
def test_tokens_are_drawn_by_the_decodings_own_distribution(decoding: Decoding, spread: float) -> None:
    """An even grid of numbers gives each token its share, as transformers' own warpers have it."""
    logits = torch.randn(2, 1, 2000, generator=torch.Generator().manual_seed(3)) * spread
    warpers = LogitsProcessorList([TemperatureLogitsWarper(decoding.temperature)])
    warpers += [TopKLogitsWarper(decoding.top_k)] if decoding.top_k else []
    warpers += [TopPLogitsWarper(decoding.top_p)] if decoding.top_p else []
    steps = 10_000
    grid = (torch.arange(steps, dtype=torch.float64) + 0.5) / steps
    for row in range(2):
        expected = warpers(torch.zeros(1, 1, dtype=torch.long), logits[row].clone()).softmax(-1)[0]
        weights = (logits[row] / decoding.temperature).softmax(-1) * 7  # of any scale
        shares = torch.bincount(draw(weights.expand(steps, -1), decoding, grid), minlength=2000) / steps
        assert (shares - expected).abs().max() < 3 / steps
        assert not shares[expected == 0].any()


def test_prompts_that_are_too_long_lose_their_middle(folders: dict[str, Path]) -> None:
    long = "name " * 400 + "dog"
    for kind, most in (("gpt2", 160 - 12), ("t5", 160)):
        model = opened(folders[kind])
        sampled = model.sample(instances([long, "name a dog"]))
        assert sampled.counts == {"prompts_cut": 1}
        inner = most - 1 - (kind == "t5")
        fits = model.sample(instances(["name " * inner + "dog"]))
        assert fits.counts == {"prompts_cut": 0}
        assert [one.text for one in fits.candidates[0]] == [one.text for one in sampled.candidates[0]]
    with pytest.raises(InputValueError, match="leaves no room for prompts"):
        opened(folders["gpt2"], max_new_tokens=150)


def test_a_chat_template_is_applied(folders: dict[str, Path], tmp_path: Path) -> None:
    chat = write_generator(tmp_path / "chat", "llama", chat=CHAT)
    plain = opened(folders["llama"]).sample(instances(["<s> you name a dog it"])).candidates[0]
    assert [one.text for one in opened(chat).sample(instances(["name a dog"])).candidates[0]] == [
        one.text for one in plain
    ]
    failing = write_generator(tmp_path / "failing", "llama", chat="{{ raise_exception('a system message first') }}")
    with pytest.raises(InputValueError, match="chat template fails on an instruction alone: a system message first"):
        opened(failing).sample(instances())


def test_models_that_are_none(folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(InputValueError, match="is no folder"):
        LocalModel(tmp_path / "none")
    with pytest.raises(InputValueError, match="a BertForSequenceClassification, which writes no text"):
        LocalModel(write_checkpoint(tmp_path / "bert", "bert"))
    coded = tmp_path / "coded"
    coded.mkdir()
    (coded / "config.json").write_text('{"model_type": "own", "auto_map": {"AutoConfig": "code.Config"}}')
    (coded / "code.py").write_text("raise SystemExit('was run')")
    with pytest.raises(InputValueError, match="Python code of its own, which is never run"):
        LocalModel(coded)
    damaged = write_generator(tmp_path / "damaged", "gpt2")
    (damaged / "model.safetensors").write_bytes(b"half")
    with pytest.raises(InputValueError, match="its weights or its tokenizer can't be read"):
        LocalModel(damaged)
    for options, message in (
        ({"precision": "float16"}, "precision is 'float16'"),
        ({"decodings": [PAPER[0], PAPER[0]]}, "with sources that differ"),
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1"),
        ({"batch_tokens": 0}, "batch_tokens must be at least 1"),
    ):
        with pytest.raises(InputValueError, match=message):
            LocalModel(folders["t5"], **options)  # type: ignore[arg-type]
    with pytest.raises(InputTypeError, match="seed must be an int"):
        LocalModel(folders["t5"], seed=0.5)  # type: ignore[arg-type]


def test_numbers_that_are_none_are_told(tmp_path: Path) -> None:
    folder = write_generator(tmp_path / "nan", "gpt2")
    network = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        network.transformer.ln_f.weight.fill_(torch.nan)
    network.save_pretrained(folder)
    with pytest.raises(ModelError, match="no number: try --precision float32"):
        opened(folder).sample(instances())


def test_bfloat16(folders: dict[str, Path]) -> None:
    sampled = opened(folders["t5"], precision="bfloat16").sample(instances())
    assert all(np.isfinite(one.log_likelihood or np.nan) for some in sampled.candidates for one in some)


def test_decodings_that_can_not_be() -> None:
    for options, message in (
        ({"samples": 0}, "samples must be at least 1"),
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"top_p": 1.5}, "top_p is 1.5"),
        ({"top_k": 0}, "top_k must be at least 1"),
        ({"beams": 4}, "a beam search has one sample"),
    ):
        with pytest.raises(InputValueError, match=message):
            Decoding("x", **options)  # type: ignore[arg-type]
    assert tuple(decoding.source for decoding in PAPER) == DECODINGS


def test_sampled_instances_are_annotated(folders: dict[str, Path], tmp_path: Path) -> None:
    given = [
        Instance("a", "t", "ask", "say yes", ("yes",), (Candidate("no", "crowd"),), ("yes", "no"), "train", "MIT"),
        Instance("b", "t", None, "name a dog", ("a dog",), (), None, "dev"),
        Instance("c", "t", None, "name a cat", ("a cat",), (), None, "train"),
    ]
    write_instances(tmp_path / "in.parquet", given)
    arguments = ["--data", str(tmp_path / "in.parquet"), "--out", str(tmp_path / "out"), "--split", "train"]
    arguments += ["--model", str(folders["t5"]), "--decodings", "beam", "nucleus", "--samples", "3"]
    assert main(["sample", *arguments, "--max-new-tokens", "5"]) == 0
    sampled = list(read_instances(tmp_path / "out"))
    assert [one.id for one in sampled] == ["a", "c"]
    assert sampled[0].candidates[0] == Candidate("no", "crowd")
    assert [one.source for one in sampled[0].candidates] == ["crowd", "beam", "nucleus", "nucleus", "nucleus"]
    assert (sampled[0].template, sampled[0].licence, sampled[0].choices) == ("ask", "MIT", ("yes", "no"))
    manifest = Shards(tmp_path / "out").manifest
    assert manifest["counts"] == {"instances": 2, "sampled": 8, "prompts_cut": 0}
    model = manifest["plan"]["model"]
    assert {file["name"] for file in model["files"]} >= {"model.safetensors", "config.json", "tokenizer.json"}
    assert (model["name"], model["seed"], model["max_new_tokens"]) == ("t5", 0, 5)
    assert annotate([tmp_path / "out"], tmp_path / "pairs").manifest["counts"]["instances"] == 2


def test_a_limit_is_spread_over_tasks_and_draws_the_same_in_any_order(folders: dict[str, Path], tmp_path: Path) -> None:
    given = [
        Instance(f"{task}{at}", task, None, "say yes", ("yes",), (), None, "train")
        for task, count in (("few", 2), ("many", 30), ("more", 40))
        for at in range(count)
    ]
    drawn = []
    for name, order in (("one", given), ("other", given[::-1])):
        write_instances(tmp_path / f"{name}.jsonl", order)
        model = opened(folders["t5"], decodings=PAPER[:1], max_new_tokens=1)
        sample(tmp_path / f"{name}.jsonl", tmp_path / name, model, limit=11, shard_instances=4)
        drawn.append([one.id for one in read_instances(tmp_path / name)])
    assert sorted(drawn[0]) == sorted(drawn[1])
    assert Counter(id.rstrip("0123456789") for id in drawn[0]) == {"few": 2, "many": 4, "more": 5}
    # Not the first ones, and in the input's order.
    assert drawn[0] != [f"{task}{at}" for task, count in (("few", 2), ("many", 4), ("more", 5)) for at in range(count)]
    assert drawn[0] == [one.id for one in given if one.id in drawn[0]]
    with pytest.raises(InputValueError, match="limit must be at least 1"):
        sample(tmp_path / "one.jsonl", tmp_path / "none", model, limit=0)


def test_what_is_allotted() -> None:
    assert allotted({"a": 5, "b": 1, "c": 9}, 100) == {"a": 5, "b": 1, "c": 9}
    assert allotted({"a": 5, "b": 1, "c": 9}, 8) == {"a": 3, "b": 1, "c": 4}
    assert sum(allotted({"a": 5, "b": 1, "c": 9}, 2).values()) == 2
    assert allotted({}, 3) == {}


@pytest.fixture(scope="module")
def job(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], dict[str, bytes]]:
    """Arguments of a job with many shards, and what it writes when nobody disturbs it."""
    folder = tmp_path_factory.mktemp("job")
    write_instances(folder / "in.jsonl", instances([f"{INSTRUCTIONS[at % 5]} {at}" for at in range(24)]))
    arguments = [
        "sample",
        "--data",
        str(folder / "in.jsonl"),
        "--model",
        str(folders["gpt2"]),
        "--shard-instances",
        "2",
    ]
    arguments += ["--max-new-tokens", "24"]
    assert main([*arguments, "--out", str(folder / "out")]) == 0
    return arguments, contents(folder / "out")


@pytest.mark.parametrize("way", [signal.SIGKILL, signal.SIGINT])
def test_the_same_bytes_when_it_was_killed(
    job: tuple[list[str], dict[str, bytes]], tmp_path: Path, way: signal.Signals
) -> None:
    arguments, expected = job
    out = tmp_path / "out"
    command = [sys.executable, "-m", "cappy_train.cli", *arguments, "--out", str(out)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None and len(list(out.glob("*.parquet"))) < 3:
            time.sleep(0.001)
        process.send_signal(way)
    assert process.returncode == (-signal.SIGKILL if way == signal.SIGKILL else 130)
    assert 3 <= len(list(out.glob("*.parquet"))) < 12
    assert main([*arguments, "--out", str(out)]) == 0
    assert contents(out) == expected
    assert main([*arguments, "--out", str(out)]) == 0


def test_another_job_is_not_mixed_in(
    job: tuple[list[str], dict[str, bytes]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, expected = job
    for name, data in expected.items():
        (tmp_path / name).write_bytes(data)
    assert main([*arguments, "--out", str(tmp_path), "--seed", "1"]) == 1
    assert "model.seed was 0, and is 1 now" in capsys.readouterr().err
    assert contents(tmp_path) == expected


def test_a_full_disk_leaves_nothing_half_written(job: tuple[list[str], dict[str, bytes]], tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ["24" if argument == "2" else argument for argument in job[0]]  # instances a shard
    limited = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (6000, 6000));"
        "from cappy_train.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", limited, *arguments, "--out", str(out)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "parquet can't be written" in done.stderr
    assert "Traceback" not in done.stderr
    assert {path.name for path in out.iterdir()} == {".lock", "unfinished.json"}
    assert main([*arguments, "--out", str(out)]) == 0
    assert len(list(read_instances(out))) == 24


def test_bad_instances_are_found_before_the_first_response(folders: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    write_instances(path, instances())
    for line, message in (
        ('{"id": "x"}', "line 6: "),
        (path.read_text().splitlines()[0], "line 6: id 'i0' was line 1's"),
        (json.dumps(json.loads(path.read_text().splitlines()[0]) | {"id": "x", "instruction": "\ud800"}), "surrogate"),
    ):
        bad = tmp_path / "bad.jsonl"
        bad.write_text(path.read_text() + line + "\n")
        with pytest.raises(InputValueError, match=message):
            sample(bad, tmp_path / "out", opened(folders["t5"]), shard_instances=1)
        assert not (tmp_path / "out").exists()


def test_help_loads_neither_torch_nor_openai() -> None:
    code = (
        "import sys; from cappy_train.cli import main\n"
        "try: main(['sample', '--help'])\n"
        "except SystemExit: print({'torch', 'transformers', 'openai', 'pyarrow'} & set(sys.modules))"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert process.stdout.endswith("set()\n")
