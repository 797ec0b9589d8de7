from collections import Counter

import pytest

from data.errors import DataError
from data.tasks.tasks import TASKS


def pairs(task: str, path, repairs=None) -> list[tuple[str, str]]:
    return [(example.source, example.target) for example in TASKS[task].read(path, repairs)]


def test_jsonl_layouts(write):
    assert pairs("text_to_text", write("a.jsonl", [{"source": "a", "target": "b"}])) == [("a", "b")]
    record = {"fname": "x", "dialogue": "#Person1#: Hi.\n#Person2#: Hi.", "summary": "They greet.", "topic": "t"}
    assert pairs("dialogsum", write("b.jsonl", [record])) == [(record["dialogue"], "They greet.")]
    with pytest.raises(DataError, match="c.jsonl:1: no field 'summary'"):
        pairs("dialogsum", write("c.jsonl", [{"dialogue": "a", "summary1": "b"}]))
    with pytest.raises(DataError, match="d.jsonl:1: the target is empty"):
        pairs("text_to_text", write("d.jsonl", [{"source": "a", "target": ""}]))


def test_tables_and_json_of_summaries(write):
    path = write("a.csv", 'id,article,highlights\n1,"Long,\ntext","Short\nlines"\n')
    assert pairs("cnn_dailymail", path) == [("Long,\ntext", "Short\nlines")]
    assert pairs("csl_titles", write("b.tsv", "to title\t摘要\t题目\n")) == [("摘要", "题目")]
    path = write("c.json", {"k1": {"original_text": "a", "reference_summary": "b"}, "k2": {"original_text": "c"}})
    with pytest.raises(DataError, match="c.json:k2: no field 'reference_summary'"):
        pairs("legal_sum", path)
    with pytest.raises(DataError, match="d.json: a JSON list"):
        pairs("legal_sum", write("d.json", "[]"))


def test_pairs_between_tabs_may_name_whom_they_are_owed_to(write):
    path = write("a.txt", "Hi.\t嗨。\nRun.\t跑。\tCC-BY 2.0 (France)\n")
    assert pairs("tatoeba_cmn", path) == [("Hi.", "嗨。"), ("Run.", "跑。")]
    with pytest.raises(DataError, match=r"b.txt:1: 1 column\(s\)"):
        pairs("tatoeba_cmn", write("b.txt", "Hi.\n"))


def test_an_empty_side_is_an_error_or_left_out_and_counted(write):
    path = write("src.txt", "one\n\nthree\n").replace("src", "{src,tgt}")
    write("tgt.txt", "eins\nzwei\n \n")
    with pytest.raises(DataError, match="src.txt:2: the source is empty: correct it, or read with repairs=Counter"):
        pairs("parallel", path)
    repairs = Counter()
    assert pairs("multi30k", path, repairs) == [("one", "eins")]
    assert repairs == {"pair with an empty side is left out": 2}


@pytest.mark.parametrize(
    ("task", "file", "count", "repaired"),
    [
        ("tatoeba_cmn", "tatoeba_cmn/cmn.txt", 20133, 0),
        ("opennmt_ende", "opennmt_ende/{src,tgt}-val.txt", 50, 0),
        ("opennmt_ende", "opennmt_ende/{src,tgt}-train.txt", 9999, 1),
        ("legal_sum", "legal_sum/all_v1.json", 446, 0),
        ("csl_titles", "csl_ts/dev.tsv", 1000, 0),
    ],
)
def test_real_files(test_data, task, file, count, repaired):
    repairs = Counter()
    folder, _, name = file.partition("/")
    assert len(pairs(task, f"{test_data(folder)}/{name}", repairs)) == count
    assert repairs.total() == repaired
