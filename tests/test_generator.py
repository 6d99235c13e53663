"""The generator: it learns to answer, resumes exactly, is a checkpoint like any other, and says what is wrong."""

import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_training import ANIMALS, VERBS, record, write_lines, write_tiny_bert, write_tiny_data
from transformers import AutoModel, AutoModelForSeq2SeqLM, AutoTokenizer, BartForConditionalGeneration, BertConfig

from cappy_lite.errors import InputValueError
from cappy_train import cli, generator
from cappy_train.generator import (
    Encoder,
    Run,
    Settings,
    draw_instances,
    learning_rate,
    plan,
    save_model,
    train_generator,
)
from cappy_train.instances import read_instances
from cappy_train.seq2seq import seq2seq_from_bert, seq2seq_tokenizer

SETTINGS = Settings(
    steps=8,
    decoder_layers=1,
    frozen_layers=0,
    instruction_tokens=40,
    response_tokens=12,
    batch_tokens=256,
    batches_per_step=2,
    learning_rate=1e-2,
    warmup=10,
    dev=8,
    checkpoint_every=4,
    evaluate_every=8,
)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], Path]:
    folder = tmp_path_factory.mktemp("inputs")
    write_tiny_data(folder / "data")
    names = [str(folder / "data" / f"{name}_train.jsonl.gz") for name in ("t0", "superni")]
    return names, write_tiny_bert(folder / "bert")


def log_of(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def weights_of(run: Path) -> dict[str, torch.Tensor]:
    return torch.load(run / "checkpoint.pt", weights_only=True)["network"]


def test_it_learns_to_answer(inputs: tuple[list[str], Path], tmp_path: Path) -> None:
    questions = [
        record(f"{animal} {verb} {split}", "say", f"who {verb}? the {animal}", split) | {"references": [f"a {animal}"]}
        for animal in ANIMALS
        for verb in VERBS
        for split in ("train", "dev")
    ]
    write_lines(tmp_path / "data.jsonl.gz", questions)
    settings = replace(SETTINGS, steps=150, dev=40, checkpoint_every=50, evaluate_every=150)
    train_generator(tmp_path / "data.jsonl.gz", inputs[1], tmp_path / "run", settings)
    log = log_of(tmp_path / "run")
    losses = [line["loss"] for line in log if "loss" in line]
    assert losses[-1] < 0.1 * losses[0]
    (dev,) = (line for line in log if "dev_loss" in line)
    assert dev["dev_loss"] < 0.3
    assert dev["dev_rouge_l"] > 0.95
    assert all(line["tokens_per_second"] > line["target_tokens_per_second"] > 0 for line in log if "loss" in line)

    model = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "run")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "run")
    asked = tokenizer(["who skis? the dog", "Who runs? The snow"], return_tensors="pt", padding=True)
    answers = model.generate(**asked, do_sample=False, max_new_tokens=8)
    assert tokenizer.batch_decode(answers, skip_special_tokens=True) == ["a dog", "a snow"]
    # A pad follows the end of the shorter; the likelihoods of what was said are high.
    beams = model.generate(**asked, num_beams=2, max_new_tokens=8, return_dict_in_generate=True, output_scores=True)
    assert beams.sequences_scores.min() > -0.5


def test_the_saved_folder_is_the_trained_network(inputs: tuple[list[str], Path], tmp_path: Path) -> None:
    trained = train_generator(*inputs, tmp_path, SETTINGS)
    loaded = AutoModelForSeq2SeqLM.from_pretrained(tmp_path)
    assert isinstance(loaded, BartForConditionalGeneration)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer.model_max_length == SETTINGS.instruction_tokens
    asked = tokenizer(["is the dog a cat 7"], return_tensors="pt")
    assert asked["input_ids"].tolist() == seq2seq_tokenizer(inputs[1])(["is the dog a cat 7"])["input_ids"]
    read = torch.tensor([[tokenizer.bos_token_id, *asked["input_ids"][0, 1:4]]])
    with torch.inference_mode():
        same = [network.eval()(**asked, decoder_input_ids=read).logits for network in (trained, loaded)]
    assert torch.equal(*same)


