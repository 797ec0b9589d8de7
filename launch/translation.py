"""A model as a translator of sentences: one of the two that a back-translation needs."""

from collections.abc import Sequence

from evaluation.encoder import Encoder
from evaluation.language_model import LanguageModel
from launch.load import load

BATCH = 32  # sentences at once


class Translator:
    """translator(sentences, seed) -> a translation of each, drawn by the model of `source`, as `load` takes it.

    It is "" for a sentence that is too long for the context of the model, and where the model has no answer.

    Attributes:
        failures: how many were "" so far.
    """

    def __init__(self, source: str, *, prompt: str, max_tokens: int, temperature: float) -> None:
        """`prompt`: what the model reads, with {} for the sentence; `max_tokens`: the most that it answers.

        Raises ValueError for an encoder, and what `load` raises.
        """
        model = load(source)
        if isinstance(model, Encoder):
            raise ValueError(f"{source} is an encoder, which writes no text: translate with a model that generates")
        self.failures = 0
        self._model, self._prompt = model, prompt
        self._options = {"max_tokens": max_tokens, "temperature": temperature}
        # A decoder's answer is in the same context as its prompt.
        self._longest = model.config.max_length - (max_tokens if isinstance(model, LanguageModel) else 0)

    def __call__(self, sentences: Sequence[str], seed: int) -> list[str]:
        prompts = [self._prompt.replace("{}", sentence) for sentence in sentences]
        fitting = [place for place, prompt in enumerate(prompts) if self._length(prompt) <= self._longest]
        answers = [""] * len(prompts)
        for first in range(0, len(fitting), BATCH):
            places = fitting[first : first + BATCH]
            # Filled up to a power of two with copies of the last, so that few shapes are compiled.
            fill = (1 << (len(places) - 1).bit_length()) - len(places)
            rows = [prompts[place] for place in places + places[-1:] * fill]
            found = self._model.generate(rows, seed=seed, **self._options)
            for place, answer in zip(places, found[: len(places)], strict=True):
                answers[place] = answer.strip()
        self.failures += answers.count("")
        return answers

    def _length(self, prompt: str) -> int:
        """Tokens of a prompt with what is put around it, or one more."""
        tokenizer = self._model.tokenizer
        return len(tokenizer.begin_ids) + len(tokenizer.wrap(tokenizer.encode(prompt)))
