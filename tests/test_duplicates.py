"""Near-duplicates of test items: what is one, what isn't, and whose."""

from dataclasses import replace
from pathlib import Path

import pytest
from tiny_training import record, write_lines

from cappy_lite.errors import InputValueError
from cappy_train.duplicates import TEST_SETS, Item, items_of, near_duplicates, own_texts, read_items
from cappy_train.instances import Instance

TRAIN = Instance("i", "task", None, "say it", ("it",), (), None, "train")
STORIES = (
    "Two children went to the beach early in the morning, and the older one found a shell that was almost blue.",
    "My neighbour, who had never owned a pet, came home one day with a parrot which could whistle three songs.",
    "The bridge over the river was closed for a year, so that people had to take the ferry to get to work.",
)
LONG = "Before noon the wind had turned, and nobody in the village would have bet on the weather for the night. "

OPTIONS = ("the lamp fell over", "rain came in quickly", "all windows were shut")
OTHERS = ("nobody had eaten anything", "she forgot her umbrella", "trains don't stop here")


def asked(text: str) -> str:
    return f"Read the following story with care and then answer the question.\n{text}\nIs it a happy story, yes or no?"


def items(texts: tuple[str, ...] = STORIES) -> list[Item]:
    return items_of(
        "stories", [replace(TRAIN, id=f"t{at}", instruction=asked(text), split="test") for at, text in enumerate(texts)]
    )


def found(*instructions: str, references: tuple[str, ...] = ("it",), among: list[Item] | None = None) -> dict[str, str]:
    """The ids of the near-duplicates among instances, their places, each with the id of the test item."""
    train = [
        replace(TRAIN, id=str(at), instruction=text, references=references) for at, text in enumerate(instructions)
    ]
    return {id: item.instance.id for id, item in near_duplicates(train, items() if among is None else among).items()}


def test_an_exact_copy_and_one_in_another_template() -> None:
    assert found(asked(STORIES[1]), f"Sum up: {STORIES[2]}", "Sum up: nothing") == {"0": "t1", "1": "t2"}


def test_a_text_within_a_longer_one_and_as_an_answer() -> None:
    assert found(LONG * 20 + STORIES[0] + LONG * 20, LONG * 20) == {"0": "t0"}
    assert found("Write a story.", references=("Once.", STORIES[2])) == {"0": "t2"}


def test_what_the_template_says_is_nobodys() -> None:
    assert found(asked(LONG), asked(LONG.upper())) == {}


def test_half_of_the_runs_of_eight_words() -> None:
    words = [f"w{number}" for number in range(27)]  # 20 runs of eight
    one = items((" ".join(words), STORIES[0], STORIES[1]))
    assert found(" ".join(words[:17]), among=one) == {"0": "t0"}
    assert found(" ".join(words[:16]), among=one) == {}
    assert found(f"{' '.join(words[:14])} and {' '.join(words[17:])}", among=one) == {"0": "t0"}
    assert found(f"{' '.join(words[:13])} and {' '.join(words[17:])}", among=one) == {}


def test_a_run_does_not_go_on_into_the_next_text() -> None:
    words = STORIES[0].split()
    first, second = " ".join(words[:10]), " ".join(words[10:20])  # three of the fourteen runs of eight each
    assert found(first, second) == {}
    assert found(first, references=(second,)) == {}
    assert found(LONG, STORIES[0], LONG) == {"1": "t0"}


def test_short_items_are_sought_as_a_whole_or_as_the_same_instruction() -> None:
    short = items(("a horse eats green apples", "cat", "Two boats sink"))
    assert found("Is it true that a horse eats green apples?", "a horse eats green", "the cat", among=short) == {
        "0": "t0"
    }
    assert found("cat", "two boats sink", asked("CAT"), asked("dog"), among=short) == {"2": "t1"}


def test_of_a_short_item_all_runs_count() -> None:
    choices = [
        f'Which is it? "{text}" or is it rather "{other}"? Tell me.'
        for text, other in zip(OPTIONS, OTHERS, strict=True)
    ]
    two = items_of("choices", [replace(TRAIN, id=f"c{at}", instruction=text) for at, text in enumerate(choices)])
    assert found(OPTIONS[1], OTHERS[1], f"{OTHERS[1]} {OPTIONS[1]}", among=two) == {"2": "c1"}


def test_a_run_at_the_start_of_a_text_is_that_texts() -> None:
    short = items(("a horse eats green apples", "my friend bought some yellow paint", "cat"))
    assert found(LONG, "a horse eats green apples", LONG, among=short) == {"1": "t0"}


def test_it_is_the_item_that_it_has_most_of() -> None:
    part = f"{' '.join(STORIES[0].split()[:12])} one two three four five"
    assert found(STORIES[0], among=items((part, *STORIES))) == {"0": "t1"}
    assert found(STORIES[0], among=items((STORIES[1], STORIES[0], STORIES[0], STORIES[2]))) == {"0": "t1"}


def test_without_words_or_items() -> None:
    assert found("((", "", among=items(("))", "]", "}"))) == {}
    assert found(asked("(("), among=items(("((", "]", "}"))) == {"0": "t0"}
    assert found("say it", among=[]) == {}


def test_own_texts() -> None:
    own = own_texts([asked(text) for text in ("the cat", "a dog", "no bird sings")])
    assert own == [(("the", "cat"),), (("a", "dog"),), (("no", "bird", "sings"),)]
    assert own_texts(["Question: who runs?", "Question: what eats?", "Question: why?"])[:2] == [
        (("who", "runs"),),
        (("what", "eats"),),
    ]
    assert own_texts(["alone"]) == [()]


def test_test_items_are_those_of_split_test_and_all_held_out_ones(tmp_path: Path) -> None:
    for name in TEST_SETS:
        records = [record(f"{name}:{split}", "t", f"say {split}", split) for split in ("train", "dev", "test")]
        write_lines(tmp_path / f"{name}.jsonl.gz", [entry | {"references": ["x"]} for entry in records])
    read = [item.instance.id for item in read_items(tmp_path)]
    assert [id for id in read if not id.endswith(":test")] == ["t0_heldout:train", "t0_heldout:dev"]
    assert [id.split(":")[0] for id in read if id.endswith(":test")] == list(TEST_SETS)
    (tmp_path / "commongen.jsonl.gz").unlink()
    with pytest.raises(InputValueError, match=r"commongen\.jsonl\.gz: no such file"):
        read_items(tmp_path)
