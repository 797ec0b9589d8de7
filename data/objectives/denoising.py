"""Denoising for encoder-decoders: the span corruption of T5, and the mixture of denoisers of UL2."""

from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

from data.errors import DataError
from data.objectives.examples import Example, Features
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
        noise, spans = _num_noise(raw, noise_density, mean_span)
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

    def __post_init__(self):
        _check_sentinels(self.stride, self.noise_density, self.mean_span, self.sentinel_ids)

    @property
    def stride(self) -> int:
        return span_corruption_lengths(self.length, self.noise_density, self.mean_span)[0]

    @property
    def features(self) -> Features:
        return self._pair.features

    def sizes(self, num_tokens: int) -> dict[str, int]:
        noise, spans = _num_noise(num_tokens, self.noise_density, self.mean_span)
        return {"source": num_tokens - noise + spans + 1, "inputs": noise + spans + 1}

    def __call__(self, piece_ids: np.ndarray, rng: np.random.Generator) -> Example:
        ids = np.asarray(piece_ids, np.int32)
        source, targets = _corrupt(ids, self.noise_density, self.mean_span, self.sentinel_ids, rng)
        return self._pair(np.append(source, self.eos_id), np.append(targets, self.eos_id))

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
        low, high = self._suffix_range(num_tokens)
        counts = [_num_noise(num_tokens, density, span) for _, density, span in UL2_DENOISERS if span]
        source = max(num_tokens - low, *(num_tokens - noise + spans for noise, spans in counts))
        targets = max(high, *(noise + spans for noise, spans in counts))
        return {"source": source + 1 + (self.mode_ids is not None), "inputs": targets + 1}

    def __call__(self, piece_ids: np.ndarray, rng: np.random.Generator) -> Example:
        ids = np.asarray(piece_ids, np.int32)
        mode, density, mean_span = UL2_DENOISERS[rng.integers(len(UL2_DENOISERS))]
        if mode == "s":
            low, high = self._suffix_range(len(ids))
            cut = len(ids) - int(rng.integers(low, high + 1))
            source, targets = ids[:cut], ids[cut:]
        else:
            source, targets = _corrupt(ids, density, mean_span, self.sentinel_ids, rng)
        first = [] if self.mode_ids is None else [self.mode_ids["rsx".index(mode)]]
        return self._pair(np.concatenate([first, source, [self.eos_id]]), np.append(targets, self.eos_id))

    @cached_property
    def _pair(self) -> Seq2Seq:
        return Seq2Seq(self.length, self.sizes(self.stride)["inputs"], self.pad_id, self.decoder_start_id)

    def _suffix_range(self, num_tokens: int) -> tuple[int, int]:
        """Fewest and most tokens that S asks for: around a quarter, and what it shows must fit into the source."""
        room = self.length - 1 - (self.mode_ids is not None)
        low = max(1, num_tokens - room)
        return low, max(low, 2 * round(num_tokens / 4) - low)


def _num_noise(num_tokens: int, noise_density: float, mean_span: float) -> tuple[int, int]:
    """Noise tokens and noise spans of a block: at least one of each, and a token that stays before each span.

    A block of a single token is noise entirely.
    """
    noise = max(1, min(round(num_tokens * noise_density), num_tokens - 1))
    return noise, max(1, min(round(noise / mean_span), num_tokens - noise))


def _corrupt(
    ids: np.ndarray, noise_density: float, mean_span: float, sentinel_ids: tuple[int, ...], rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Block -> source and targets, before eos."""
    noise, spans = _num_noise(len(ids), noise_density, mean_span)
    kept_lengths, noise_lengths = _segment(len(ids) - noise, spans, rng), _segment(noise, spans, rng)
    is_noise = np.repeat(np.tile([False, True], spans), np.stack([kept_lengths, noise_lengths], axis=1).ravel())
    sentinels = sentinel_ids[:spans]
    source = np.insert(ids[~is_noise], np.cumsum(kept_lengths), sentinels)
    targets = np.insert(ids[is_noise], np.cumsum(noise_lengths) - noise_lengths, sentinels)
    return source, targets


def _segment(num_items: int, num_segments: int, rng: np.random.Generator) -> np.ndarray:
    """Random lengths, 1 or more, that add up to num_items: every way to cut is equally likely. (0, 1) -> [0]."""
    cuts = np.sort(rng.choice(max(num_items - 1, 0), num_segments - 1, replace=False, shuffle=False)) + 1
    return np.diff(cuts, prepend=0, append=num_items)


def _check_sentinels(num_tokens: int, noise_density: float, mean_span: float, sentinel_ids: tuple[int, ...]) -> None:
    spans = _num_noise(num_tokens, noise_density, mean_span)[1]
    if spans > len(sentinel_ids):
        raise DataError(
            f"a block of {num_tokens} tokens has {spans} spans (noise_density {noise_density}, mean_span {mean_span}), "
            f"and there are {len(sentinel_ids)} sentinels: use a shorter length, a longer mean_span, or more sentinels"
        )
