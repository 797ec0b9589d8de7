"""An encoder-decoder as one object: text in, another text out (T5, the Transformer of 2017)."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh

from data.tokenizers.tokenizer import Tokenizer
from evaluation.generation import Generator
from evaluation.network import Network
from evaluation.special_text import decode_filled, encode_marked, sentinel_ids
from model.config import ModelConfig
from model.sharding import ShardingRules


class SequenceToSequence(Network):
    """An encoder-decoder with its weights and tokeniser.

    Attributes:
        params: the tree of weights. config: the resolved `ModelConfig`. tokenizer: text to ids and back.
    """

    def __init__(
        self, config: ModelConfig, params: Any, tokenizer: Tokenizer, mesh: Mesh, rules: ShardingRules | None = None
    ) -> None:
        super().__init__(config, params, tokenizer, mesh, rules)
        self._generator = Generator(self)

    def logits(self, ids: Any, decoder_ids: Any, mask: Any = None, decoder_mask: Any = None) -> np.ndarray:
        """Float32 (batch, decoder length, vocab): scores of the token after each of `decoder_ids`.

        `ids` (batch, length) is what the encoder reads; `mask` is 1 on its tokens and 0 on padding.
        """
        return self.run("logits", decoder_ids, segments_BT=decoder_mask, source_BS=ids, source_segments_BS=mask)

    def hidden(self, ids: Any, mask: Any = None) -> np.ndarray:
        """Float32 (batch, length, embed_dim): what the encoder puts out."""
        ids = np.asarray(ids)
        start = np.full((len(ids), 1), self.config.decoder_start_id)
        return self.run("source_BSD", start, source_BS=ids, source_segments_BS=mask)

    def loss(self, texts: str | Sequence[str], targets: str | Sequence[str]) -> float:
        """Mean nats per token of the targets, each the answer to its text; ends of text count."""
        texts = [texts] if isinstance(texts, str) else list(texts)
        targets = [targets] if isinstance(targets, str) else list(targets)
        if len(texts) != len(targets):
            raise ValueError(f"{len(texts)} texts and {len(targets)} targets: give one target for each text")
        if not texts:
            raise ValueError("the texts have no token to predict: pass at least one")
        answers = [self._wrapped(target) for target in targets]
        nats = tokens = 0.0
        for places, source_BS, source_mask_BS in self.batches([self._wrapped(text) for text in texts]):
            chosen = [answers[place] for place in places]
            target_BT, mask_BT = self.padded(chosen + [chosen[-1]] * (len(source_BS) - len(chosen)))
            real_BT = mask_BT * (np.arange(len(mask_BT)) < len(places))[:, None]
            fill = ((0, 0), (0, self._width(target_BT.shape[1]) - target_BT.shape[1]))
            start = self.config.decoder_start_id
            batch = {
                "inputs": np.pad(np.pad(target_BT, ((0, 0), (1, 0)), constant_values=start)[:, :-1], fill),
                "targets": np.pad(target_BT, fill),
                "weights": np.pad(real_BT.astype(np.float32), fill),
                "source": source_BS,
                "source_segments": source_mask_BS,
            }
            more = self.score(batch)
            nats, tokens = nats + more[0], tokens + more[1]
        return nats / tokens

    def generate(
        self, texts: str | Sequence[str], *, max_tokens: int, seed: int = 0, details: bool = False, **options: Any
    ) -> Any:
        """Answers each text by up to `max_tokens` tokens. Arguments and results are those of `LanguageModel.generate`.

        `<extra_0>`, `<extra_1>`, … in a text are sentinels.
        """
        asked = {"alone": isinstance(texts, str), "details": details, "max_tokens": max_tokens, "seed": seed}
        sources = [self._wrapped(text) for text in ([texts] if isinstance(texts, str) else texts)]
        return self._generator.run([[] for _ in sources], sources=sources, **asked, **options)

    def stream(self, texts: Sequence[str], *, max_tokens: int, seeds: Sequence[int], **options: Any) -> Any:
        """Yields the next piece of every answer, as it comes, as `LanguageModel.stream`."""
        asked = {"sources": [self._wrapped(text) for text in texts], "max_tokens": max_tokens, "seeds": seeds}
        return iter(self._generator.stream([[] for _ in texts], **asked, **options))

    def fill(self, text: str, *, max_tokens: int, seed: int = 0, **options: Any) -> str:
        """The text with each of its sentinels, `<extra_0>`, `<extra_1>`, …, replaced by what the model puts there."""
        if options.get("num_samples", 1) != 1:
            raise ValueError(f"num_samples is {options['num_samples']}: fill gives one text")
        if not self._has_sentinel(text):
            raise ValueError(f"{text!r} has no <extra_0> to fill")
        answer = self.generate(text, max_tokens=max_tokens, seed=seed, details=True, **options)
        return decode_filled(self.tokenizer, encode_marked(self.tokenizer, text), answer.ids)

    def complete(self, prompts: Sequence[str], *, max_tokens: int, temperature: float, seed: int) -> list[str]:
        """Each prompt with its sentinels filled, or followed by its answer: what a sample while training shows."""
        options: dict[str, Any] = {"max_tokens": max_tokens, "temperature": temperature, "seed": seed}
        return [
            self.fill(text, **options) if self._has_sentinel(text) else f"{text}\n-> {self.generate(text, **options)}"
            for text in prompts
        ]

    def check(self, prompt: str) -> None:
        """Raises ValueError for a prompt that `complete` could not read."""
        self.stream([prompt], max_tokens=1, seeds=[0])

    def _has_sentinel(self, text: str) -> bool:
        return not sentinel_ids(self.tokenizer).isdisjoint(encode_marked(self.tokenizer, text))

    def _wrapped(self, text: str) -> list[int]:
        return self.tokenizer.wrap(encode_marked(self.tokenizer, text))
