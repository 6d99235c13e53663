"""An evaluation for people to read: Markdown, and one HTML page that needs nothing else, with plots."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cappy_train.plots import as_text, best_of_plot, calibration_plot, distribution_plot, swatch, task_bars

TITLES = {
    "classification": "Choices",
    "generation": "Recorded responses",
    "distractors": "References among distractors",
}
RULES = {
    "classification": "A question is an instance with choices. A pick is right or wrong: averages are accuracies.",
    "generation": "A question is an instance with recorded responses. A pick is worth its best Porter-stemmed Rouge-L "
    "F-measure over the references (1 if it is one but for case and spaces); for an instance with choices, 1 if it is "
    "a reference but for case and spaces, else 0.",
    "distractors": "A question is the first reference of an instance beside seven first references of others of its "
    "task and template: of the four with the most similar inputs, and of three random ones. A pick is worth its best "
    "Porter-stemmed Rouge-L F-measure over the references.",
}
METHODS = {
    "models": "the candidate of the highest score",
    "systems": "every recorded source by itself: the mean over its responses to an instance",
    "self-score": "the response that its own generator finds most likely, by the log-likelihood of all its tokens "
    "(sum) or of a token (mean), among the responses whose likelihood is recorded",
    "consensus": "the response that has the highest mean Rouge-L with the other recorded ones, repetitions included",
    "majority class": "the place among the choices that is right most often in this very set, by template",
    "longest": "the candidate of the most characters",
    "word overlap": "the candidate with the largest share of words that the instruction has too",
    "MiniLM cosine": "the candidate whose embedding by the unmodified all-MiniLM-L6-v2 is nearest to the instruction's",
    "random": "the expected gain of a pick at random; a response recorded twice is twice as likely",
    "oracle": "the best candidate",
}
AVERAGES = (
    "Averages are over the questions of a template, then over a task's templates, then over tasks, in %. "
    "In brackets: 95 % intervals, percentiles of a bootstrap over examples within tasks. Tasks of a single example are "
    "drawn as if they were one task, which errs on the wide side; [n/a] where there is one example in all. Of equal "
    "candidates the first is picked."
)
UNANSWERED = (
    "A method is judged on the questions that it answers, and the models beside it on the same ones; "
    "“none is 0” counts the other questions as worth 0."
)


@dataclass(frozen=True, slots=True)
class Table:
    """rows: a text a column, the first of which names the row."""

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]


def write_report(folder: Path, report: Mapping[str, Any]) -> None:
    """Writes report.json, report.md and report.html of what `evaluate` found."""
    files = {
        "report.json": json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False) + "\n",
        "report.md": markdown(report),
        "report.html": page(report),
    }
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")


def markdown(report: Mapping[str, Any]) -> str:
    """The tables as Markdown."""
    parts = [f"# {heading(report)}", about(report)]
    for name, section in report["sections"].items():
        parts += [f"## {TITLES[name]}", RULES[name]]
        parts += [f"{table.caption}\n\n{_markdown_table(table)}" for table in tables(section)]
    parts.append("\n".join(f"- {name}: {rule}" for name, rule in METHODS.items()))
    return "\n\n".join(parts) + "\n"


def averages(report: Mapping[str, Any]) -> str:
    """Each section's first table as Markdown."""
    return "\n\n".join(
        f"{TITLES[name]}\n\n{_markdown_table(next(tables(section)))}" for name, section in report["sections"].items()
    )


def heading(report: Mapping[str, Any]) -> str:
    return f"Evaluation of {', '.join(model['name'] for model in report['models'])}"


def about(report: Mapping[str, Any]) -> str:
    limit = "" if report["limit"] is None else f", at most {report['limit']:,} questions a table"
    return f"Split {report['split']} of {', '.join(report['data'])}{limit}. {AVERAGES}"


def tables(section: Mapping[str, Any]) -> Iterator[Table]:
    """What there is to tell of a section: methods, tasks, templates, best of n, reliability."""
    yield _method_table(section)
    yield _task_table(section)
    templates = next(method["templates"] for method in section["methods"] if method["kind"] == "bound")
    if templates:  # a bound has an answer to every question
        yield _template_table(section["methods"], {task: len(own) for task, own in templates.items()})
    if section["best_of"]:
        yield _best_of_table(section["best_of"])
    yield _reliability_table(section["reliability"])


