"""The default model's instances: what is taken from a folder of data sets, and what is left out."""

from __future__ import annotations

import gzip
import json
import random
import re
import zlib
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from cappy_lite.errors import InputValueError
from cappy_train.duplicates import near_duplicates, read_items
from cappy_train.instances import Instance, read_instances
from cappy_train.templates import read_templates, render

# Data sets whose instances t0_train lacks or has with one label; rendered here from balanced rows.
ROW_DATASETS = ("rotten_tomatoes", "trec")
ROWS_PER_DATASET = 4000
# At most so many instances of a task of instruction_induction: nearly half of that file are sums and numerals.
INDUCTION_PER_TASK = 300
# But all of these, which ask for the meaning of what they show: few tasks do.
INDUCTION_WHOLE = frozenset({"sentence_similarity", "sentiment"})
# Never trained on, since the paper's held-out tasks are to stay unseen: tasks made of natural-language-inference sets,
# of COPA, Winograd schemas (task647_answer_generation too), Winogrande, HellaSwag, WiC and Story Cloze (stories with a
# right and a wrong ending), in whatever form.
HELD_OUT = re.compile(
    "entail|snli|mnli|scitail|sick|abductivenli|copa|plausible_result|cause_and_effect|winogrande|wsc|xlwic"
    "|word_in_context|hellaswag|task647_|story_?cloze|rocstories_(in)?correct|rocstories_two_"
)
# Licences that don't allow every use: Creative Commons' NC; and, of those with names of their own, Amazon's reviews,
# MultiRC, Microsoft Research's, Quora, RecipeNLG and DialogRE, which are for research or don't say more.
RESTRICTED = re.compile("NC|^Amazon|^CCG|^Microsoft Research|^Quora|recipenlg|dialogre")
# t0_train's dev splits of these have one label, or almost, so a constant answer is right there: they tell nothing of a
# scorer.
ONE_SIDED = frozenset(
    {"ag_news", "dbpedia_14", "imdb", "rotten_tomatoes", "wiki_qa", "qasc is_correct_1", "qasc is_correct_2"}
)
# Rows that are never trained on, so that their topics are a test of the default model itself. `balanced` drops what
# t0_train has of them, two labels of four; but what is a test shouldn't hang on a rule about labels.
UNSEEN = frozenset({"ag_news"})
# What belongs together, to be held out of training as a whole: tasks, or single templates of a task after its name. Not
# only classifications, but whatever tells of the same: transfer from negative to positive, titles such as "Five Stars".
GROUPS = {
    # A data set of each of the following kinds, of which others stay, and what has the same examples.
    "sets": frozenset({"ag_news", "glue_mrpc", "rotten_tomatoes", "sentiment", "task1289_trec_classification", "trec"}),
    "sentiment": frozenset(
        {
            "amazon_polarity",
            "app_reviews",
            "imdb",
            "rotten_tomatoes",
            "sentiment",
            "task1339_peixian_equity_evaluation_corpus_text_completion",
            "task1342_amazon_us_reviews_title",
            "task589_amazonfood_summary_text_generation",
            "task618_amazonreview_summary_text_generation",
            "task672_amazon_and_yelp_summarization_dataset_summarization",
            "task924_event2mind_word_generation",
            "task927_yelp_negative_to_positive_style_transfer",
            "yelp_review_full",
        }
    ),
    "topic": frozenset(
        {
            "ag_news",
            "dbpedia_14",
            "task143_odd-man-out_classification_generate_category",
            "task613_politifact_text_generation",
            "task899_freebase_qa_topic_generation",
            "task900_freebase_qa_category_classification",
            "wiki_qa Topic Prediction - Answer Only",
            "wiki_qa Topic Prediction - Question Only",
            "wiki_qa Topic Prediction - Question and Answer Pair",
        }
    ),
    "intent": frozenset(
        {
            "task1289_trec_classification",
            "task1596_event2mind_text_generation_2",
            "task1713_convai3_sentence_generation",
            "task294_storycommonsense_motiv_text_generation",
            "task899_freebase_qa_topic_generation",
            "task900_freebase_qa_category_classification",
            "trec",
        }
    ),
    # Whether two texts say the same, and whether one answers the other.
    "yes-no": frozenset(
        {
            "glue_mrpc",
            "glue_qqp",
            "paws_labeled_final",
            "qasc is_correct_1",
            "qasc is_correct_2",
            "sentence_similarity",
            "social_i_qa Check if a random answer is valid or not",
            "task132_dais_text_modification",
            "task1345_glue_qqp_question_paraprashing",
            "task1562_zest_text_modification",
            "task770_pawsx_english_text_modification",
            "wiki_qa",
            "wiqa does_the_supposed_perturbation_have_an_effect",
        }
    ),
}
# At most so many questions of each task that is held out.
QUESTIONS_PER_TASK = 300
# Longer instructions are left out of the dev split, which keeps an evaluation short.
DEV_INSTRUCTION_CHARACTERS = 4000


