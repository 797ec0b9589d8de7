"""Text from a network that predicts tokens: one `Generator` for decoders, encoder-decoders, recurrent nets, n-grams."""

import dataclasses
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from evaluation.network import Network
from model.beam import Beams
from model.decoding import Decoder
from model.sampling import Sampling

INCOMPLETE = "\ufffd"  # what a tokeniser decodes half a character to
CONTEXT = 8  # tokens of the prompt that the first new ones are decoded with


@dataclasses.dataclass(frozen=True)
class Continuation:
    """What was generated for one prompt.

    Attributes:
        text: without the prompt, the stop string and the end of the text. ids: the tokens, the end included.
        logprobs: of each token in the model's own distribution, where they were asked for.
        score: of beam search: the sum of log-probabilities over length^penalty.
    """

    text: str
    ids: list[int]
    logprobs: list[float] | None = None
    score: float | None = None


class Generator:
    """Continues token ids and writes the text."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self._decoder = Decoder(network.network, network.config, network.rules)
        self._options = {"vocab_limit": network.tokenizer.vocab_size, "eos_ids": network.tokenizer.eos_ids}

    def stream(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        seeds: Sequence[int],
        max_tokens: int,
        num_samples: int = 1,
        stop: str | Sequence[str] = (),
        logprobs: bool = False,
        sources: Sequence[Sequence[int]] = (),
        **sampling: Any,
    ) -> "Stream":
        """The rows of all prompts, `num_samples` for each, as they are written; settings are checked at once."""
        stops = [stop] if isinstance(stop, str) else list(stop)
        if "" in stops:
            raise ValueError("a stop string is empty: every text contains it")
        tokenizer = self._network.tokenizer
        ends = self._options["eos_ids"]
        rows = [_Row(tokenizer.decode, stops, ends, prompt) for prompt in prompts for _ in range(num_samples)]
        if len(seeds) != len(rows):
            need = f"{len(prompts)} prompts of {num_samples} samples"
            raise ValueError(f"{len(seeds)} seeds for {need}: give {len(rows)}")
        if wrong := [seed for seed in seeds if not isinstance(seed, int) or seed < 0]:
            raise ValueError(f"seed is {wrong[0]!r}: use a whole number, 0 or more")

        def finished(tokens_BN: np.ndarray) -> list[bool]:
            return [row.add(ids) for row, ids in zip(rows, tokens_BN.tolist(), strict=True)]

        with jax.set_mesh(self._network.mesh):
            chunks = self._decoder.stream(
                self._network.params,
                prompts,
                max_tokens=max_tokens,
                sampling=Sampling(**sampling),
                # Other prompts get other draws: the same ones would make all rows alike.
                seeds=[_seed(seed, prompts, sources, row // num_samples) for row, seed in enumerate(seeds)],
                num_samples=num_samples,
                logprobs=logprobs,
                sources=sources,
                finished=finished,
                **self._options,
            )
        return Stream(chunks, rows, self._network)

    def run(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        alone: bool,
        details: bool,
        max_tokens: int,
        seed: int,
        num_samples: int = 1,
        num_beams: int = 0,
        length_penalty: float = 1.0,
        early_stopping: bool | str = False,
        stop: str | Sequence[str] = (),
        sources: Sequence[Sequence[int]] = (),
        **sampling: Any,
    ) -> Any:
        """`num_samples` continuations of each prompt, drawn, or with `num_beams` searched for.

        They are `Continuation`s with `details`, else texts: a list with one for each prompt, or with a list for each
        where `num_samples` is above 1; of a single prompt that is `alone`, what that list holds.
        """
        if num_beams:
            if stop or seed:
                raise ValueError("num_beams goes without stop, logprobs and seed: beam search draws nothing")
            if num_beams > 0 and not 1 <= num_samples <= num_beams:
                raise ValueError(f"num_samples is {num_samples}: {num_beams} beams find 1 to {num_beams}")
            beams = Beams(num_beams, length_penalty, early_stopping)
            rows = self._searched(prompts, beams, max_tokens, num_samples, sources, sampling)
        else:
            if length_penalty != 1.0 or early_stopping:
                raise ValueError("length_penalty and early_stopping belong to beam search: set num_beams")
            seeds = [seed + sample for _ in prompts for sample in range(num_samples)]
            options = {"num_samples": num_samples, "stop": stop, "logprobs": details, "sources": sources}
            stream = self.stream(prompts, seeds=seeds, max_tokens=max_tokens, **options, **sampling)
            for _ in stream:
                pass
            drawn = stream.continuations()
            rows = [drawn[first : first + num_samples] for first in range(0, len(drawn), num_samples)]
        shown: list[Any] = [[c if details else c.text for c in row] for row in rows]
        shown = [row[0] for row in shown] if num_samples == 1 else shown
        return shown[0] if alone else shown

    def _searched(
        self,
        prompts: Sequence[Sequence[int]],
        beams: Beams,
        max_tokens: int,
        num_samples: int,
        sources: Sequence[Sequence[int]],
        sampling: dict[str, Any],
    ) -> list[list[Continuation]]:
        """The `num_samples` best continuations of each prompt that beam search finds, best first."""
        with jax.set_mesh(self._network.mesh):
            found = self._decoder.beam(
                self._network.params,
                prompts,
                max_tokens=max_tokens,
                beams=beams,
                num_return=num_samples,
                sampling=Sampling(**{"temperature": 0.0, **sampling}),
                sources=sources,
                **self._options,
            )
        return [
            [Continuation(self._text(prompt, h.tokens), h.tokens, None, h.score) for h in row]
            for prompt, row in zip(prompts, found, strict=True)
        ]

    def _text(self, prompt: Sequence[int], ids: Sequence[int]) -> str:
        row = _Row(self._network.tokenizer.decode, (), (), prompt)
        row.add(ids)
        return row.continuation().text


class Stream:
    """Yields the next piece of text of every row, as it comes; afterwards `continuations` has it all."""

    def __init__(self, chunks: Iterator[Any], rows: "list[_Row]", network: Network) -> None:
        self._chunks, self._rows, self._network = chunks, rows, network

    def __iter__(self) -> Iterator[list[str]]:
        while True:
            with jax.set_mesh(self._network.mesh):  # not across a yield: there the caller's own mesh must hold
                chunk = next(self._chunks, None)
            if chunk is None:
                break
            if chunk.logprobs_BN is not None:
                for row, logprobs in zip(self._rows, chunk.logprobs_BN.tolist(), strict=True):
                    row.logprobs.extend(logprobs)
            yield [row.write() for row in self._rows]
        yield [row.close() for row in self._rows]

    def continuations(self) -> list[Continuation]:
        """What each row has so far."""
        return [row.continuation() for row in self._rows]


class _Row:
    """Ids of one row to text, piece by piece: half a character, or the begin of a stop string, waits for the rest.

    New tokens are decoded after a few older ones, whose text is then cut off: alone, a tokeniser would take the space
    before a word for the begin of a text. The whole text is never decoded again.
    """

    def __init__(
        self,
        decode: Callable[[Sequence[int]], str],
        stops: Sequence[str],
        eos_ids: Sequence[int],
        prompt: Sequence[int],
    ) -> None:
        self._decode, self._stops, self._eos_ids = decode, stops, eos_ids
        self.ids: list[int] = []
        self.logprobs: list[float] = []
        self._window, self._known = list(prompt[-CONTEXT:]), len(prompt[-CONTEXT:])  # ids, and how many have their text
        self._text, self._pending, self._written, self._ended = "", "", 0, False

    def add(self, ids: Sequence[int]) -> bool:
        """Takes the next tokens; whether the text has ended."""
        for token in ids if not self._ended else ():
            self.ids.append(token)
            self._window.append(token)
            before = len(self._text)
            self._read()
            self._ended = self._cut(before) or token in self._eos_ids
            if self._ended:
                break
        return self._ended

    def write(self) -> str:
        """The text that is certain by now."""
        if self._ended:
            return self.close()
        text = self._text
        begins = (size for stop in self._stops for size in range(1, len(stop)) if text.endswith(stop[:size]))
        return self._take(len(text) - max(begins, default=0))

    def close(self) -> str:
        self._text, self._pending = self._text + self._pending, ""
        return self._take(len(self._text))

    def continuation(self) -> Continuation:
        return Continuation(self._text + self._pending, self.ids, self.logprobs[: len(self.ids)] or None)

    def _read(self) -> None:
        """Moves the text of the newest tokens from the window to `_text`, once its last character is whole."""
        old, now = self._decode(self._window[: self._known]), self._decode(self._window)
        new = now[len(old) :] if now.startswith(old) else now
        if new.endswith(INCOMPLETE):
            self._pending = new
        elif new:
            self._text, self._pending = self._text + new, ""
            self._window = self._window[self._known :]
            self._known = len(self._window)

    def _cut(self, before: int) -> bool:
        """Ends the text at the first stop string that reaches beyond its first `before` characters."""
        first = max(before - max(map(len, self._stops), default=0), 0)
        places = [place for stop in self._stops if (place := self._text.find(stop, first)) >= 0]
        if places:
            self._text, self._pending = self._text[: min(places)], ""
        return bool(places)

    def _take(self, end: int) -> str:
        piece, self._written = self._text[self._written : end], max(self._written, end)
        return piece


def _seed(seed: int, prompts: Sequence[Sequence[int]], sources: Sequence[Sequence[int]], row: int) -> int:
    text = [*sources[row], -1, *prompts[row]] if sources else list(prompts[row])
    return zlib.crc32(f"{seed} {text}".encode())
