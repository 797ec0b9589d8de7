"""The tokenizer of a published model's folder, picked by the files that folders of Hugging Face have."""

from pathlib import Path

import tokenizers

from data.errors import DataError, missing_path
from data.tokenizers.formats import byte_level_bpe, sentence_pieces, template, word_pieces
from data.tokenizers.huggingface import ROLES, HuggingFaceTokenizer, read_backend, refusing
from data.tokenizers.pretrained_files import FLAGS, is_there, read, read_object, text_of

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
    is the eos_token: BERT has none, as [SEP] closes a sentence. Its `eos_ids` are that, and the `eos_token_id`s of
    `config.json` and `generation_config.json` that the tokenizer has: no text ends with others. Where the folder does
    not say, text is lower-cased for a vocab.txt without upper-case letters, and Llama's <s> is added.
    `tokenizer.model` gives the ids of sentencepiece, which `transformers` 5 does not keep to where a text has runs
    of spaces.

    Raises DataError, naming the files, where there are none, or they are broken or do not fit together; where one has
    more than 200 MB, or of settings 10 MB; and for a link to a file that is not the folder's.
    """
    place = Path(folder).expanduser()
    if not place.is_dir():
        raise missing_path("tokenizer folder", str(folder))
    settings, model_config = _settings(place), read_object(place, "config.json")
    files = _files(place)
    name = " + ".join(map(str, files))
    contents = [read(place, file.name) for file in files]
    family = _family(files, settings, model_config)
    with refusing(f"{name} cannot be used"):
        backend = _vocabulary(family, contents, settings, name)
        names = _names(family, backend, settings)
        _add_tokens(backend, settings, read_object(place, "added_tokens.json"), names, name)
        ends = _ends(backend, model_config, read_object(place, "generation_config.json"))
        special_ids = _special_ids(backend, names, ends)
        if family or {"add_bos_token", "add_eos_token"} & settings.keys():
            backend.post_processor = template(backend, *_around(family, names, settings), name=name)
    model = contents[0] if name.endswith(".model") else b""
    tokenizer = HuggingFaceTokenizer.of(
        backend, special_ids, model, name, ends, split_special_tokens=bool(settings.get("split_special_tokens"))
    )
    rows = model_config.get("vocab_size") or tokenizer.vocab_size
    if rows < tokenizer.vocab_size:
        raise DataError(f"{name} has ids up to {tokenizer.vocab_size - 1}, but config.json has vocab_size {rows}")
    return tokenizer


def has_tokenizer(folder: Path) -> bool:
    """Whether there is a file that `load_pretrained_tokenizer` starts from."""
    return any(is_there(folder, name) for names in _FORMATS for name in names)


def _files(folder: Path) -> list[Path]:
    """The files of the one format that is there; `tokenizer.json` goes before any other."""
    found = [names for names in _FORMATS if any(is_there(folder, name) for name in names)]
    if not found:
        raise DataError(f"{folder} has no tokenizer: looked for {', '.join(' + '.join(names) for names in _FORMATS)}")
    if len(found) > 1 and found[0] != ("tokenizer.json",):
        listed = ", ".join(" + ".join(names) for names in found)
        raise DataError(f"{folder} has the files of {len(found)} tokenizers, {listed}: keep those of one")
    missing = [name for name in found[0] if not is_there(folder, name)]
    if missing:
        raise DataError(f"{folder} has no {missing[0]}, which goes with {' + '.join(set(found[0]) - set(missing))}")
    return [folder / name for name in found[0]]


def _settings(folder: Path) -> dict:
    """`tokenizer_config.json`, and below it `special_tokens_map.json`, which may add flags to the same token."""
    low, high = (read_object(folder, name) for name in ("special_tokens_map.json", "tokenizer_config.json"))
    flagged = {key: token for key, token in low.items() if isinstance(token, dict) and "content" in token}
    return low | high | {key: token for key, token in flagged.items() if high.get(key) == token["content"]}


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
        chinese, unk = settings.get("tokenize_chinese_chars", True), text_of(settings.get("unk_token", "[UNK]"))
        return word_pieces(contents[0], lower=lower, strip_accents=accents, chinese=chinese, unk=unk, name=name)
    return sentence_pieces(contents[0], sentinels=settings.get("extra_ids", 100) if family == "t5" else 0, name=name)


def _names(family: str | None, backend: tokenizers.Tokenizer, settings: dict) -> dict[str, str]:
    """The texts of the special tokens by role: those that the folder names, else the family's that are there."""
    named = {role: text_of(settings[f"{role}_token"]) for role in ROLES if f"{role}_token" in settings}
    if family:
        usual = _USUAL[family].items()
        return {role: text for role, text in usual if backend.token_to_id(text) is not None} | named
    marked = {token.content for token in backend.get_added_tokens_decoder().values() if token.special}
    whole = (usual for usual in _USUAL.values() if marked.issuperset(usual.values()))
    return named or next(whole, {})


