"""The tokenizer of a published model's folder, picked by the files that folders of Hugging Face have."""

import json
from pathlib import Path

import tokenizers

from data.errors import DataError, missing_path
from data.huggingface_tokenizers import ROLES, HuggingFaceTokenizer, read_backend
from data.tokenizer_formats import byte_level_bpe, sentence_pieces, template, word_pieces

# The files of each format, and the families whose rules for them are known: the first where the folder names none.
_FORMATS = {
    ("tokenizer.json",): (),  # it holds all rules itself
    ("vocab.json", "merges.txt"): ("gpt2", "roberta"),
    ("encoder.json", "vocab.bpe"): ("gpt2", "roberta"),
    ("vocab.txt",): ("bert",),
    ("spiece.model",): ("t5", "llama"),
    ("tokenizer.model",): ("llama", "t5"),
}
# What has the rules of a family, by `model_type`, or by `tokenizer_class` less "Tokenizer" in lower case.
_LIKE = {
    "gpt2": ("gpt2", "gpt_neo", "opt"),
    "roberta": ("roberta", "bart"),
    "bert": ("bert", "distilbert", "electra"),
    "t5": ("t5", "mt5"),
    "llama": ("llama", "mistral", "mixtral"),
}
# What a family calls its special tokens where the folder does not say.
_USUAL = {
    "bert": {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"},
    "roberta": {
        "pad": "<pad>",
        "unk": "<unk>",
        "cls": "<s>",
        "sep": "</s>",
        "mask": "<mask>",
        "bos": "<s>",
        "eos": "</s>",
    },
    "gpt2": {"unk": "<|endoftext|>", "bos": "<|endoftext|>", "eos": "<|endoftext|>"},
    "t5": {"pad": "<pad>", "unk": "<unk>", "eos": "</s>"},
    "llama": {"unk": "<unk>", "bos": "<s>", "eos": "</s>"},
}


def load_pretrained_tokenizer(folder: str | Path) -> HuggingFaceTokenizer:
    """The tokenizer of a folder in the form of Hugging Face; its ids equal those of `transformers.AutoTokenizer`.

    Reads `tokenizer.json`, else `vocab.json` + `merges.txt` (GPT-2, RoBERTa; also `encoder.json` + `vocab.bpe`),
    `vocab.txt` (BERT), `spiece.model` (T5) or `tokenizer.model` (Llama); and for what these leave open
    `tokenizer_config.json`, `special_tokens_map.json`, `added_tokens.json` and `config.json`. The end of a document
    is the eos_token: BERT has none, as [SEP] closes a sentence. Where the folder does not say, text is lower-cased
    for a vocab.txt without upper-case letters, and Llama's <s> is added. `tokenizer.model` gives the ids of
    sentencepiece, which `transformers` 5 does not keep to where a text has runs of spaces.

    Raises DataError, naming the files, where there are none, or they are broken or do not fit together.
    """
    place = Path(folder).expanduser()
    if not place.is_dir():
        raise missing_path("tokenizer folder", str(folder))
    settings, model_config = _settings(place), _object(place / "config.json")
    files = _files(place)
    name = " + ".join(map(str, files))
    contents = [file.read_bytes() for file in files]
    family = _family(files, settings, model_config)
    backend = _vocabulary(family, contents, settings, name)
    names = _names(family, backend, settings)
    _add_tokens(backend, settings, _object(place / "added_tokens.json"), names, name)
    special_ids = _special_ids(backend, names, model_config)
    if family or {"add_bos_token", "add_eos_token"} & settings.keys():
        backend.post_processor = template(backend, *_around(family, names, settings), name=name)
    tokenizer = HuggingFaceTokenizer.of(backend, special_ids, contents[0] if name.endswith(".model") else b"", name)
    rows = model_config.get("vocab_size") or tokenizer.vocab_size
    if rows < tokenizer.vocab_size:
        raise DataError(f"{name} has ids up to {tokenizer.vocab_size - 1}, but config.json has vocab_size {rows}")
    return tokenizer


def _files(folder: Path) -> list[Path]:
    """The files of the one format that is there; `tokenizer.json` goes before any other."""
    found = [names for names in _FORMATS if any((folder / name).is_file() for name in names)]
    if not found:
        raise DataError(f"{folder} has no tokenizer: looked for {', '.join(' + '.join(names) for names in _FORMATS)}")
    if len(found) > 1 and found[0] != ("tokenizer.json",):
        listed = ", ".join(" + ".join(names) for names in found)
        raise DataError(f"{folder} has the files of {len(found)} tokenizers, {listed}: keep those of one")
    missing = [name for name in found[0] if not (folder / name).is_file()]
    if missing:
        raise DataError(f"{folder} has no {missing[0]}, which goes with {' + '.join(set(found[0]) - set(missing))}")
    return [folder / name for name in found[0]]


def _settings(folder: Path) -> dict:
    """`tokenizer_config.json`, and below it `special_tokens_map.json`; what is null there is not said."""
    both = (_object(folder / name).items() for name in ("special_tokens_map.json", "tokenizer_config.json"))
    return {key: value for items in both for key, value in items if value is not None}


def _object(file: Path) -> dict:
    if not file.is_file():
        return {}
    try:
        content = json.loads(file.read_bytes())
    except ValueError as error:
        raise DataError(f"{file} is not JSON ({error})") from error
    if not isinstance(content, dict):
        raise DataError(f"{file} holds a JSON {type(content).__name__}, not an object")
    return content


def _text(token: str | dict) -> str:
    text = token.get("content") if isinstance(token, dict) else token
    if not isinstance(text, str):
        raise DataError(f"a special token of tokenizer_config.json or special_tokens_map.json has no text: {token!r}")
    return text


def _family(files: list[Path], settings: dict, model_config: dict) -> str | None:
    """The family that the folder names, else the usual one of its files. DataError for one that they do not fit."""
    fit = _FORMATS[tuple(file.name for file in files)]
    if not fit:
        return None
    named = settings.get("tokenizer_class", "").removesuffix("Fast").removesuffix("Tokenizer").lower()
    named = model_config.get("model_type", "") if named in ("", "pretrained") else named
    if not named:
        return fit[0]
    for family in fit:
        if named in _LIKE[family]:
            return family
    known = ", ".join(like for family in fit for like in _LIKE[family])
    raise DataError(
        f"{files[0]} is read for {known}, but the folder's configuration says {named!r}: "
        "add the model's tokenizer.json, which is read for any family"
    )


def _vocabulary(family: str | None, contents: list[bytes], settings: dict, name: str) -> tokenizers.Tokenizer:
    if family is None:
        return read_backend(contents[0].decode("utf-8", errors="replace"), name)
    if family in ("gpt2", "roberta"):
        return byte_level_bpe(*contents, prefix_space=bool(settings.get("add_prefix_space")), name=name)
    if family == "bert":
        lower, accents = settings.get("do_lower_case"), settings.get("strip_accents")
        chinese, unk = settings.get("tokenize_chinese_chars", True), _text(settings.get("unk_token", "[UNK]"))
        return word_pieces(contents[0], lower=lower, strip_accents=accents, chinese=chinese, unk=unk, name=name)
    return sentence_pieces(contents[0], sentinels=settings.get("extra_ids", 100) if family == "t5" else 0, name=name)


def _names(family: str | None, backend: tokenizers.Tokenizer, settings: dict) -> dict[str, str]:
    """The texts of the special tokens by role: those that the folder names, else the family's that are there."""
    named = {role: _text(settings[f"{role}_token"]) for role in ROLES if f"{role}_token" in settings}
    if family:
        usual = _USUAL[family].items()
        return {role: text for role, text in usual if backend.token_to_id(text) is not None} | named
    marked = {token.content for token in backend.get_added_tokens_decoder().values() if token.special}
    whole = (usual for usual in _USUAL.values() if marked.issuperset(usual.values()))
    return named or next(whole, {})


def _add_tokens(backend: tokenizers.Tokenizer, settings: dict, ids: dict, names: dict[str, str], name: str) -> None:
    """Adds the tokens beyond the vocabulary, each at the id that the folder gives it, and marks the special ones."""
    others = settings.get("additional_special_tokens") or settings.get("extra_special_tokens") or []
    special = {*names.values(), *map(_text, others.values() if isinstance(others, dict) else others)}
    added = {
        id: tokenizers.AddedToken(text, normalized=text not in special, special=text in special)
        for text, id in ids.items()
    }
    for id, fields in settings.get("added_tokens_decoder", {}).items():
        added[int(id)] = tokenizers.AddedToken(**{key: value for key, value in fields.items() if key != "__type"})
    present = {token.content for token in backend.get_added_tokens_decoder().values()}
    for id, token in sorted(added.items(), key=lambda item: item[0]):
        if token.content not in present:
            backend.add_tokens([token])
        got = backend.token_to_id(token.content)
        if got != id:
            raise DataError(f"the files beside {name} give the token {token.content!r} id {id}, but there it has {got}")
    present |= {token.content for token in added.values()}
    for text in sorted(special - present):
        if backend.token_to_id(text) is None:
            raise DataError(f"{name} has no token {text!r}, which the files beside it call special")
        backend.add_special_tokens([text])


def _special_ids(backend: tokenizers.Tokenizer, names: dict[str, str], model_config: dict) -> dict[str, int]:
    ids = {role: backend.token_to_id(text) for role, text in names.items()}
    for number in range(100):
        own = backend.token_to_id(f"<extra_id_{number}>")
        in_mt5 = backend.token_to_id(f"\u2581<extra_id_{number}>")
        ids[f"extra_{number}"] = in_mt5 if own is None else own
    end = backend.get_added_tokens_decoder().get(model_config.get("eos_token_id", -1))
    if end and end.special:
        ids.setdefault("eos", model_config["eos_token_id"])
    return {role: id for role, id in ids.items() if id is not None}


def _around(family: str | None, names: dict[str, str], settings: dict) -> tuple[str | None, str | None, str | None]:
    """The special tokens before the first text, before the second, and after each."""
    names = _USUAL.get(family or "", {}) | names
    if family == "bert":
        return names["cls"], None, names["sep"]
    if family == "roberta":
        return names["cls"], names["sep"], names["sep"]
    if family == "t5":
        return None, None, names["eos"]
    bos = names.get("bos") if settings.get("add_bos_token", family == "llama") else None
    return bos, bos, names.get("eos") if settings.get("add_eos_token") else None
