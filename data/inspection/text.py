"""An inspection in a terminal: tables, bars, and examples whose colours a plain file replaces by marks."""

import io
from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING

from rich.console import Console, Group, RenderableType
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from data.inspection.counts import RARE
from data.inspection.examples import CORRUPTED, MASK, SENTINEL, SPECIAL, Shown, Side, Token, visible

if TYPE_CHECKING:
    from data.inspection.inspection import Inspection

MARKS = "⟦seen by all⟧ · ‖ next segment · {predicted} where not all is · is→asked for · ⟨special⟩ · ↵ line end"
_STYLES = {SPECIAL: "dim", MASK: "bold magenta", SENTINEL: "bold cyan", CORRUPTED: "bold red"}
_SEGMENT_STYLES = ("", "on grey23")  # every other one
_LANGUAGES = 10  # that are named
_BAR = 40  # characters
_WIDTH = 110


def print_inspection(inspection: "Inspection", console: Console) -> None:
    """In colours where the console has them, else with `MARKS`."""
    console.print(_render(inspection, marks=not (console.is_terminal and console.color_system)))


def plain(inspection: "Inspection") -> str:
    """With `MARKS`, whatever the terminal."""
    console = Console(file=io.StringIO(), width=_WIDTH, color_system=None, force_terminal=False)
    console.print(_render(inspection, marks=True))
    assert isinstance(console.file, io.StringIO)
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines())


def totals(inspection: "Inspection") -> dict[str, str]:
    """The numbers that a reader looks for first, in words."""
    tokens, copies = inspection.tokens, inspection.duplicates.copies
    use = inspection.vocabulary
    return {
        "documents": f"{inspection.documents:,}",
        "size": f"{inspection.num_bytes:,} bytes, {inspection.characters:,} characters",
        "tokens": f"{tokens:,}, {inspection.num_bytes / max(tokens, 1):.3f} bytes each",
        "exact copies": f"{copies:,} ({copies / inspection.documents:.2%} of the documents repeat another)",
        "unused ids": f"{use.unused:,} of {use.size:,}{_some(use.unused_pieces)}",
        "rare ids": f"{use.rare:,}, used less than {RARE} times{_some(use.rare_pieces)}",
        "unknown": f"{use.unknown:,} tokens ({use.unknown / max(tokens, 1):.3%})",
    }


def length_bars(inspection: "Inspection") -> dict[str, int]:
    """Documents by tokens, as "4 to 7"."""
    return {
        f"{low:,}" if low == high else f"{low:,} to {high:,}": documents for low, high, documents in inspection.lengths
    }


def language_bars(inspection: "Inspection") -> dict[str, int]:
    """The most frequent languages by name, and the others as one."""
    found = list(inspection.languages.items())
    rest = found[_LANGUAGES:]
    return dict(found[:_LANGUAGES]) | ({f"{len(rest)} others": sum(count for _, count in rest)} if rest else {})


def ngram_title(inspection: "Inspection", n: int) -> str:
    error = inspection.ngram_errors[n]
    title = "words" if n == 1 else f"{n} words"
    return f"{title} (counts may be up to {error:,} too low)" if error else title


def _some(pieces: list[str]) -> str:
    return f": {' '.join(pieces)}, …" if pieces else ""


def _render(inspection: "Inspection", marks: bool) -> Group:
    parts: list[RenderableType] = [Rule(Text(visible(inspection.title)))]
    parts += [Text(visible(note), style="yellow") for note in inspection.notes]
    parts += [_pairs(inspection.facts), _pairs(totals(inspection))]
    parts += _bars("documents by tokens", length_bars(inspection).items())
    parts += _bars(inspection.languages_by, language_bars(inspection).items())
    parts += _bars("examples by label", inspection.labels.items())
    for n, grams in inspection.ngrams.items():
        parts += _bars(ngram_title(inspection, n), grams)
    parts += _bars("texts that are there more than once", inspection.duplicates.most_frequent)
    if inspection.examples:
        parts += [
            Text(f"\nexamples drawn at random: {len(inspection.examples)}", style="bold"),
            Text(MARKS if marks else ""),
        ]
    for shown in inspection.examples:
        parts += _example(shown, marks)
    return Group(*parts)


def _pairs(values: Mapping[str, str]) -> Table:
    table = Table.grid(padding=(0, 2))
    for name, value in values.items():
        table.add_row(Text(name, style="bold"), Text(visible(value)))
    return table


def _bars(title: str, values: Collection[tuple[str, int]]) -> Iterable[RenderableType]:
    """A bar for each name, which may be there more than once; nothing where there are none."""
    if not values:
        return
    table, most = Table.grid(padding=(0, 2)), max(count for _, count in values)
    table.add_column(overflow="fold")
    table.add_column(justify="right")
    for name, count in values:
        bar = "█" * round(_BAR * count / max(most, 1))
        table.add_row(Text(visible(name).replace("↵\n", "↵ ")), Text(f"{count:,}"), Text(bar, style="cyan"))
    yield Text(f"\n{title}", style="bold")
    yield table


def _example(shown: Shown, marks: bool) -> Iterable[RenderableType]:
    yield Text(f"\n{visible(shown.name)}", style="bold")
    sides = [_side(side, marks) for side in shown.sides]
    if len(sides) == 1:
        yield sides[0]
    else:
        table = Table.grid(padding=(0, 2), expand=True)
        for _ in sides:
            table.add_column(ratio=1, overflow="fold")
        table.add_row(*(Text(side.name, style="underline") for side in shown.sides))
        table.add_row(*sides)
        yield table
    for name, told in shown.other.items():
        yield Text(f"{name}: {visible(told)}", style="dim")


def _side(side: Side, marks: bool) -> Text:
    """Tokens with colours, or with marks where these change."""
    out, before = Text(), None
    asked = {token.weight > 0 for token in side.tokens if token.weight is not None}
    for token in side.tokens:
        if marks:
            out.append(_between(before, token, predicted=len(asked) == 2))
        out.append(_marked(token), style="" if marks else _style(token))
        before = token
    if marks:
        out.append(_between(before, None, predicted=len(asked) == 2))
    return out.append(f" (+ {side.padding} empty)" if side.padding else "", style="dim")


def _marked(token: Token) -> str:
    return f"{visible(token.text)}→{visible(token.target)}" if token.target else visible(token.text)


def _between(before: Token | None, token: Token | None, predicted: bool) -> str:
    """The marks where one token ends and another begins. What is asked for says by itself that it is predicted."""

    def state(t: Token | None) -> tuple[bool, bool]:
        return (t is not None and t.prefix, predicted and t is not None and bool(t.weight) and not t.target)

    (prefix_was, loss_was), (prefix, loss) = state(before), state(token)
    new_segment = before is not None and token is not None and before.segment != token.segment
    closed = "}" * (loss_was and (not loss or new_segment)) + "⟧" * (prefix_was and (not prefix or new_segment))
    opened = "⟦" * (prefix and (not prefix_was or new_segment)) + "{" * (loss and (not loss_was or new_segment))
    return closed + "‖" * new_segment + opened


def _style(token: Token) -> str:
    """Kind, or loss, as the colour of the letters; the segment as background; the prefix in italics."""
    loss = "green" if token.weight else "grey50" if token.weight == 0 else ""
    return " ".join(
        filter(None, [_STYLES.get(token.kind) or loss, _SEGMENT_STYLES[token.segment % 2], "italic" * token.prefix])
    )
