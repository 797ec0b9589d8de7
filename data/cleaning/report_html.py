"""The report of a cleaning as one page: its numbers, plots of them, and examples of what was dropped and changed."""

import io
from collections.abc import Sequence
from html import escape
from typing import Any

from data.cleaning import report as numbers
from data.cleaning.report import Example, Report, Step

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70em; margin: 2em auto; padding: 0 1em; color: #222 }
table { border-collapse: collapse; margin: 1em 0 } th, td { padding: .2em .8em; border-bottom: 1px solid #ddd }
th { text-align: left } td.number { text-align: right; font-variant-numeric: tabular-nums }
pre { white-space: pre-wrap; overflow-wrap: anywhere; background: #f6f6f6; padding: .6em; margin: .3em 0 }
pre.after { background: #eef6ee } svg { max-width: 100%; height: auto } summary { cursor: pointer }
"""
_NUMBER = ' class="number"'


def page(report: Report) -> str:
    """HTML that needs no other file. Every text of a document or a source is escaped."""
    parts = [f"<p>{escape(note)}</p>" for note in numbers.notes(report)]
    parts += ["<h2>Steps</h2>", _table(numbers.STEP_COLUMNS, numbers.step_rows(report))]
    parts += [_along_the_steps(report.total.steps), _lengths(report)]
    if reasons := numbers.reason_rows(report):
        parts += ["<h2>Why documents were dropped</h2>", _table(("step", "reason", "documents", "of all"), reasons)]
    if languages := numbers.language_rows(report):
        parts += ["<h2>Languages of what stays</h2>", _table(numbers.LANGUAGE_COLUMNS, languages)]
    parts += ["<h2>Sources</h2>", _table(numbers.SOURCE_COLUMNS, numbers.source_rows(report))]
    parts += ["<h2>Examples</h2>", *(_examples(step) for step in report.total.steps)]
    body = "\n".join(parts)
    head = f'<meta charset="utf-8"><title>Cleaning</title><style>{_STYLE}</style>'
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body><h1>Cleaning</h1>\n{body}\n</body></html>\n'


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in columns)
    lines = []
    for row in rows:
        cells = [f"<td{_NUMBER if cell[:1].isdigit() else ''}>{escape(cell)}</td>" for cell in row[1:]]
        lines.append(f"<tr><td>{escape(row[0])}</td>{''.join(cells)}</tr>")
    return f"<table><tr>{head}</tr>\n" + "\n".join(lines) + "</table>"


def _examples(step: Step) -> str:
    title = f"{escape(step.name)}: {step.dropped:,} dropped, {step.changed:,} changed"
    shown = [_dropped(example) for example in step.dropped_examples]
    shown += [_changed(example) for example in step.changed_examples]
    return f"<details><summary>{title} <small>{escape(step.reference)}</small></summary>{''.join(shown)}</details>"


def _dropped(example: Example) -> str:
    return f"{_name(example, f'{example.reason}: {example.detail}')}<pre>{escape(example.before)}</pre>"


def _changed(example: Example) -> str:
    before, after = escape(example.before), escape(example.after)
    return f'{_name(example, f"changed, {example.detail}")}<pre>{before}</pre><pre class="after">{after}</pre>'


def _name(example: Example, what: str) -> str:
    return f"<p><b>{escape(example.id)}</b> of {escape(example.source)}<br>{escape(what)}</p>"


def _along_the_steps(steps: Sequence[Step]) -> str:
    """What is left after each step, in documents and in bytes."""
    if not steps:
        return ""
    names = ["read", *(step.name for step in steps)]

    def draw(figure: Any) -> None:
        for axes, what in zip(figure.subplots(1, 2, sharey=True), ("documents", "bytes"), strict=True):
            left = [getattr(steps[0], f"{what}_in"), *(getattr(step, f"{what}_out") for step in steps)]
            axes.barh(names, left, color="#4878a8")
            axes.set_title(f"{what} left")
            axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
            axes.locator_params(axis="x", nbins=4)
        figure.axes[0].invert_yaxis()  # that of both

    return _svg(draw, height=1 + 0.3 * len(names))


def _lengths(report: Report) -> str:
    """How long the documents are, before and after."""
    counts = (report.total.lengths_in, report.total.lengths_out)
    filled = [bucket for bucket in range(numbers.BUCKETS) if counts[0][bucket] or counts[1][bucket]]
    if not filled:
        return ""
    buckets = range(filled[0], filled[-1] + 1)

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        for lengths, label, shift in zip(counts, ("before", "after"), (-0.2, 0.2), strict=True):
            axes.bar([bucket + shift for bucket in buckets], [lengths[bucket] for bucket in buckets], 0.4, label=label)
        axes.set_xticks(list(buckets), [f"{2**bucket:,}" for bucket in buckets], rotation=45, ha="right")
        axes.set_xlabel("bytes of a document, this many to twice as many")
        axes.set_ylabel("documents")
        axes.legend()

    return _svg(draw, height=3.5)


def _svg(draw: Any, height: float) -> str:
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context({"svg.hashsalt": "tessera", "svg.fonttype": "none"}):  # the same picture for the same numbers
        figure = Figure((10, height), layout="constrained")
        draw(figure)
        content = io.StringIO()
        figure.savefig(content, format="svg", metadata={"Date": None})
    text = content.getvalue()
    return text[text.index("<svg") :]
