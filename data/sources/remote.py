"""Files behind a URL: listed, and fetched once into a local cache, through fsspec."""

import hashlib
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from data.atomic import locked, new_folder, remove_leftovers
from data.errors import DataError
from data.sources.files import File, is_read, nothing_to_read, to_read

_WEB = ("http", "https")
_PACKAGES = {"gs": "gcsfs", "gcs": "gcsfs", "s3": "s3fs", "s3a": "s3fs", "http": "aiohttp", "https": "aiohttp"}
# What file systems call the version of a file; each tells some of them.
_VERSIONS = (
    *("ETag", "etag", "checksum", "md5Hash", "content_md5", "Content-MD5", "Digest", "generation"),
    *("LastModified", "Last-Modified", "last_modified", "mtime", "updated", "created"),
)


class Unreachable(DataError):
    """A source that may be as it was: the network, or the server, does not answer."""


def is_url(path: str) -> bool:
    """Whether a path is "SCHEME://…"."""
    return "://" in path


def list_files(url: str) -> list[File]:
    """The files of the URL of a file, a folder or a glob, sorted by id.

    Of a web address only "*" makes a glob, as "?" begins a query, and only "/" at the end a folder, whose page must
    link its files. Raises DataError for a scheme without a driver, a missing file, and all that the network does.
    """
    system, path = _opened(url)
    web = urlsplit(url).scheme in _WEB
    magic = re.search(r"\*" if web else r"[*?[]", url)
    with _network(url):
        system.invalidate_cache()  # a listing of minutes ago would hide what changed since
        if magic:
            found: dict[str, Any] = system.glob(path, detail=True)
            found = {path: info for path, info in found.items() if info["type"] == "file"}
            base = url[: magic.start()].rpartition("/")[0]
        elif not (web and url.endswith("/")) and (info := system.info(path))["type"] == "file":
            return to_read([_file(_name(url), url, info)])
        else:
            found, base = system.find(path, detail=True), url.rstrip("/")
        root = system._strip_protocol(base).rstrip("/") + "/"
        found = {path.removeprefix(root): info for path, info in found.items()}
        if not magic:
            found = {id: info for id, info in found.items() if is_read(_name(id)) and not re.search(r"(^|/)\.", id)}
        if not found:
            raise DataError(f"the glob {url!r} matches no file") if magic else nothing_to_read(url)
        if web:  # a page of links tells neither sizes nor versions
            found = {id: system.info(f"{base}/{id}") for id in found}
    files = sorted((_file(id, f"{base}/{id}", info) for id, info in found.items()), key=lambda file: file.id)
    return to_read(files)


def fetch(file: File, cache_dir: str, report: Callable[[str], object] = lambda _: None) -> Path:
    """Where the content of `file`, in the version it had when it was listed, lies on this machine.

    It is downloaded unless it was before, by one process while others wait; only a whole file ever gets its name.
    `report` gets a line about a download.
    Raises DataError where the network fails, or brings another number of bytes than the listing said.
    """
    key = hashlib.blake2b(repr((file.place, file.size, file.version)).encode(), digest_size=16).hexdigest()
    folder, name = Path(cache_dir).expanduser() / "remote" / key, _name(file.place)
    if not folder.is_dir():
        with locked(folder, report):
            remove_leftovers(folder.parent)
            if not folder.is_dir():
                _download(file, folder, name, report)
    return folder / name


def _download(file: File, folder: Path, name: str, report: Callable[[str], object]) -> None:
    started = time.perf_counter()
    system, path = _opened(file.place)
    with new_folder(folder) as temporary:
        with _network(file.place):
            system.get_file(path, str(temporary / name))
        with open(temporary / name, "rb+") as content:
            os.fsync(content.fileno())
            size = os.fstat(content.fileno()).st_size
        if file.size not in (None, size):
            raise DataError(f"{file.place} brought {size:,} bytes, and {file.size:,} were announced: run again")
    report(f"data: fetched {file.place} ({size / 1e6:.1f} MB, {time.perf_counter() - started:.1f} s)")


def _file(id: str, place: str, info: dict[str, Any]) -> File:
    version = {name: str(info[name]) for name in _VERSIONS if info.get(name)}
    if not version:
        raise DataError(
            f"the server tells neither a checksum nor a time of change of {place}, so that nobody could know whether a "
            "copy of it is still right: download it, and give the file as data.path"
        )
    return File(id, place, info.get("size"), repr(version))


def _name(url: str) -> str:
    """The name of a file, which says its format: of a web address without the query."""
    return PurePosixPath(urlsplit(url).path if urlsplit(url).scheme in _WEB else url).name


def _opened(url: str) -> tuple[Any, str]:
    """The file system of a URL, and the URL's path in it."""
    import fsspec.core
    from fsspec.registry import known_implementations, registry

    scheme = urlsplit(url).scheme
    if scheme not in known_implementations and scheme not in registry:
        raise DataError(f"no driver is known for the {scheme}:// of {url}: there are https://, gs://, s3:// and more")
    with _network(url):
        try:
            return fsspec.core.url_to_fs(url)
        except ImportError as error:
            way_out = f"pip install {_PACKAGES[scheme]}" if scheme in _PACKAGES else str(error)
            raise DataError(f"{url} needs a package that is not installed: {way_out}") from error


@contextmanager
def _network(url: str) -> Iterator[None]:
    """Turns what file systems raise, which is of many packages and types, into a DataError that names the URL."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:
        reason = error.__cause__ or error  # to http, a server that does not answer is a file that is not found, too
        if isinstance(reason, FileNotFoundError):
            raise DataError(f"{url} does not exist, or is hidden from this machine") from error
        said = " ".join(f"{type(reason).__name__}: {reason}".split())[:300]
        status = getattr(reason, "status", 0)
        refused = isinstance(reason, PermissionError) or (isinstance(status, int) and 400 <= status < 500)
        kind = DataError if refused else Unreachable
        raise kind(f"{url} cannot be read ({said}): check the address, the network, and the rights") from error
