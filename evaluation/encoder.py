"""An encoder as one object: text in, vectors, labels or the missing words out (BERT)."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from evaluation.network import Network
from evaluation.special_text import encode_marked


class Encoder(Network):
    """An encoder with its weights and tokeniser.

    Attributes:
        params: the tree of weights. config: the resolved `ModelConfig`. tokenizer: text to ids and back.
    """

    def inputs(self, texts: str | Sequence[str], pairs: str | Sequence[str] | None = None) -> dict[str, np.ndarray]:
        """`ids`, `mask` and `token_types`, each int32 (texts, length), for `hidden`, `logits` and `pooled`.

        With `pairs`, each text is followed by its partner, which has token type 1. `<mask>` in a text is the mask.
        """
        texts = [texts] if isinstance(texts, str) else list(texts)
        partners = [pairs] if isinstance(pairs, str) else [None] * len(texts) if pairs is None else list(pairs)
        if len(partners) != len(texts):
            raise ValueError(f"{len(texts)} texts and {len(partners)} partners: give one partner for each text")
        rows, types = [], []
        for text, partner in zip(texts, partners, strict=True):
            ids = encode_marked(self.tokenizer, text)
            alone = self.tokenizer.wrap(ids)
            both = alone if partner is None else self.tokenizer.wrap(ids, encode_marked(self.tokenizer, partner))
            rows.append(both)
            types.append([0] * len(alone) + [1] * (len(both) - len(alone)))
        ids_BT, mask_BT = self.padded(rows)
        types_BT = np.zeros_like(ids_BT)
        if self.config.token_types > 1:
            for row, kinds in enumerate(types):
                types_BT[row, : len(kinds)] = kinds
        return {"ids": ids_BT, "mask": mask_BT, "token_types": types_BT}

    def hidden(self, ids: Any, mask: Any = None, token_types: Any = None) -> np.ndarray:
        """Float32 (batch, length, embed_dim): what the encoder puts out; `mask` is 1 on tokens, 0 on padding."""
        return self._read("hidden_BTD", ids, mask, token_types)

    def logits(self, ids: Any, mask: Any = None, token_types: Any = None) -> np.ndarray:
        """Float32, what the head puts out: (batch, length, vocab), (batch, labels) or (batch, length, labels or 2)."""
        return self._read("logits", ids, mask, token_types)

    def pooled(self, ids: Any, mask: Any = None, token_types: Any = None) -> np.ndarray:
        """Float32 (batch, embed_dim): the output of the pooler for the first token, if there is a pooler."""
        if self.config.head not in ("pooler", "classification", "pretraining"):
            raise ValueError(f"this network has head {self.config.head!r}, which has no pooler")
        return self._read("pooled_BD", ids, mask, token_types)

    def loss(self, texts: str | Sequence[str]) -> float:
        """Mean nats per token, each predicted from all others: the pseudo-likelihood of Salazar et al. (2020)."""
        texts = [texts] if isinstance(texts, str) else list(texts)
        mask_id, special = self._mask_id(), set(self.tokenizer.special_ids.values())
        hidden: list[tuple[list[int], int, int]] = []  # a text with one token masked, where, and the token
        for text in texts:
            ids = self.tokenizer.wrap(self.tokenizer.encode(text))
            for place, token in enumerate(ids):
                if token not in special:
                    hidden.append(([*ids[:place], mask_id, *ids[place + 1 :]], place, token))
        nats = 0.0
        for rows, ids_BT, mask_BT in self.batches([ids for ids, _, _ in hidden]):
            targets_BT, weights_BT = np.zeros_like(ids_BT), np.zeros(ids_BT.shape, np.float32)
            for row, (_, place, token) in enumerate(hidden[number] for number in rows):
                targets_BT[row, place], weights_BT[row, place] = token, 1.0
            batch = {"inputs": ids_BT, "targets": targets_BT, "weights": weights_BT, "segments": mask_BT}
            nats += self.score(batch)[0]
        count = len(hidden)
        if not count:
            raise ValueError("the texts have no token to predict: pass at least one")
        return nats / count

    def fill(self, text: str, *, top: int = 5) -> list[list[tuple[str, float]]]:
        """For each `<mask>` of the text, the `top` most likely tokens and their probabilities."""
        if top < 1:
            raise ValueError(f"top is {top}: it must be at least 1")
        ids = self.inputs([text])["ids"]
        places = np.flatnonzero(ids[0] == self._mask_id())
        if not len(places):
            raise ValueError(f"{text!r} has no <mask> to fill")
        scores = self.logits(ids)[0, places, : self.tokenizer.vocab_size].astype(np.float64)
        p = np.exp(scores - scores.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        best = np.argsort(-p, axis=1)[:, :top]
        return [[(self.tokenizer.decode([i]), float(row[i])) for i in ids] for row, ids in zip(p, best, strict=True)]

    def complete(self, prompts: Sequence[str], *, max_tokens: int, temperature: float, seed: int) -> list[str]:
        """Each prompt with the best tokens for its masks: what a sample in the middle of training shows."""
        del max_tokens, temperature, seed  # nothing is drawn
        lines = []
        for prompt in prompts:
            answers = [", ".join(f"{token!r} {p:.2f}" for token, p in best) for best in self.fill(prompt)]
            lines.append("\n".join([prompt, *(f"  <mask>: {answer}" for answer in answers)]))
        return lines

    def check(self, prompt: str) -> None:
        """Raises ValueError for a prompt that `complete` could not read."""
        ids = self.inputs(prompt)["ids"]
        if self._mask_id() not in ids or ids.shape[1] > self.config.max_length:
            raise ValueError(f"a prompt needs a <mask> and at most {self.config.max_length} tokens: {prompt!r}")

    def _mask_id(self) -> int:
        if self.config.head not in ("masked_lm", "pretraining") or "mask" not in self.tokenizer.special_ids:
            raise ValueError(
                f"this network has head {self.config.head!r}: only one with a masked_lm head, and a tokeniser with a "
                "mask, predicts missing tokens"
            )
        return self.tokenizer.special_ids["mask"]

    def _read(self, name: str, ids: Any, mask: Any, token_types: Any) -> np.ndarray:
        if token_types is not None and not self.config.token_types:
            if np.any(np.asarray(token_types)):
                raise ValueError("token_types are given, but this network has no table of them")
            token_types = None
        return self.run(name, ids, segments_BT=mask, token_types_BT=token_types)
