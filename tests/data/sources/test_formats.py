"""Each format: what it holds comes out, and what is wrong with it is named with its place."""

import csv
import gzip
import hashlib
import io
import json
import tracemalloc

import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from data.config import SourceConfig
from data.errors import DataError
from data.sources.documents import Document
from data.sources.read import read_documents

LONG = "ü" * 5_000_000  # 10 MB, one line
TEXTS = ["你好，世界", "مرحبا بالعالم", "👩‍👩‍👧 🎉", 'a "quote", and\r\nlines\n\r', "\u2028\x00\x85", "\ufeff", " "]


def read(path, **options):
    return list(read_documents(SourceConfig(str(path), **options)))


def refuses(path, *words, **options):
    with pytest.raises(DataError) as error:
        read(path, **options)
    for word in words:
        assert word in str(error.value), f"{word!r} is not in: {error.value}"


def as_jsonl(texts):
    return "".join(json.dumps({"id": f"n{i}", "text": t}, ensure_ascii=i % 2 == 0) + "\n" for i, t in enumerate(texts))


def as_table(texts, delimiter=","):
    table = io.StringIO(newline="")
    csv.writer(table, delimiter=delimiter).writerows([["id", "text"], *([f"n{i}", t] for i, t in enumerate(texts))])
    return table.getvalue()


def as_parquet(texts, **options):
    content = io.BytesIO()
    table = pyarrow.table({"other": [[1]] * len(texts), "text": texts, "id": [f"n{i}" for i in range(len(texts))]})
    pyarrow.parquet.write_table(table, content, row_group_size=2, **options)
    return content.getvalue()


def two_frames(content):
    middle = len(content) // 2
    return b"".join(zstandard.compress(part) for part in (content[:middle], content[middle:]))


WRITERS = {
    "a.jsonl": lambda texts: as_jsonl(texts).encode(),
    "a.jsonl.gz": lambda texts: gzip.compress(as_jsonl(texts).encode()),
    "a.jsonl.zst": lambda texts: two_frames(as_jsonl(texts).encode()),
    "a.csv": lambda texts: as_table(texts).encode(),
    "a.csv.gz": lambda texts: gzip.compress(as_table(texts).encode()),
    "a.tsv": lambda texts: as_table(texts, "\t").encode(),
    "a.tsv.zst": lambda texts: two_frames(as_table(texts, "\t").encode()),
    "a.parquet": as_parquet,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("formats")


@pytest.mark.parametrize("name", WRITERS)
@settings(max_examples=25, deadline=None, database=None)
@given(texts=st.lists(st.text(st.characters(exclude_categories=("Cs",)), min_size=1), min_size=1, max_size=5))
def test_any_text_comes_back_as_it_was(folder, name, texts):
    (folder / name).write_bytes(WRITERS[name](texts))
    assert read(folder / name) == [Document(f"n{i}", text) for i, text in enumerate(texts)]


@pytest.mark.parametrize("name", WRITERS)
def test_all_scripts_and_a_line_of_10_MB_come_back(tmp_path, name):
    (tmp_path / name).write_bytes(WRITERS[name]([*TEXTS, LONG, "after"]))
    assert [document.text for document in read(tmp_path / name)] == [*TEXTS, LONG, "after"]


@settings(max_examples=200, deadline=None, database=None)
@given(
    text=st.text("ab|é", min_size=1, max_size=30),
    separator=st.text("ab|é", min_size=1, max_size=4),
    chunk=st.integers(1, 9),
)
def test_separated_text_is_what_split_gives_whatever_is_read_at_once(folder, text, separator, chunk):
    expected = [Document(f"s.txt#{i}", part) for i, part in enumerate(text.split(separator)) if part]
    divided = separator in text
    (folder / "s.txt").write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("data.sources.formats._CHUNK", chunk)
        if not divided:
            refuses(folder / "s.txt", f"{separator!r} is in no text file", document_separator=separator)
        elif expected:
            assert read(folder / "s.txt", document_separator=separator) == expected
        else:
            refuses(folder / "s.txt", "has no text", document_separator=separator)


def test_separator_divides_text_files_and_is_dropped(tmp_path):
    (tmp_path / "a.txt").write_text("one<|end|>two\n<|end|><|end|>three<|end|>")
    documents = read(tmp_path, document_separator="<|end|>")
    assert documents == [Document("a.txt#0", "one"), Document("a.txt#1", "two\n"), Document("a.txt#3", "three")]
    (tmp_path / "a.txt").write_text("<|end|><|end|>")
    refuses(tmp_path, "has no text", "1 file(s)", document_separator="<|end|>")


def test_text_may_be_compressed(tmp_path):
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress("é\r\n".encode()) + gzip.compress(b"more"))
    (tmp_path / "b.md.zst").write_bytes(zstandard.compress(b"one--two"))
    assert read(tmp_path) == [Document("a.txt.gz", "é\r\nmore"), Document("b.md.zst", "one--two")]
    assert read(tmp_path / "b.md.zst", document_separator="--")[1] == Document("b.md.zst#1", "two")


