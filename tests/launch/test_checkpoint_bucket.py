"""`tessera checkpoint` on gs://: folders through fsspec, numbers through tensorstore, here both from a local folder."""

import http.server
import shutil
import threading
import urllib.parse

import fsspec
import pytest
from etils.epath import backend
from fsspec.implementations.dirfs import DirFileSystem
from fsspec.registry import _registry

from launch.cli import IO, OK, main
from tests import tiny
from tests.train.test_checkpoint import fresh, saved


class Objects(http.server.BaseHTTPRequestHandler):
    """What tensorstore asks of Google's storage: an object, or some bytes of it."""

    def do_GET(self):
        if self.server.closed:
            return self.send_error(403)
        bucket, _, name = urllib.parse.urlsplit(self.path).path.partition("/o/")
        file = self.server.root / bucket.rpartition("/")[2] / urllib.parse.unquote(name)
        whole = file.read_bytes() if file.is_file() else b""
        first, _, last = self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")
        data = whole[int(first or 0) : int(last) + 1 if last else None]
        self.send_response(404 if not file.is_file() else 206 if "Range" in self.headers else 200)
        self.send_header("Content-Range", f"bytes {first}-{int(first) + len(data) - 1}/{len(whole)}")
        self.send_header("x-goog-generation", "1")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """The folder that is gs://bucket, and the server that tensorstore asks for what is in it."""

    class Files(DirFileSystem):
        cachable = False

        def __init__(self, **_):
            super().__init__(str(tmp_path), fsspec.filesystem("file"))

        def _join(self, path):
            return super()._join(path.removeprefix("gs://"))

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Objects)
    server.root, server.closed = tmp_path, False
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("TENSORSTORE_GCS_HTTP_URL", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("GOOGLE_AUTH_TOKEN_FOR_TESTING", "none")
    monkeypatch.setitem(_registry, "gcs", Files)
    backend.fsspec_backend._get_filesystem.cache_clear()
    yield tmp_path / "bucket", server
    backend.fsspec_backend._get_filesystem.cache_clear()
    server.shutdown()
    server.server_close()


def test_a_run_in_a_bucket_is_listed_verified_and_pruned(bucket, capsys):
    checkpoints = bucket[0] / "runs" / "one" / "checkpoints"
    saved(checkpoints, fresh(tiny.mesh(fsdp=8)), (5, 10)).close()
    shutil.copytree(checkpoints / "10", checkpoints / "15")
    (checkpoints / "15" / "commit_success.txt").unlink()  # in a bucket, a step has its name before it is finished

    def says(*arguments):
        assert main(["checkpoint", arguments[0], "gs://bucket/runs/one", *arguments[1:]]) == OK
        return capsys.readouterr().out.splitlines()

    listed = says("ls")
    assert [line.split()[0] for line in listed[1:3]] == ["5", "10"] and listed[3].startswith("set aside: 15, ")
    assert [line.partition(",")[0] for line in says("verify", "--all")] == ["step 5: 62 leaves", "step 10: 62 leaves"]
    assert "no lock reaches gs://bucket/runs/one/checkpoints" in says("prune", "--keep_last=1", "--aside", "--yes")[0]
    assert [path.name for path in checkpoints.iterdir()] == ["10"]


def test_a_bucket_that_may_not_be_read_is_no_damage(bucket, capsys):
    folder, server = bucket
    saved(folder / "checkpoints", fresh(tiny.mesh())).close()
    server.closed = True
    assert main(["checkpoint", "verify", "gs://bucket"]) == IO
    said = capsys.readouterr()
    assert "DAMAGED" not in said.out and "PERMISSION_DENIED" in said.err
