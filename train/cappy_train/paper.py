"""The data sets of the Cappy paper (Tan et al., 2023): those of T0 (Sanh et al., 2022), under PromptSource's names."""

from __future__ import annotations

from typing import NamedTuple


class DataSet(NamedTuple):
    """A data set as PromptSource and Hugging Face call it; of one in parts, `part` ends the names of its splits."""

    name: str
    subset: str | None = None
    part: str | None = None


# T0's own list has 38 training sets, cos_e in CommonsenseQA's place; CommonsenseQA itself is the 39th.
TRAINING = (
    DataSet("adversarial_qa", "dbert"),
    DataSet("adversarial_qa", "dbidaf"),
    DataSet("adversarial_qa", "droberta"),
    DataSet("ag_news"),
    DataSet("amazon_polarity"),
    DataSet("app_reviews"),
    DataSet("cnn_dailymail", "3.0.0"),
    DataSet("common_gen"),
    DataSet("commonsense_qa"),
    DataSet("cos_e", "v1.11"),
    DataSet("cosmos_qa"),
    DataSet("dbpedia_14"),
    DataSet("dream"),
    DataSet("duorc", "ParaphraseRC"),
    DataSet("duorc", "SelfRC"),
    DataSet("gigaword"),
    DataSet("glue", "mrpc"),
    DataSet("glue", "qqp"),
    DataSet("imdb"),
    DataSet("kilt_tasks", "hotpotqa"),
    DataSet("multi_news"),
    DataSet("paws", "labeled_final"),
    DataSet("qasc"),
    DataSet("quail"),
    DataSet("quarel"),
    DataSet("quartz"),
    DataSet("quoref"),
    DataSet("ropes"),
    DataSet("rotten_tomatoes"),
    DataSet("samsum"),
    DataSet("sciq"),
    DataSet("social_i_qa"),
    DataSet("trec"),
    DataSet("wiki_bio"),
    DataSet("wiki_hop", "original"),
    DataSet("wiki_qa"),
    DataSet("wiqa"),
    DataSet("xsum"),
    DataSet("yelp_review_full"),
)

HELD_OUT = (
    DataSet("anli", part="r1"),
    DataSet("anli", part="r2"),
    DataSet("anli", part="r3"),
    DataSet("hellaswag"),
    DataSet("story_cloze", "2016"),
    DataSet("super_glue", "cb"),
    DataSet("super_glue", "copa"),
    DataSet("super_glue", "rte"),
    DataSet("super_glue", "wic"),
    DataSet("super_glue", "wsc.fixed"),
    DataSet("winogrande", "winogrande_xl"),
)


def listed() -> str:
    """The list as a table of text, tab-separated, with a line of names."""
    sets = [("train", entry) for entry in TRAINING] + [("held out", entry) for entry in HELD_OUT]
    lines = [f"{use}\t{entry.name}\t{entry.subset or '-'}\t{entry.part or '-'}" for use, entry in sets]
    return "\n".join(["use\tdata set\tsubset\tpart", *lines])
