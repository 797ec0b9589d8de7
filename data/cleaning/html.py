"""Remnants of HTML in texts that were taken from the web: tags, entities, scripts, styles, comments."""

import html
import html.entities
import re
from dataclasses import dataclass
from typing import ClassVar

from data.cleaning.rule import Dropped, mended

_MAX_PASSES = 8  # an entity can hide a tag, and a tag cut in two another one; pages that people wrote need two

_BLOCKS = """
    address article aside blockquote body br caption center dd details dialog dir div dl dt fieldset figcaption figure
    footer form frame frameset h1 h2 h3 h4 h5 h6 head header hgroup hr html iframe legend li main menu meta nav noscript
    ol optgroup option p param pre script search section select style summary svg table tbody td template textarea tfoot
    th thead title tr ul video audio base link object
"""
_INLINE = """
    a abbr acronym area b bdi bdo big button cite code col colgroup data datalist del dfn em embed font i img input ins
    kbd label map mark marquee meter nobr output path picture progress q rp rt ruby s samp slot small source span strike
    strong sub sup time track tt u var wbr
"""
# One of these without an end is a tag still: they stand alone, are left open by many pages, or are no other word.
_UNCLOSED = """
    area base blockquote body br center col dd div dl dt embed form frame h1 h2 h3 h4 h5 h6 head hr html img input li
    link meta ol p param pre source table tbody td th thead tr track ul wbr
"""
_FLAGS = """
    allowfullscreen async autofocus autoplay checked compact controls default defer disabled hidden itemscope loop
    multiple muted nomodule noshade novalidate nowrap open playsinline readonly required reversed selected
"""
_BLOCK_NAMES, _UNCLOSED_NAMES = set(_BLOCKS.split()), set(_UNCLOSED.split())
_CELLS = {"td", "th"}


def _either(names: str) -> str:
    return "|".join(sorted(names.split(), key=len, reverse=True))


# An attribute is name=value, or one of those that need no value: "if a <b and c> d" has none. What is matched once is
# not tried again ("++"), and lengths have bounds, so that the time is linear whatever stands there.
_VALUE = r"""(?:"[^"<]{0,20000}+"|'[^'<]{0,20000}+'|"[^"]{0,2000}+"|'[^']{0,2000}+'|[^\s"'<>=]{1,2000}+)"""
_PAIR = rf"[a-z_:@][\w:.@-]{{0,60}}+\s{{0,20}}+=\s{{0,20}}+{_VALUE}"
_ATTRIBUTE = rf"(?>\s{{1,200}}+(?:{_PAIR}|(?:{_either(_FLAGS)})(?=[\s/>])))"
_MARKUP = re.compile(
    rf"""<(?=[a-z/!?])(?:
        (?P<comment>!--)
      | (?P<declaration>!doctype\s[^<>]{{0,1000}}+> | \?xml\s[^<>?]{{0,1000}}+\?>
          | !\[(?:end)?(?:if|cdata)\b[^<>\[]{{0,100}}+[\[>])
      | (?P<end>/)?(?P<name>{_either(_BLOCKS + _INLINE)})(?=[\s/>])
        (?P<attributes>{_ATTRIBUTE}{{0,100}}+)\s{{0,200}}+/?>
    )""",
    re.IGNORECASE | re.VERBOSE,
)
_END_TAG = re.compile(r"</([a-z][a-z0-9]{0,11})\s*+>", re.IGNORECASE)
_REST_OF_TAG = re.compile(r"[^<>]{0,200}+>?")
_CDATA_END = "]]>"
_ENTITY = re.compile(r"&(?:#\d{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,31});")
_ESCAPED_AMPERSANDS = re.compile(r"&(?:amp;|#0{0,5}38;|#[xX]0{0,4}26;)++")
_BLANK_LINES = re.compile(r"\n(?:[^\S\n]*+\n){2,}+")

# One rule of a style sheet: a selector that starts with a class, an id, an at-rule or an element, and CSS properties.
_PROPERTIES = """
    align animation appearance background border bottom box clear clip color content cursor direction display fill
    filter flex float font gap grid height justify left letter line list margin max min object opacity order outline
    overflow padding pointer position resize right src stroke table text top transform transition user vertical
    visibility white width word z
"""
_CSS = re.compile(
    rf"""(?:^|(?<=\}}))[^\S\n]{{0,200}}+
    (?:[.\#@*:](?=[\w-]) | (?:{_either(_BLOCKS + _INLINE)})(?=[.\#:,>\s{{]))[^{{}};]{{0,300}}+\{{\s{{0,200}}+
    (?:
        (?:-(?:webkit|moz|ms|o)-)?(?:{_either(_PROPERTIES)})(?:-[a-z-]{{1,40}}+)?
        \s{{0,20}}+:[^;{{}}]{{1,500}}+(?:;\s{{0,200}}+|(?=\}}))
    ){{1,200}}+
    \}}[^\S\n]{{0,200}}+""",
    re.MULTILINE | re.VERBOSE,
)


