"""Small corpora, stores and configs for the tests of `data/`."""

import os
from pathlib import Path

import numpy as np
import pytest

from data.config import DataConfig
from data.tokenizers.tokenizer import ByteTokenizer, SentencePieceTokenizer
from tests.data.tiny_stores import write_store

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def test_data():
    """The function name -> path of a real text; skips where the folder of test data is not there."""
    folder = Path(os.environ.get("TESSERA_TEST_DATA", REPOSITORY / ".." / "shared" / "data")).resolve()

    def find(name: str) -> Path:
        if not (folder / name).exists():
            pytest.skip(f"{folder / name} is missing: set TESSERA_TEST_DATA to a folder that has it")
        return folder / name

    return find


@pytest.fixture
def config(tmp_path):
    """A function that makes a DataConfig from changes to small defaults."""

    def make(**changes) -> DataConfig:
        defaults = {
            "path": "python-stdlib",
            "text_field": "text",
            "id_field": "id",
            "score_field": "",
            "document_separator": "",
            "dataset_split": "train",
            "skip_broken": 0,
            "language": "",
            "licence": "",
            "mixture": {},
            "mixture_stages": (),
            "mixture_temperature": 1.0,
            "tokenizer": "byte",
            "tokenizer_vocab": 300,
            "held_out": 0.1,
            "held_out_by": "document",
            "packing": "chunk",
            "curriculum": "",
            "cache_dir": str(tmp_path / "cache"),
            "prefetch": 2,
            "workers": 0,
        }
        return DataConfig(**(defaults | changes))

    return make


@pytest.fixture
def counting_store(tmp_path):
    """A function that writes a store of `num_tokens` ids: 0, 1, 2, ... (up to 65,535), in one document."""

    class Numbers(ByteTokenizer):
        vocab_size = 2**16
        eos_id = None

    def write(num_tokens: int):
        ids = np.arange(num_tokens, dtype=np.int32)
        folder = tmp_path / f"store{num_tokens}"
        return write_store(folder, [(ids, num_tokens)], tokenizer=Numbers(), source_fingerprint="s", split="train")

    return write


SOURCE = (
    "def add(first, second):\n    # the sum of two numbers, 2025\n\treturn first + second\n\n\nclass Sum:\n    pass\n"
)
PROSE = "The quick brown fox jumps over the lazy dog. She said: “no” — 1,234 times! 你好世界\n"


@pytest.fixture(scope="session")
def pieces():
    """A small sentencepiece tokenizer, trained here on code, prose and a little Chinese."""
    texts = [SOURCE * 3, PROSE * 5, "import os, sys\nfor name in sorted(os.listdir(path)):\n    print(name)\n" * 3]
    return SentencePieceTokenizer.train(texts, 340)