def test_zstd_with_a_long_window_is_read(tmp_path):
    parameters = zstandard.ZstdCompressionParameters.from_level(1, window_log=28, enable_ldm=True)
    compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj()  # no content size: full window
    (tmp_path / "a.txt.zst").write_bytes(compressor.compress(b"text") + compressor.flush())
    assert read(tmp_path / "a.txt.zst") == [Document("a.txt.zst", "text")]


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_files_are_streamed(tmp_path, suffix):
    lines = [json.dumps({"text": hashlib.sha256(b"%d" % n).hexdigest() + "a b c d" * 500}) for n in range(6000)]
    pack = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress}[suffix]
    (tmp_path / f"a.jsonl{suffix}").write_bytes(pack("\n".join(lines).encode()))  # 21 MB
    tracemalloc.start()
    assert sum(1 for _ in read_documents(SourceConfig(str(tmp_path)))) == 6000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5_000_000


def test_a_row_group_is_streamed_too(tmp_path):
    texts = ["".join(hashlib.sha256(b"%d" % (64 * n + k)).hexdigest() for k in range(64)) for n in range(5000)]
    pyarrow.parquet.write_table(pyarrow.table({"text": texts}), tmp_path / "a.parquet", row_group_size=5000)
    del texts
    assert (tmp_path / "a.parquet").stat().st_size > 15_000_000
    tracemalloc.start()
    assert sum(1 for _ in read_documents(SourceConfig(str(tmp_path)))) == 5000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 7_000_000


def test_the_field_of_the_score_may_be_that_of_the_id(tmp_path):
    (tmp_path / "a.csv").write_text("id,text\n7,a\n007,b\n")
    assert read(tmp_path, score_field="id") == [Document("7", "a", 7.0), Document("007", "b", 7.0)]


