"""Files behind URLs: in fsspec's memory, behind file://, and behind a web server of this machine."""

import functools
import gzip
import http.server
import os
import sys
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor

import fsspec
import pytest

from data.config import SourceConfig
from data.errors import DataError
from data.sources.documents import Document
from data.sources.read import provenance, read_documents, stamp
from data.sources.remote import fetch, list_files

FILES = {
    "b.txt": b"line\r\n",
    "a/c.jsonl.gz": gzip.compress(b'{"text": "one"}\n{"text": "two", "id": 7}\n'),
    "a/d.csv": b"text\nthree\n",
    "a/__init__.py": b"",
    "a/e.bin": b"not read",
    ".git/f.txt": b"hidden",
    "a/.g.txt": b"hidden",
}
DOCUMENTS = [
    Document("a/c.jsonl.gz:1", "one"),
    Document("7", "two"),
    Document("a/d.csv:2", "three"),
    Document("b.txt", "line\r\n"),
]


@pytest.fixture
def served(tmp_path):
    """The address of a web server of the folder `tmp_path / "files"`, and the requests it has had."""
    pytest.importorskip("aiohttp", reason="https:// is read through aiohttp")
    requests = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format, *arguments):
            requests.append(" ".join(map(str, arguments[:1])))

    handler = functools.partial(Handler, directory=str(tmp_path / "files"))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", requests
    server.shutdown()
    server.server_close()


@pytest.fixture(params=["memory", "file", "http"])
def place(request, tmp_path):
    """The URL of a folder that holds FILES, and the function that writes a file into it."""
    if request.param == "memory":
        root, url = fsspec.filesystem("memory"), f"memory://{uuid.uuid4().hex}"
        write = lambda name, content: root.pipe(f"{url}/{name}", content)  # noqa: E731
    else:
        url = f"file://{tmp_path}/files" if request.param == "file" else request.getfixturevalue("served")[0]

        def write(name, content):
            (tmp_path / "files" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "files" / name).write_bytes(content)

    for name, content in FILES.items():
        write(name, content)
    return url, write


def read(url, tmp_path, report=lambda _: None, **options):
    return list(read_documents(SourceConfig(url, **options), cache_dir=str(tmp_path / "cache"), report=report))


def refuses(url, tmp_path, *words):
    with pytest.raises(DataError) as error:
        read(url, tmp_path)
    for word in (url, *words):
        assert word in str(error.value), f"{word!r} is not in: {error.value}"


def test_folder_is_read_as_one_of_this_machine(place, tmp_path):
    url, _ = place
    assert read(f"{url}/", tmp_path) == DOCUMENTS


def test_glob_is_read_below_its_root(place, tmp_path):
    url, _ = place
    assert read(f"{url}/a/*.csv", tmp_path) == [Document("d.csv:2", "three")]
    refuses(f"{url}/a/*.tsv", tmp_path, "matches no file")


def test_file_is_fetched_once_and_again_when_it_changes(place, tmp_path):
    url, write = place
    lines = []
    assert read(f"{url}/b.txt", tmp_path, lines.append) == [Document("b.txt", "line\r\n")]
    assert len(lines) == 1 and f"{url}/b.txt (0.0 MB" in lines[0]
    before = stamp(SourceConfig(f"{url}/b.txt"))
    assert read(f"{url}/b.txt", tmp_path, lines.append) == [Document("b.txt", "line\r\n")]
    assert len(lines) == 1 and stamp(SourceConfig(f"{url}/b.txt")) == before
    write("b.txt", b"another text")
    assert stamp(SourceConfig(f"{url}/b.txt")) != before
    assert read(f"{url}/b.txt", tmp_path, lines.append) == [Document("b.txt", "another text")]
    assert len(lines) == 2


def test_errors_name_the_url_not_the_copy(place, tmp_path):
    url, write = place
    write("bad.jsonl", b'{"text": "a"}\n{"body": "b"}\n')
    refuses(f"{url}/bad.jsonl", tmp_path, "bad.jsonl:2", "no field 'text'")
    refuses(f"{url}/nowhere.txt", tmp_path, "404" if url.startswith("http") else "does not exist")


def test_provenance_counts_what_is_there(place):
    url, _ = place
    size = sum(len(FILES[name]) for name in ("b.txt", "a/c.jsonl.gz", "a/d.csv"))
    known = {"path": f"{url}/", "licence": "", "language": "en", "num_files": 3, "num_bytes": size, "revision": None}
    assert known.items() <= provenance(SourceConfig(f"{url}/", language="en")).items()


def test_only_folders_without_files_are_refused(place, tmp_path):
    url, write = place
    write("x/notes.bin", b"not read")
    refuses(f"{url}/x/", tmp_path, "no file to read below", ".jsonl")


def test_query_of_a_web_address_is_no_glob_and_no_part_of_the_name(served, tmp_path):
    url, requests = served
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "a.jsonl").write_text('{"text": "one"}\n')
    assert read(f"{url}/a.jsonl?download=true", tmp_path) == [Document("a.jsonl:1", "one")]
    assert [request for request in requests if "?download=true" in request]


