"""A trained network as one object: text in, text or numbers out. What `tessera.load` returns."""

import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from data.tokenizers import Tokenizer
from model.build import build
from model.config import ModelConfig
from model.decoding import Decoder, Sampling
from model.losses import causal_lm
from model.sharding import ShardingRules
from model.transformer import apply

INCOMPLETE = "\ufffd"  # what a tokeniser decodes half a character to


class LanguageModel:
    """A decoder with its weights and tokeniser.

    Attributes:
        params: the tree of weights. config: the resolved `ModelConfig`. tokenizer: text to ids and back.
    """

    def __init__(
        self, config: ModelConfig, params: Any, tokenizer: Tokenizer, mesh: Mesh, rules: ShardingRules | None = None
    ) -> None:
        self.config, self.params, self.tokenizer, self.mesh = config.resolved(), params, tokenizer, mesh
        model = build(config, rules)
        self._decoder = Decoder(model, config, rules)
        self._logits = jax.jit(lambda params, ids_BT: apply(model, params, ids_BT).logits_BTV)
        loss = causal_lm(model)
        self._sums = jax.jit(lambda params, batch: loss(params, batch, None))

    def logits(self, ids_BT: np.ndarray) -> np.ndarray:
        """Float32 (batch, length, vocab): scores of the token after each of `ids_BT`, int (batch, length)."""
        ids = np.asarray(ids_BT)
        if ids.ndim != 2 or not np.issubdtype(ids.dtype, np.integer):
            raise ValueError(f"ids have shape {ids.shape} and type {ids.dtype}: pass integers of shape (batch, length)")
        if ids.shape[1] > self.config.max_length:
            raise ValueError(f"{ids.shape[1]} tokens do not fit the context of {self.config.max_length}: cut the input")
        if ids.size and (ids.min() < 0 or ids.max() >= self.config.vocab_size):
            raise ValueError(
                f"ids run from {ids.min()} to {ids.max()}: the vocabulary is 0 to {self.config.vocab_size - 1}"
            )
        with jax.set_mesh(self.mesh):
            return np.asarray(jax.device_get(self._logits(self.params, ids.astype(np.int32))))

    def loss(self, texts: str | Sequence[str]) -> float:
        """Mean nats per token. A text is read as a document: its first token follows an end of document.

        Texts longer than the context are cut into windows of it; each token is scored once.
        """
        nats, tokens, _ = self._score(texts)
        return nats / tokens

    def bits_per_byte(self, texts: str | Sequence[str]) -> float:
        """Bits that the model needs per UTF-8 byte of the texts."""
        nats, _, count = self._score(texts)
        return nats / np.log(2) / count

    def generate(
        self,
        prompts: str | Sequence[str],
        *,
        max_tokens: int,
        temperature: float = 1.0,
        top_k: int = 0,
        seed: int = 0,
    ) -> str | list[str]:
        """Continues each prompt by up to `max_tokens` tokens, or to its end of text; the prompt is not repeated.

        A string gives a string, a list gives a list. Temperature 0 takes the most likely token. A continuation depends
        on its prompt and the seed, not on the other prompts, as long as the longest of them fits the context.
        """
        batch = [prompts] if isinstance(prompts, str) else list(prompts)
        options = {"max_tokens": max_tokens, "temperature": temperature, "top_k": top_k}
        texts = [""] * len(batch)
        for pieces in self.stream(batch, seeds=[seed] * len(batch), **options):
            texts = [text + piece for text, piece in zip(texts, pieces, strict=True)]
        return texts[0] if isinstance(prompts, str) else texts

    def stream(
        self, prompts: Sequence[str], *, max_tokens: int, temperature: float, top_k: int, seeds: Sequence[int]
    ) -> Iterator[list[str]]:
        """Yields the next piece of text of every row, as it comes; row b is drawn by its prompt and `seeds[b]`.

        Raises:
            ValueError: at once, a prompt that is longer than the context, or a setting outside its range.
        """
        eos = self.tokenizer.eos_id
        ids = [self.tokenizer.encode(prompt) for prompt in prompts]
        if eos is not None:  # a document begins after the end of another; a prompt that fills the context does not
            ids = [[eos, *prompt] if len(prompt) < self.config.max_length else prompt for prompt in ids]
        chunks = self._decoder.stream(
            self.params,
            ids,
            max_tokens=max_tokens,
            sampling=Sampling(temperature, top_k),
            # Other prompts get other draws: the same ones would make all rows alike.
            seeds=[zlib.crc32(f"{seed} {prompt}".encode()) for seed, prompt in zip(seeds, prompts, strict=True)],
            vocab_limit=self.tokenizer.vocab_size,
            eos_id=eos,
        )
        return self._pieces(chunks, [_Writer(self.tokenizer.decode) for _ in prompts])

    def _pieces(self, chunks: Iterator[np.ndarray], writers: Sequence["_Writer"]) -> Iterator[list[str]]:
        while True:
            with jax.set_mesh(self.mesh):  # not across a yield: there the caller's own mesh must hold
                tokens_BN = next(chunks, None)
            if tokens_BN is None:
                break
            yield [writer.write(row.tolist()) for writer, row in zip(writers, tokens_BN, strict=True)]
        yield [writer.close() for writer in writers]

    def _score(self, texts: str | Sequence[str]) -> tuple[float, float, int]:
        """Nats, predicted tokens and bytes of texts."""
        texts = [texts] if isinstance(texts, str) else list(texts)
        length, eos = self.config.max_length, self.tokenizer.eos_id
        nats = tokens = 0.0
        count = 0
        for text in texts:
            ids = np.asarray(([] if eos is None else [eos]) + self.tokenizer.encode(text), np.int32)
            for start in range(0, len(ids) - 1, length):
                window = ids[start : start + length + 1]
                padding = (0, length + 1 - len(window))
                batch = {
                    "inputs": np.pad(window[:-1], padding)[None],
                    "targets": np.pad(window[1:], padding)[None],
                    "weights": np.pad(np.ones(len(window) - 1, np.float32), padding)[None],
                }
                with jax.set_mesh(self.mesh):
                    sums = jax.device_get(self._sums(self.params, batch))
                nats, tokens = nats + float(sums.loss), tokens + float(sums.weight)
                count += int(self.tokenizer.token_bytes_V[window[1:]].sum())
        if not tokens:
            raise ValueError("the texts have no token to predict: pass at least two tokens")
        return nats, tokens, count


class _Writer:
    """Ids of one row to text, piece by piece: half a character waits for its other half."""

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode, self._ids, self._written = decode, [], 0

    def write(self, ids: list[int]) -> str:
        self._ids.extend(ids)
        text = self._decode(self._ids)
        return self._take(text.rstrip(INCOMPLETE))

    def close(self) -> str:
        return self._take(self._decode(self._ids))

    def _take(self, text: str) -> str:
        piece, self._written = text[self._written :], max(self._written, len(text))
        return piece
