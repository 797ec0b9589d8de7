"""A tokenizer on disk: one data file, and a small manifest whose fingerprint tells whether they belong together."""

import hashlib
import json
from pathlib import Path

from data.atomic import write_file
from data.errors import DataError
from data.json_text import parse_json

MANIFEST = "tessera_tokenizer.json"
# The byte tokenizer has no data file: its kind says everything.
DATA_FILES = {
    "byte": None,
    "char": "characters.txt",
    "sentencepiece": "sentencepiece.model",
    "huggingface": "huggingface.json",
    "with_specials": "specials.json",
}


def fingerprint(kind: str, content: bytes) -> str:
    """32 hexadecimal digits that change with the kind or any byte of the data of a tokenizer."""
    return hashlib.blake2b(kind.encode() + b"\0" + content, digest_size=16).hexdigest()


def save(folder: str | Path, tokenizer, content: bytes) -> None:
    """Writes data file, then manifest (kind, vocab_size, eos_id, fingerprint): a folder with a manifest is whole."""
    folder = Path(folder).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    name = DATA_FILES[tokenizer.kind]
    if name:
        write_file(folder / name, content)
    manifest = {key: getattr(tokenizer, key) for key in ("kind", "vocab_size", "eos_id", "fingerprint")}
    write_file(folder / MANIFEST, (json.dumps(manifest, indent=2) + "\n").encode())


def load(folder: Path) -> tuple[str, bytes]:
    """The kind and the data of a saved tokenizer. Raises DataError where they do not have the fingerprint saved."""
    manifest = _manifest(folder / MANIFEST)
    kind = manifest.get("kind")
    if not isinstance(kind, str) or kind not in DATA_FILES:
        raise DataError(f"{folder / MANIFEST}: kind {kind!r} is unknown: {', '.join(DATA_FILES)} are read")
    file = DATA_FILES[kind] and folder / DATA_FILES[kind]
    if file and not file.is_file():
        raise DataError(f"{folder} is not a whole tokenizer: {file.name} is missing; save it again")
    content = file.read_bytes() if file else b""
    found, saved = fingerprint(kind, content), manifest.get("fingerprint")
    if found != saved:
        raise DataError(f"tokenizer {folder} was changed: its data has fingerprint {found}, saved was {saved}")
    return kind, content


def _manifest(file: Path) -> dict:
    if not file.is_file():
        raise DataError(f"{file.parent} is not a saved tokenizer: it has no {MANIFEST}, nor a published one's files")
    try:
        manifest = parse_json(file.read_bytes())
    except ValueError as error:
        raise DataError(f"{file} is not JSON ({error})") from error
    if not isinstance(manifest, dict):
        raise DataError(f"{file} holds a JSON {type(manifest).__name__}, not an object")
    return manifest
