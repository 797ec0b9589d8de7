"""What is taken for personal data, and what looks like it."""

from collections import Counter

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from data.cleaning.personal import KINDS, Personal, scrub

RULE = Personal()


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("Write to a.b+c@mail.example.co.uk.", "Write to <EMAIL>."),
        ("邮箱zhang_3@qq.com，联系", "邮箱<EMAIL>，联系"),
        ("<me@x.org>; you@x.org-", "<<EMAIL>>; <EMAIL>-"),
        ("(415) 555-2671, 415-555-2671, 415.555.2671", "<PHONE>, <PHONE>, <PHONE>"),
        ("+1 415 555 2671 or 1-415-555-2671", "<PHONE> or <PHONE>"),
        ("+44 20 7946 0958, +49 (30) 901820, (+33) 1 23 45 67 89", "<PHONE>, <PHONE>, <PHONE>"),
        ("+4915112345678, +37212345", "<PHONE>, <PHONE>"),
        ("手机13812345678或138-1234-5678，+86 138 1234 5678", "手机<PHONE>或<PHONE>，<PHONE>"),
        ("电话010-62345678、(0755) 82345678", "电话<PHONE>、<PHONE>"),
        ("Tel.13812345678 电话.13812345678 Tel.010-62345678", "Tel.<PHONE> 电话.<PHONE> Tel.<PHONE>"),
        (
            "手机１３８１２３４５６７８，（０１０）６２３４５６７８，０１０－６２３４５６７８，－13812345678",
            "手机<PHONE>，<PHONE>，<PHONE>，－<PHONE>",
        ),
        ("身份证１１０１０５１９４９１２３１００２Ｘ，Ａ８.８.８.８", "身份证<CN_ID>，Ａ<IP>"),
        ("Call 212 555 1234 or 1 212 555 1234.", "Call <PHONE> or <PHONE>."),
        ("13812345678,13912345678/010-62345678,5", "<PHONE>,<PHONE>/<PHONE>,5"),
        ("+13812345678+13912345678(415) 555-2671(415) 555-2671", "<PHONE><PHONE><PHONE><PHONE>"),
        ("routing table: 8.8.8.8", "routing table: <IP>"),
        ("from 8.8.8.8, 93.184.216.34.", "from <IP>, <IP>."),
        ("at 2a00:1450:4001:81b::200e now", "at <IP> now"),
        ("身份证11010519491231002X，", "身份证<CN_ID>，"),
        ("440308199901010012 44030819990101021x", "<CN_ID> 44030819990101021x"),
        ("4111 1111 1111 1111, 4111-1111-1111-1111", "<CARD>, <CARD>"),
        ("4111111111111111 378282246310005 3782 822463 10005", "<CARD> <CARD> <CARD>"),
        ("6222 0200 0000 0000 000", "<CARD>"),
        ("6222020000000000000 and 4111 1111 1111 1111 23", "<CARD> and <CARD> 23"),
    ],
)
def test_is_found(before, after):
    assert RULE(before) == after


@pytest.mark.parametrize(
    "text",
    [
        "user@localhost, @name, a@b, x @ y.com, decorator @app.route",
        "version 93.184.1.2, v8.8.8.8, 版本8.8.8.8, 1.2.3.4.5, 8.8.8, 300.1.1.1, 08.8.8.8",
        "Table 3.2.1.4, Fig. 4.1.2.3, § 4.1.2.3, chapter 4.1.2.3, sections 4.1.2.3, 表4.1.2.3, 图 4.1.2.3",
        "234 567 8901 234, 12 234 567 8901, 234 567 89012, 134 567 8901, 234 167 8901",
        "３,13812345678, ３.１３８１２３４５６７８, １７００００００００",
        "192.168.0.1, 127.0.0.1, 10.0.0.1, 0.0.0.0, 255.255.255.255, 224.0.0.1",
        "std::vector, a::b, dead::beef, 12:30:45, 2001:db8::1, ::1, 2024:01, aa:bb:cc:dd:ee:ff",
        "110105194912310021 is wrong by one, 990105194912310023 has no province",
        "11010519491331002X has a month 13, 110105194902300022 a 30 February",
        "4111111111111112 is wrong by one, 1111111111111117 has no network, 411111111111 is short",
        "2024-01-15, 15.01.2024, 10:20, 1861-1865, 2024/01/15 10:20:30, 20240115",
        "978-0-306-40615-7, 9780306406157, ISBN 0-306-40615-2, 0306406152",
        "$1,299.99, 1,234,567,890, 3.14159265358979, 3.13812345678, -13.5, +1.5, 1e10",
        "1700000000, 1700000000000, 0x13812345678, 13812345678901, 12812345678, 1381234567",
        "d41d8cd98f00b204e9800998ecf8427e 4f3a1700000000b13812345678c",
        "100-200-3000, 555-1234, 115-555-2671, 415-155-2671, 415-555-26711, 415-555-2671-1",
        "3,13812345678, 12/415-555-2671, +1234567890123456, +1234567890123456,13812345678,13912345678",
        "x+12345678, +1 2 3 4 5 6 7 8, +1234567, a123456789, <EMAIL> <PHONE> <IP> <CN_ID> <CARD>",
    ],
)
def test_only_looks_like_it(text):
    assert RULE(text) == text
    assert not scrub(text)[1]


def test_counts_by_kind():
    text = "a@b.org, c@d.org, 8.8.8.8, 11010519491231002X, 4111111111111111, 13812345678"
    assert scrub(text) == (
        "<EMAIL>, <EMAIL>, <IP>, <CN_ID>, <CARD>, <PHONE>",
        Counter(EMAIL=2, IP=1, CN_ID=1, CARD=1, PHONE=1),
    )
    assert scrub(text, ("IP",)) == (text.replace("8.8.8.8", "<IP>"), Counter(IP=1))
    assert Personal(kinds=("PHONE",))(text) == text.replace("13812345678", "<PHONE>")


def test_every_digit_of_an_identity_number_is_checked():
    number = "11010519491231002X"
    wrong = {f"{number[:i]}{digit}{number[i + 1 :]}" for i in range(17) for digit in "0123456789"} - {number}
    assert not any(scrub(other, ("CN_ID",))[1] for other in wrong)


def test_every_digit_of_a_card_number_is_checked():
    number = "4012888888881881"
    assert scrub(number)[1] == Counter(CARD=1)
    wrong = {f"{number[:i]}{digit}{number[i + 1 :]}" for i in range(1, 16) for digit in "0123456789"} - {number}
    assert not any(scrub(other, ("CARD",))[1] for other in wrong)


def test_novels_are_left_alone(test_data):
    for name in ("zh_novels/西游记.txt", "wikitext2/valid.txt"):
        text = test_data(name).read_text(encoding="utf-8")[:300_000]
        assert RULE(text) is text


NEAR = st.text(st.sampled_from("0123456789.:-+@()<> aXv中,/８－＋（"), max_size=60)
KNOWN = st.lists(
    st.sampled_from(
        [
            *("a@b.com", "8.8.8.8", "2a00::1", "11010519491231002X", "4111111111111111", "13812345678", "+1"),
            *("212 555 1234", "(415) 555-2671", "１３８１２３４５６７８", *" -－.,"),
        ]
    ),
    max_size=8,
).map("".join)


@given(st.text() | NEAR | KNOWN)
@example("1.0.0.0－2000::0")  # the full-width dash parts two addresses once one of them is gone
@settings(deadline=None)
def test_twice_is_once(text):
    once, counts = scrub(text)
    assert scrub(once) == (once, Counter())
    assert bool(counts) == (once != text)
    assert set(counts) <= set(KINDS)