@dataclass(frozen=True)
class Html:
    """Takes out what HTML left behind; a text without any comes back as it is.

    - Tags of the elements of HTML go; those of blocks (and br) become line ends, those of table cells a space. A tag is
      an element's name with attributes of the form name=value or known flags: "a < b", "List<int>", "<T>" stay, and
      so does "List<a>" where no "</a>" or attribute says otherwise.
    - Scripts and style sheets go with what they hold, comments too; so do rules of CSS outside of any tag.
    - Entities with a semicolon become characters, &nbsp; a plain space; escaped twice, they are still found.
    - Where something went, blank lines in a row become one.

    For text of the web, not for source code or for texts about HTML, whose subject it would take away. The parser of
    the standard library is not used: it sees a tag in "List<int>", fails on some malformed declarations, and older
    versions take quadratic time on unfinished tags.
    """

    name: ClassVar[str] = "html"
    source: ClassVar[str] = "WHATWG HTML Living Standard, sections 4 (elements) and 13.5 (named character references)"

    def __call__(self, text: str) -> str | Dropped:
        after = text
        for _ in range(_MAX_PASSES):
            before, after = after, _once(after)
            if after == before:
                return mended(text, after)
        return Dropped("nested_markup", f"still has markup after {_MAX_PASSES} passes over {len(text)} characters")


def _once(text: str) -> str:
    plain = _without_tags(text) if "<" in text else text
    plain = _CSS.sub("", plain) if "{" in plain else plain
    plain = _ENTITY.sub(_character, _ESCAPED_AMPERSANDS.sub("&", plain)) if "&" in plain else plain
    if plain == text:
        return text
    return _BLANK_LINES.sub("\n\n", plain).strip()


def _without_tags(text: str) -> str:
    closed = {name.lower() for name in _END_TAG.findall(text)}
    pieces, at = [], 0
    ends = _Ends(text)
    while match := _MARKUP.search(text, at):
        start, after = match.span()
        pieces.append(text[at:start])
        name = (match["name"] or "").lower()
        if match["comment"]:
            after = ends.after("-->", after)
        elif match["declaration"] and match["declaration"].lower().startswith("![cdata["):
            content = ends.after(_CDATA_END, after)
            pieces.append(text[after : content - len(_CDATA_END)] if content > after else "")
            after = content
        elif name in ("script", "style") and not match["end"]:
            content = ends.after(f"</{name}", after)
            after = _REST_OF_TAG.match(text, content).end() if content > after else after  # pyright: ignore
        elif name and not _is_tag(text, match, name, closed):
            pieces.append(match[0])
        elif name:
            pieces.append(" " if name in _CELLS else "\n" if name in _BLOCK_NAMES else "")
        at = after
    return "".join([*pieces, text[at:]])


def _is_tag(text: str, match: re.Match, name: str, closed: set[str]) -> bool:
    """Whether what looks like a tag is one, and no type parameter or comparison."""
    if match["end"] or match["attributes"] or name in closed:
        return True
    before = text[match.start() - 1 : match.start()]
    return name in _UNCLOSED_NAMES and (len(name) > 1 or not (before.isalnum() or before == "_"))


class _Ends:
    """Where a text goes on after a string; each string that is not there any more is looked for once only."""

    def __init__(self, text: str):
        self._text, self._folded = text, None
        self._missing: set[str] = set()

    def after(self, end: str, start: int) -> int:
        """The index after the next `end` (in either case) from `start` on; `start` where there is none."""
        if end in self._missing:
            return start
        if self._folded is None:
            # Only ASCII changes: str.lower can change the length of a text.
            self._folded = self._text.translate(_LOWER)
        found = self._folded.find(end, start)
        if found < 0:
            self._missing.add(end)
            return start
        return found + len(end)


_LOWER = {code: code + 32 for code in range(ord("A"), ord("Z") + 1)}


def _character(entity: re.Match) -> str:
    if entity[0][1] != "#" and entity[0][1:] not in html.entities.html5:
        return entity[0]
    return html.unescape(entity[0]).replace("\xa0", " ")
