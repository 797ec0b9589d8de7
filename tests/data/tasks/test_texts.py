"""What a decoder continues and what an encoder-decoder answers: the texts, the loss on them, what is cut."""

import numpy as np
import pytest

from data.errors import DataError
from data.tasks.examples import Dialogue, Labelled, Question, Tagged, TextPair
from data.tasks.tasks import TASKS, task_rows
from data.tokenizers.tokenizer import ByteTokenizer

EOS = 256
REVIEW = Labelled("f:1", "so good", "positive")
TALK = Dialogue("f:1", (("system", "S"), ("user", "Hi"), ("assistant", "Yo"), ("user", "Bye"), ("assistant", "Ok")))
EXAMPLES = {
    "sst2": REVIEW,
    "boolq": Labelled("f:1", "is it", "yes", "It is."),
    "tagging": Tagged("f:1", "a bc", ((0, 1), (2, 4)), ("X", "Y")),
    "squad": Question("f:1", "q", "Who?", "In 1066 they came.", ((3, "1066"), (8, "they"))),
    "legal_sum": TextPair("f:1", "Long text", "Short"),
}
ANSWERS = {"sst2": "positive", "boolq": "yes", "tagging": "X Y", "squad": "1066", "legal_sum": "Short"}


def learned(example) -> list[list[int]]:
    """The runs of targets with weight 1."""
    weights = np.concatenate([[0], example["weights"], [0]]) > 0
    changes = np.flatnonzero(weights[1:] != weights[:-1])
    return [example["targets"][start:end].tolist() for start, end in changes.reshape(-1, 2)]


@pytest.mark.parametrize("task", EXAMPLES)
@pytest.mark.parametrize("name", ["byte", "sentencepiece"])
def test_a_decoder_reads_the_prompt_and_learns_the_answer_and_its_end(pieces, task, name):
    tokenizer = {"byte": ByteTokenizer(), "sentencepiece": pieces}[name]
    rows = task_rows(TASKS[task], [EXAMPLES[task]], tokenizer, "decoder", max_length=160)
    example, prompt = rows.example(0), TASKS[task].prompt.format_map(vars(EXAMPLES[task]))
    assert {n: (a.shape, a.dtype.type) for n, a in example.items()} == rows.features
    assert learned(example) == [[*tokenizer.encode(ANSWERS[task]), tokenizer.eos_id]]
    start = [*tokenizer.begin_ids, *tokenizer.encode(prompt)]
    assert example["inputs"][: len(start)].tolist() == start and example["weights"][: len(start) - 1].sum() == 0
    count = rows.rows.length_R[0]
    assert example["inputs"][1:count].tolist() == example["targets"][: count - 1].tolist()
    assert tokenizer.decode(example["inputs"][:count]) == prompt + ANSWERS[task]
    assert prompt.endswith("\n") and all(part in prompt for part in vars(EXAMPLES[task]).get("text", "").split())


@pytest.mark.parametrize("task", EXAMPLES)
def test_an_encoder_decoder_reads_the_source_and_writes_the_answer(bytes_t5, task):
    rows = task_rows(TASKS[task], [EXAMPLES[task]], bytes_t5, "text_to_text", max_length=128, target_length=16)
    example, source = rows.example(0), TASKS[task].source.format_map(vars(EXAMPLES[task]))
    assert {n: (a.shape, a.dtype.type) for n, a in example.items()} == rows.features
    assert bytes_t5.decode(example["source"]) == source
    length, target = len(source.encode()) + 1, [*ANSWERS[task].encode(), EOS]
    assert example["source_segments"].tolist() == [1] * length + [0] * (128 - length)
    assert learned(example) == [target] and example["source"][length - 1] == EOS
    assert example["inputs"][: len(target)].tolist() == [bytes_t5.special_ids["pad"], *target[:-1]]


def test_sources_are_those_of_t5():
    assert TASKS["sst2"].source.format_map(vars(REVIEW)) == "sst2 sentence: so good"
    assert TASKS["squad"].source.format_map(vars(EXAMPLES["squad"])) == "question: Who? context: In 1066 they came."
    pair = TextPair("f:1", "Hi.", "Hallo.")
    assert TASKS["multi30k"].source.format_map(vars(pair)) == "translate English to German: Hi."
    odd = Labelled("f:1", "{label} {0} %s", "positive")
    assert TASKS["sst2"].source.format_map(vars(odd)) == "sst2 sentence: {label} {0} %s"


