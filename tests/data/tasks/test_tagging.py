from collections import Counter

import pytest

from data.errors import DataError
from data.tasks.tasks import TASKS

IOB1 = "-DOCSTART- -X- O O\n\nEU NNP I-NP I-ORG\nrejects VBZ I-VP O\n\nA A A I-PER\nB B B I-LOC\nC C C I-LOC\n"


def tagged(task: str, path, repairs=None) -> list[list[tuple[str, str]]]:
    return [list(zip(e.tokens, e.tags, strict=True)) for e in TASKS[task].read(path, repairs)]


def test_columns_of_conll(write):
    path = write("a.conll", IOB1.replace("I-", "B-") + "\n\n")
    assert tagged("conll2003", path) == [
        [("EU", "B-ORG"), ("rejects", "O")],
        [("A", "B-PER"), ("B", "B-LOC"), ("C", "B-LOC")],
    ]
    first, second = TASKS["conll2003"].read(path)
    assert (first.text, first.place, second.place) == ("EU rejects", f"{path}:3", f"{path}:6")
    with pytest.raises(DataError, match=r"b.conll:2: 1 column\(s\), not 2: 'b'"):
        tagged("wnut17", write("b.conll", "a\tO\nb\n"))


def test_a_document_starts_without_a_blank_line_after_it(write):
    path = write("a.conll", "-DOCSTART- O\nEU B-ORG\nacts O\n-DOCSTART- O\nBonn B-LOC\n\n-DOCSTART- O\n")
    assert tagged("conll2003", path) == [[("EU", "B-ORG"), ("acts", "O")], [("Bonn", "B-LOC")]]
    assert [example.place for example in TASKS["conll2003"].read(path)] == [f"{path}:2", f"{path}:5"]


def test_an_entity_opens_with_b_or_is_repaired(write):
    path = write("a.conll", IOB1)
    with pytest.raises(DataError, match="a.conll:3: token 1 has the tag 'I-ORG' after 'O', which opens no such entity"):
        tagged("conll2003", path)
    with pytest.raises(DataError, match="token 2 has the tag 'I-LOC' after 'B-PER'"):
        tagged("tagging", write("b.jsonl", [{"tokens": ["A", "B"], "tags": ["B-PER", "I-LOC"]}]))
    repairs = Counter()
    first, second = tagged("conll2003", path, repairs)
    assert [tag for _, tag in first + second] == ["B-ORG", "O", "B-PER", "B-LOC", "I-LOC"]
    assert repairs == {"I- that opens an entity becomes B-": 3}


def test_characters_of_weibo_lose_their_number(write):
    path = write("a.conll", "科0\tB-PER\n20\tO\n01\tO\n你10\tO\n\n")
    assert tagged("weibo_ner", path) == [[("科", "B-PER"), ("2", "O"), ("0", "O"), ("你", "O")]]
    assert TASKS["weibo_ner"].read(path)[0].text == "科20你"
    with pytest.raises(DataError, match="b.conll:1: the sentence has '科', not a character and its number"):
        tagged("weibo_ner", write("b.conll", "你0\tO\n科\tO\n"))


def test_jsonl(write):
    good = {"tokens": ["a", "bc"], "tags": ["NOUN", "I"]}
    path = write("a.jsonl", [good, good | {"joint": ""}])
    assert tagged("tagging", path) == [[("a", "NOUN"), ("bc", "I")]] * 2
    assert [example.text for example in TASKS["tagging"].read(path)] == ["a bc", "abc"]
    for record, why in (
        ({"tokens": ["a"], "tags": ["O", "O"]}, "1 tokens and 2 tags: give each token a tag"),
        ({"tokens": [], "tags": []}, "the text is empty"),
        ({"tokens": ["a", ""], "tags": ["O", "O"]}, "a token or a tag of 2 is empty"),
        ({"tokens": ["a", 5], "tags": ["O", "O"]}, "5 among tokens and tags is a int, not a string"),
    ):
        with pytest.raises(DataError, match=f"b.jsonl:2: {why}"):
            tagged("tagging", write("b.jsonl", [good, record]))


def test_cluener(write):
    record = {"text": "在台湾的张三", "label": {"address": {"台湾": [[1, 2]]}, "name": {"张三": [[4, 5]]}}}
    (tags,) = tagged("cluener", write("a.jsonl", [record]))
    assert tags == [
        *[("在", "O"), ("台", "B-address"), ("湾", "I-address")],
        *[("的", "O"), ("张", "B-name"), ("三", "I-name")],
    ]
    for label, why in (
        ({"name": {"张三": [[3, 4]]}}, "name '张三' is not at 3-4, where '的张' is"),
        ({"name": {"张三": [[4, 5]]}, "address": {"三": [[5, 5]]}}, "address '三' overlaps with another entity at 5-5"),
        (["name"], "field 'label' is a list, not a dict"),
        ({"name": ["张三"]}, "field 'name' is a list, not a dict"),
        ({"name": {"张三": None}}, "field '张三' is a NoneType, not a list"),
        ({"name": {"张三": [4, 5]}}, "'张三' is at 4, not at"),
        ({"name": {"张三": [[4]]}}, r"'张三' is at \[4\], not at"),
        ({"name": {"张三": [[4, "5"]]}}, r"'张三' is at \[4, '5'\], not at"),
        ({"name": {"": [[4, 3]]}}, r"'' is at \[4, 3\], not at"),
        ({"name": {"张三": [[-2, -1]]}}, r"'张三' is at \[-2, -1\], not at"),
    ):
        with pytest.raises(DataError, match=f"b.jsonl:1: {why}"):
            tagged("cluener", write("b.jsonl", [record | {"label": label}]))


@pytest.mark.parametrize(
    ("task", "file", "sentences", "tokens", "repaired"),
    [
        ("wnut17", "wnut17/wnut17train.conll", 3394, 62730, 0),
        ("wnut17", "wnut17/emerging.dev.conll", 1009, 15733, 0),
        ("weibo_ner", "weibo_ner/weiboNER_2nd_conll.dev", 270, 14509, 0),
        ("weibo_ner", "weibo_ner/weiboNER_2nd_conll.test", 270, None, 4),
        ("weibo_ner", "weibo_ner/weiboNER_2nd_conll.train", 1350, 73778, 10),
    ],
)
def test_real_files(test_data, task, file, sentences, tokens, repaired):
    repairs = Counter()
    examples = TASKS[task].read(test_data(file), repairs)
    assert (len(examples), repairs.total()) == (sentences, repaired)
    assert tokens is None or sum(len(example.tags) for example in examples) == tokens
    assert all("".join(example.tokens) == example.text.replace(" ", "") for example in examples)
