"""The report as HTML: whole, alone, and deaf to what the texts try."""

import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from data.inspection.examples import CORRUPTED, MASK, Shown, Side, Token
from data.inspection.html import fragment, page
from data.inspection.inspection import inspect_data

HOSTILE = "</span><script>alert(\"x\")</script><img src=x onerror='alert(1)'>&amp;\u202e\x00"
ALLOWED = {
    *("html", "head", "meta", "title", "body", "div", "style", "h2", "h3", "p", "pre", "table", "tr", "th", "td"),
    *("span", "b", "svg", "g", "text", "rect"),
}
VOID = {"meta"}


class Reader(HTMLParser):
    """Tags, attributes and text of a page; raises where tags are not closed in order."""

    def __init__(self, text: str):
        super().__init__(convert_charrefs=True)
        self.open, self.seen, self.spans, self.words = [], set(), [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.seen.add(tag)
        assert not any(name.startswith("on") or name in ("src", "href") for name, _ in attrs)
        if tag == "span":
            self.spans.append(dict(attrs))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


@pytest.fixture(scope="module")
def inspection(tmp_path_factory):
    file = tmp_path_factory.mktemp("html") / "a.jsonl"
    import json

    texts = [HOSTILE, HOSTILE, "mild text", "你好"]
    file.write_text("".join(json.dumps({"id": HOSTILE, "text": text}) + "\n" for text in texts), encoding="utf-8")
    return inspect_data(file, examples=4, max_length=200, title=HOSTILE)


def test_page_is_whole_and_safe(inspection):
    labelled = replace(inspection, labels={HOSTILE: 3}, notes=[HOSTILE], facts={HOSTILE: HOSTILE})
    text = page([labelled, labelled], HOSTILE, notes=[HOSTILE])
    reader = Reader(text)
    assert reader.seen <= ALLOWED
    assert "script" not in reader.seen and "\x00" not in text and "\u202e" not in text
    assert "default-src 'none'; style-src 'unsafe-inline'" in text
    assert not re.search(r"https?:|url\(|@import", text)
    assert text.encode("utf-8")
    assert "".join(reader.words).count("alert(1)") > 8  # the text itself is there to read


def test_tokens_tell_what_they_are(inspection):
    tokens = [
        Token("a", (1,), prefix=True),
        Token("b", (2, 3), segment=8, weight=1.0),
        Token("⟨mask⟩", (4,), weight=2.0, kind=MASK, target="c"),
        Token("d", (5,), weight=0.02, kind=CORRUPTED, target='<e>" onclick="'),
        Token("f", (6,), weight=0.0),
    ]
    example = Shown("an example", [Side("source", tokens[:1], 0), Side("targets", tokens, 2)], {"far": "[1]"})
    text = fragment(replace(inspection, examples=[example]))
    spans = [span for span in Reader(text).spans if "title" in span][1:]
    assert [span["class"] for span in spans] == [
        "t s1 prefix",
        "t s2 w5",
        "t s1 mask w10",
        "t s1 corrupted w1",
        "t s1",
    ]
    assert [span["title"] for span in spans] == [
        "id 1, segment 1, prefix",
        "id 2 3, segment 8, weight 1",
        "id 4, segment 1, weight 2, asked for: c",
        'id 5, segment 1, weight 0.02, asked for: <e>" onclick="',
        "id 6, segment 1, weight 0",
    ]
    for name in ("source", "targets", " (+ 2 empty)", "far: [1]", "&lt;e&gt;"):
        assert name in text


def test_every_class_of_a_token_has_a_style(inspection):
    text = fragment(inspection)
    style = text[text.index("<style>") : text.index("</style>")]
    for name in ("mask", "sentinel", "corrupted", "special", "prefix", *(f"w{n}" for n in range(1, 11))):
        assert f".tessera .{name} {{" in style
    assert all(f".tessera .s{n} {{" in style for n in range(6))


def test_pictures_are_drawn_to_scale(inspection):
    text = fragment(replace(inspection, labels={"good": 30, "bad": 10}))
    chart = text[text.index("examples by label") :]
    assert [float(width) for width in re.findall(r'<rect[^>]* width="([\d.]+)"', chart)[:2]] == [200.0, 66.7]
    assert "examples by label" not in fragment(inspection)


def test_a_notebook_shows_the_fragment(inspection):
    assert inspection._repr_html_() == fragment(inspection)
    assert fragment(inspection).startswith('<div class="tessera">') and "<html" not in fragment(inspection)