def _method_table(section: Mapping[str, Any]) -> Table:
    methods = section["methods"]
    models = list(section["reliability"])
    partial = any(method["answered"] < section["questions"] for method in methods)
    head = ["method", *(["answers", "none is 0"] if partial else []), "average", "from random to oracle"]
    rows = [
        [
            _name(method),
            *([f"{method['answered']:,}", percent(method.get("zero_where_missing"))] if partial else []),
            percent(method["average"]),
            percent(method["closed"]),
            *(
                "" if method["name"] == model and method["kind"] == "model" else percent(method["ahead"][model])
                for model in models
            ),
        ]
        for method in methods
    ]
    caption = f"All {section['questions']:,} questions of {_count(section['questions_by_task'], 'task')}, in %."
    return Table(
        f"{caption} {UNANSWERED}" if partial else caption, [*head, *(f"{model} is ahead by" for model in models)], rows
    )


def _task_table(section: Mapping[str, Any]) -> Table:
    methods = section["methods"]
    rows = [
        [task, f"{count:,}", *(_value(method["tasks"].get(task)) for method in methods)]
        for task, count in section["questions_by_task"].items()
    ]
    return Table("By task, in %.", ["task", "questions", *map(_name, methods)], rows)


def _template_table(methods: Sequence[Mapping[str, Any]], counts: Mapping[str, int]) -> Table:
    rows = [
        [task, f"{count:,}", *(_range(method["templates"].get(task, {})) for method in methods)]
        for task, count in counts.items()
    ]
    return Table(
        "By template, in %: of tasks that have several, the lowest mean of a template and the highest.",
        ["task", "templates", *map(_name, methods)],
        rows,
    )


def _best_of_table(best_of: Mapping[str, Any]) -> Table:
    sizes, reached = best_of["sizes"], best_of["questions_with_so_many"]
    rows = [[curve["name"], *map(percent, curve["values"])] for curve in best_of["curves"]]
    counts = ", ".join(f"{many:,} questions have {size}" for size, many in zip(sizes, reached, strict=True))
    return Table(
        "Best of n: the mean gain of the pick among n random ones of a question's recorded responses, in %. A question "
        f"with fewer has all taken; {counts}.",
        ["pick by", *(f"n = {size}" for size in sizes)],
        rows,
    )


def _reliability_table(found: Mapping[str, Mapping[str, Any]]) -> Table:
    rows = [
        [
            name,
            f"{one['candidates']:,}",
            f"{one['right']:,}",
            percent(one["calibration_error"]),
            decimals(one["auc"]),
            decimals(one["task_auc"]),
            percent(one["threshold_accuracy"]),
            percent(one["verdict_accuracy"]),
            decimals(one["score_length"]),
            decimals(one["gain_length"]),
        ]
        for name, one in found.items()
    ]
    head = [
        "model",
        "candidates",
        "right",
        "calibration error, %",
        "AUC, right above wrong",
        "within a task",
        "told by 0.5, %",
        "by one verdict, %",
        "score and length",
        "label and length",
    ]
    return Table(
        "Scores as they are, over the candidates of all questions: expected calibration error against the label (what "
        "picking the candidate is worth); how often a right candidate (label 0.5 or more) scores above a wrong one, of "
        "any instructions, and of one task's, in the mean over tasks; how many a score of 0.5 or more tells right from "
        "wrong, and how many one verdict for all would; rank correlations of score and of label with the number of "
        "characters.",
        head,
        rows,
    )


def page(report: Mapping[str, Any]) -> str:
    """The HTML page, which is well-formed XML too. It asks the network for nothing, and its policy forbids that."""
    sections = [_section(name, section) for name, section in report["sections"].items()]
    glossary = "".join(f"<dt>{as_text(name)}</dt><dd>{as_text(rule)}</dd>" for name, rule in METHODS.items())
    return f"""\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8"/>
<meta name="viewport" content="width=device-width, initial-scale=1"/>
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'"/>
<title>{as_text(heading(report))}</title>
<style>{STYLE}</style>
</head>
<body>
<main>
<h1>{as_text(heading(report))}</h1>
<p>{as_text(about(report))}</p>
{"".join(sections)}
<section>
<h2>What picks</h2>
<dl>{glossary}</dl>
</section>
</main>
</body>
</html>
"""


