import io
import json
import random

import pytest
import sentencepiece
from tokenizers import pre_tokenizers

from data.errors import DataError
from data.tokenizers.export import export_tokenizer
from data.tokenizers.pretrained import load_pretrained_tokenizer
from data.tokenizers.tokenizer import ByteTokenizer, CharTokenizer, SentencePieceTokenizer, WithSpecials, load_tokenizer
from tests.data.pretrained_folders import HARD, make, make_roberta, write

CASED = {"do_lower_case": False, "strip_accents": True, "tokenize_chinese_chars": False}
ROLES = ("pad", "eos", "bos", "unk", "mask", "cls", "sep")


def noise(seed: int, texts: int) -> list[str]:
    """Text of any code points, ASCII and spaces more often than others."""
    rng = random.Random(seed)
    pick = [
        lambda: rng.randrange(32, 127),
        lambda: rng.randrange(0x2100),
        lambda: rng.randrange(0xD800),
        lambda: rng.randrange(0xE000, 0x110000),
        lambda: rng.choice([32, 10]),
    ]
    return ["".join(chr(rng.choice(pick)()) for _ in range(60)) for _ in range(texts)]


TEXTS = HARD + noise(0, 30)


def check_equal(ours, reference):
    """Ids, texts, special ids and what goes around texts are those of `reference`, of transformers."""
    rng = random.Random(1)
    assert ours.vocab_size == len(reference)
    named = {role: getattr(reference, f"{role}_token_id") for role in ROLES}
    assert {role: ours.special_ids.get(role) for role in ROLES} == named
    for text in TEXTS:
        ids = ours.encode(text)
        assert ids == reference.encode(text, add_special_tokens=False), repr(text)
        assert ours.wrap(ids) == reference(text).input_ids
    assert ours.wrap(ours.encode("x y"), ours.encode("z")) == reference("x y", "z").input_ids
    drawn = [[rng.randrange(ours.vocab_size) for _ in range(10)] for _ in range(100)]
    for ids in [ours.encode(text) for text in TEXTS] + drawn:
        text = reference.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert ours.decode(ids) == text, ids


def check_all_ways(folder, reference, tmp_path, model_type):
    """The folder as it is, as `transformers` saves it, and as we export it: each equals what `transformers` reads."""
    from transformers import AutoTokenizer

    ours = load_pretrained_tokenizer(folder)
    check_equal(ours, reference)
    reference.save_pretrained(tmp_path / "theirs")
    check_equal(load_pretrained_tokenizer(tmp_path / "theirs"), AutoTokenizer.from_pretrained(tmp_path / "theirs"))
    export_tokenizer(ours, tmp_path / "ours")
    write(tmp_path / "ours", config={"model_type": model_type, "vocab_size": ours.vocab_size})
    check_equal(ours, AutoTokenizer.from_pretrained(tmp_path / "ours"))
    assert load_pretrained_tokenizer(tmp_path / "ours").special_ids == ours.special_ids
    return ours


def test_gpt2_equals_transformers(tmp_path, test_data):
    transformers = pytest.importorskip("transformers")
    folder = make(tmp_path / "gpt2", test_data, "gpt2")
    check_all_ways(folder, transformers.GPT2Tokenizer.from_pretrained(folder), tmp_path, "gpt2")


def test_gpt2_with_more_tokens_equals_transformers(tmp_path, test_data):
    transformers = pytest.importorskip("transformers")
    settings = {
        "tokenizer_class": "GPT2Tokenizer",
        "add_bos_token": True,
        "add_prefix_space": True,
        "pad_token": "[PAD]",
    }
    added = {"[PAD]": 50257, "naïve": 50258}
    folder = make(tmp_path / "gpt2", test_data, "gpt2", tokenizer_config=settings, added_tokens=added)
    ours = load_pretrained_tokenizer(folder)
    check_equal(ours, transformers.GPT2Tokenizer.from_pretrained(folder))
    assert ours.encode("a naïve[PAD]")[-2:] == [50258, 50257]


