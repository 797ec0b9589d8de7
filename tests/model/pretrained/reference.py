"""Cases of `tests.model.pretrained.parity`, and generations, as PyTorch computes them."""

import math
from pathlib import Path
from typing import Any

import numpy as np

from model.pretrained.weights import read_config
from tests.model.pretrained import models, transformer_2017
from tests.model.pretrained.parity import IS_LM, Case, make_batch

torch = models.torch
BEAMS = 4
PROMPTS = [[7, 8, 9, 10, 11], [12], [14, 15, 16]]  # of different lengths: those of a decoder are padded on the left


def record(model: Any, folder: Path, seed: int = 0) -> Case:
    """One case of a model that is saved in `folder`."""
    config, _ = read_config(folder)
    rng = np.random.default_rng(seed)
    batch = make_batch(config, rng)
    out = outputs(config, model, batch)
    mask = batch["mask"].astype(bool)
    case = {f"batch/{name}": array for name, array in batch.items()}
    case |= {f"output/{name}": value.detach().numpy() for name, value in out.items()}
    if config.head in IS_LM:
        case["targets"] = rng.integers(0, config.vocab_size, batch["ids"].shape).astype(np.int32)
        loss = torch.nn.functional.cross_entropy(out["logits"][mask], torch.tensor(case["targets"])[mask].long())
    else:
        loss = torch.zeros(())
        for name, value in out.items():
            if name == "hidden" and "logits" in out:
                continue
            probe = rng.normal(size=value.shape).astype(np.float32)
            case[f"probe/{name}"] = probe * (mask[..., None] if probe.ndim == 3 else 1)  # nothing for padding
            loss = loss + (value * torch.tensor(case[f"probe/{name}"])).sum()
    loss.backward()
    weights = dict(model.named_parameters(remove_duplicate=False))
    saved = {name: weights[name] for name in models.tensors(folder)}
    assert {id(w) for w in weights.values() if w.grad is not None} <= {id(w) for w in saved.values()}
    case |= {f"gradient/{name}": w.grad.numpy() for name, w in saved.items() if w.grad is not None}
    return case | {"loss": np.float32(loss.item())}


def outputs(config: Any, model: Any, batch: dict[str, np.ndarray]) -> dict[str, Any]:
    """What the head puts out, and the hidden states behind it, under the names of `parity.outputs`."""
    t = {name: torch.tensor(array).long() for name, array in batch.items()}
    kinds = {
        "logits": "logits", "hidden": "last_hidden_state", "pooled": "pooler_output",
        "next": "seq_relationship_logits",
    }  # fmt: skip
    if config.architecture == "encoder_decoder":
        out = model(
            input_ids=t["source"], attention_mask=t["source_mask"], decoder_input_ids=t["ids"],
            decoder_attention_mask=t["mask"], output_hidden_states=True,
        )  # fmt: skip
        return {"logits": out.logits, "hidden": out.decoder_hidden_states[-1]}
    types = {"token_type_ids": t["types"]} if "types" in t else {}
    out = model(input_ids=t["ids"], attention_mask=t["mask"], output_hidden_states=True, **types)
    made = {name: out[theirs] for name, theirs in kinds.items() if theirs in out}
    made.setdefault("hidden", out.hidden_states[-1])
    if config.head == "pretraining":
        made["logits"] = out.prediction_logits
    if config.head == "span":
        made["logits"] = torch.stack([out.start_logits, out.end_logits], -1)
    return made