def test_jsonl_takes_the_fields_it_is_told(tmp_path):
    lines = [
        {"body": "α\u2028β", "key": "first", "id": "x", "quality": 1},  # U+2028 ends a line for Python, not for JSONL
        {"body": "b", "key": 12, "quality": -0.5},
        {"body": "c", "key": None, "quality": 10**20},
        {"body": "d", "quality": 0.0},
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps(line, ensure_ascii=False) for line in lines) + "\n")
    assert read(tmp_path / "a.jsonl", text_field="body", id_field="key", score_field="quality") == [
        Document("first", "α\u2028β", 1.0),
        Document("12", "b", -0.5),
        Document("a.jsonl:3", "c", 1e20),
        Document("a.jsonl:4", "d", 0.0),
    ]
    assert read(tmp_path / "a.jsonl", text_field="body")[0] == Document("x", "α\u2028β", None)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"text": "a"', ["not JSON", "column 13"]),
        ("", ["blank line"]),
        ("[1]", ["list", "'text'"]),
        ("[" * 100_000, ["not JSON", "recursion"]),
        ('{"s": ' + "1" * 5000 + "}", ["not JSON", "4300"]),
        ('{"body": "a", "title": "b"}', ["no field 'text'", "'body', 'title'", "data.text_field"]),
        ('{"text": 5, "s": 1}', ["'text' is a int (5), not a string"]),
        ('{"text": null, "s": 1}', ["'text' is null"]),
        ('{"text": "", "s": 1}', ["is empty"]),
        ('{"text": "x\\ud800", "s": 1}', ["'text'", "\\ud800", "at 1"]),
        ('{"text": "x", "s": 1, "id": "\\udfff"}', ["'id'", "\\udfff", "at 0"]),
        ('{"text": "x", "s": 1, "id": {"oid": 1}}', ["'id' is a dict", "data.id_field"]),
        ('{"text": "x", "s": 1, "id": true}', ["'id' is a bool"]),
        ('{"text": "x"}', ["no field 's'", "data.score_field"]),
        ('{"text": "x", "s": null}', ["'s' is null", "finite number"]),
        ('{"text": "x", "s": "1"}', ["'s' is a str ('1')"]),
        ('{"text": "x", "s": true}', ["'s' is a bool (True)"]),
        ('{"text": "x", "s": NaN}', ["'s' is a float (nan)"]),
        ('{"text": "x", "s": 1e999}', ["'s' is a float (inf)"]),
        ('{"text": "x", "s": ' + "1" * 400 + "}", ["'s' is a int"]),
    ],
)
def test_bad_jsonl_line_is_named(tmp_path, line, words):
    good = '{"text": "good", "s": 1}\n'
    (tmp_path / "a.jsonl").write_text(f"{good}{line}\n{good}")
    refuses(tmp_path / "a.jsonl", f"{tmp_path}/a.jsonl:2: ", *words, score_field="s")


def test_table_rows_are_called_by_their_first_line(tmp_path):
    (tmp_path / "a.csv").write_text('\ufefftext,id,s\n"two\nlines",,1\nb,x,2.5\n"c,""d""",,-3e0\n')
    assert read(tmp_path / "a.csv", score_field="s") == [
        Document("a.csv:2", "two\nlines", 1.0),
        Document("x", "b", 2.5),
        Document("a.csv:5", 'c,"d"', -3.0),
    ]


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ("text,id\na\n", [":2: 1 cell(s)", "has 2 (text, id)"]),
        ("text,id\na,b\nc,d,e\n", [":3: 3 cell(s)"]),
        ('text,id\n"a\nb",c\n\n', [":4: a blank line"]),
        ("body,title\na,b\n", [":1: no field 'text'", "'body', 'title'"]),
        ("text,a,a\n", [":1: the header row has 'a' more than once"]),
        ("\ntext\na\n", [":1: no field 'text'; fields there: none"]),
        ('text,id\na,"b" c\n', [":2: this row cannot be read as CSV", "twice"]),
        ('text,id\na,b\n"c,d\n\n\n', [":3: this row cannot be read as CSV", "unexpected end"]),
        ("text,id\na\rb,c\n", [":2: this row cannot be read as CSV"]),
        ("text,id\n,b\n", [":2: field 'text' is empty"]),
        ("text\n", ["has no text"]),
        ("", ["is empty (0 bytes)"]),
    ],
)
def test_bad_table_is_named(tmp_path, table, words):
    (tmp_path / "a.csv").write_text(table)
    refuses(tmp_path / "a.csv", str(tmp_path), *words)


@pytest.mark.parametrize("score", ["", "high", "nan", "-inf", "1,5"])
def test_score_of_a_table_is_a_finite_number(tmp_path, score):
    (tmp_path / "a.tsv").write_text(f"text\ts\na\t1\nb\t{score}\n")
    refuses(tmp_path / "a.tsv", "a.tsv:3: field 's' is a", "finite number", score_field="s")