def test_roberta_equals_transformers(tmp_path, test_data):
    transformers = pytest.importorskip("transformers")
    folder = make_roberta(tmp_path / "roberta", test_data)
    ours = check_all_ways(folder, transformers.RobertaTokenizer.from_pretrained(folder), tmp_path, "roberta")
    assert ours.wrap([7], [8, 9]) == [0, 7, 2, 2, 8, 9, 2]


@pytest.mark.parametrize("family", ["bert", "bert_chinese"])
@pytest.mark.parametrize(
    "settings",
    [{}, {"do_lower_case": False, "strip_accents": True, "tokenize_chinese_chars": False}],
    ids=["", "cased"],
)
def test_bert_equals_transformers(tmp_path, test_data, family, settings):
    transformers = pytest.importorskip("transformers")
    folder = make(tmp_path / "bert", test_data, family, tokenizer_config=settings)
    ours = check_all_ways(folder, transformers.BertTokenizer.from_pretrained(folder, **settings), tmp_path, "bert")
    assert (ours.encode("É") == ours.encode("e")) == (not settings)


@pytest.fixture(scope="module")
def t5_model():
    """A model like T5's: unigrams, <pad> </s> <unk> first, Unicode normalised. Its text has no "z"."""
    model = io.BytesIO()
    text = "The quick brown fox jumps over a lay dog, naïvely: 12 times! “No?” It is so sad, isn’t it; 你好世界。\n"
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([text, text.upper(), text[::-1]] * 5),
        model_writer=model,
        vocab_size=80,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    return model.getvalue()


def test_t5_equals_transformers(tmp_path, t5_model):
    transformers = pytest.importorskip("transformers")
    (tmp_path / "t5").mkdir()
    (tmp_path / "t5" / "spiece.model").write_bytes(t5_model)
    reference = transformers.T5Tokenizer.from_pretrained(tmp_path / "t5")
    ours = check_all_ways(tmp_path / "t5", reference, tmp_path, "t5")
    assert [ours.special_ids[f"extra_{number}"] for number in (0, 99)] == [179, 80]
    assert (tmp_path / "ours" / "tokenizer.model").read_bytes() == t5_model


def test_t5_equals_sentencepiece_itself(tmp_path, t5_model):
    write(tmp_path, config={"model_type": "mt5"}, tokenizer_config={"extra_ids": 0})
    (tmp_path / "spiece.model").write_bytes(t5_model)
    ours = load_pretrained_tokenizer(tmp_path)
    assert ours.vocab_size == 80 and "extra_0" not in ours.special_ids
    processor = sentencepiece.SentencePieceProcessor(model_proto=t5_model)
    plain = [text for text in HARD if "</s>" not in text]
    assert [ours.encode(text) for text in plain] == [processor.encode(text) for text in plain]


def test_llama_equals_sentencepiece_itself(tmp_path, test_data):
    ours = load_pretrained_tokenizer(make(tmp_path / "llama", test_data, "llama"))
    theirs = load_tokenizer(tmp_path / "llama" / "tokenizer.model")
    for text in (text for text in TEXTS if "</s>" not in text):
        assert ours.encode(text) == theirs.encode(text), repr(text)
        assert ours.decode(ours.encode(text)) == theirs.decode(theirs.encode(text))
    assert ours.encode("a</s><s>b")[1:3] == [2, 1]  # which sentencepiece does not read
    write(tmp_path / "llama", tokenizer_config={"add_bos_token": False, "add_eos_token": True})
    assert load_pretrained_tokenizer(tmp_path / "llama").wrap([7], [8]) == [7, 2, 8, 2]


def test_llama_export_equals_transformers(tmp_path, test_data):
    transformers = pytest.importorskip("transformers")
    ours = load_pretrained_tokenizer(make(tmp_path / "theirs", test_data, "llama"))
    export_tokenizer(ours, tmp_path)
    write(tmp_path, config={"model_type": "llama"})
    check_equal(ours, transformers.AutoTokenizer.from_pretrained(tmp_path))
    assert load_pretrained_tokenizer(tmp_path).special_ids == ours.special_ids


