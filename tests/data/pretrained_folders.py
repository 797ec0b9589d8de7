"""Folders of published tokenizers for tests, put together from the real vocabulary files; and hard text for them."""

import json
import shutil
from pathlib import Path

HARD = [
    "",
    "Hello world",
    "  lead  two   three\t\ttab\n\nnew\r\nline  ",
    "👩‍👩‍👧‍👦 family 🏳️‍🌈 🤦🏽‍♂️",
    "漢字かな交じり文 你好，世界！ 中文a字",
    "e\u0301 é ñ Å ﬁ ① Ａ ½",
    "a\0b\x01\x7f\ufeff\u200b\u00ad\u2028x\u00a0y\u3000z",
    "שלום עולם مرحبا بالعالم",
    "1234567890 3.14159 1,000,000 0x1F",
    "<|endoftext|> in [MASK] text [SEP]</s><s> <pad> <unk>[UNK]<mask> [mask]",
    "  <extra_id_0> and<extra_id_99>x<extra_id_100>\u2581<extra_id_7>",
    "don't can't I'LL we've 'tis",
    "mixed Русский English 中文 ไทย हिन्दी",
    " " * 50 + "x",
    " \u2581 mark\u2581\u2581",
    "supercalifragilisticexpialidocious" * 4,
    "\ufffd\ud7ff\U0010ffff <0x0A> ##ing ##",
]
FILES = {
    "gpt2": {"vocab.json": "gpt2_bpe/encoder.json", "merges.txt": "gpt2_bpe/vocab.bpe"},
    "bert": {"vocab.txt": "bert_uncased_vocab/vocab.txt"},
    "bert_chinese": {"vocab.txt": "bert_chinese_vocab/vocab.txt"},
    "t5": {"spiece.model": "seqio_spm/sentencepiece.model"},
    "llama": {"tokenizer.model": "mistral_spm/tokenizer.mistral-v1"},
}


def make(folder: Path, test_data, family: str, **settings) -> Path:
    """The folder with the family's files, and a JSON file for each of `settings`."""
    folder.mkdir()
    for name, source in FILES[family].items():
        shutil.copyfile(test_data(source), folder / name)
    return write(folder, **settings)


def make_roberta(folder: Path, test_data) -> Path:
    """RoBERTa's special tokens around GPT-2's pieces."""
    pieces = json.loads(test_data("gpt2_bpe/encoder.json").read_text())
    texts = ["<s>", "<pad>", "</s>", "<unk>", *sorted(pieces, key=pieces.get)[:-1], "<mask>"]
    folder.mkdir()
    shutil.copyfile(test_data("gpt2_bpe/vocab.bpe"), folder / "merges.txt")
    return write(folder, vocab={text: id for id, text in enumerate(texts)}, config={"model_type": "roberta"})


def write(folder: Path, **settings) -> Path:
    for name, content in settings.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder
