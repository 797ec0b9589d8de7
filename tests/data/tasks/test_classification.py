import json
from collections import Counter

import pytest

from data.errors import DataError
from data.tasks.tasks import TASKS


def labelled(task: str, path, **options) -> list[tuple[str, ...]]:
    """(text, label) or (text, pair, label) of each example."""
    examples = TASKS[task].read(path, **options)
    return [tuple(part for part in (e.text, e.pair, e.label) if part) for e in examples]


def test_jsonl(write):
    records = [{"text": "a", "label": "x"}, {"text": "b", "label": 3}, {"text": "c", "pair": "d", "label": "x"}]
    path = write("a.jsonl", records)
    assert labelled("classification", path) == [("a", "x"), ("b", "3"), ("c", "d", "x")]
    assert TASKS["classification"].read(path)[1].place == f"{path}:2"
    for label, kind in ((True, "bool"), (None, "NoneType"), (1.5, "float")):
        with pytest.raises(DataError, match=f"b.jsonl:1: field 'label' is a {kind}, not a str"):
            labelled("classification", write("b.jsonl", [{"text": "a", "label": label}]))
    with pytest.raises(DataError, match="c.jsonl:2: the text is empty"):
        labelled("classification", write("c.jsonl", [records[0], {"text": " \n", "label": "x"}]))
    with pytest.raises(DataError, match="d.jsonl:1: the text: .*half a surrogate pair"):
        labelled("classification", write("d.jsonl", '{"text": "\\ud800", "label": "x"}'))


def test_sentiments_of_sst2_with_and_without_the_header_of_glue(write):
    lines = "fine\t1\nsad\t0\n"
    expected = [("fine", "positive"), ("sad", "negative")]
    assert labelled("sst2", write("a.tsv", lines)) == expected
    assert labelled("sst2", write("b.tsv", f"sentence\tlabel\n{lines}")) == expected
    with pytest.raises(DataError, match="c.tsv:2: label '2' is not one of the 2: 0, 1"):
        labelled("sst2", write("c.tsv", "fine\t1\nodd\t2\n"))


def test_imdb_is_a_folder_with_one_file_a_review(write, tmp_path):
    write("train/neg/1_1.txt", "bad,\nreally")
    write("train/pos/0_9.txt", "good")
    write("train/unsup/0_0.txt", "who knows")
    assert labelled("imdb", tmp_path / "train") == [("bad,\nreally", "negative"), ("good", "positive")]
    (tmp_path / "train/pos/0_9.txt").unlink()
    with pytest.raises(DataError, match="pos has no .txt file"):
        labelled("imdb", tmp_path / "train")


def test_ag_news(write):
    path = write("a.csv", '"3","Oil, again","Up ""sharply""."\n"4","Chips","Small."\n')
    assert labelled("ag_news", path) == [('Oil, again Up "sharply".', "Business"), ("Chips Small.", "Sci/Tech")]
    assert len(labelled("ag_news", write("b.csv", "Class Index,Title,Description\n1,a,b\n"))) == 1
    with pytest.raises(DataError, match="c.csv:1: label '5'"):
        labelled("ag_news", write("c.csv", "5,a,b\n"))


def test_chnsenticorp(write):
    path = write("a.tsv", "label\ttext_a\n1\t房间很干净\n0\t很吵\n")
    assert labelled("chnsenticorp", path) == [("房间很干净", "positive"), ("很吵", "negative")]
    with pytest.raises(DataError, match="no column 'label'"):
        labelled("chnsenticorp", write("b.tsv", "1\t房间\n"))


def test_banking77(write):
    path = write("test.csv", "text,category\nWhere is my card?,card_arrival\n")
    assert labelled("banking77", path) == [("Where is my card?", "card_arrival")]


def test_the_labels_of_banking77_and_thucnews_are_the_published_ones(test_data):
    listed = json.loads(test_data("banking77/categories.json").read_text(encoding="utf-8"))
    assert list(TASKS["banking77"].labels) == sorted(listed) and len(listed) == 77
    classes = test_data("thucnews_titles/class.txt").read_text(encoding="utf-8")
    assert list(TASKS["thucnews"].labels) == classes.split()


def test_thucnews_reads_the_names_of_its_classes(write):
    write("class.txt", "finance\nrealty\n")
    assert labelled("thucnews", write("dev.txt", "锌价\t0\n房价\t1\n")) == [("锌价", "finance"), ("房价", "realty")]
    with pytest.raises(DataError, match="dev.txt:1: label '2'"):
        labelled("thucnews", write("dev.txt", "锌价\t2\n"))


def test_boolq(write):
    record = {"question": "is it", "passage": "It is.", "answer": True, "title": "It"}
    assert labelled("boolq", write("a.jsonl", [record])) == [("is it", "It is.", "yes")]
    with pytest.raises(DataError, match="a.jsonl:1: field 'answer' is a str, not a bool"):
        labelled("boolq", write("a.jsonl", [record | {"answer": "yes"}]))


def test_piqa_has_its_labels_beside_it(write):
    record = {"goal": "drink", "sol1": "a cup", "sol2": "a fork"}
    path, _ = write("valid.jsonl", [record, record]), write("valid-labels.lst", "0\n1\n")
    both = "1: a cup 2: a fork"
    assert labelled("piqa", path) == [("drink", both, "1"), ("drink", both, "2")]
    write("valid-labels.lst", "0\n")
    with pytest.raises(DataError, match="has 2 lines, its labels 1"):
        labelled("piqa", path)


def test_a_file_without_examples_is_an_error(write):
    with pytest.raises(DataError, match="has no example of sst2"):
        labelled("sst2", write("a.tsv", "sentence\tlabel\n"))


@pytest.mark.parametrize(
    ("task", "file", "counts"),
    [
        ("sst2", "sst2/dev.tsv", {"negative": 428, "positive": 444}),
        ("sst2", "sst2/train.tsv", {"negative": 3310, "positive": 3610}),
        ("banking77", "banking77/test.csv", 3080),
        ("banking77", "banking77/train.csv", 10003),
        ("thucnews", "thucnews_titles/dev.txt", 10_000),
        ("piqa", "piqa/valid.jsonl", {"1": 910, "2": 928}),
    ],
)
def test_real_files(test_data, task, file, counts):
    labels = Counter(example.label for example in TASKS[task].read(test_data(file)))
    assert (labels if isinstance(counts, dict) else labels.total()) == counts
    assert len(labels) == {"banking77": 77, "thucnews": 10}.get(task, 2)
