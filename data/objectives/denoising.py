"""Denoising for encoder-decoders: the span corruption of T5, and the mixture of denoisers of UL2."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np

from data.errors import DataError
from data.objectives.examples import Example, Features
from data.objectives.many import Many, choose, counted, single
from data.objectives.pairs import Seq2Seq

# Mode, noise density, mean span (Tay et al. 2022, table 1; each is drawn equally often). S has no spans: see UL2.
UL2_DENOISERS = (
    ("r", 0.15, 3.0),
    ("r", 0.15, 8.0),
    ("s", 0.25, 0.0),
    ("x", 0.5, 3.0),
    ("x", 0.5, 8.0),
    ("x", 0.15, 64.0),
    ("x", 0.5, 64.0),
)


@lru_cache
def span_corruption_lengths(inputs_length: int, noise_density: float, mean_span: float) -> tuple[int, int]:
    """Tokens of the longest block whose corruption fits an encoder of inputs_length, and tokens of its targets.

    Both count sentinels and the closing eos: 512, 0.15, 3.0 -> 568, 114 (Raffel et al. 2020, section 3.1.4 and its
    code). The block fills the encoder exactly, but for a last token where spans are as many as the gaps allow.
    Raises DataError for what leaves no room for a token beside a sentinel and eos.
    """
    if inputs_length < 3:
        raise DataError(f"length {inputs_length} holds no token beside a sentinel and eos: use 3 or more")
    if not 0 < noise_density < 1 or mean_span < 1:
        raise DataError(f"noise_density {noise_density} must be above 0 and below 1, mean_span {mean_span} 1 or more")

    def lengths(raw: int) -> tuple[int, int]:
        noise, spans = map(int, _num_noise(raw, noise_density, mean_span))
        return raw - noise + spans + 1, noise + spans + 1

    raw = inputs_length - 2
    while lengths(raw + 1)[0] <= inputs_length:
        raw += 1
    return raw, lengths(raw)[1]


@dataclass(frozen=True)
class SpanCorruption:
    """The pretraining of T5 (Raffel et al. 2020, section 3.1.4): piece (N,) -> the features of `Seq2Seq`.

    Random spans of the block are each replaced by one sentinel in the source; the targets are each sentinel followed
    by what it stands for. Both end with eos. Noise tokens and spans are as many as the density and the mean span say,
    rounded; their lengths and places are random. A block begins with a token that stays and ends with a span.

    Raises DataError if a block has more spans than there are sentinels.
    """

    length: int  # tokens of the source
    pad_id: int
    eos_id: int
    sentinel_ids: tuple[int, ...]  # of the first span, the second, ...
    decoder_start_id: int
    noise_density: float = 0.15
    mean_span: float = 3.0

    overlap = 0
    is_random = True

    def __post_init__(self):
        _check_sentinels(self.stride, self.noise_density, self.mean_span, self.sentinel_ids)

    @property
    def stride(self) -> int:
        return span_corruption_lengths(self.length, self.noise_density, self.mean_span)[0]

    @property
    def features(self) -> Features:
        return self._pair.features

    def sizes(self, num_tokens: int) -> dict[str, int]:
        noise, spans = map(int, _num_noise(num_tokens, self.noise_density, self.mean_span))
        return {"source": num_tokens - noise + spans + 1, "inputs": noise + spans + 1}

    def many(self, ids_N: np.ndarray, lengths_P: np.ndarray, random_N: np.ndarray) -> Many:
        noise_P, spans_P = _num_noise(lengths_P, self.noise_density, self.mean_span)
        return _corrupted(ids_N, lengths_P, noise_P, spans_P, random_N, self)

    def __call__(self, piece_ids: np.ndarray, rng: np.random.Generator) -> Example:
        return single(self, piece_ids, rng)

    @cached_property
    def _pair(self) -> Seq2Seq:
        targets = span_corruption_lengths(self.length, self.noise_density, self.mean_span)[1]
        return Seq2Seq(self.length, targets, self.pad_id, self.decoder_start_id)


@dataclass(frozen=True)
class UL2:
    """The mixture of denoisers of UL2 (Tay et al. 2022, section 3.1): piece (N,) -> the features of `Seq2Seq`.

    Each piece gets one of UL2_DENOISERS, all equally likely. R (regular) and X (extreme) corrupt spans as
    `SpanCorruption` does. S (sequential) shows the beginning of the piece and asks for the rest, without sentinels; the
    rest has a random length, uniform around a quarter of the piece. With mode_ids, the source begins with the id of
    r, s or x.

    All have the same shapes: the stride is the longest block that every R and X denoiser can fit into the source, the
    targets are as long as the longest; what another does not need of them is padding.
    """

    length: int  # tokens of the source
    pad_id: int
    eos_id: int
    sentinel_ids: tuple[int, ...]
    decoder_start_id: int
    mode_ids: tuple[int, int, int] | None = None  # of r, s, x

    overlap = 0
    is_random = True

    def __post_init__(self):
        for mode, density, mean_span in UL2_DENOISERS:
            if mode != "s":
                _check_sentinels(self.stride, density, mean_span, self.sentinel_ids)

    @property
    def stride(self) -> int:
        room = self.length - (self.mode_ids is not None)
        return min(span_corruption_lengths(room, density, span)[0] for mode, density, span in UL2_DENOISERS if span)

    @property
    def features(self) -> Features:
        return self._pair.features

    def sizes(self, num_tokens: int) -> dict[str, int]:
        """The most that any denoiser takes."""
        low, high = map(int, self._suffix_range(num_tokens))
        _, densities, mean_spans = zip(*(denoiser for denoiser in UL2_DENOISERS if denoiser[0] != "s"), strict=True)
        noise, spans = _num_noise(num_tokens, np.array(densities), np.array(mean_spans))
        source = max(num_tokens - low, int((num_tokens - noise + spans).max()))
        targets = max(high, int((noise + spans).max()))
        return {"source": source + 1 + (self.mode_ids is not None), "inputs": targets + 1}

    def many(self, ids_N: np.ndarray, lengths_P: np.ndarray, random_N: np.ndarray) -> Many:
        modes, densities, mean_spans = map(np.array, zip(*UL2_DENOISERS, strict=True))
        # The number of the first token is free to draw by: a run begins there in any case.
        turn_P, which_P = np.divmod(random_N[np.cumsum(lengths_P) - lengths_P], np.uint64(len(modes)))
        is_cut_P, (low_P, high_P) = modes[which_P] == "s", self._suffix_range(lengths_P)
        suffix_P = low_P + (turn_P % (high_P - low_P + 1).astype(np.uint64)).astype(np.int64)
        noise_P, spans_P = _num_noise(lengths_P, densities[which_P], np.maximum(mean_spans, 1)[which_P])
        noise_P, spans_P = np.where(is_cut_P, suffix_P, noise_P), np.where(is_cut_P, 1, spans_P)
        ids = None if self.mode_ids is None else np.array([self.mode_ids["rsx".index(mode)] for mode in modes])[which_P]
        return _corrupted(ids_N, lengths_P, noise_P, spans_P, random_N, self, ids, ~is_cut_P)

    def __call__(self, piece_ids: np.ndarray, rng: np.random.Generator) -> Example:
        return single(self, piece_ids, rng)

    @cached_property
    def _pair(self) -> Seq2Seq:
        return Seq2Seq(self.length, self.sizes(self.stride)["inputs"], self.pad_id, self.decoder_start_id)

    def _suffix_range(self, num_tokens: Any) -> tuple[Any, Any]:
        """Fewest and most tokens that S asks for: around a quarter, and what it shows must fit into the source."""
        room = self.length - 1 - (self.mode_ids is not None)
        low = np.maximum(1, num_tokens - room)
        return low, np.maximum(low, 2 * np.rint(num_tokens / 4).astype(np.int64) - low)


def _num_noise(num_tokens: Any, noise_density: Any, mean_span: Any) -> tuple[Any, Any]:
    """Noise tokens and noise spans of blocks: at least one of each, and a token that stays before each span.

    A block of a single token is noise entirely.
    """
    noise = np.maximum(1, np.minimum(np.rint(num_tokens * noise_density), num_tokens - 1)).astype(np.int64)
    return noise, np.maximum(1, np.minimum(np.rint(noise / mean_span), num_tokens - noise)).astype(np.int64)


def _corrupted(
    ids_N: np.ndarray,
    lengths_P: np.ndarray,
    noise_P: np.ndarray,
    spans_P: np.ndarray,
    random_N: np.ndarray,
    objective: "SpanCorruption | UL2",
    modes_P: np.ndarray | None = None,
    has_sentinels_P: np.ndarray | None = None,
) -> Many:
    """Pieces of which noise_P tokens, in spans_P random spans, go from the source to the targets.

    modes_P: ids in front of the sources. A piece without sentinels is cut, not corrupted: it has a single span.
    """
    kept_S, noise_S = _spans(lengths_P - noise_P, noise_P, spans_P, random_N)
    is_noise_N = np.repeat(np.tile([False, True], len(kept_S)), np.stack([kept_S, noise_S], axis=1).ravel())
    piece_S, sentinels_S = np.repeat(np.arange(len(lengths_P)), spans_P), np.array(objective.sentinel_ids)
    marked_S = np.ones(len(kept_S), bool) if has_sentinels_P is None else has_sentinels_P[piece_S]
    marks_P, sentinels_S = np.bincount(piece_S, marked_S).astype(np.int64), sentinels_S[counted(spans_P)[marked_S]]
    # Before the mark of a span stand the tokens up to it, the marks of earlier spans, the ids around earlier pieces.
    ahead_S, has_mode = np.cumsum(marked_S) - marked_S + piece_S, modes_P is not None
    at_source, at_targets = np.cumsum(kept_S) + ahead_S, np.cumsum(noise_S) - noise_S + ahead_S
    source_P, targets_P = lengths_P - noise_P + marks_P + 1 + has_mode, noise_P + marks_P + 1
    ends_P, firsts_P = np.cumsum(source_P) - 1, np.cumsum(targets_P) - targets_P
    around = [(at_source + has_mode * (piece_S + 1))[marked_S], ends_P, *[ends_P - source_P + 1] * has_mode]
    source = _filled(ids_N[~is_noise_N], around, [sentinels_S, objective.eos_id, *[modes_P] * has_mode])
    around = [at_targets[marked_S], firsts_P + targets_P - 1]
    targets = _filled(ids_N[is_noise_N], around, [sentinels_S, objective.eos_id])
    inputs = np.roll(targets, 1)
    inputs[firsts_P] = objective.decoder_start_id
    arrays = {"source": source, "inputs": inputs, "targets": targets, "weights": np.ones(len(targets), np.float32)}
    return Many(arrays, {"source": source_P, "inputs": targets_P})


def _filled(ids_N: np.ndarray, places: Sequence[np.ndarray], others: Sequence[Any]) -> np.ndarray:
    """Other ids at their places in the result, and ids_N, in their order, at those that are left."""
    made = np.empty(len(ids_N) + sum(map(len, places)), np.int32)
    is_left = np.ones(len(made), bool)
    for at, other in zip(places, others, strict=True):
        made[at], is_left[at] = other, False
    made[is_left] = ids_N
    return made


def _spans(
    kept_P: np.ndarray, noise_P: np.ndarray, spans_P: np.ndarray, random_N: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Tokens that stay before each span of each piece, and tokens of the span: every way to cut is equally likely."""
    sizes_G, counts_G = np.stack([kept_P, noise_P], axis=1).ravel(), np.repeat(spans_P, 2)
    numbers_N = random_N.copy()
    numbers_N[(np.cumsum(sizes_G) - sizes_G)[sizes_G > 0]] = 0  # the first always begins a run
    lengths_R = np.zeros(counts_G.sum(), np.int64)  # runs of tokens, those of what stays before those of noise
    begins = np.flatnonzero(choose(numbers_N, sizes_G, counts_G))
    lengths_R[np.repeat(sizes_G > 0, counts_G)] = np.diff(begins, append=len(numbers_N))
    is_noise_R = np.repeat(np.tile([False, True], len(spans_P)), counts_G)
    return lengths_R[~is_noise_R], lengths_R[is_noise_R]


def _check_sentinels(num_tokens: int, noise_density: float, mean_span: float, sentinel_ids: tuple[int, ...]) -> None:
    spans = _num_noise(num_tokens, noise_density, mean_span)[1]
    if spans > len(sentinel_ids):
        raise DataError(
            f"a block of {num_tokens} tokens has {spans} spans (noise_density {noise_density}, mean_span {mean_span}), "
            f"and there are {len(sentinel_ids)} sentinels: use a shorter length, a longer mean_span, or more sentinels"
        )