def test_our_own_sentencepieces_export(tmp_path, pieces):
    transformers = pytest.importorskip("transformers")
    export_tokenizer(pieces, tmp_path)
    assert load_tokenizer(tmp_path / "tokenizer.model").fingerprint == pieces.fingerprint
    reference = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert (len(reference), reference.eos_token_id) == (340, 1)
    for text in TEXTS:
        if "\u2581" not in text:
            assert reference(text).input_ids == pieces.encode(text), repr(text)
            assert reference.decode(pieces.encode(text), skip_special_tokens=True) == text


def test_what_has_no_form_for_others_is_not_exported(tmp_path, test_data):
    foreign = load_tokenizer(test_data("spm_test_models/test_model.model"))
    assert isinstance(foreign, SentencePieceTokenizer)
    for tokenizer in (ByteTokenizer(), CharTokenizer("ab"), WithSpecials(ByteTokenizer(), ["mask"]), foreign):
        with pytest.raises(DataError, match=f"'{tokenizer.kind}' tokenizer like this has no form"):
            export_tokenizer(tokenizer, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_special_tokens_come_from_the_folder(tmp_path):
    (tmp_path / "vocab.json").write_text(json.dumps({"a": 0, "b": 1, "ab": 2, "<|endoftext|>": 3}))
    (tmp_path / "merges.txt").write_text("a b\n")
    write(
        tmp_path,
        special_tokens_map={"eos_token": {"content": "<end>"}, "pad_token": "a", "bos_token": None},
        tokenizer_config={"pad_token": "b", "eos_token": None},
        added_tokens={"<end>": 4},
    )
    tokenizer = load_pretrained_tokenizer(tmp_path)
    assert tokenizer.special_ids == {"unk": 3, "bos": 3, "eos": 4, "pad": 1}
    assert tokenizer.encode("ab<end>b") == [0, 1, 4, 1]  # what is special merges with nothing
    assert tokenizer.decode([0, 1, 4, 3, 2]) == "aab"
    export_tokenizer(tokenizer, tmp_path / "bare")
    (tmp_path / "bare" / "tokenizer_config.json").unlink()  # only tokenizer.json: by the family's usual names
    assert load_pretrained_tokenizer(tmp_path / "bare").special_ids == {"unk": 3, "bos": 3, "eos": 3}
    write(tmp_path / "bare", tokenizer_config={"pad_token": "a"}, config={"eos_token_id": 4})
    assert load_pretrained_tokenizer(tmp_path / "bare").special_ids == {"eos": 4, "pad": 0}


def test_upper_case_pieces_keep_the_case(tmp_path):
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n<S>\na\n##b\n")
    assert load_pretrained_tokenizer(tmp_path).encode("AB a") == [6, 7, 6]
    (tmp_path / "vocab.txt").write_text("[PAD]\r\n[UNK]\r\n[CLS]\r\n[SEP]\r\n[MASK]\r\na\r\nA\r\n")
    assert load_pretrained_tokenizer(tmp_path).encode("Aa A a") == [1, 6, 5]
    write(tmp_path, tokenizer_config={"do_lower_case": True})
    assert load_pretrained_tokenizer(tmp_path).encode("A a") == [5, 5]


BERT = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a"]
BPE = {"vocab.json": json.dumps({"a": 0, "b": 1, "ab": 2}), "merges.txt": "#version: 0.2\na b\n"}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, r"looked for tokenizer.json, vocab.json \+ merges.txt, .*, vocab.txt, spiece.model, tokenizer.model"),
        ({"tokenizer.json": '{"version": "1.0", "mod'}, r"tokenizer.json is not a tokenizer.json \(23 characters\)"),
        ({"vocab.json": "{}"}, "has no merges.txt, which goes with vocab.json"),
        ({"vocab.bpe": ""}, "has no encoder.json, which goes with vocab.bpe"),
        (BPE | {"vocab.txt": "a"}, r"files of 2 tokenizers, vocab.json \+ merges.txt, vocab.txt: keep those of one"),
        (BPE | {"vocab.json": '{"a": 0, "b'}, r"vocab.json \+ .*merges.txt is not JSON \(11 bytes\)"),
        (BPE | {"vocab.json": '{"a": 0, "b": 0}'}, "must give each piece its own id, 0 to their number less 1"),
        (BPE | {"vocab.json": '{"a": 0, "b": 2}'}, "must give each piece its own id"),
        (BPE | {"merges.txt": "#version: 0.2\na b\nb c\n"}, "line 3 of the merges of .*: 'c' is not in the vocabulary"),
        (BPE | {"merges.txt": "b a\n"}, "line 1 of the merges of .*: 'ba' is not in the vocabulary"),
        (BPE | {"merges.txt": "a b ab\n"}, "line 1 of the merges of .*: 'b ab' is not in the vocabulary"),
        ({"vocab.txt": "\n".join([*BERT, "b", "a"])}, "vocab.txt has 'a' twice: on lines 6 and 8"),
        ({"vocab.txt": "[CLS]\n[SEP]\na\n"}, r"none of its 3 lines is '\[UNK\]'"),
        ({"vocab.txt": "[UNK]\n[CLS]\na\n"}, r"no token '\[SEP\]', which its family puts around a text"),
        ({"spiece.model": "no model"}, r"spiece.model is not a sentencepiece model \(8 bytes\)"),
        ({"tokenizer.model": ""}, r"tokenizer.model is not a sentencepiece model \(0 bytes\)"),
        (BPE | {"tokenizer_config.json": "{"}, "tokenizer_config.json is not JSON"),
        (BPE | {"config.json": "[]"}, "config.json holds a JSON list, not an object"),
        (BPE | {"config.json": '{"vocab_size": 2}'}, "has ids up to 2, but config.json has vocab_size 2"),
        (
            BPE | {"config.json": '{"model_type": "clip"}'},
            "read for gpt2, .* says 'clip': add the model's",
        ),
        (BPE | {"tokenizer_config.json": '{"tokenizer_class": "BertTokenizerFast"}'}, "says 'bert'"),
        (BPE | {"tokenizer_config.json": '{"pad_token": "<pad>"}'}, "no token '<pad>', which the files beside it call"),
        (
            BPE | {"tokenizer_config.json": '{"pad_token": {"id": 3}}'},
            "config.json: 'pad_token' is {'id': 3}: it must be",
        ),
        (BPE | {"added_tokens.json": '{"<pad>": 7}'}, "give the token '<pad>' id 7, but there it has 3"),
        (BPE | {"added_tokens.json": '{"a": 3}'}, "give the token 'a' id 3, but there it has 0"),
    ],
)
def test_broken_folders_are_refused(tmp_path, files, message):
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message):
        load_pretrained_tokenizer(tmp_path)


