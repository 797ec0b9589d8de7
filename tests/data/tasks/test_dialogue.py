from collections import Counter

import pytest

from data.errors import DataError
from data.tasks.tasks import TASKS


def test_jsonl(write):
    turns = [{"role": "system", "text": "Be kind."}, {"role": "user", "text": "Hi"}]
    reply = {"role": "assistant", "text": "Hello"}
    (example,) = TASKS["dialogue"].read(write("a.jsonl", [{"turns": [*turns, reply]}]))
    assert example.turns == (("system", "Be kind."), ("user", "Hi"), ("assistant", "Hello"))
    for wrong, why in (
        (turns, r"none of 2 turn\(s\) is a reply"),
        ([{"role": "gpt", "text": "Hi"}], "turn 1 has role 'gpt': use system, user or assistant"),
        ([*turns, {"role": "assistant", "text": " "}], "the text of turn 3 is empty"),
        ([{"role": "user"}], "no field 'text'"),
    ):
        with pytest.raises(DataError, match=f"b.jsonl:1: {why}"):
            TASKS["dialogue"].read(write("b.jsonl", [{"turns": wrong}]))


YAML = """categories:
- x
conversations:
- - 'It''s
    folded'
  - "say \\"no\\""
- - What is 5?
  - a plain
    text, over

    lines
  - more
"""


def test_chatterbot_texts_are_those_of_yaml(write):
    path = write("a.yml", YAML)
    first, second = TASKS["chatterbot"].read(path)
    assert first.turns == (("user", "It's folded"), ("assistant", 'say "no"'))
    assert second.turns == (("user", "What is 5?"), ("assistant", "a plain text, over\nlines"), ("user", "more"))
    assert (first.place, second.place) == (f"{path}:4", f"{path}:7")


@pytest.mark.parametrize(
    ("lines", "why"),
    [
        ("  - a", "5: a turn outside a conversation"),
        ("- - a\nb", "6: neither '- - text' nor '  - text' nor the rest of a text: 'b'"),
        ("- - a: b\n  - c", "5: not a plain text of YAML: 'a: b'"),
        ("- - &x a\n  - c", "5: not a plain text of YAML"),
        ('- - "a\n  - c', "5: not a quoted text"),
        ("- - a", r"5: none of 1 turn\(s\) is a reply"),
        ("- a\n  - b", "5: '- a' is no list of turns"),
    ],
)
def test_what_is_not_of_the_layout_has_its_line(write, lines, why):
    with pytest.raises(DataError, match=f"a.yml:{why}"):
        TASKS["chatterbot"].read(write("a.yml", f"categories:\n- x\n- y\nconversations:\n{lines}\n"))
    with pytest.raises(DataError, match="b.yml: no line 'conversations:'"):
        TASKS["chatterbot"].read(write("b.yml", f"{lines}\n"))


def test_a_folder_of_chatterbot_reads_as_yaml_does(test_data):
    yaml = pytest.importorskip("yaml")
    folder, repairs = test_data("chatterbot"), Counter()
    files = sorted(folder.glob("*.yml"))
    expected = [turns for file in files for turns in yaml.safe_load(file.read_text(encoding="utf-8"))["conversations"]]
    found = [[text for _, text in example.turns] for example in TASKS["chatterbot"].read(folder, repairs)]
    assert len(found) == len(expected) == 1248
    assert repairs == {"'- text' is read as '- - text'": 1}
    # One conversation of the corpus is no list: there YAML makes one text of both turns.
    assert [(a, b) for a, b in zip(found, expected, strict=True) if a != b] == [
        ([question, "22"], f"{question} - '22'")
        for question in ('In a game of bingo, which number is represented by the phrase "two little ducks"?',)
    ]