def test_web_server_that_does_not_answer_is_named(tmp_path):
    pytest.importorskip("aiohttp", reason="https:// is read through aiohttp")
    refuses("http://127.0.0.1:9/a.txt", tmp_path, "http://127.0.0.1:9/a.txt cannot be read", "the network")


@pytest.fixture
def memory_file():
    name = uuid.uuid4().hex
    fsspec.filesystem("memory").pipe(f"/{name}/a.txt", b"0123456789")
    return f"memory://{name}/a.txt"


def fails_after(count, error):
    def get_file(self, path, target, **options):
        with open(target, "wb") as file:
            file.write(self.cat(path)[:count])
        if error:
            raise error

    return get_file


@pytest.mark.parametrize("error", [ConnectionResetError("reset by peer"), KeyboardInterrupt(), None])
def test_download_that_breaks_off_leaves_nothing_behind(memory_file, tmp_path, monkeypatch, error):
    with monkeypatch.context() as patch:
        patch.setattr(type(fsspec.filesystem("memory")), "get_file", fails_after(5, error))
        with pytest.raises(KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else DataError) as raised:
            read(memory_file, tmp_path)
    if error is None:
        assert f"{memory_file} brought 5 bytes, and 10 were announced" in str(raised.value)
    (lock,) = os.listdir(tmp_path / "cache" / "remote")
    assert lock.endswith(".lock")
    assert read(memory_file, tmp_path) == [Document("a.txt", "0123456789")]


def test_a_killed_download_does_not_count(memory_file, tmp_path):
    """A killed process leaves a temporary folder: the next one does not read it."""
    (file,) = list_files(memory_file)
    final = fetch(file, str(tmp_path / "once")).parent
    left = tmp_path / "cache" / "remote" / f".{final.name}.1.abcd.tmp"
    left.mkdir(parents=True)
    (left / "a.txt").write_bytes(b"01234")
    assert read(memory_file, tmp_path) == [Document("a.txt", "0123456789")]


def test_files_are_fetched_one_by_one_as_they_are_read(place, tmp_path):
    url, _ = place
    lines = []
    documents = read_documents(SourceConfig(f"{url}/"), cache_dir=str(tmp_path / "cache"), report=lines.append)
    assert not lines
    next(documents)
    assert len(lines) == 1


def test_a_listing_is_never_an_old_one(monkeypatch):
    """File systems keep listings: a stamp from one of them would hide that a file has changed."""
    calls = []
    memory = type(fsspec.filesystem("memory"))
    monkeypatch.setattr(memory, "invalidate_cache", lambda self, path=None: calls.append(path))
    fsspec.filesystem("memory").pipe("/once/a.txt", b"a")
    stamp(SourceConfig("memory://once"))
    assert calls == [None]


def test_file_without_a_version_is_refused(memory_file, tmp_path, monkeypatch):
    info = {"name": memory_file, "size": 10, "type": "file"}
    monkeypatch.setattr(type(fsspec.filesystem("memory")), "info", lambda self, path, **options: info)
    refuses(memory_file, tmp_path, "neither a checksum nor a time", "download it")


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (PermissionError("Forbidden"), ["cannot be read (PermissionError: Forbidden)", "the rights"]),
        (RuntimeError("Unable to\n locate credentials"), ["(RuntimeError: Unable to locate credentials)"]),
    ],
)
def test_what_the_file_system_raises_is_reported_with_the_url(memory_file, tmp_path, monkeypatch, error, words):
    def info(self, path, **options):
        raise error

    monkeypatch.setattr(type(fsspec.filesystem("memory")), "info", info)
    refuses(memory_file, tmp_path, *words)


@pytest.mark.parametrize(("scheme", "package"), [("gs", "gcsfs"), ("s3", "s3fs"), ("https", "aiohttp")])
def test_missing_driver_says_what_to_install(tmp_path, monkeypatch, scheme, package):
    monkeypatch.setitem(sys.modules, package, None)  # as if it were not installed, nor used before
    monkeypatch.delitem(sys.modules, "fsspec.implementations.http", raising=False)
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, scheme, raising=False)
    refuses(f"{scheme}://bucket/a.txt", tmp_path, f"pip install {package}")


def test_unknown_scheme_is_an_error(tmp_path):
    refuses("tape://archive/a.txt", tmp_path, "no driver is known for the tape://", "gs://")


def test_one_of_many_fetches_a_file_and_the_others_wait(memory_file, tmp_path, monkeypatch):
    (file,) = list_files(memory_file)
    memory, calls = type(fsspec.filesystem("memory")), []
    get_file = memory.get_file

    def slow(self, *arguments, **options):
        calls.append(arguments)
        time.sleep(0.2)
        return get_file(self, *arguments, **options)

    monkeypatch.setattr(memory, "get_file", slow)
    with ThreadPoolExecutor(3) as threads:
        paths = list(threads.map(lambda _: fetch(file, str(tmp_path)), range(3)))
    assert len(set(paths)) == len(calls) == 1 and paths[0].read_bytes() == b"0123456789"
    assert os.listdir(tmp_path / "remote") == [paths[0].parent.name]