TOKENIZER_CONFIG = [
    {"tokenizer_class": 5},
    {"add_prefix_space": "yes"},
    {"added_tokens_decoder": {"5": "a"}},
    {"added_tokens_decoder": [1]},
    {"added_tokens_decoder": {"x": {}}},
    {"added_tokens_decoder": {"5": {}}},
    {"added_tokens_decoder": {"x": {"content": "a"}}},
    {"additional_special_tokens": 5},
    {"additional_special_tokens": [5]},
    {"extra_special_tokens": {"a": 5}},
    {"eos_token": 7},
    {"mask_token": {"content": "a", "lstrip": 1}},
    {"extra_ids": "5"},
    {"extra_ids": 10**12},
]
CONFIG = [
    {"model_type": ["gpt2"]},
    {"vocab_size": "7"},
    {"vocab_size": True},
    {"vocab_size": 0},
    {"eos_token_id": "1"},
    {"eos_token_id": [1, "2"]},
]


@pytest.mark.parametrize(
    ("name", "fields"),
    [("tokenizer_config.json", fields) for fields in TOKENIZER_CONFIG]
    + [("special_tokens_map.json", {"eos_token": 7}), ("added_tokens.json", {"a": "7"})]
    + [("config.json", fields) for fields in CONFIG]
    + [("generation_config.json", {"eos_token_id": {}})],
)
def test_a_field_of_another_type_is_refused(tmp_path, name, fields):
    for file, content in {**BPE, name: json.dumps(fields)}.items():
        (tmp_path / file).write_text(content)
    with pytest.raises(DataError, match=rf"{tmp_path}/{name}: '{next(iter(fields))}' is .*: it must be "):
        load_pretrained_tokenizer(tmp_path)


