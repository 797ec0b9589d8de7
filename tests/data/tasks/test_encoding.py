"""What an encoder reads decodes to the text; labels, tags and answers stand where they should."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data.errors import DataError
from data.tasks.examples import Labelled, Question, Tagged
from data.tasks.tasks import TASKS, task_rows
from data.tokenizers.tokenizer import WithSpecials

TOKENIZERS = ["byte", "sentencepiece", "bert", "bert_chinese"]
CONTEXT = "In 1066 the Normans came . The Normans stayed ; 王国 was theirs ."


def squeezed(text: str) -> str:
    """Without case, spaces and marks of pieces: what WordPiece keeps of a text."""
    return text.replace(" ", "").replace("##", "").lower()


def question(context: str = CONTEXT, answer: str = "王国", asked: str = "What was it ?") -> Question:
    return Question("f:1", "q", asked, context, ((context.rindex(answer), answer),) if answer else ())


def rows_of(task: str, examples, tokenizer, max_length: int = 96, **options):
    rows = task_rows(TASKS[task], examples, tokenizer, "encoder", max_length=max_length, **options)
    for row in range(len(rows)):
        example = rows.example(row)
        assert {n: (a.shape, a.dtype.type) for n, a in example.items()} == rows.features
        length = int(example["segments"].sum())
        assert example["segments"].tolist() == [1] * length + [0] * (max_length - length)
        assert (example["inputs"][length:] == tokenizer.special_ids["pad"]).all()
    return rows


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_text_and_its_label(tokenizer_of, name):
    tokenizer = tokenizer_of(name)
    texts = ["the cat sat , 1 2 3", "a dog"]
    rows = rows_of("sst2", [Labelled("f:1", texts[0], "positive"), Labelled("f:2", texts[1], "negative")], tokenizer)
    examples = [rows.example(row) for row in range(2)]
    assert [squeezed(tokenizer.decode(e["inputs"])) for e in examples] == [squeezed(text) for text in texts]
    assert [list(rows.labels)[e["targets"]] for e in examples] == ["positive", "negative"]
    assert rows.labels == {"negative": 1, "positive": 1}
    assert all(e["weights"] == 1 and "token_types" not in e for e in examples)
    assert examples[1]["inputs"][0] == tokenizer.special_ids["cls"]


def test_two_texts_have_types_and_the_longer_is_cut(bytes_bert):
    pad, cls, sep = (bytes_bert.special_ids[name] for name in ("pad", "cls", "sep"))
    examples = [Labelled("f:1", "ab", "yes", "cdef"), Labelled("f:2", "abcdefgh", "no", "ijklmnopq")]
    rows = rows_of("boolq", examples, bytes_bert, max_length=12)
    first, second = rows.example(0), rows.example(1)
    assert first["inputs"].tolist() == [cls, *b"ab", sep, *b"cdef", sep, pad, pad, pad]
    assert first["token_types"].tolist() == [0] * 4 + [1] * 5 + [0] * 3
    assert second["inputs"].tolist() == [cls, *b"abcde", sep, *b"ijkl", sep]
    assert second["token_types"].tolist() == [0] * 7 + [1] * 5
    assert (rows.truncated, rows.rows.length_R.tolist()) == (1, [9, 20])
    examples[1] = Labelled("f:2", "a" * 3, "no", "b" * 20)
    assert rows_of("boolq", examples, bytes_bert, max_length=12).example(1)["inputs"].tolist() == [
        *[cls, *b"aaa", sep, *b"bbbbbb", sep],
    ]
    assert "token_types" not in rows_of("boolq", examples, bytes_bert, token_types=False).features
    with pytest.raises(DataError, match="f:2: 26 tokens exceed 12: raise max_length, or set truncate=True"):
        rows_of("boolq", examples, bytes_bert, max_length=12, truncate=False)


def test_a_text_that_exactly_fits_is_whole(bytes_bert):
    rows = rows_of("sst2", [Labelled("f:1", "abcdef", "positive")], bytes_bert, max_length=8, truncate=False)
    assert rows.truncated == 0 and bytes_bert.decode(rows.example(0)["inputs"]) == "abcdef"
    rows = rows_of("sst2", [Labelled("f:1", "abcdefg", "positive")], bytes_bert, max_length=8)
    assert rows.truncated == 1 and bytes_bert.decode(rows.example(0)["inputs"]) == "abcdef"


@pytest.mark.parametrize("name", TOKENIZERS)
def test_tags_stand_at_the_first_piece_of_their_token(tokenizer_of, name):
    tokenizer = tokenizer_of(name)
    text, tokens = "Unbelievably , 北京  is(big) .", ["Unbelievably", ",", "北京", "is", "(", "big", ")", "."]
    spans = [(text.index(token), text.index(token) + len(token)) for token in tokens]
    tags = ("B-a", "O", "B-b", "X", "Y", "Z", "Y", "O")
    rows = rows_of("tagging", [Tagged("f:1", text, tuple(spans), tags)], tokenizer)
    example, names = rows.example(0), list(rows.labels)
    places = np.flatnonzero(example["weights"])
    assert [names[label] for label in example["targets"][places]] == list(tags)
    assert set(example["weights"].tolist()) == {0, 1} and rows.lost_tags == 0
    # From each place to the next, the pieces decode to the token.
    ends = [*places[1:], example["segments"].sum()]
    words = [tokenizer.decode(example["inputs"][start:end]) for start, end in zip(places, ends, strict=True)]
    assert [squeezed(word) for word in words] == [squeezed(token) for token in tokens]
    if name in ("byte", "sentencepiece"):
        assert tokenizer.decode(example["inputs"]) == text


def test_tags_beyond_the_row_or_without_a_piece_are_counted(tokenizer_of, bytes_bert):
    tagged = Tagged("f:1", "abc defg", ((0, 3), (4, 8)), ("X", "Y"))
    rows = rows_of("tagging", [tagged], bytes_bert, max_length=8)
    example = rows.example(0)
    assert (rows.truncated, rows.rows.length_R[0]) == (1, 10)
    assert example["weights"].tolist() == [0, 1, 0, 0, 0, 1, 0, 0]
    assert (example["targets"][1], example["targets"][5]) == (0, 1)
    with pytest.raises(DataError, match="f:1: 10 tokens exceed 8"):
        rows_of("tagging", [tagged], bytes_bert, max_length=8, truncate=False)
    lost = Tagged("f:1", "a\u200bb", ((0, 1), (1, 2), (2, 3)), ("X", "Y", "X"))
    rows = rows_of("tagging", [lost], tokenizer_of("bert"))
    assert rows.lost_tags == 1 and rows.example(0)["weights"].sum() == 2
    assert "tags of what the tokenizer makes nothing of: 1" in rows.report()


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("answer", ["王国", "1066", "the Normans", "."])
def test_the_answer_is_the_text_of_its_tokens(tokenizer_of, name, answer):
    tokenizer = tokenizer_of(name)
    rows = rows_of("squad", [question(answer=answer)], tokenizer, max_length=128)
    (example,) = [rows.example(row) for row in range(len(rows))]
    first, last = example["targets"].tolist()
    assert 0 < first <= last and rows.answer(0, first, last) == answer
    assert squeezed(tokenizer.decode(example["inputs"][first : last + 1])) == squeezed(answer)
    assert squeezed(tokenizer.decode(example["inputs"])) == squeezed(f"What was it ?{CONTEXT}")
    types = example["token_types"]
    assert types[first] == types[last] == 1 and types[0] == types[1] == 0
    end = int(example["segments"].sum()) - 1  # the sep behind the context
    assert rows.answer(0, 1, last) == rows.answer(0, last, first - 1) == rows.answer(0, first, end) == ""
    assert rows.answer(0, first, end - 1) == CONTEXT[CONTEXT.rindex(answer) :]


def test_long_contexts_are_read_in_windows_that_skip_nothing(bytes_bert):
    context = "".join(chr(97 + at % 26) for at in range(100)) + "!"
    asked = question(context, "!", "qq")
    for stride, step in ((0, 13), (5, 5), (25, 25)):
        rows = rows_of("squad", [asked], bytes_bert, max_length=30, stride=stride)  # 30 - 3 special - 2 of the question
        windows = [bytes_bert.decode(rows.example(row)["inputs"])[2:] for row in range(len(rows))]
        assert windows == [context[at * step : at * step + 25] for at in range(len(windows))]
        assert windows[-1][-1] == "!" and len(windows) == -(-(101 - 25) // step) + 1
        for row, window in enumerate(windows):
            example = rows.example(row)
            expected = [4 + window.index("!")] * 2 if "!" in window else [0, 0]
            assert example["targets"].tolist() == expected and example["weights"] == 1
            assert rows.answer(row, 4, 3 + len(window)) == window and rows.answer(row, 4, 4 + len(window)) == ""
        found = sum("!" in window for window in windows)
        assert f"rows with the answer: {found}" in rows.report() and rows.truncated == 0
    with pytest.raises(DataError, match="f:1: windows 26 apart skip tokens: 25 fit beside the question"):
        rows_of("squad", [asked], bytes_bert, max_length=30, stride=26)


def test_an_answer_cut_by_a_window_is_not_in_it(bytes_bert):
    rows = rows_of("squad", [question("abcdefghij", "ef", "qq")], bytes_bert, max_length=10, stride=5)
    assert [bytes_bert.decode(rows.example(row)["inputs"])[2:] for row in range(2)] == ["abcde", "fghij"]
    assert [rows.example(row)["targets"].tolist() for row in range(2)] == [[0, 0], [0, 0]]


def test_a_question_without_answer_points_at_cls_and_a_long_one_is_cut(bytes_bert):
    rows = rows_of("squad", [question("abc", "", "q" * 9)], bytes_bert, max_length=12)
    assert rows.truncated == 1 and rows.example(0)["targets"].tolist() == [0, 0]
    assert bytes_bert.decode(rows.example(0)["inputs"]) == "qqqqqqabc"
    with pytest.raises(DataError, match="f:1: question: 9 tokens exceed 6: raise max_length to twice it"):
        rows_of("squad", [question("abc", "", "q" * 9)], bytes_bert, max_length=12, truncate=False)


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40).filter(str.strip)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(context=TEXTS, places=st.tuples(st.integers(0, 39), st.integers(1, 9)), max_length=st.integers(10, 40))
def test_any_answer_is_recovered_from_the_window_that_has_it(bytes_bert, pieces, context, places, max_length):
    start = places[0] % len(context)
    text = context[start : start + places[1]]
    asked = Question("f:1", "q", "?", context, ((start, text),))
    rows = rows_of("squad", [asked], bytes_bert, max_length=max_length, stride=1)
    read = [(row, *rows.example(row)["targets"].tolist()) for row in range(len(rows))]
    found = [rows.answer(row, first, last) for row, first, last in read if first]
    assert set(found) <= {text.strip()}
    assert found or len(text.encode()) > max_length - 4  # beside "?", cls and two sep
    rows = rows_of("squad", [asked], WithSpecials(pieces, ("pad", "cls", "sep")), max_length=400)
    assert text.strip() in rows.answer(0, *rows.example(0)["targets"].tolist())


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=TEXTS, cuts=st.sets(st.integers(0, 40), min_size=2))
def test_tags_of_any_spans_stand_in_their_order(bytes_bert, pieces, text, cuts):
    inside = sorted(cut for cut in cuts if cut <= len(text))
    spans = tuple((start, end) for start, end in zip(inside[::2], inside[1::2], strict=False))
    if not spans:
        return
    tagged = Tagged("f:1", text, spans, tuple(f"t{at}" for at in range(len(spans))))
    for tokenizer in (bytes_bert, WithSpecials(pieces, ("pad", "cls", "sep"))):
        rows = rows_of("tagging", [tagged], tokenizer, max_length=400)
        example, names = rows.example(0), list(rows.labels)
        labels = example["targets"][example["weights"] > 0]
        assert [names[label] for label in labels] == list(tagged.tags) and rows.lost_tags == 0
        assert tokenizer.decode(example["inputs"]) == text


@pytest.mark.parametrize(
    ("file", "name", "exact"), [("xquad.en.json", "bert", 239), ("xquad.zh.json", "bert_chinese", 240)]
)
def test_answers_of_real_questions_are_found_in_their_windows(test_data, tokenizer_of, file, name, exact):
    examples = TASKS["xquad"].read(test_data(f"xquad/{file}"))[:240]
    rows = rows_of("xquad", examples, tokenizer_of(name), max_length=256)
    found, same = set(), set()
    for row in range(len(rows)):
        number = rows.rows.example_R[row]
        (_, text), *_ = examples[number].answers
        first, last = rows.example(row)["targets"].tolist()
        if first:
            found.add(number)
            assert text.strip() in rows.answer(row, first, last)
            same |= {number} if rows.answer(row, first, last) == text.strip() else set()
    assert len(found) == 240 and len(same) >= exact
