"""Tokenizers as the forms of a task need them, and files of a few lines."""

import json

import pytest

from data.tokenizers.pretrained import load_pretrained_tokenizer
from data.tokenizers.tokenizer import ByteTokenizer, WithSpecials
from tests.data import pretrained_folders

BERT, T5 = ("pad", "cls", "sep"), ("pad", "eos", "extra_0")


@pytest.fixture
def bytes_bert():
    return WithSpecials(ByteTokenizer(), BERT)


@pytest.fixture
def bytes_t5():
    return WithSpecials(ByteTokenizer(), T5)


@pytest.fixture
def tokenizer_of(tmp_path, test_data, pieces):
    """The function name -> a tokenizer with cls and sep: byte, sentencepiece, bert, bert_chinese."""

    def make(name: str):
        if name in ("byte", "sentencepiece"):
            return WithSpecials({"byte": ByteTokenizer(), "sentencepiece": pieces}[name], BERT)
        return load_pretrained_tokenizer(pretrained_folders.make(tmp_path / f"tokenizer_{name}", test_data, name))

    return make


@pytest.fixture
def write(tmp_path):
    """A function that writes a file of the text, or of JSON, one record a line, and gives its path."""

    def make(name: str, content: str | list | dict) -> str:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, list):
            content = "".join(json.dumps(record) + "\n" for record in content)
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        return str(path)

    return make