def test_it_begins_as_the_layers_of_the_bert(inputs: tuple[list[str], Path]) -> None:
    base = inputs[1]
    config = BertConfig(**json.loads((base / "config.json").read_text()))
    bert = AutoModel.from_pretrained(base, config=config).eval()
    network = seq2seq_from_bert(base, decoder_layers=1).eval()
    asked = seq2seq_tokenizer(base)(["the cat runs on the street", "a dog"], return_tensors="pt", padding=True)
    with torch.inference_mode():
        ours = network.model.encoder(**asked)[0]
        theirs = bert(**asked, output_hidden_states=True).hidden_states[1]
    seen = asked["attention_mask"].bool()
    assert torch.allclose(ours[seen], theirs[seen], atol=1e-3)
    decoder = network.model.decoder.layers[0]
    assert torch.equal(decoder.encoder_attn.k_proj.weight, bert.encoder.layer[1].attention.self.key.weight)
    assert torch.equal(decoder.fc2.weight, bert.encoder.layer[1].output.dense.weight)
    assert network.lm_head.weight is network.model.shared.weight


def test_embeddings_and_frozen_layers_stay(inputs: tuple[list[str], Path], tmp_path: Path) -> None:
    before = seq2seq_from_bert(inputs[1], decoder_layers=1).state_dict()
    after = train_generator(*inputs, tmp_path, replace(SETTINGS, frozen_layers=1)).state_dict()
    same = {name for name in before if torch.equal(before[name], after[name])}
    assert {"model.shared.weight", "model.encoder.layers.0.fc1.weight", "model.encoder.embed_positions.weight"} <= same
    assert {"model.decoder.layers.0.fc1.weight", "model.decoder.embed_positions.weight"}.isdisjoint(same)


def test_text_is_only_text(inputs: tuple[list[str], Path], tmp_path: Path) -> None:
    made = seq2seq_tokenizer(inputs[1])
    made.save_pretrained(tmp_path)
    for tokenizer in (made, AutoTokenizer.from_pretrained(tmp_path)):
        assert tokenizer("a [SEP] b")["input_ids"].count(tokenizer.eos_token_id) == 1


