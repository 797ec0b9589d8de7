"""A network that predicts the next token, as one object: text in, text or numbers out."""

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from data.tokenizers.tokenizer import Tokenizer
from evaluation.generation import Generator
from evaluation.network import Network
from model.config import ModelConfig
from model.ngram import ngram_loss
from model.sharding import ShardingRules


class LanguageModel(Network):
    """A decoder, a recurrent network or an n-gram model, with its weights and tokeniser.

    Attributes:
        params: the tree of weights. config: the resolved `ModelConfig`. tokenizer: text to ids and back.
    """

    def __init__(
        self, config: ModelConfig, params: Any, tokenizer: Tokenizer, mesh: Mesh, rules: ShardingRules | None = None
    ) -> None:
        super().__init__(config, params, tokenizer, mesh, rules)
        self._generator = Generator(self)
        if config.architecture == "ngram":  # no array of it has a vocabulary
            loss = ngram_loss(config.ngram_order)
            self._sums = jax.jit(lambda params, batch: loss(params, batch, None))

    def logits(self, ids: Any, mask: Any = None) -> np.ndarray:
        """Float32 (batch, length, vocab): scores of the token after each of `ids`, int (batch, length).

        `mask` is 1 on tokens and 0 on padding.
        """
        return self.run("logits", ids, segments_BT=mask)

    def loss(self, texts: str | Sequence[str]) -> float:
        """Mean nats per token. A text is read as a document: its first token follows what the tokeniser puts before one
        (the end of another document, or Llama's <s>). Where that is nothing, as for GPT-2, the first is not scored.

        Texts longer than the context are cut into windows of it; each token is scored once.
        """
        nats, tokens, _ = self._score(texts)
        return nats / tokens

    def bits_per_byte(self, texts: str | Sequence[str]) -> float:
        """Bits that the model needs per UTF-8 byte of the texts."""
        nats, _, count = self._score(texts)
        return nats / np.log(2) / count

    def generate(
        self, prompts: str | Sequence[str], *, max_tokens: int, seed: int = 0, details: bool = False, **options: Any
    ) -> Any:
        """Continues each prompt by up to `max_tokens` tokens, or to its end of text; the prompt is not repeated.

        A string gives a string, a list gives a list; with `num_samples` above 1, each becomes a list of so many. A
        continuation depends on its prompt and the seed, not on the other prompts, as long as the longest of them fits
        the context.

        Args:
            options: of the draw (see `model.sampling.Sampling`): temperature (0: the most likely token), top_k, top_p,
                min_p, typical_p, repetition_penalty, no_repeat_ngram, min_tokens; num_samples; stop: a string, or
                several, that end the text; num_beams, length_penalty and early_stopping for beam search, which returns
                the num_samples best.
            details: `Continuation`s instead of strings: text, ids, log-probability of each token, score.
        """
        alone = isinstance(prompts, str)
        ids = [self._begun(prompt) for prompt in ([prompts] if alone else prompts)]
        return self._generator.run(ids, alone=alone, details=details, max_tokens=max_tokens, seed=seed, **options)

    def stream(
        self, prompts: Sequence[str], *, max_tokens: int, seeds: Sequence[int], **options: Any
    ) -> Iterator[list[str]]:
        """Yields the next piece of text of every row, as it comes; row b is drawn by its prompt and `seeds[b]`.

        Options are those of `generate`, but for beam search.

        Raises:
            ValueError: at once, a prompt that is longer than the context, or a setting outside its range.
        """
        ids = [self._begun(prompt) for prompt in prompts]
        return iter(self._generator.stream(ids, seeds=seeds, max_tokens=max_tokens, **options))

    def complete(self, prompts: Sequence[str], *, max_tokens: int, temperature: float, seed: int) -> list[str]:
        """Each prompt with its continuation: what a sample in the middle of training shows."""
        texts = self.generate(list(prompts), max_tokens=max_tokens, temperature=temperature, seed=seed)
        return [prompt + text for prompt, text in zip(prompts, texts, strict=True)]

    def check(self, prompt: str) -> None:
        """Raises ValueError for a prompt that `complete` could not continue."""
        self.stream([prompt], max_tokens=1, seeds=[0])

    def _begun(self, prompt: str) -> list[int]:
        """A prompt as the begin of a document; one that fills the context stands alone."""
        ids, begin = self.tokenizer.encode(prompt), list(self.tokenizer.begin_ids)
        if not ids and not begin:
            return list(self.tokenizer.eos_ids[:1])  # something must stand before the first token
        return [*begin, *ids] if len(ids) + len(begin) <= self.config.max_length else ids

    def _score(self, texts: str | Sequence[str]) -> tuple[float, float, int]:
        """Nats, predicted tokens and bytes of texts."""
        texts = [texts] if isinstance(texts, str) else list(texts)
        length, begin = self.config.max_length, list(self.tokenizer.begin_ids)
        windows, count = [], 0
        for text in texts:
            ids = [*begin, *self.tokenizer.encode(text)]
            windows += [ids[start : start + length + 1] for start in range(0, len(ids) - 1, length)]
            unscored = 0 if begin or not ids else int(self.tokenizer.token_bytes_V[ids[0]])
            count += len(text.encode()) - unscored
        if not windows:
            raise ValueError("the texts have no token to predict: where nothing stands before a text, pass two tokens")
        nats = tokens = 0.0
        for places, ids_BT, mask_BT in self.batches([window[:-1] for window in windows]):
            targets_BT = np.zeros_like(ids_BT)
            for row, place in enumerate(places):
                targets_BT[row, : len(windows[place]) - 1] = windows[place][1:]
            real_BT = mask_BT * (np.arange(len(mask_BT)) < len(places))[:, None]
            batch = {"inputs": ids_BT, "targets": targets_BT, "weights": real_BT.astype(np.float32)}
            more = self.score(batch)
            nats, tokens = nats + more[0], tokens + more[1]
        return nats, tokens, count
