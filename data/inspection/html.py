"""An inspection as HTML: no scripts, nothing fetched, every character of the corpus escaped, pictures as inline SVG."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING

from data.inspection.examples import TEXT, Shown, Side, Token, visible
from data.inspection.text import language_bars, length_bars, ngram_title, totals

if TYPE_CHECKING:
    from data.inspection.inspection import Inspection

_SEGMENTS = 6  # background colours, which segments take in turn
_DEPTHS = 10  # of the green that stands for a weight in the loss
_STYLE = """
.tessera { font: 14px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 0 auto; color: #1c2330; background: #fff }
.tessera h2 { margin: 1.5rem 0 .5rem; overflow-wrap: anywhere }
.tessera h3 { margin: 1.2rem 0 .3rem; font-size: 1rem }
.tessera th { text-align: left; padding-right: 1.5rem; vertical-align: top; white-space: nowrap }
.tessera td { overflow-wrap: anywhere }
.tessera .note { background: #fff3cd; padding: .2rem .6rem }
.tessera .charts { display: flex; flex-wrap: wrap; gap: 0 2rem }
.tessera svg text { font: 12px system-ui, sans-serif; fill: #1c2330 }
.tessera .example { border-top: 1px solid #ccd; padding: .5rem 0 }
.tessera .sides { display: flex; gap: 1.5rem }
.tessera .side { flex: 1; min-width: 0; font: 13px/1.9 ui-monospace, monospace; white-space: pre-wrap;
  overflow-wrap: anywhere }
.tessera .t { unicode-bidi: isolate; border-radius: 2px; box-shadow: inset 0 0 0 .5px #0002 }
.tessera .s0 { background-color: #eef3fb } .tessera .s1 { background-color: #fdf3e1 }
.tessera .s2 { background-color: #eaf6ea } .tessera .s3 { background-color: #f8ebf5 }
.tessera .s4 { background-color: #e6f5f5 } .tessera .s5 { background-color: #f3f0e6 }
.tessera .special { color: #777 } .tessera .mask { color: #a0108f; font-weight: bold }
.tessera .sentinel { color: #0a6b8a; font-weight: bold } .tessera .corrupted { color: #b3261e; font-weight: bold }
.tessera .prefix { border-bottom: 2px solid #3867d6 }
.tessera .asked { color: #1a7431; font-size: .85em; vertical-align: super }
.tessera .dim { color: #667; font-size: .85em }
"""
# The loss is a green over the colour of the segment, as deep as the weight is.
_STYLE += "".join(
    f".tessera .w{n} {{ background-image: linear-gradient(rgb(38 166 91 / {5 * n}%), rgb(38 166 91 / {5 * n}%)) }}\n"
    for n in range(1, _DEPTHS + 1)
)
# The browser refuses whatever a text would load or run, should one ever get past the escaping.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def page(inspections: Sequence["Inspection"], title: str, notes: Sequence[str] = ()) -> str:
    """A file of its own, for any browser."""
    body = "".join(map(fragment, inspections))
    said = "".join(f'<pre class="note">{_text(note)}</pre>' for note in notes)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        f"<title>{_text(title)}</title></head>\n<body>{said}{body}</body></html>\n"
    )


def fragment(inspection: "Inspection") -> str:
    """What a notebook shows in a cell."""
    charts = [
        _chart("documents by tokens", length_bars(inspection).items()),
        _chart(inspection.languages_by, language_bars(inspection).items()),
        _chart("examples by label", inspection.labels.items()),
        *(_chart(ngram_title(inspection, n), grams) for n, grams in inspection.ngrams.items()),
        _chart("texts that are there more than once", inspection.duplicates.most_frequent),
    ]
    notes = "".join(f'<p class="note">{_text(note)}</p>' for note in inspection.notes)
    examples = "".join(map(_example, inspection.examples))
    return (
        f'<div class="tessera"><style>{_STYLE}</style><h2>{_text(inspection.title)}</h2>{notes}'
        f'{_table(totals(inspection))}{_table(inspection.facts)}<div class="charts">{"".join(charts)}</div>'
        f"<h2>{len(inspection.examples)} examples, drawn at random</h2>{_LEGEND}{examples}</div>\n"
    )


def _text(text: str) -> str:
    # A lone half of a surrogate pair is named by `visible`: what is left can be written as UTF-8.
    return escape(visible(text), quote=True)


def _table(values: Mapping[str, str]) -> str:
    rows = (f"<tr><th>{_text(name)}</th><td>{_text(value)}</td></tr>" for name, value in values.items())
    return f"<table>{''.join(rows)}</table>"


def _chart(title: str, values: Collection[tuple[str, int]]) -> str:
    """Bars with their numbers; nothing where there are none."""
    if not values:
        return ""
    most, height = max(count for _, count in values), 20 * len(values)
    bars = []
    for row, (name, count) in enumerate(values):
        y, width = 20 * row, 200 * count / max(most, 1)
        shown = name if len(name) <= 24 else f"{name[:23]}…"
        bars.append(
            f"<g><title>{_text(name)}: {count:,}</title>"
            f'<text x="170" y="{y + 14}" text-anchor="end">{_text(shown)}</text>'
            f'<rect x="178" y="{y + 3}" width="{width:.1f}" height="14" fill="#3867d6"/>'
            f'<text x="{182 + width:.1f}" y="{y + 14}">{count:,}</text></g>'
        )
    picture = f'<svg width="460" height="{height}" role="img" aria-label="{_text(title)}">{"".join(bars)}</svg>'
    return f"<div><h3>{_text(title)}</h3>{picture}</div>"


def _example(shown: Shown) -> str:
    sides = "".join(_side(side, named=len(shown.sides) > 1) for side in shown.sides)
    other = "".join(f'<div class="dim">{_text(name)}: {_text(told)}</div>' for name, told in shown.other.items())
    return f'<div class="example"><h3>{_text(shown.name)}</h3><div class="sides">{sides}</div>{other}</div>'


def _side(side: Side, named: bool) -> str:
    name = f'<b class="dim">{_text(side.name)}</b>\n' if named else ""
    empty = f'<span class="dim"> (+ {side.padding} empty)</span>' if side.padding else ""
    most = max((token.weight or 0 for token in side.tokens), default=0)
    # No line end between the tokens: the white space of the text is the only one that is shown.
    return f'<div class="side">{name}{"".join(_tokens(side.tokens, most))}{empty}</div>'


def _tokens(tokens: Iterable[Token], most: float) -> Iterable[str]:
    for token in tokens:
        classes = ["t", f"s{token.segment % _SEGMENTS}", *[token.kind] * (token.kind != TEXT)]
        classes += ["prefix"] * token.prefix
        told = [f"id {' '.join(map(str, token.ids))}", f"segment {token.segment}", *["prefix"] * token.prefix]
        told += [] if token.weight is None else [f"weight {token.weight:g}"]
        told += [f"asked for: {token.target}"] if token.target else []
        if token.weight:
            classes.append(f"w{max(1, round(_DEPTHS * token.weight / most))}")
        asked = f'<span class="asked">{_text(token.target)}</span>' if token.target else ""
        yield (f'<span class="{" ".join(classes)}" title="{_text(", ".join(told))}">{_text(token.text)}{asked}</span>')


_LEGEND = (
    '<p class="dim">Hover over a token for its id. '
    + " ".join(f'<span class="t s{number}">segment {number}</span>' for number in (1, 2, 3))
    + ' <span class="t s1 prefix">prefix, seen by all</span> <span class="t s1 mask">⟨mask⟩</span>'
    ' <span class="t s1 corrupted">corrupted<span class="asked">asked for</span></span>'
    ' <span class="t s1 sentinel">⟨extra_0⟩</span> <span class="t s1 special">⟨special⟩</span>'
    f' <span class="t s1 w{_DEPTHS}">in the loss: the deeper the green, the higher the weight</span></p>'
)