def test_a_stopped_run_goes_on_to_the_same_weights_and_log(
    inputs: tuple[list[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_generator(*inputs, tmp_path / "whole", SETTINGS)
    save = Run.save

    def stop_before_saving(run: Run) -> None:
        if run.step == 8:
            raise KeyboardInterrupt
        save(run)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "save", stop_before_saving)
        with pytest.raises(KeyboardInterrupt):
            train_generator(*inputs, tmp_path / "stopped", SETTINGS)
    assert not (tmp_path / "stopped" / "model.safetensors").exists()
    train_generator(*inputs, tmp_path / "stopped", SETTINGS)
    whole, stopped = weights_of(tmp_path / "whole"), weights_of(tmp_path / "stopped")
    assert all(torch.equal(whole[name], stopped[name]) for name in whole)
    logs = [
        [{name: value for name, value in line.items() if "per_second" not in name} for line in log_of(tmp_path / run)]
        for run in ("whole", "stopped")
    ]
    assert logs[0] == logs[1]
    assert [line["step"] for line in logs[0]] == [4, 8, 8]


def test_a_killed_run_goes_on_to_the_same_weights(inputs: tuple[list[str], Path], tmp_path: Path) -> None:
    data, base = inputs
    settings = replace(SETTINGS, steps=20, checkpoint_every=3, evaluate_every=1000)
    command = (
        "from pathlib import Path; from cappy_train.generator import Settings, train_generator\n"
        f"train_generator({data!r}, Path({str(base)!r}), Path({str(tmp_path / 'killed')!r}), {settings!r})"
    )
    process = subprocess.Popen([sys.executable, "-c", command], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    while not (tmp_path / "killed" / "checkpoint.pt").exists() and process.poll() is None:
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert 0 < torch.load(tmp_path / "killed" / "checkpoint.pt", weights_only=True)["step"] < 20
    for run in ("killed", "whole"):
        train_generator(data, base, tmp_path / run, settings)
    killed, whole = weights_of(tmp_path / "killed"), weights_of(tmp_path / "whole")
    assert all(torch.equal(whole[name], killed[name]) for name in whole)


def test_a_finished_run_does_nothing_more(inputs: tuple[list[str], Path], tmp_path: Path) -> None:
    train_generator(*inputs, tmp_path, SETTINGS)
    before = (tmp_path / "checkpoint.pt").read_bytes()
    train_generator(*inputs, tmp_path, SETTINGS)
    assert (tmp_path / "checkpoint.pt").read_bytes() == before


def test_large_tasks_are_drawn_from(inputs: tuple[list[str], Path]) -> None:
    settings = replace(SETTINGS, per_task=20)
    train, dev = draw_instances(inputs[0], settings)
    counts = {task: sum(instance.task == task for instance in train) for task in {instance.task for instance in train}}
    assert counts == {"put_together": 20, "yes_no": 20, "answer": 20, "xlwic_true_or_false": 1}
    assert len({instance.id for instance in train}) == 61
    assert {instance.split for instance in train} == {"train"}
    assert len(dev) == 8
    assert {instance.split for instance in dev} == {"dev"}
    assert draw_instances(inputs[0], settings) == (train, dev)
    other, _ = draw_instances(inputs[0], replace(settings, seed=1))
    assert other != train
    everything, _ = draw_instances(inputs[0], replace(settings, per_task=1000))
    assert sorted(instance.id for instance in everything) == sorted(
        instance.id for instance in read_instances(inputs[0], split="train")
    )


def test_batches_have_every_example_once_within_the_budget(inputs: tuple[list[str], Path]) -> None:
    encoder = Encoder(seq2seq_tokenizer(inputs[1]), SETTINGS)
    examples = [encoder.example(instance) for instance in read_instances(inputs[0])]
    batches = plan(examples, 256, seed=3)
    assert sorted(number for numbers in batches for number in numbers) == list(range(len(examples)))
    assert plan(examples, 256, seed=4) != batches == plan(examples, 256, seed=3)
    for numbers in batches:
        batch = encoder.batch([examples[number] for number in numbers])
        assert batch.instructions.numel() + batch.targets.numel() <= 256
        assert batch.mask.sum() == sum(len(examples[number].instruction) for number in numbers)


def test_long_texts_are_cut(inputs: tuple[list[str], Path]) -> None:
    tokenizer = seq2seq_tokenizer(inputs[1])
    encoder = Encoder(tokenizer, SETTINGS)
    (instance,) = [instance for instance in read_instances(inputs[0]) if instance.id == "g0"]
    text = " ".join(["cat"] * 30 + ["dog"] * 30)
    example = encoder.example(replace(instance, instruction=text, references=(text,)))
    said = tokenizer.decode(list(example.instruction), skip_special_tokens=True).split()
    assert said == ["cat"] * 19 + ["dog"] * 19
    assert len(example.instruction) == SETTINGS.instruction_tokens
    assert tokenizer.decode(list(example.response)) == " ".join(["cat"] * 12)  # no end: it goes on
    batch = encoder.batch([example])
    assert batch.read[0, 0] == tokenizer.bos_token_id
    assert batch.read[0, 1:12].tolist() == batch.targets[0, :11].tolist()


def test_learning_rate_rises_stays_and_falls() -> None:
    settings = Settings(learning_rate=1.0, warmup=10, decay=0.5)
    rates = [learning_rate(step, 100, settings) for step in range(100)]
    assert rates[:10] == pytest.approx([0.1 * step for step in range(1, 11)])
    assert set(rates[10:51]) == {1.0}
    assert rates[50:] == pytest.approx([0.02 * left for left in range(50, 0, -1)])


def test_steps_may_change_until_the_rate_falls(inputs: tuple[list[str], Path], tmp_path: Path) -> None:
    settings = replace(SETTINGS, steps=20, decay=0.5, checkpoint_every=5, evaluate_every=100)
    train_generator(*inputs, tmp_path / "whole", settings)
    update = Run.update

    def update_and_stop(run: Run, gradients: list[tuple[torch.Tensor, ...]]) -> None:
        if run.step == 8:
            raise KeyboardInterrupt
        update(run, gradients)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "update", update_and_stop)
        with pytest.raises(KeyboardInterrupt):
            train_generator(*inputs, tmp_path / "longer", replace(settings, steps=40))
    with pytest.raises(InputValueError, match="step 5 of 40, where the learning rate falls already, or would with 8"):
        train_generator(*inputs, tmp_path / "longer", replace(settings, steps=8))
    train_generator(*inputs, tmp_path / "longer", settings)
    whole, longer = weights_of(tmp_path / "whole"), weights_of(tmp_path / "longer")
    assert all(torch.equal(whole[name], longer[name]) for name in whole)


def test_another_runs_folder_is_refused_and_unharmed(inputs: tuple[list[str], Path], tmp_path: Path) -> None:
    train_generator(*inputs, tmp_path, SETTINGS)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(InputValueError, match="other settings or data"):
        train_generator(*inputs, tmp_path, replace(SETTINGS, seed=1))
    with pytest.raises(InputValueError, match="other settings or data"):
        train_generator(inputs[0][:1], inputs[1], tmp_path, SETTINGS)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_what_can_not_work_is_told_before_any_work(inputs: tuple[list[str], Path], tmp_path: Path) -> None:
    data, base = inputs
    with pytest.raises(InputValueError, match=r"none\.jsonl: no such file"):
        train_generator(tmp_path / "none.jsonl", base, tmp_path / "run", SETTINGS)
    with pytest.raises(InputValueError, match=r"config\.json is missing"):
        train_generator(data, tmp_path, tmp_path / "run", SETTINGS)
    with pytest.raises(InputValueError, match="decoder_layers is 2"):
        train_generator(data, base, tmp_path / "run", replace(SETTINGS, decoder_layers=2))
    with pytest.raises(InputValueError, match="steps must be at least 1"):
        replace(SETTINGS, steps=0)
    write_lines(tmp_path / "dev.jsonl.gz", [record("1", "t", "a dog", "dev") | {"references": ["a cat"]}])
    with pytest.raises(InputValueError, match="no instance is of split 'train'"):
        train_generator(tmp_path / "dev.jsonl.gz", base, tmp_path / "run", SETTINGS)
    write_lines(tmp_path / "one.jsonl.gz", [record("1", "t", "a dog", "train") | {"references": ["a cat"]}])
    with pytest.raises(InputValueError, match="give more data"):
        train_generator(tmp_path / "one.jsonl.gz", base, tmp_path / "run", SETTINGS)


def test_a_loss_that_is_no_number_ends_the_run(inputs: tuple[list[str], Path], tmp_path: Path) -> None:
    with pytest.raises(InputValueError, match="the loss is nan at step 4: lower the learning rate"):
        train_generator(*inputs, tmp_path, replace(SETTINGS, learning_rate=float("nan")))
    assert not (tmp_path / "checkpoint.pt").exists()


def test_a_full_disk_is_told_and_the_run_goes_on_later(inputs: tuple[list[str], Path], tmp_path: Path) -> None:
    """A limit on the size of files fails as a full disk does: with an OSError in the middle of a write."""
    data, base = inputs
    call = f"train_generator({data!r}, Path({str(base)!r}), Path({str(tmp_path)!r}), {SETTINGS!r})"
    limited = (
        "import resource, sys; from pathlib import Path; from cappy_lite.errors import InputValueError\n"
        "from cappy_train.generator import Settings, train_generator\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))\n"
        f"try: {call}\nexcept InputValueError as error: sys.exit(str(error))"
    )
    process = subprocess.run([sys.executable, "-c", limited], capture_output=True, text=True, timeout=60, check=False)
    assert process.returncode == 1
    assert "checkpoint.pt can't be written" in process.stderr
    assert "make room" in process.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"log.jsonl"}
    train_generator(data, base, tmp_path, SETTINGS)
    assert [line["step"] for line in log_of(tmp_path) if "loss" in line] == [4, 8]


def test_a_model_that_can_not_be_saved_whole_is_not_saved(inputs: tuple[list[str], Path], tmp_path: Path) -> None:
    network = seq2seq_from_bert(inputs[1], decoder_layers=1)
    with pytest.raises(InputValueError, match="can't be written"):
        save_model(network, seq2seq_tokenizer(inputs[1]), tmp_path / "gone")
    assert list(tmp_path.iterdir()) == []


def test_command_line(
    inputs: tuple[list[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data, base = inputs
    command = ["generator", "--data", *data, "--base", str(base), "--out", str(tmp_path / "run")]
    # The tiny checkpoint has too few layers for the default decoder.
    assert cli.main([*command, "--steps", "1"]) == 1
    assert "decoder_layers is 2" in capsys.readouterr().err
    told = {}
    monkeypatch.setattr(generator, "train_generator", lambda *given: told.update(zip("dbos", given, strict=True)))
    assert cli.main([*command, "--steps", "7", "--per-task", "5", "--learning-rate", "0.5", "--seed", "3"]) == 0
    assert told["d"] == data
    assert told["o"] == tmp_path / "run"
    assert told["s"] == Settings(steps=7, per_task=5, learning_rate=0.5, seed=3)