def test_deep_json_is_refused(tmp_path):
    write(tmp_path, vocab={"a": 0})
    (tmp_path / "merges.txt").write_text("")
    (tmp_path / "config.json").write_text("[" * 100_000)
    with pytest.raises(DataError, match=r"config.json is not JSON \(maximum recursion"):
        load_pretrained_tokenizer(tmp_path)


def test_large_files_are_refused(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join(BERT))
    with (tmp_path / "config.json").open("wb") as file:
        file.truncate(10_000_001)
    with pytest.raises(DataError, match="config.json has 10,000,001 bytes, and 10,000,000 is the most"):
        load_pretrained_tokenizer(tmp_path)
    (tmp_path / "config.json").unlink()
    with (tmp_path / "vocab.txt").open("wb") as file:
        file.truncate(200_000_001)
    with pytest.raises(DataError, match="vocab.txt has 200,000,001 bytes, and 200,000,000 is the most"):
        load_pretrained_tokenizer(tmp_path)


def test_links_lead_into_the_folder_or_the_cache_alone(tmp_path):
    folder, blobs = tmp_path / "snapshots" / "1a", tmp_path / "blobs"
    folder.mkdir(parents=True)
    blobs.mkdir()
    for place in (blobs, tmp_path):
        (place / "b").write_text("\n".join(BERT))
    (folder / "vocab.txt").symlink_to(blobs / "b")
    assert load_pretrained_tokenizer(folder).vocab_size == 6
    (tmp_path / "secret").write_text("{}")
    (folder / "config.json").symlink_to(tmp_path / "secret")
    with pytest.raises(DataError, match="config.json is a link out of its folder, to .*secret: copy the file"):
        load_pretrained_tokenizer(folder)
    (folder / "config.json").unlink()
    (folder / "config.json").symlink_to(folder / "gone")
    with pytest.raises(DataError, match="config.json is not a file: get the model again"):
        load_pretrained_tokenizer(folder)
    (folder / "config.json").unlink()
    (folder / "config.json").symlink_to(folder / "config.json")
    with pytest.raises(DataError, match="config.json (cannot be read|is not a file)"):
        load_pretrained_tokenizer(folder)
    (folder / "config.json").unlink()
    (folder / "vocab.txt").unlink()
    (folder / "vocab.txt").symlink_to(tmp_path / "b")
    with pytest.raises(DataError, match="vocab.txt is a link out of its folder"):
        load_pretrained_tokenizer(folder)


def test_all_ends_are_kept(tmp_path):
    (tmp_path / "vocab.json").write_text(json.dumps({"a": 0, "b": 1, "c": 2, "<end>": 3, "<turn>": 4}))
    (tmp_path / "merges.txt").write_text("")
    extra = {"additional_special_tokens": ["<end>", "<turn>"]}
    write(tmp_path, tokenizer_config=extra, config={"eos_token_id": [4, 3, 128_009]})
    ours = load_pretrained_tokenizer(tmp_path)
    assert (ours.eos_id, ours.eos_ids, ours.special_ids) == (4, (4, 3), {"eos": 4})
    write(tmp_path, tokenizer_config=extra | {"eos_token": "<end>"}, generation_config={"eos_token_id": [4, 1]})
    ours = load_pretrained_tokenizer(tmp_path)
    assert (ours.eos_id, ours.eos_ids) == (3, (3, 4, 1))
    write(tmp_path, config={"eos_token_id": None}, generation_config={"eos_token_id": 4})
    assert load_pretrained_tokenizer(tmp_path).eos_ids == (3, 4)
    ours.save(tmp_path / "saved")
    assert load_tokenizer(tmp_path / "saved").eos_ids == (3, 4, 1)