def generate(model: Any, max_tokens: int) -> Case:
    """Greedy and beam-search answers to PROMPTS: `greedy/ids`, `beam/ids`, `beam/scores`; -1 is filling."""
    eos, pad, longest = model.config.eos_token_id, model.config.pad_token_id, max(map(len, PROMPTS))
    encodes = model.config.is_encoder_decoder
    rows = [(prompt, [pad] * (longest - len(prompt))) for prompt in PROMPTS]
    ids = torch.tensor([text + fill if encodes else fill + text for text, fill in rows])
    mask = torch.tensor([[1] * len(t) + [0] * len(f) if encodes else [0] * len(f) + [1] * len(t) for t, f in rows])
    options = {"do_sample": False, "max_new_tokens": max_tokens, "eos_token_id": eos, "pad_token_id": pad}
    greedy = model.generate(ids, attention_mask=mask, **options)
    beams = model.generate(
        ids, attention_mask=mask, num_beams=BEAMS, num_return_sequences=BEAMS, output_scores=True,
        return_dict_in_generate=True, **options,
    )  # fmt: skip

    def answers(sequences: Any) -> np.ndarray:
        made = sequences[:, 1 if encodes else longest :].numpy().astype(np.int32)
        ended = np.cumsum(made == eos, axis=1) - (made == eos) > 0
        filled = np.full((len(made), max_tokens), -1, np.int32)
        filled[:, : made.shape[1]] = np.where(ended, -1, made)
        return filled

    return {
        "prompts": np.array([prompt + [-1] * (longest - len(prompt)) for prompt in PROMPTS], np.int32),
        "greedy/ids": answers(greedy),
        "beam/ids": answers(beams.sequences).reshape(len(PROMPTS), BEAMS, max_tokens),
        "beam/scores": beams.sequences_scores.numpy().reshape(len(PROMPTS), BEAMS),
    }


class Transformer2017(torch.nn.Module):
    """What `transformer_2017` describes."""

    def __init__(self) -> None:
        super().__init__()
        c = transformer_2017.CONFIG
        self.embedding = torch.nn.Parameter(torch.empty(c.vocab_size, c.embed_dim))
        self.body = torch.nn.Transformer(
            c.embed_dim, c.num_heads, c.num_encoder_layers, c.num_layers, c.mlp_dim, dropout=0.0, batch_first=True
        )
        self.body.encoder.norm = self.body.decoder.norm = None
        rng = np.random.default_rng(0)
        with torch.no_grad():
            for name, weight in self.named_parameters():
                scale = ".norm" in name and name.endswith("weight")
                weight.copy_(scale + 0.3 * torch.from_numpy(rng.normal(size=weight.shape)))

    def forward(self, batch: dict[str, np.ndarray]) -> Any:
        seen, known = torch.tensor(batch["source_mask"]).bool(), torch.tensor(batch["mask"]).bool()
        hidden = self.body(
            self.embed(batch["source"]), self.embed(batch["ids"]),
            tgt_mask=torch.ones(known.shape[1], known.shape[1]).triu(1).bool(),
            src_key_padding_mask=~seen, tgt_key_padding_mask=~known, memory_key_padding_mask=~seen,
        )  # fmt: skip
        return hidden @ self.embedding.T

    def embed(self, ids: np.ndarray) -> Any:
        """Section 3.4 and 3.5 of the paper."""
        D = self.embedding.shape[1]
        angle = torch.arange(ids.shape[1])[:, None] / 10_000 ** (torch.arange(0, D, 2) / D)
        waves = torch.stack([angle.sin(), angle.cos()], -1).flatten(1)
        return self.embedding[torch.tensor(ids).long()] * math.sqrt(D) + waves


def record_2017() -> Case:
    """The case of a random `Transformer2017`, with its weights under `weight/`."""
    rng, model = np.random.default_rng(0), Transformer2017()
    batch = make_batch(transformer_2017.CONFIG, rng)
    logits = model(batch)
    mask = torch.tensor(batch["mask"]).bool()
    targets = rng.integers(0, transformer_2017.CONFIG.vocab_size, batch["ids"].shape).astype(np.int32)
    loss = torch.nn.functional.cross_entropy(logits[mask], torch.tensor(targets)[mask].long())
    loss.backward()
    weights = dict(model.named_parameters())
    return {
        **{f"batch/{name}": array for name, array in batch.items()},
        **{f"weight/{name}": weight.detach().numpy() for name, weight in weights.items()},
        **{f"gradient/{name}": weight.grad.numpy() for name, weight in weights.items()},
        "output/logits": logits.detach().numpy(),
        "targets": targets,
        "loss": np.float32(loss.item()),
    }
