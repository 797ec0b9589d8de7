"""Examples as tokens: what each objective's arrays are shown as."""

import numpy as np
import pytest
import tokenizers

from data.inspection.examples import CORRUPTED, MASK, SENTINEL, SPECIAL, TEXT, show, visible
from data.objectives.causal import CausalLM
from data.objectives.examples import assemble, packed_features
from data.objectives.objectives import ObjectiveConfig, make_objective, special_names
from data.tokenizers.huggingface import HuggingFaceTokenizer
from data.tokenizers.special_tokens import WithSpecials
from data.tokenizers.tokenizer import ByteTokenizer

BYTES = ByteTokenizer()


def ids(text: str) -> np.ndarray:
    return np.array(BYTES.encode(text), np.int32)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def example_of(name: str, text: str, length: int, seed: int = 0):
    config = ObjectiveConfig(name)
    tokenizer = WithSpecials(BYTES, [n for n in special_names(config) if n not in BYTES.special_ids])
    objective = make_objective(config, max_length=length, tokenizer=tokenizer)
    example = assemble([objective(ids(text), rng(seed))], objective.features, objective.pad_id)
    return example, tokenizer


def text_of(tokens) -> str:
    return "".join(token.text for token in tokens)


def test_next_token_prediction_shows_the_piece_and_its_losses():
    example, tokenizer = example_of("causal_lm", "abcde", 8)
    (side,) = show("x", example, tokenizer).sides
    assert text_of(side.tokens) == "abcde"
    assert [token.weight for token in side.tokens] == [None, 1, 1, 1, 1]
    assert [token.ids for token in side.tokens] == [(97,), (98,), (99,), (100,), (101,)]
    assert side.padding == 4 and {token.kind for token in side.tokens} == {TEXT}


def test_segments_of_a_packed_row_each_end_with_their_last_target():
    objective = CausalLM(10)
    pieces = [objective(ids(text), rng()) for text in ("abc", "xy", "123")]
    example = assemble(pieces, packed_features(objective.features), objective.pad_id)
    shown = show("x", example, BYTES)
    (side,) = shown.sides
    assert text_of(side.tokens) == "abcxy123"
    assert [token.segment for token in side.tokens] == [1, 1, 1, 2, 2, 3, 3, 3]
    assert [token.weight for token in side.tokens] == [None, 1, 1, None, 1, None, 1, 1]
    assert side.padding == 5 and list(shown.other) == ["positions"]


def test_prefix_is_marked_and_the_rest_is_in_the_loss():
    example, tokenizer = example_of("prefix_lm", "abcdefgh", 7, seed=3)
    (side,) = show("x", example, tokenizer).sides
    cut = int(example["prefix"].sum())
    assert 1 < cut < 7 and text_of(side.tokens) == "abcdefgh"
    assert [token.prefix for token in side.tokens] == [True] * cut + [False] * (8 - cut)
    assert [bool(token.weight) for token in side.tokens] == [False] * cut + [True] * (8 - cut)


def test_the_prefix_of_the_next_segment_does_not_reach_back():
    objective = CausalLM(9, random_prefix=True)
    pieces = [objective(ids(text), rng(seed)) for seed, text in enumerate(("abcd", "wxyz"))]
    example = assemble(pieces, packed_features(objective.features), objective.pad_id)
    (side,) = show("x", example, BYTES).sides
    cuts = [int(piece["prefix"].sum()) for piece in pieces]
    assert [token.prefix for token in side.tokens] == [at < cut for cut in cuts for at in range(4)]


def test_masked_tokens_say_what_is_asked():
    text = "the quick brown fox jumps over the lazy dog " * 8
    example, tokenizer = example_of("masked_lm", text, 400)
    (side,) = show("x", example, tokenizer).sides
    tokens = side.tokens
    assert tokens[0].text == "⟨cls⟩" and tokens[-1].text == "⟨sep⟩" and tokens[0].kind == SPECIAL
    assert side.padding == 400 - len(text) - 2
    restored = "".join(token.target or token.text for token in tokens[1:-1])
    assert restored == text
    chosen = [token for token in tokens if token.weight]
    assert len(chosen) == round(0.15 * len(text))
    kinds = {kind: sum(token.kind == kind for token in chosen) for kind in (MASK, CORRUPTED, TEXT)}
    assert sum(kinds.values()) == len(chosen) and kinds[MASK] > kinds[CORRUPTED] > 0 and kinds[TEXT] > 0
    assert not any(token.target for token in tokens if not token.weight or token.kind == TEXT)


@pytest.mark.parametrize("name", ["span_corruption", "ul2"])
@pytest.mark.parametrize("seed", range(4))  # of ul2, these draw spans and continuations
def test_source_and_targets_side_by_side(name, seed):
    text = "abcdefghijklmnopqrstuvwxyz" * 2
    example, tokenizer = example_of(name, text, 128, seed)
    shown = show("x", example, tokenizer)
    source, targets = shown.sides
    assert [side.name for side in shown.sides] == ["source", "targets"] and shown.other == {}
    assert len(source.tokens) + source.padding == 128
    assert source.tokens[-1].text == targets.tokens[-1].text == "⟨eos⟩"
    assert {token.weight for token in targets.tokens} == {1.0} and {token.weight for token in source.tokens} == {None}
    spans, last = {}, ""
    for token in targets.tokens[:-1]:
        last = token.text if token.kind == SENTINEL else last
        spans[last] = spans.get(last, "") + token.text * (token.kind != SENTINEL)
    restored = [spans[t.text] if t.kind == SENTINEL else t.text for t in source.tokens[(name == "ul2") : -1]]
    assert "".join(restored) + spans.get("", "") == text  # what stands before any sentinel continues the source