def test_parquet_takes_the_columns_it_is_told(tmp_path):
    table = pyarrow.table(
        {
            "body": pyarrow.array(["a", "b", "a"]).dictionary_encode(),
            "number": [4, None, 6],
            "s": pyarrow.array([0.5, 1, 2], pyarrow.float32()),
        }
    )
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    assert read(tmp_path, text_field="body", id_field="number", score_field="s")[1] == Document("a.parquet:2", "b", 1.0)
    assert [document.id for document in read(tmp_path, text_field="body")] == [f"a.parquet:{n}" for n in (1, 2, 3)]
    refuses(tmp_path, "no field 'text'", "'body', 'number', 's'")
    refuses(tmp_path, "column 'number' is of type int64, not string", text_field="number")
    refuses(tmp_path, "no field 'x'", "data.score_field", text_field="body", score_field="x")
    refuses(tmp_path, "a.parquet:2: field 'number' is null", text_field="body", score_field="number")


def test_bad_parquet_is_named(tmp_path):
    content = as_parquet(["some", "text"] * 500, compression="none", use_dictionary=False)
    for bad in (content[:-20], b"not parquet at all", content[:8] + b"\xff" * 200 + content[208:]):
        (tmp_path / "a.parquet").write_bytes(bad)
        refuses(tmp_path / "a.parquet", "a.parquet cannot be read as Parquet", "again")
    latin = pyarrow.Array.from_buffers(
        pyarrow.string(), 2, [None, pyarrow.py_buffer(b"\0\0\0\0\2\0\0\0\4\0\0\0"), pyarrow.py_buffer(b"okx\xe9")]
    )
    pyarrow.parquet.write_table(pyarrow.table({"text": latin}), tmp_path / "a.parquet")
    refuses(tmp_path / "a.parquet", "a.parquet:2: column 'text' is not UTF-8 at byte 1")


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst"])
def test_compressed_file_that_is_cut_off_or_damaged_is_an_error(tmp_path, name):
    content = WRITERS[name]([f"text {i * 7919}" for i in range(2000)])
    for size in (len(content) - 1, len(content) - 9, len(content) // 2, 20):
        (tmp_path / name).write_bytes(content[:size])
        refuses(tmp_path / name, name, "cut off", "again")
    middle = len(content) // 3
    (tmp_path / name).write_bytes(content[:middle] + b"\xff" * 99 + content[middle + 99 :])
    refuses(tmp_path / name, name, "cannot be read", "again")
    (tmp_path / name).write_text('{"text": "not compressed"}\n')
    refuses(tmp_path / name, name, "cannot be read")


def test_invalid_utf8_names_file_and_offset(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"abc\xff")
    refuses(tmp_path / "a.txt", "a.txt", "0xff", "offset 3")
    refuses(tmp_path / "a.txt", "a.txt", "0xff", "offset 3", document_separator="b")
    (tmp_path / "b.jsonl").write_bytes(b'{"text": "a"}\n{"text": "\xc3"}\n')
    refuses(tmp_path / "b.jsonl", "b.jsonl:2 is not", "0xc3", "offset 24")
    (tmp_path / "c.csv").write_bytes(b"text\na\nb\xfe\n")
    refuses(tmp_path / "c.csv", "c.csv:3 is not", "0xfe", "offset 8")


@pytest.mark.parametrize("name", ["empty.txt", "empty.jsonl", "empty.csv", "empty.txt.gz", "empty.jsonl.zst"])
def test_empty_files_are_errors_that_name_them(tmp_path, name):
    pack = gzip.compress if name.endswith(".gz") else zstandard.compress if name.endswith(".zst") else bytes
    (tmp_path / "good.txt").write_text("a")
    (tmp_path / name).write_bytes(pack(b""))
    refuses(tmp_path / name, name, "0 bytes")
    refuses(tmp_path, name, "0 bytes")


def test_text_has_no_scores(tmp_path):
    (tmp_path / "a.txt").write_text("a")
    refuses(tmp_path, "a.txt is text", "'quality'", "data.score_field=''", score_field="quality")


def test_public_tables_are_read_whole(test_data):
    documents = read(test_data("banking77/test.csv"))
    assert len(documents) == 3080 and documents[0].text == "How do I locate my card?"
    assert len(read(test_data("piqa/valid.jsonl"), text_field="goal")) == 1838