def _section(name: str, section: Mapping[str, Any]) -> str:
    first, *others = tables(section)
    return (
        f"<section>\n<h2>{TITLES[name]}</h2>\n<p>{RULES[name]}</p>\n{_html_table(first)}\n"
        f'<div class="figures">{"".join(_figures(section))}</div>\n{"".join(map(_html_table, others))}\n</section>\n'
    )


def _figures(section: Mapping[str, Any]) -> Iterator[str]:
    found = section["reliability"]
    yield _task_figure(section)
    if section["best_of"]:
        curves = section["best_of"]["curves"]
        title = "Best of n: mean gain of the pick among n random responses, in %"
        plot = best_of_plot(title, section["best_of"]["sizes"], curves, "mean gain, %")
        yield _figure(title, plot, [(curve["name"], "line") for curve in curves])
    title = "Calibration: mean label over mean score, in ten equal parts of 0 to 1"
    yield _figure(title, calibration_plot(title, found), [(name, "line") for name in found])
    for name, one in found.items():
        title = f"Scores that {name} gives to right and to wrong candidates"
        legend = [(f"{kind}: {sum(counts):,}", "bar") for kind, counts in one["histogram"].items()]
        yield _figure(title, distribution_plot(title, one["histogram"]), legend)


def _task_figure(section: Mapping[str, Any]) -> str:
    """Bars of the models; marks of the best single system, the best rule, random and oracle."""
    by_kind: dict[str, list[Mapping[str, Any]]] = {}
    for method in section["methods"]:
        by_kind.setdefault(method["kind"], []).append(method)
    best = [
        max(some, key=lambda method: method["average"]["value"])
        for kind in ("system", "rule")
        if (some := [one for one in by_kind.get(kind, []) if one["answered"] == section["questions"]])
    ]
    bars, marks = by_kind["model"], [*best, *by_kind["bound"]]
    values = [{task: one["value"] for task, one in method["tasks"].items()} for method in (*bars, *marks)]
    title = "By task, in %: the models, the best single system and rule, random and oracle"
    plot = task_bars(title, list(section["questions_by_task"]), values[: len(bars)], values[len(bars) :])
    legend = [(_name(method), "bar") for method in bars] + [(_name(method), "mark") for method in marks]
    return _figure(title, plot, legend)


def _figure(title: str, plot: str, legend: Sequence[tuple[str, str]]) -> str:
    signs = "".join(f"<li>{swatch(number, kind)} {as_text(name)}</li>" for number, (name, kind) in enumerate(legend))
    return f'<figure><figcaption>{as_text(title)}</figcaption>{plot}<ul class="legend">{signs}</ul></figure>\n'


def _html_table(table: Table) -> str:
    head = "".join(f'<th scope="col">{as_text(cell)}</th>' for cell in table.head)
    rows = "".join(
        f'<tr><th scope="row">{as_text(row[0])}</th>{"".join(f"<td>{as_text(cell)}</td>" for cell in row[1:])}</tr>\n'
        for row in table.rows
    )
    caption = as_text(table.caption)
    return (
        f'<p class="caption">{caption}</p>\n<div class="wide" role="region" tabindex="0" aria-label="Table. {caption}">'
        f'<table aria-label="{caption}">\n<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}</tbody></table></div>\n'
    )


def _markdown_table(table: Table) -> str:
    lines = [table.head, ["---"] * len(table.head), *table.rows]
    escaped = ([cell.replace("|", "\\|").replace("\n", " ") for cell in line] for line in lines)
    return "\n".join(f"| {' | '.join(line)} |" for line in escaped)


def _name(method: Mapping[str, Any]) -> str:
    return f"{method['name']} (system)" if method["kind"] == "system" else str(method["name"])