def _add_tokens(backend: tokenizers.Tokenizer, settings: dict, ids: dict, names: dict[str, str], name: str) -> None:
    """Adds the tokens beyond the vocabulary, each at the id that the folder gives it, and marks the special ones."""
    special = _special_tokens(settings, names)
    added = {
        id: tokenizers.AddedToken(text, normalized=text not in special, special=text in special)
        for text, id in ids.items()
    }
    added |= {int(id): _token(fields) for id, fields in settings.get("added_tokens_decoder", {}).items()}
    present = {token.content for token in backend.get_added_tokens_decoder().values()}
    for id, token in sorted(added.items(), key=lambda item: item[0]):
        if token.content not in present:
            backend.add_tokens([token])
        got = backend.token_to_id(token.content)
        if got != id:
            raise DataError(f"the files beside {name} give the token {token.content!r} id {id}, but there it has {got}")
    present |= {token.content for token in added.values()}
    for text in sorted(special.keys() - present):
        if backend.token_to_id(text) is None:
            raise DataError(f"{name} has no token {text!r}, which the files beside it call special")
        backend.add_special_tokens([special[text]])


def _special_tokens(settings: dict, names: dict[str, str]) -> dict[str, tokenizers.AddedToken]:
    """By text, the special tokens of the roles and the others; with flags, say lstrip, where they are an object."""
    others = settings.get("additional_special_tokens") or settings.get("extra_special_tokens") or []
    given = [settings[f"{role}_token"] for role in ROLES if f"{role}_token" in settings]
    given += others.values() if isinstance(others, dict) else others
    plain = [*names.values(), *(token for token in given if isinstance(token, str))]
    flagged = [token for token in given if isinstance(token, dict)]
    return {text_of(token): _token(token, special=True) for token in plain + flagged}


def _token(token: str | dict, **flags: bool) -> tokenizers.AddedToken:
    said = {flag: token[flag] for flag in FLAGS if flag in token} if isinstance(token, dict) else {}
    return tokenizers.AddedToken(text_of(token), **(said | flags))


def _ends(backend: tokenizers.Tokenizer, *configs: dict) -> list[int]:
    """The ids of `eos_token_id`, one or a list, that the tokenizer has."""
    known = set(backend.get_vocab(with_added_tokens=True).values())
    listed = [config.get("eos_token_id", []) for config in configs]
    return [id for ids in listed for id in (ids if isinstance(ids, list) else [ids]) if id in known]


def _special_ids(backend: tokenizers.Tokenizer, names: dict[str, str], ends: list[int]) -> dict[str, int]:
    ids = {role: backend.token_to_id(text) for role, text in names.items()}
    for number in range(100):
        own = backend.token_to_id(f"<extra_id_{number}>")
        in_mt5 = backend.token_to_id(f"\u2581<extra_id_{number}>")
        ids[f"extra_{number}"] = in_mt5 if own is None else own
    added = backend.get_added_tokens_decoder()
    if ends and ends[0] in added and added[ends[0]].special:
        ids.setdefault("eos", ends[0])
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