def test_bytes_of_a_character_are_one_token_where_they_are_alike():
    example, _ = example_of("causal_lm", "a你é😀", 12)
    (side,) = show("x", example, BYTES).sides
    assert [(token.text, len(token.ids)) for token in side.tokens] == [("a", 1), ("你", 3), ("é", 2), ("😀", 4)]
    example, _ = example_of("causal_lm", "你a", 4)
    (side,) = show("x", example, BYTES).sides
    assert [(token.text, token.weight) for token in side.tokens] == [("你", 1), ("a", 1)]
    example, _ = example_of("causal_lm", "a你é😀", 12)
    cut = example | {"weights": np.array([1, 0, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0], np.float32)}
    (side,) = show("x", cut, BYTES).sides
    assert [token.text for token in side.tokens] == ["a", "\ufffd", "\ufffd", "\ufffd", "é", "😀"]


def test_pieces_of_words_keep_their_spaces(pieces):
    text = "The quick brown fox — 你好"
    encoded = np.array(pieces.encode(text), np.int32)
    objective = CausalLM(64)
    example = assemble([objective(encoded, rng())], objective.features, 0)
    (side,) = show("x", example, pieces).sides
    assert text_of(side.tokens) == text
    assert tuple(id for token in side.tokens for id in token.ids) == tuple(encoded.tolist())


def test_spaces_that_only_context_tells():
    vocab = {"[UNK]": 0, "[MASK]": 1, "the": 2, "cat": 3, "##s": 4, "eat": 5}
    backend = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocab, unk_token="[UNK]"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    backend.decoder = tokenizers.decoders.WordPiece()
    backend.add_special_tokens(["[UNK]", "[MASK]"])
    tokenizer = HuggingFaceTokenizer.of(backend, {"unk": 0, "mask": 1}, b"", "a test")
    example = {
        "inputs": np.array([2, 3, 4, 1, 5], np.int32),
        "targets": np.array([2, 3, 4, 5, 5], np.int32),
        "weights": np.array([0, 0, 0, 1, 0], np.float32),
    }
    (side,) = show("x", example, tokenizer).sides
    assert [token.text for token in side.tokens] == ["the", " cat", "s", "⟨mask⟩", " eat"]
    assert side.tokens[3].target == "eat"


def test_labels_of_tokens_and_of_texts():
    inputs, ones = np.array([97, 98, 256, 0], np.int32), np.array([1, 1, 1, 0], np.int32)
    tags = {"inputs": inputs, "segments": ones, "targets": np.array([1, 0, 0, 0]), "weights": np.array([1.0, 0, 1, 0])}
    (side,) = show("x", tags, BYTES, labels=["O", "B-PER"]).sides
    assert [token.target for token in side.tokens] == ["B-PER", "", "O"] and side.padding == 1
    assert [token.kind for token in side.tokens] == [TEXT, TEXT, SPECIAL]
    label = {"inputs": inputs, "segments": ones, "targets": np.array(1), "weights": np.array(1.0)}
    shown = show("x", label, BYTES, labels=["bad", "good"])
    assert shown.other == {"targets": "good (1)", "weights": "1.0"}
    assert text_of(shown.sides[0].tokens) == "ab⟨eos⟩"
    span = label | {"targets": np.array([1, 2]), "far": np.arange(20)}
    assert show("x", span, BYTES).other["targets"] == "[1, 2]"
    assert show("x", span, BYTES).other["far"] == "int64 (20,), 0 to 19"


def test_padding_without_segments_is_no_text():
    example = {
        "inputs": np.array([97, 0, 98, 0, 0], np.int32),
        "targets": np.array([0, 98, 0, 0, 0], np.int32),
        "weights": np.array([1, 1, 1, 0, 0], np.float32),
    }
    (side,) = show("x", example, BYTES).sides
    assert text_of(side.tokens) == "a\0b\0" and side.padding == 2
    weighted = example | {"weights": np.array([1, 1, 1, 1, 0], np.float32)}  # a zero byte that is predicted
    (side,) = show("x", weighted, BYTES).sides
    assert text_of(side.tokens) == "a\0b\0\0" and side.padding == 1


def test_visible_names_what_would_steer_a_terminal():
    hostile = "a\x1b[31m\u202eb\r\n\tc\x00\u200d\ud800 \xa0"
    assert visible(hostile) == "a⟨U+001B⟩[31m⟨U+202E⟩b␍↵\n⇥\tc⟨U+0000⟩\u200d⟨U+D800⟩ \xa0"
    assert visible("é 你") == "é 你"