def test_a_question_without_answer_has_one_in_words(bytes_t5):
    asked = Question("f:1", "q", "Who?", "Nobody.", ())
    rows = task_rows(TASKS["squad"], [asked], bytes_t5, "text_to_text", max_length=64)
    assert bytes_t5.decode(rows.example(0)["targets"]) == "unanswerable"


def test_only_replies_of_a_dialogue_are_learned():
    rows = task_rows(TASKS["dialogue"], [TALK], ByteTokenizer(), "decoder", max_length=96)
    example = rows.example(0)
    assert learned(example) == [[*b"Yo", EOS], [*b"Ok", EOS]]
    text = bytes(id for id in example["inputs"][: rows.rows.length_R[0]].tolist() if id < EOS).decode()
    assert text == "system:\nS\nuser:\nHi\nassistant:\nYo\nuser:\nBye\nassistant:\nOk"


def test_each_reply_of_a_dialogue_is_a_pair_that_loses_its_beginning(bytes_t5):
    rows = task_rows(TASKS["dialogue"], [TALK], bytes_t5, "text_to_text", max_length=96)
    before = "system:\nS\nuser:\nHi\nassistant:\n"
    sources = [before, f"{before}Yo\nuser:\nBye\nassistant:\n"]
    assert [bytes_t5.decode(rows.example(row)["source"]) for row in range(2)] == sources
    assert [bytes_t5.decode(rows.example(row)["targets"]) for row in range(2)] == ["Yo", "Ok"]
    assert rows.rows.example_R.tolist() == [0, 0]
    short = task_rows(TASKS["dialogue"], [TALK], bytes_t5, "text_to_text", max_length=32)
    assert [bytes_t5.decode(short.example(row)["source"]) for row in range(2)] == [before, sources[1][-31:]]
    assert (short.truncated, short.example(1)["source"][31]) == (1, EOS)


def test_what_is_too_long_loses_the_beginning_of_the_prompt_and_the_end_of_the_answer():
    pair = TextPair("f:3", "a" * 10 + "b" * 10, "c" * 10)
    options = {"tokenizer": ByteTokenizer(), "form": "decoder", "max_length": 16, "target_length": 5}
    rows = task_rows(TASKS["text_to_text"], [pair], **options)
    example = rows.example(0)
    assert example["inputs"].tolist() == [EOS, *b"bbbbbbbbbb\n", *b"cccc"]
    assert learned(example) == [[*b"cccc", EOS]] and (rows.truncated, rows.rows.length_R[0]) == (1, 32)
    with pytest.raises(DataError, match="f:3: 11 tokens exceed 5: raise target_length, or set truncate=True"):
        task_rows(TASKS["text_to_text"], [pair], **options, truncate=False)
    with pytest.raises(DataError, match="f:3: 32 tokens exceed 16: raise max_length"):
        task_rows(TASKS["text_to_text"], [pair], **options | {"target_length": 11}, truncate=False)
    options |= {"max_length": 32, "target_length": 11}
    whole = task_rows(TASKS["text_to_text"], [pair], **options, truncate=False)
    assert whole.truncated == 0 and whole.example(0)["weights"][-11:].sum() == 11


def test_a_source_and_an_answer_that_are_too_long_keep_their_ends(bytes_t5):
    pair = TextPair("f:3", "a" * 10, "c" * 10)
    rows = task_rows(TASKS["text_to_text"], [pair], bytes_t5, "text_to_text", max_length=8, target_length=4)
    example = rows.example(0)
    assert example["source"].tolist() == [*b"aaaaaaa", EOS] and example["targets"].tolist() == [*b"ccc", EOS]
    assert (rows.truncated, len(rows)) == (1, 1)
    with pytest.raises(DataError, match="f:3: 11 tokens exceed 4: raise target_length"):
        task_rows(
            TASKS["text_to_text"], [pair], bytes_t5, "text_to_text", max_length=11, target_length=4, truncate=False
        )


def test_without_an_end_in_the_vocabulary_none_is_learned():
    class Endless(ByteTokenizer):
        eos_id = None
        eos_ids = begin_ids = ()

    rows = task_rows(TASKS["sst2"], [REVIEW], Endless(), "decoder", max_length=96)
    assert learned(rows.example(0)) == [[*b"positive"]]
