"""Sixty documents, and a build of their stores; without pytest, for processes that are killed."""

from data.sources.documents import Document
from data.split import split_by_document
from data.store.build import build_stores
from data.store.survey import SourceHash, Survey
from data.tokenizers.tokenizer import ByteTokenizer

DOCUMENTS = [Document(f"n{number}", f"{number} é " * (1 + number % 7), number / 8) for number in range(60)]


def surveyed(documents):
    hasher = SourceHash()
    characters = sum(len(document.text) for document in hasher.passing(documents))
    size = sum(len(document.text.encode()) for document in documents)
    return Survey(hasher.hexdigest(), len(documents), characters, size, 0, 2**64, {})


def build(folder, documents=DOCUMENTS, survey=None, split=None, tokenizer=None, report=lambda _: None):
    build_stores(
        folder,
        lambda: iter(documents),
        split or (lambda all: split_by_document(all, 0.3)),
        tokenizer or ByteTokenizer(),
        survey or surveyed(documents),
        name="P",
        provenance={"path": "P"},
        has_scores=True,
        report=report,
    )
