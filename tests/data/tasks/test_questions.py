from collections import Counter

import pytest

from data.errors import DataError
from data.tasks.tasks import TASKS

CONTEXT = "In 1066 the Normans came. The Normans stayed."


def squad(*answers, **fields) -> dict:
    asked = {"id": "q7", "question": "Who?", "answers": [{"text": t, "answer_start": s} for t, s in answers]} | fields
    return {"data": [{"title": "x", "paragraphs": [{"context": CONTEXT, "qas": [asked]}]}]}


def answers(path, task="squad", repairs=None):
    return [example.answers for example in TASKS[task].read(path, repairs)]


def test_squad_v1_and_v2(write):
    path = write("a.json", squad(("the Normans", 8), ("Normans", 12)))
    (example,) = TASKS["squad"].read(path)
    assert (example.id, example.place, example.question) == ("q7", f"{path}:q7", "Who?")
    assert example.answers == ((8, "the Normans"), (12, "Normans"))
    assert answers(write("b.json", squad(is_impossible=True))) == [()]
    with pytest.raises(DataError, match="c.json:q7: no answer, and is_impossible is not set"):
        answers(write("c.json", squad()))
    with pytest.raises(DataError, match="d.json: no field 'data'"):
        answers(write("d.json", {"version": "v1"}))


def test_an_answer_is_at_its_place_or_is_searched_for(write):
    path = write("a.json", squad(("Normans", 29), ("Normans", 0), ("Saxons", 3)))
    with pytest.raises(DataError, match="a.json:q7: the answer 'Normans' is not at 29 of its text, where ' Norman' is"):
        answers(path)
    repairs = Counter()
    assert answers(path, repairs=repairs) == [((30, "Normans"), (12, "Normans"))]
    assert repairs == {"answer is searched for in its text": 2, "answer that is not in its text is left out": 1}


def test_a_question_whose_answers_are_nowhere_is_left_out_and_counted(write):
    both = squad(("Saxons", 3))
    both["data"] += squad(("1066", 3))["data"]
    path, repairs = write("a.json", both), Counter()
    with pytest.raises(DataError, match="'Saxons' is not at 3 of its text, where '1066 t' is"):
        answers(path)
    assert answers(path, repairs=repairs) == [((3, "1066"),)]
    assert repairs["question without an answer that is in its text is left out"] == 1


def test_jsonl_with_either_form_of_answers(write):
    record = {"question": "When?", "context": CONTEXT}
    listed = record | {"answers": [{"text": "1066", "answer_start": 3}]}
    columns = record | {"answers": {"text": ["1066"], "answer_start": [3]}, "id": "x"}
    path = write("a.jsonl", [listed, columns, record | {"answers": []}])
    assert answers(path, "questions") == [((3, "1066"),), ((3, "1066"),), ()]
    assert [example.id for example in TASKS["questions"].read(path)] == [f"{path}:1", "x", f"{path}:3"]
    for wrong, why in (
        ({"text": ["1066", "a"], "answer_start": [3]}, "2 answers and 1 places"),
        ("1066", "field 'answers' is a str, not a list"),
        ([{"text": "1066", "answer_start": 4}], "is not at 4 of its text, where '066 ' is; it is at 3"),
        ([{"text": "", "answer_start": 0}], "the answer '' is not at 0"),
    ):
        with pytest.raises(DataError, match=f"b.jsonl:1: .*{why}"):
            answers(write("b.jsonl", [record | {"answers": wrong}]), "questions")


@pytest.mark.parametrize(
    ("task", "file", "repaired"),
    [
        ("xquad", "xquad/xquad.en.json", {}),
        ("xquad", "xquad/xquad.zh.json", {}),
        (
            "cmrc2018",
            "cmrc2018/cmrc2018_dev.json",
            {"answer that is not in its text is left out": 193, "answer is searched for in its text": 7},
        ),
    ],
)
def test_real_files(test_data, task, file, repaired):
    repairs = Counter()
    examples = TASKS[task].read(test_data(file), repairs)
    assert (len(examples), repairs) == ({"xquad": 1190, "cmrc2018": 3219}[task], repaired)
    for example in examples:
        assert all(example.context[start : start + len(text)] == text for start, text in example.answers)
    if repaired:
        with pytest.raises(DataError, match="cmrc2018_dev.json:DEV_6_QUERY_2: the answer '2010年是邹游"):
            TASKS[task].read(test_data(file))
