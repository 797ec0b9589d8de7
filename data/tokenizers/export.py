"""Tokenizers for others: the files that `transformers` reads."""

import json
from pathlib import Path

from data.atomic import write_file
from data.errors import DataError
from data.tokenizers.formats import sentence_pieces
from data.tokenizers.huggingface import ROLES, HuggingFaceTokenizer
from data.tokenizers.sentencepieces import SentencePieceTokenizer
from data.tokenizers.tokenizer import Tokenizer


def export_tokenizer(tokenizer: Tokenizer, folder: str | Path) -> None:
    """Writes the files from which `transformers.AutoTokenizer.from_pretrained(folder)` gives the same ids.

    They are `tokenizer.json`, `tokenizer_config.json` and, for sentencepiece, `tokenizer.model`. Raises DataError for
    a tokenizer that has no such form. `transformers` differs in one way from a `SentencePieceTokenizer`: U+2581 is a
    space to it.
    """
    if isinstance(tokenizer, HuggingFaceTokenizer):
        backend, model = tokenizer.backend, tokenizer.sentencepiece_model
    elif isinstance(tokenizer, SentencePieceTokenizer) and tokenizer.lossless:
        backend, model = sentence_pieces(tokenizer.model, name="the tokenizer"), tokenizer.model
        backend.encode_special_tokens = True  # "</s>" in a text is text, as for sentencepiece itself
    else:
        raise DataError(
            f"a {tokenizer.kind!r} tokenizer like this has no form that transformers reads: use one that "
            "tokenizer='sentencepiece' trained, or that load_pretrained_tokenizer read"
        )
    names = {f"{role}_token": backend.id_to_token(id) for role, id in tokenizer.special_ids.items() if role in ROLES}
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False} | names
    if backend.encode_special_tokens:
        settings["split_special_tokens"] = True
    place = Path(folder).expanduser()
    place.mkdir(parents=True, exist_ok=True)
    write_file(place / "tokenizer.json", backend.to_str(pretty=True).encode())
    write_file(place / "tokenizer_config.json", (json.dumps(settings, indent=2) + "\n").encode())
    if model:
        write_file(place / "tokenizer.model", model)
