import hashlib

from hypothesis import given
from hypothesis import strategies as st

from data.sources.documents import Document
from data.split import HELD_OUT, TRAIN, is_held_out, split_by_document, split_number, split_tail, tail_start


def documents_of(*texts):
    return [Document(str(number), text) for number, text in enumerate(texts)]


def side(text, pairs):
    return "".join(document.text for of, document in pairs if of == text)


def test_document_split_does_not_change_when_documents_come_and_go():
    texts = [f"document {number}" for number in range(1000)]
    before = {d.text: side for side, d in split_by_document(documents_of(*texts), 0.2)}
    after = {d.text: side for side, d in split_by_document(documents_of("new", *texts[::-2], "newer"), 0.2)}
    assert all(after[text] == before[text] for text in texts[::-2])
    assert 150 < sum(side == HELD_OUT for side in before.values()) < 250


def test_document_split_grows_with_the_fraction():
    texts = [f"document {number}" for number in range(500)]
    small, large = ({text for text in texts if is_held_out(text, fraction)} for fraction in (0.1, 0.3))
    assert small < large


def test_document_split_is_the_hash_that_is_documented():
    digest = hashlib.blake2b("é".encode(), digest_size=8).digest()
    fraction = int.from_bytes(digest, "big") / 2**64
    assert is_held_out("é", fraction + 1e-9) and not is_held_out("é", fraction - 1e-9)
    assert split_number("é") == int.from_bytes(digest, "big")


def test_tail_split_equals_nanogpt(test_data):
    text = test_data("tinyshakespeare/input.txt").read_bytes().decode()
    pairs = list(split_tail(documents_of(text), tail_start(len(text), 0.1)))
    # nanoGPT, data/shakespeare_char/prepare.py: train_data = data[:int(n*0.9)], 1,003,854 and 111,540 tokens.
    assert side(TRAIN, pairs) == text[: int(len(text) * 0.9)] and len(side(TRAIN, pairs)) == 1_003_854
    assert side(HELD_OUT, pairs) == text[int(len(text) * 0.9) :] and len(side(HELD_OUT, pairs)) == 111_540


@given(st.lists(st.text(min_size=1), min_size=1), st.floats(0.01, 0.99))
def test_tail_split_cuts_once_and_loses_nothing(texts, fraction):
    whole = "".join(texts)
    start = tail_start(len(whole), fraction)
    pairs = list(split_tail(documents_of(*texts), start))
    assert (side(TRAIN, pairs), side(HELD_OUT, pairs)) == (whole[:start], whole[start:])
    assert [of for of, _ in pairs] == sorted((of for of, _ in pairs), reverse=True)  # "train" before "held_out"
    assert all(document.text and document.text in texts[int(document.id)] for _, document in pairs)


def test_both_parts_of_a_cut_document_keep_its_score():
    pairs = list(split_tail([Document("a", "abcd", 0.5)], 1))
    assert pairs == [(TRAIN, Document("a", "a", 0.5)), (HELD_OUT, Document("a", "bcd", 0.5))]
