"""Remnants of HTML go; what only looks like it stays."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.cleaning.html import Html
from data.cleaning.rule import Dropped

RULE = Html()


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("a <b>bold</b> word<br>next<br/>line", "a bold word\nnext\nline"),
        ("<p>One.</p>\n\n<p class=x>Two.</p>", "One.\n\nTwo."),
        ('<A HREF="http://x.org?a=1&amp;b=2" target=_blank>link</A>', "link"),
        ("<td>1</td><td>2</td>", "1  2"),
        ("<html><body><input type=checkbox checked>x", "x"),
        ("a<!-- a comment\n<b> -->b", "ab"),
        ("a<script>if (a < b) { c = '</b>'; }</SCRIPT >b", "ab"),
        ("a<style>p { color: red }</style>b", "ab"),
        ("<!DOCTYPE html>a<?xml version='1.0'?>b<![CDATA[x < y]]>c<!--[if IE]>d<![endif]-->", "abx < yc"),
        ("&quot;A&#8217;s&quot; &amp; &#x4f60;&nbsp;&copy;", '"A’s" & 你 ©'),
        ("R&amp;amp;D, R&amp;amp;amp;D", "R&D, R&D"),
        ("&lt;p&gt;escaped&lt;/p&gt;", "escaped"),
        (".menu a:hover, #top { color: red; margin-top: 1px }\nText.", "Text."),
        ("a <scr<b>ipt>x</b>", "a x"),
        ("<script>never closed", "never closed"),
    ],
)
def test_goes(before, after):
    assert RULE(before) == after


@pytest.mark.parametrize(
    "text",
    [
        "a < b and b > c, a<b && c>d, 1<2>1, <3, ->, <-, <=>",
        "List<int> x; Map<String, List<a>> y; vector<s> v; Option<p> o; <T>f()",
        "if a <b and c> d",
        "<stdio.h> <user@example.org> <http://example.org> usage: tool <title> <path>",
        "AT&T; &unknown; &copy=1 a&b",
        "interface A { color: string; }\nfor (x) { y: 1; }\nmap = {'a': 1}",
        "  lines\n\n\n\nstay  ",
        "<EMAIL> <PHONE>",
    ],
)
def test_stays(text):
    assert RULE(text) is text


def test_a_page_without_text_goes():
    assert RULE("<div><img src='a.png'></div>") == Dropped("empty", "nothing is left of 28 characters")
    assert RULE("<div>a<img src='a.png'></div>") == "a"


def test_markup_in_markup_in_markup_goes_as_a_whole():
    def nested(depth):
        return "</" * depth + "b>" * depth

    assert RULE(nested(7) + "x") == "x"
    assert RULE(nested(8) + "x") == Dropped("nested_markup", "still has markup after 8 passes over 33 characters")


PIECES = """
    < > b br </ /> <b> </b> <!-- --> <script> </script> & amp; lt; &gt; " ' = a <![CDATA[ ]]> <!doctype #60;
    .a{color:red} { } 中
"""


@given(st.text() | st.lists(st.sampled_from([*PIECES.split(), " ", "\n"]), max_size=30).map("".join))
@settings(deadline=None)
def test_twice_is_once(text):
    once = RULE(text)
    assert isinstance(once, Dropped) or RULE(once) == once
