"""The files of a published model's folder, which anyone may have made: place, size and fields are checked."""

import json
from collections.abc import Callable
from pathlib import Path

from data.errors import DataError
from data.tokenizers.huggingface import ROLES

FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")  # of a token that is an object
_LARGEST, _LARGEST_SETTINGS = 200_000_000, 10_000_000  # bytes: published ones have up to 35 MB, and 3 MB


def is_there(folder: Path, name: str) -> bool:
    """Whether there is such a file, or a link, if only a broken one: `read` says so."""
    return (folder / name).exists() or (folder / name).is_symlink()


def read(folder: Path, name: str, largest: int = _LARGEST) -> bytes:
    """The content of a file. DataError for one of more than `largest` bytes, a folder, or a link to somewhere else.

    A link may lead to another file of the folder, or to the blobs of the Hugging Face cache that the folder is in.
    """
    file = folder / name
    try:
        path, home = file.resolve(), folder.resolve()
        allowed = {home, home.parent.parent / "blobs"} if home.parent.name == "snapshots" else {home}
        if path.parent not in allowed:
            raise DataError(f"{file} is a link out of its folder, to {path}: copy the file there instead")
        if not path.is_file():
            raise DataError(f"{file} is not a file: get the model again")
        if (size := path.stat().st_size) > largest:
            raise DataError(f"{file} has {size:,} bytes, and {largest:,} is the most that is read of such a file")
        return path.read_bytes()
    except (OSError, RuntimeError) as error:  # a loop of links, no permission
        raise DataError(f"{file} cannot be read ({error}): get the model again") from error


def read_object(folder: Path, name: str) -> dict:
    """The JSON object of a file, {} if there is none; what is null there is not said.

    Raises DataError, with the file and the field, where a field that is used here is not of its type.
    """
    if not is_there(folder, name):
        return {}
    content, file = read(folder, name, _LARGEST_SETTINGS), folder / name
    try:
        fields = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file} is not JSON ({error})") from error
    if not isinstance(fields, dict):
        raise DataError(f"{file} holds a JSON {type(fields).__name__}, not an object")
    fields = {key: value for key, value in fields.items() if value is not None}
    for key, value in fields.items():
        fits, allowed = _rule(name, key)
        if not fits(value):
            raise DataError(f"{file}: {key[:80]!r} is {repr(value)[:80]}: it must be {allowed}")
    return fields


def text_of(token: str | dict) -> str:
    return token["content"] if isinstance(token, dict) else token


def _rule(name: str, key: str) -> "_Rule":
    if name == "added_tokens.json":
        return _IDS
    return (_OF_MODEL if name in ("config.json", "generation_config.json") else _OF_TOKENIZER).get(key, _ANY)


def _is_id(value: object) -> bool:
    return type(value) is int  # a bool is none


def _is_token(value: object) -> bool:
    if isinstance(value, dict):
        return isinstance(value.get("content"), str) and all(type(value.get(flag, True)) is bool for flag in FLAGS)
    return isinstance(value, str)


def _are_tokens(value: object) -> bool:
    values = list(value.values()) if isinstance(value, dict) else value
    return isinstance(values, list) and all(map(_is_token, values))


def _are_tokens_by_id(value: object) -> bool:
    return isinstance(value, dict) and all(
        id.isascii() and id.isdigit() and len(id) < 10 and isinstance(token, dict) and _is_token(token)
        for id, token in value.items()
    )


_Rule = tuple[Callable[[object], bool], str]
_ANY: _Rule = (lambda value: True, "")
_IDS: _Rule = (_is_id, "an id")
_TEXT: _Rule = (lambda value: isinstance(value, str), "a text")
_SWITCH: _Rule = (lambda value: isinstance(value, bool), "true or false")
_OBJECT = 'an object with a text as "content" and flags that are true or false'
_TOKEN: _Rule = (_is_token, f"a text, or {_OBJECT}")
_TOKENS: _Rule = (_are_tokens, f"a list, or an object, of which each value is {_TOKEN[1]}")
_SWITCHES = (
    "add_prefix_space",
    "do_lower_case",
    "strip_accents",
    "tokenize_chinese_chars",
    "add_bos_token",
    "add_eos_token",
)
_OF_MODEL: dict[str, _Rule] = {
    "model_type": _TEXT,
    "vocab_size": (lambda value: _is_id(value) and value in range(1, 2**31), "a number, 1 or more"),
    "eos_token_id": (
        lambda value: _is_id(value) or (isinstance(value, list) and all(map(_is_id, value))),
        "an id or a list of ids",
    ),
}
_OF_TOKENIZER: dict[str, _Rule] = {
    "tokenizer_class": _TEXT,
    **dict.fromkeys(_SWITCHES, _SWITCH),
    **dict.fromkeys((f"{role}_token" for role in ROLES), _TOKEN),
    "additional_special_tokens": _TOKENS,
    "extra_special_tokens": _TOKENS,
    "added_tokens_decoder": (_are_tokens_by_id, f"an object with {_OBJECT} for each id"),
    "extra_ids": (lambda value: _is_id(value) and value in range(10_001), "a number from 0 to 10,000"),
}