def test_what_begins_a_text_is_what_the_template_puts_before_it(tmp_path):
    settings = {"tokenizer_class": "GPT2Tokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<s>"}
    (tmp_path / "merges.txt").write_text("")
    write(tmp_path, vocab={"a": 0, "<s>": 1, "</s>": 2})
    begins = []
    for add in ({}, {"add_bos_token": True}, {"add_bos_token": True, "add_eos_token": True}, {"add_eos_token": True}):
        write(tmp_path, tokenizer_config=settings | add)
        begins.append(load_pretrained_tokenizer(tmp_path).begin_ids)
    assert begins == [(), (1,), (1,), ()]


def byte_pieces(folder, **settings):
    """RoBERTa's special tokens around the 256 bytes."""
    texts = ["<s>", "<pad>", "</s>", "<unk>", *sorted(pre_tokenizers.ByteLevel.alphabet()), "<mask>"]
    folder.mkdir()
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return write(folder, vocab={text: id for id, text in enumerate(texts)}, **settings)


def flagged(text, **flags):
    fields = {"content": text, "lstrip": False, "rstrip": False, "normalized": False, "single_word": False}
    return fields | {"__type": "AddedToken"} | flags


FLAGGED = [
    {},
    {"tokenizer_config": {"mask_token": flagged("<mask>", lstrip=True)}},
    {"tokenizer_config": {"mask_token": flagged("<mask>", lstrip=True), "pad_token": flagged("<pad>", rstrip=True)}},
    {"tokenizer_config": {"mask_token": flagged("<mask>", single_word=True, normalized=True)}},
    {"tokenizer_config": {"additional_special_tokens": [flagged("<unk>", lstrip=True)]}},
    {"special_tokens_map": {"mask_token": {"content": "<mask>", "lstrip": True}}},
    {
        "special_tokens_map": {"mask_token": {"content": "<mask>", "lstrip": True}},
        "tokenizer_config": {"mask_token": "<mask>"},
    },
]


@pytest.mark.parametrize("settings", FLAGGED)
def test_flags_of_special_tokens_equal_transformers(tmp_path, settings):
    transformers = pytest.importorskip("transformers")
    folder = byte_pieces(tmp_path / "roberta", config={"model_type": "roberta"}, **settings)
    ours, theirs = load_pretrained_tokenizer(folder), transformers.AutoTokenizer.from_pretrained(folder)
    for text in ("a <mask> b <pad> c", " <mask>", "a<mask>b <unk> c", "\n <mask>  <pad>  <unk>."):
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False), text


def test_the_mask_takes_the_space_before_it_where_it_says_so(tmp_path):
    plain = load_pretrained_tokenizer(byte_pieces(tmp_path / "plain", config={"model_type": "roberta"}))
    mask = {"mask_token": {"content": "<mask>", "lstrip": True}}
    settings = {"config": {"model_type": "roberta"}, "tokenizer_config": mask}
    strips = load_pretrained_tokenizer(byte_pieces(tmp_path / "strips", **settings))
    space, mask_id = plain.encode(" ")[0], plain.special_ids["mask"]
    assert (plain.encode(" <mask>"), strips.encode(" <mask>")) == ([space, mask_id], [mask_id])
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "vocab.txt").write_text("\n".join([*BERT, "<m>"]))
    write(tmp_path / "bert", tokenizer_config={"mask_token": {"content": "<m>", "single_word": True}})
    assert load_pretrained_tokenizer(tmp_path / "bert").encode("a<m>a <m>")[-1] == 6
    assert load_pretrained_tokenizer(tmp_path / "bert").encode("a<m>a <m>").count(6) == 1


def test_a_missing_folder_is_refused(tmp_path):
    (tmp_path / "model").mkdir()
    with pytest.raises(DataError, match="did you mean .*model"):
        load_pretrained_tokenizer(tmp_path / "modle")