def default_instances(data: Path, *, seed: int, hold_out: str | None = None) -> tuple[list[Instance], Counter[str]]:
    """The default model's instances, of the splits train and dev, tasks together; and how many near-duplicates went.

    Training: t0_train, superni_train, instruction_induction, and rendered rows. Left out are licences that RESTRICTED
    finds, the tasks of HELD_OUT and UNSEEN, near-duplicates of test items (see `duplicates`; counted by the test set),
    answers that are one-sided in their template, and repeated instructions, whose references are united. Dev:
    t0_train and superni_train, of what training may have, without the sets in ONE_SIDED and what training asks too.

    Args:
        data: folder with t0_train.jsonl.gz, superni_train.jsonl.gz, instruction_induction.jsonl.gz,
            rows_rotten_tomatoes.jsonl.gz, rows_trec.jsonl.gz, promptsource_templates.tar.gz, and the test sets; with
            topics held out, rows_ag_news.jsonl.gz too.
        seed: of all that is drawn at random.
        hold_out: one of GROUPS, all of which is left out of training; questions of its whole tasks are dev then, in
            place of the usual ones: see `even_questions`.

    Raises:
        InputValueError: a file is missing or damaged, or there is no such group.
    """
    if hold_out is not None and hold_out not in GROUPS:
        raise InputValueError(f"no group of tasks is called {hold_out!r}: hold out one of {', '.join(GROUPS)}")
    group = frozenset[str]() if hold_out is None else GROUPS[hold_out]
    items = read_items(data)
    t0 = list(read_instances(data / "t0_train.jsonl.gz"))
    superni = list(read_instances(data / "superni_train.jsonl.gz"))
    induction = at_most(
        INDUCTION_PER_TASK,
        read_instances(data / "instruction_induction.jsonl.gz", split="train"),
        whole=INDUCTION_WHOLE,
        seed=seed,
    )
    allowed = [
        instance
        for instance in [*t0, *superni, *induction]
        if instance.split == "train" and free(instance) and not named(instance, UNSEEN | group | {*ROW_DATASETS})
    ]
    rendered = [
        instance
        for dataset in (*ROW_DATASETS, *(UNSEEN & group))
        for instance in rendered_rows(data, dataset, ROWS_PER_DATASET, seed=seed)
    ]
    telling = [
        instance
        for instance in [*t0, *superni, *induction]
        if len(instance.instruction) <= DEV_INSTRUCTION_CHARACTERS and not (instance.choices and one_sided(instance))
    ]
    if hold_out is None:
        dev = [instance for instance in telling if instance.split == "dev" and free(instance)]
    else:
        # Not single templates: the other ones of their task, which are trained on, have the same examples.
        held_out = (instance for instance in [*telling, *rendered] if instance.task in group)
        dev = even_questions(held_out, QUESTIONS_PER_TASK, seed=seed)
    train = [*merged(allowed), *(instance for instance in rendered if not named(instance, group))]
    removed = near_duplicates(train, items)
    kept = balanced([instance for instance in train if instance.id not in removed], seed=seed)
    asked = {instance.instruction for instance in kept}
    unasked = [instance for instance in dev if instance.instruction not in asked]
    return [*kept, *unasked], Counter(item.test_set for item in removed.values())


def free(instance: Instance) -> bool:
    """Whether its licence and its task allow to train on it, be it of split train or not."""
    return not RESTRICTED.search(instance.licence or "") and not HELD_OUT.search(instance.task)


def at_most(count: int, instances: Iterable[Instance], *, whole: Collection[str], seed: int) -> list[Instance]:
    """`count` instances of each task, drawn at random, or all; all of the tasks in `whole`."""
    by_task: dict[str, list[Instance]] = defaultdict(list)
    for instance in instances:
        by_task[instance.task].append(instance)
    return [
        instance
        for task, members in by_task.items()
        for instance in random.Random(f"{seed}:{task}").sample(
            members, len(members) if task in whole else min(count, len(members))
        )
    ]


