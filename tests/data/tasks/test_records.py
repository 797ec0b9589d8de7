import csv

import pytest

from data.errors import DataError
from data.tasks.records import cells, csv_records, csv_rows, field, json_file, json_records, lines, parallel


def test_lines_end_at_line_ends_alone(write, tmp_path):
    path = write("a.txt", "\ufeffone\r\ntwo\u2028still two\x0c\x85\n\nfour")
    assert [line for _, line in lines(path)] == ["one", "two\u2028still two\x0c\x85", "", "four"]
    assert [place for place, _ in lines(path)][3] == f"{path}:4"
    (tmp_path / "bad.txt").write_bytes(b"fine\n\xe4\xbd\xa0\n ab\xff\n")
    with pytest.raises(DataError, match=r"bad.txt:3: not UTF-8 \(byte 0xff"):
        list(lines(tmp_path / "bad.txt"))
    with pytest.raises(DataError, match="did you mean"):
        list(lines(tmp_path / "bat.txt"))


def test_tables_have_the_columns_they_should(write):
    path = write("a.tsv", "a\tb\nc\td\te\n")
    with pytest.raises(DataError, match=r"a.tsv:2: 3 column\(s\) between tabs, not 2: 'c"):
        list(cells(path, (2,)))
    assert [row for _, row in cells(path, (2, 3))] == [["a", "b"], ["c", "d", "e"]]


def test_a_cell_of_csv_may_be_long_whatever_was_read_before(write):
    limit = csv.field_size_limit(131_072)  # as Python starts
    try:
        ((_, (cell,)),) = csv_rows(write("a.csv", "a" * 140_000))
    finally:
        csv.field_size_limit(limit)
    assert len(cell) == 140_000


def test_csv_quotes_cross_lines_and_places_count_them(write):
    path = write("a.csv", 'text,label\n"two\nlines, ""quoted""",x\nodd\u2028sign,y\n\nlast,z\n')
    rows = list(csv_records(path, ("text", "label")))
    assert [record["text"] for _, record in rows] == ['two\nlines, "quoted"', "odd\u2028sign", "last"]
    assert [place for place, _ in rows] == [f"{path}:3", f"{path}:4", f"{path}:6"]
    with pytest.raises(DataError, match=r"no column 'category' in the header \['text', 'label'\]"):
        list(csv_records(path, ("category",)))
    with pytest.raises(DataError, match="b.csv:2: 1 cells, where the header has 2"):
        list(csv_records(write("b.csv", "text,label\nalone\n"), ("text",)))
    with pytest.raises(DataError, match="c.csv:2: not CSV"):
        list(csv_rows(write("c.csv", 'text\n"open')))


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("{", "Expecting property name"),
        ("", "blank line"),
        ("[1]", "a JSON list, not an object"),
        ('{"a": ' + "1" * 5000 + "}", "4300 digits"),
        ("[" * 100_000, "maximum recursion depth"),
    ],
    ids=["open", "blank", "list", "digits", "deep"],
)
def test_what_is_no_json_object_has_its_line(write, line, why):
    path = write("a.jsonl", f'{{"a": 1}}\n{line}\n{{"a": 2}}\n')
    with pytest.raises(DataError, match=f"a.jsonl:2: .*{why}"):
        list(json_records(path))
    with pytest.raises(DataError, match="a.json:3: not JSON"):
        json_file(write("a.json", "{\n\n]"))
    for content, why in (("1" * 5000, "4300 digits"), ("[" * 100_000, "maximum recursion depth")):
        with pytest.raises(DataError, match=f"b.json: .*{why}"):
            json_file(write("b.json", content))


def test_fields_are_there_and_of_their_type():
    record = {"text": "a", "count": 3, "yes": True}
    assert field(record, "count", int, "p") == 3 and field(record, "yes", bool, "p") is True
    with pytest.raises(DataError, match="p:1: no field 'label'; there: 'text', 'count', 'yes'"):
        field(record, "label", str, "p:1")
    with pytest.raises(DataError, match="p:1: field 'yes' is a bool, not a int"):
        field(record, "yes", int, "p:1")
    with pytest.raises(DataError, match="p:1: no field 'label'; there: a list"):
        field([], "label", str, "p:1")


def test_parallel_files_are_named_by_braces_and_have_as_many_lines(write):
    source, _ = write("train.en", "one\ntwo\n"), write("train.de", "eins\nzwei\n")
    both = source.replace(".en", ".{en,de}")
    assert [(s, t) for _, s, t in parallel(both)] == [("one", "eins"), ("two", "zwei")]
    write("train.fr", "un\n")
    with pytest.raises(DataError, match="train.en has 2 lines, .*train.fr 1: they must be parallel"):
        list(parallel(source.replace(".en", ".{en,fr}")))
    with pytest.raises(DataError, match="must name two files, as in 'train.{en,de}'"):
        list(parallel(source))