def percent(estimate: Mapping[str, float | None] | None) -> str:
    """An estimate in per cent, with its interval unless that has no width; nothing for None."""
    return "" if estimate is None else _with_interval(estimate, _hundredths)


def _value(estimate: Mapping[str, float] | None) -> str:
    return "" if estimate is None else _hundredths(estimate["value"])


def _range(means: Mapping[str, float]) -> str:
    return f"{_hundredths(min(means.values()))} to {_hundredths(max(means.values()))}" if means else ""


def _with_interval(estimate: Mapping[str, float | None], show: Callable[[float], str]) -> str:
    value, low, high = (
        None if number is None else show(number) for number in map(estimate.get, ("value", "low", "high"))
    )
    if low is None or high is None:
        return f"{value} [n/a]"
    return f"{value}" if low == value == high else f"{value} [{low}, {high}]"


def _hundredths(share: float) -> str:
    return f"{round(100 * share, 1) + 0:.1f}"  # + 0, so that there is no -0.0


def _thousandths(number: float) -> str:
    return f"{round(number, 3) + 0:.3f}"


def decimals(estimate: Mapping[str, float | None] | None) -> str:
    """An estimate as it is, as `percent` does it."""
    return "" if estimate is None else _with_interval(estimate, _thousandths)


def _count(things: Mapping[str, int], name: str) -> str:
    return f"{len(things):,} {name}{'' if len(things) == 1 else 's'}"


STYLE = """
:root { color-scheme: light dark; --ground: #fff; --ink: #1c1c1c; --muted: #595959; --grid: #dcdcdc; --stripe: #f5f5f5;
  --s0: #0063a6; --s1: #b04a00; --s2: #00755a; --s3: #94407a; --s4: #6b5b00; --s5: #3d3d3d; }
@media (prefers-color-scheme: dark) { :root { --ground: #161616; --ink: #e8e8e8; --muted: #ababab; --grid: #3a3a3a;
  --stripe: #202020; --s0: #5db4f0; --s1: #f09a50; --s2: #3fcfa8; --s3: #e29bc9; --s4: #e0cc4f; --s5: #c8c8c8; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink); font: 1rem/1.5 system-ui, sans-serif; }
main { max-width: 68rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.6rem; line-height: 1.2; overflow-wrap: anywhere; } h2 { font-size: 1.25rem; margin-top: 2.5rem; }
p, dl { max-width: 45rem; } dt { font-weight: 600; } dd { margin: 0 0 .4rem 1rem; }
.wide { overflow-x: auto; margin: 0 0 1rem; }
table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums; }
.caption { font-size: .875rem; color: var(--muted); margin: 1.5rem 0 .4rem; }
th, td { padding: .25rem .6rem; text-align: right; white-space: nowrap; vertical-align: bottom; }
thead th { border-bottom: 2px solid var(--grid); white-space: normal; min-width: 4rem; }
th:first-child { text-align: left; font-weight: 500; position: sticky; left: 0; background: var(--ground);
  white-space: normal; min-width: 8.5rem; max-width: min(20rem, 45vw); overflow-wrap: anywhere; }
tbody tr:nth-child(even) > * { background: var(--stripe); }
.figures { columns: 20rem; column-gap: 2rem; }
figure { margin: 0 0 1.5rem; max-width: 26rem; break-inside: avoid; }
figcaption { font-weight: 600; font-size: .875rem; margin-bottom: .3rem; }
.plot { display: block; width: 100%; height: auto; font-size: 11px; } .plot text { fill: var(--muted); }
.grid { stroke: var(--grid); } .tick { stroke: var(--muted); } .guide { stroke: var(--muted); stroke-dasharray: 3 3; }
.track { fill: var(--grid); } .band { fill: currentColor; opacity: .15; }
.legend { list-style: none; display: flex; flex-wrap: wrap; gap: .1rem 1rem; margin: .3rem 0; padding: 0;
  font-size: .8rem; }
.legend li { overflow-wrap: anywhere; } .swatch { width: 26px; height: 12px; vertical-align: middle; }
""" + "".join(f".s{number} {{ color: var(--s{number % 6}); }}\n" for number in range(12))