def rendered_rows(data: Path, dataset: str, count: int, *, seed: int) -> list[Instance]:
    """`count` rows of a data set, as many of each label, each rendered by a template drawn at random."""
    path = data / f"rows_{dataset}.jsonl.gz"
    try:
        with gzip.open(path, "rt", encoding="utf-8") as file:
            rows = [json.loads(line) for line in file]
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise InputValueError(f"{path} can't be read as JSON Lines in gzip: {error}") from error
    templates = read_templates(data / "promptsource_templates.tar.gz", dataset)
    rng = random.Random(f"{seed}:{dataset}")
    rng.shuffle(rows)
    by_label: dict[int, list[tuple[int, dict[str, object]]]] = defaultdict(list)
    for number, row in enumerate(rows):
        by_label[row.get("label", row.get("coarse_label"))].append((number, row))
    instances = []
    for members in by_label.values():
        for number, row in members[: count // len(by_label)]:
            # None has the template's name in its id: one a row is kept.
            options = [render(template, row, id=f"{dataset}:{number}", task=dataset) for template in templates]
            applicable = [option for option in options if isinstance(option, Instance)]
            if applicable:
                instances.append(rng.choice(applicable))
    return instances


def merged(instances: Iterable[Instance]) -> list[Instance]:
    """Instances with equal task, template and instruction as one.

    In open generation it has all their references: each is a right answer. With choices the last one stands.
    """
    kept: dict[tuple[str, str | None, str], Instance] = {}
    for instance in instances:
        key = (instance.task, instance.template, instance.instruction)
        if key in kept and instance.choices is None:
            references = tuple(dict.fromkeys([*kept[key].references, *instance.references]))
            kept[key] = replace(kept[key], references=references)
        else:
            kept[key] = instance
    return list(kept.values())


def balanced(instances: Sequence[Instance], *, seed: int) -> list[Instance]:
    """Instances whose fixed choices are each right about as often: none more than twice as often as the median one.

    A template of which all instances offer the same choices is balanced by leaving some out (all, where half or more
    of its choices are never right); a scorer could learn its constant answer otherwise.
    """
    groups: dict[tuple[str, str | None], list[Instance]] = defaultdict(list)
    for instance in instances:
        groups[instance.task, instance.template].append(instance)
    kept: list[Instance] = []
    for key, group in groups.items():
        choices = group[0].choices
        if choices is None or any(instance.choices != choices for instance in group):
            kept += group
            continue
        right = Counter(instance.references[0] for instance in group)
        counts = sorted(right[choice] for choice in choices)
        limit = 2 * counts[(len(counts) - 1) // 2]
        seen: Counter[str] = Counter()
        for instance in random.Random(f"{seed}:{key}").sample(group, len(group)):
            seen[instance.references[0]] += 1
            if seen[instance.references[0]] <= limit:
                kept.append(instance)
    return kept


def even_questions(instances: Iterable[Instance], count: int, *, seed: int) -> list[Instance]:
    """Questions with fixed choices, as instances of split dev: at most `count` a task, each instruction once.

    As many of each of a task's templates (fewer where there are no more), and within a template as many of each answer
    that is ever right, so that a constant answer is right as rarely as can be. A template with one such answer tells
    nothing and gives none.
    """
    by_task: dict[str, dict[str | None, dict[str, list[Instance]]]] = {}
    for instance in merged(instance for instance in instances if instance.choices):
        by_right = by_task.setdefault(instance.task, {}).setdefault(instance.template, {})
        by_right.setdefault(instance.references[0], []).append(instance)
    drawn = []
    for task, templates in by_task.items():
        telling = {template: by_right for template, by_right in templates.items() if len(by_right) > 1}
        for template, by_right in telling.items():
            rng = random.Random(f"{seed}:{task}:{template}:dev")
            each = min(count // len(telling) // len(by_right), *map(len, by_right.values()))
            drawn += [replace(one, split="dev") for members in by_right.values() for one in rng.sample(members, each)]
    return drawn


def one_sided(instance: Instance) -> bool:
    """Whether a constant answer is right in t0_train's dev split of the instance's set: see ONE_SIDED."""
    return named(instance, ONE_SIDED)


def named(instance: Instance, names: Collection[str]) -> bool:
    """Whether its task is among the names, or its template, after its task's name."""
    return instance.task in names or f"{instance.task} {instance.template}" in names
