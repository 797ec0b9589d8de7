"""Text in, text out as `transformers` does it, with the real vocabularies of GPT-2, BERT and T5."""

import os
from pathlib import Path

import numpy as np
import pytest

import tessera
from tests.data.pretrained_folders import make

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
TEXTS = ["The quick brown fox", "Don't stop: 3.14 is nearly"]


def real(name):
    """The path of a real vocabulary; skips where the folder of test data is not there."""
    default = Path(__file__).parents[2] / ".." / "shared" / "data"
    path = Path(os.environ.get("TESSERA_TEST_DATA", default)).resolve() / name
    if not path.exists():
        pytest.skip(f"{path} is missing: set TESSERA_TEST_DATA to a folder that has it")
    return path


def saved(folder, family, model):
    """A folder with the family's real vocabulary and a random `model`; its tokenizer as `transformers` reads it."""
    with torch.no_grad():
        rng = np.random.default_rng(0)
        for weight in model.parameters():
            std = 0.3 if weight.dim() > 1 else 0.1
            weight.copy_((weight.dim() == 1) + std * torch.from_numpy(rng.normal(size=weight.shape)))
    make(folder, real, family)
    kind = {"gpt2": "GPT2Tokenizer", "bert": "BertTokenizer", "t5": "T5Tokenizer"}[family]
    theirs = getattr(transformers, kind).from_pretrained(folder)
    model.eval().save_pretrained(folder)
    return theirs


def test_gpt2_continues_text_alike(tmp_path):
    config = transformers.GPT2Config(n_embd=24, n_layer=2, n_head=3, n_positions=64)
    model = transformers.GPT2LMHeadModel(config)
    tokenizer = saved(tmp_path / "gpt2", "gpt2", model)
    lm = tessera.load(tmp_path / "gpt2")
    for text, ours in zip(TEXTS, lm.generate(TEXTS, max_tokens=16, temperature=0.0), strict=True):
        begun = tokenizer(text, return_tensors="pt")
        made = model.generate(**begun, do_sample=False, max_new_tokens=16, pad_token_id=0)
        assert ours == tokenizer.decode(made[0, begun.input_ids.shape[1] :]) and len(ours) > 16


def test_bert_fills_masks_alike(tmp_path):
    config = transformers.BertConfig(hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=48)
    model = transformers.BertForMaskedLM(config)
    tokenizer = saved(tmp_path / "bert", "bert", model)
    lm = tessera.load(tmp_path / "bert")
    for text in ("Paris is the <mask> of France.", "<mask> don't <mask>!"):
        batch = tokenizer(text.replace("<mask>", "[MASK]"), return_tensors="pt")
        p = torch.softmax(model(**batch).logits[0].detach().double(), -1)[batch.input_ids[0] == 103]
        filled = lm.fill(text, top=5)
        assert len(filled) == len(p)
        for ours, theirs in zip(filled, p, strict=True):
            best = theirs.topk(5)
            assert [token for token, _ in ours] == [tokenizer.decode([i]) for i in best.indices.tolist()]
            np.testing.assert_allclose([q for _, q in ours], best.values.numpy(), rtol=1e-4)


def test_t5_answers_sentinels_alike(tmp_path):
    config = transformers.T5Config(
        vocab_size=32_128, d_model=24, d_kv=8, d_ff=48, num_layers=2, num_heads=3, decoder_start_token_id=0,
        feed_forward_proj="gated-gelu", tie_word_embeddings=False,
    )  # fmt: skip
    model = transformers.T5ForConditionalGeneration(config)
    model.lm_head.weight = torch.nn.Parameter(torch.empty_like(model.shared.weight))  # of its own, as in T5 1.1
    model.all_tied_weights_keys.pop("lm_head.weight", None)
    tokenizer = saved(tmp_path / "t5", "t5", model)
    with torch.no_grad():  # no id beyond the tokeniser's is drawn: ours may not
        model.lm_head.weight[len(tokenizer) :] = 0.0
    model.save_pretrained(tmp_path / "t5")
    lm = tessera.load(tmp_path / "t5")
    answers = []
    for text in ("The <extra_0> walks in <extra_1> park.", *TEXTS):
        batch = tokenizer(text.replace("<extra_", "<extra_id_"), return_tensors="pt")
        made = model.generate(**batch, do_sample=False, max_new_tokens=12)[0, 1:].tolist()
        ours = lm.generate(text, max_tokens=12, temperature=0.0, details=True)
        assert ours.ids == made
        assert ours.text == tokenizer.decode(made, skip_special_tokens=True)
        answers.append(tuple(made))
    assert len(set(answers)) == 3 and len({token for answer in answers for token in answer}) > 4
