"""Several sources in one run: which of them example i is drawn from, and how often each is read."""

import math
from collections.abc import Mapping

import numpy as np

from data.config import DataConfig
from data.errors import DataError
from data.order import hashed
from data.rows import Rows

PERIOD = 2**14  # examples in which the parts come exactly as often as their shares say, to the nearest example


def check_stages(config: DataConfig, steps: int) -> None:
    """Raises DataError if a run of `steps` steps ends before the last stage begins."""
    if config.mixture_stages and config.mixture_stages[-1] >= steps:
        raise DataError(
            f"data.mixture_stages {config.mixture_stages}: no step of a run of {steps} is in the last stage: use "
            "fewer stages, or more steps"
        )


class Mixture:
    """Parts, each with a share of the examples; other shares from the steps of `mixture_stages` on.

    The shares are the weights, or where no part has one, the numbers of rows; each to the power of 1 / temperature
    (Conneau et al. 2019, section 3.1), of their sum. They become integers of PERIOD examples by largest remainder, and
    those examples are shuffled once for each stage. A part with weight 0.0 in a stage is not drawn in it.

    Which part example i is of, and how many examples of that part come before it, is looked up, not counted: it depends
    on neither the number of steps nor that of processes.

    Raises DataError for parts that do not fit together, for a stage that begins after the run, for a share of less than
    one example in PERIOD, for a part with a weight of which the run draws nothing, and for one that it would read more
    than `max_epochs` times.
    """

    def __init__(self, parts: Mapping[str, Rows], config: DataConfig, *, global_batch: int, seed: int, steps: int):
        """`parts`: the rows of each of `config.parts`; `steps`: of the whole run, of `global_batch` rows each."""
        if parts.keys() != config.parts.keys():
            raise DataError(f"the mixture is of {', '.join(config.parts)}: the rows are of {', '.join(parts)}")
        self.parts = {name: parts[name] for name in config.parts}
        self.features = _same_features(self.parts)
        self._names = list(self.parts)
        self._global_batch, self._seed, self._steps = global_batch, seed, steps
        self._limits = [config.parts[name].max_epochs for name in self._names]
        self._by_rows = not any(config.parts[name].weight for name in self._names)
        self._weights, self._temperature = _weights(config, self.parts), config.mixture_temperature
        self._first_steps = (0, *config.mixture_stages)
        check_stages(config, steps)
        self._shares = [_shares(weights_K, self._temperature) for weights_K in self._weights]
        self._stages: list[_Stage] = []
        for number, (step, share_K) in enumerate(zip(self._first_steps, self._shares, strict=True)):
            first = step * global_batch
            before_K = self._stages[-1].before(first) if number else np.zeros(len(self._names), np.int64)
            counts_K = _counts(share_K, self._names, step)
            self._stages.append(_Stage(first, before_K, counts_K, hashed(f"mixture {seed} {number}", 8)))
        self._firsts = np.array([stage.first for stage in self._stages])
        self._check_drawn()
        self._check_epochs()

    def locate(self, indices_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """For each example of the run its part, by number, and how many examples of the part come before it."""
        indices_N = np.asarray(indices_N, np.int64)
        stage_N = np.searchsorted(self._firsts, indices_N, "right") - 1
        part_N, number_N = np.empty_like(indices_N), np.empty_like(indices_N)
        for stage in np.unique(stage_N).tolist():
            at = stage_N == stage
            part_N[at], number_N[at] = self._stages[stage].locate(indices_N[at])
        return part_N, number_N

    def examples(self, step: int) -> dict[str, int]:
        """Examples of each part that the batches before `step` hold."""
        return dict(zip(self._names, self._before(step * self._global_batch).tolist(), strict=True))

    def epochs(self, step: int) -> dict[str, float]:
        """The same in epochs: examples over rows."""
        return {name: count / len(self.parts[name]) for name, count in self.examples(step).items()}

    def table(self) -> str:
        """What each part is asked for and what this run draws of it, in the stages and in all: lines of text."""
        lines = [f"{'part':<16} {'rows':>12} {'asked':>16} {'drawn':>16} {'examples':>14} {'epochs':>8}"]
        counts, epochs = self.examples(self._steps), self.epochs(self._steps)
        before = [self._before(step * self._global_batch) for step in (*self._first_steps, self._steps)]
        drawn_SK = np.diff(before, axis=0)
        drawn_SK = drawn_SK / drawn_SK.sum(axis=1, keepdims=True)
        for part, name in enumerate(self._names):
            asked = " ".join(f"{100 * share_K[part]:.2f}%" for share_K in self._shares)
            drawn = " ".join(f"{100 * share:.2f}%" for share in drawn_SK[:, part])
            rows = len(self.parts[name])
            lines.append(f"{name:<16} {rows:>12,} {asked:>16} {drawn:>16} {counts[name]:>14,} {epochs[name]:>8.2f}")
        if len(self._stages) > 1:
            lines.append(f"stages from steps {', '.join(map(str, self._first_steps))} of {self._steps}")
        return "\n".join(lines)

    def check_batch(self, global_batch: int, seed: int) -> None:
        """Raises DataError for a loader of another batch or seed: its stages would begin elsewhere."""
        if (global_batch, seed) != (self._global_batch, self._seed):
            raise DataError(
                f"the mixture was made for global_batch {self._global_batch} and seed {self._seed}: the loader has "
                f"{global_batch} and {seed}"
            )

    def _before(self, index: int) -> np.ndarray:
        """Examples of each part before example `index`, (parts,)."""
        stage = int(np.searchsorted(self._firsts, index, "right")) - 1
        return self._stages[stage].before(index)

    def _check_drawn(self) -> None:
        examples = self.examples(self._steps)
        for part, name in enumerate(self._names):
            most = max(share_K[part] for share_K in self._shares)
            if most > 0 and not examples[name]:
                raise DataError(
                    f"data.mixture.{name}: its share is {100 * most:.2g} % at most, and none of the "
                    f"{self._steps * self._global_batch} examples of {self._steps} steps is drawn from it: give it "
                    "more weight, train for more steps, or leave it out (a weight of 0.0)"
                )

    def _check_epochs(self) -> None:
        examples = self.examples(self._steps)
        for part, name in enumerate(self._names):
            limit, rows = self._limits[part], len(self.parts[name])
            epochs = examples[name] / rows
            if epochs <= limit:
                continue
            weight = self._fitting_weight(part, math.floor(limit * rows))
            ways = [f"max_epochs={math.ceil(100 * epochs) / 100:.2f}", *[f"weight=({weight:g},)"] * (weight > 0)]
            raise DataError(
                f"data.mixture.{name}: {self._steps} steps of {self._global_batch} read {examples[name]} examples of "
                f"its {rows} rows: {epochs:.2f} epochs, more than max_epochs {limit:g}. Use {' or '.join(ways)}, fewer "
                "steps, or more text"
            )

    def _fitting_weight(self, part: int, room: int) -> float:
        """A weight of three digits with which the run reads at most `room` examples of a part.

        0 where there is none, where weights change in stages, and where no part has one.
        """
        total = self._steps * self._global_batch
        if len(self._stages) > 1 or self._by_rows or room < 1:
            return 0.0
        weights_K, share = self._weights[0].copy(), room / total
        rest = (np.delete(weights_K, part) ** (1 / self._temperature)).sum()
        weight = (share / (1 - share) * rest) ** self._temperature
        for _ in range(100):  # down until also the rounded numbers fit
            if weight <= 0:
                break
            digit = 10.0 ** (math.floor(math.log10(weight)) - 2)
            weights_K[part] = weight = math.floor(weight / digit) * digit
            counts_K = _rounded(_shares(weights_K, self._temperature))
            stage = _Stage(0, np.zeros_like(counts_K), counts_K, self._stages[0].seed)
            if 0 < stage.before(total)[part] <= room:
                return float(weight)
            weight *= 0.99
        return 0.0


class _Stage:
    """Examples from `first` on, of which a shuffled PERIOD is repeated; `before_K` of each part come before."""

    def __init__(self, first: int, before_K: np.ndarray, counts_K: np.ndarray, seed: int):
        self.first, self.before_K, self.counts_K, self.seed = first, before_K, counts_K, seed
        self._part_P = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts_K)), counts_K))
        self._rank_P = np.empty(PERIOD, np.int64)  # how many of the same part come before, in the period
        self._places = [np.flatnonzero(self._part_P == part) for part in range(len(counts_K))]
        for places in self._places:
            self._rank_P[places] = np.arange(len(places))

    def locate(self, indices_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        period_N, place_N = np.divmod(indices_N - self.first, PERIOD)
        part_N = self._part_P[place_N]
        return part_N, self.before_K[part_N] + period_N * self.counts_K[part_N] + self._rank_P[place_N]

    def before(self, index: int) -> np.ndarray:
        period, place = divmod(index - self.first, PERIOD)
        in_period_K = np.array([np.searchsorted(places, place) for places in self._places])
        return self.before_K + period * self.counts_K + in_period_K


def _same_features(parts: Mapping[str, Rows]) -> dict:
    """Raises DataError where parts have other arrays than the first."""
    first, *others = parts
    for name in others:
        if parts[name].features != parts[first].features:
            raise DataError(
                f"the parts of a mixture share their batches: {first} has {parts[first].features}, {name} has "
                f"{parts[name].features}"
            )
    return parts[first].features


def _weights(config: DataConfig, parts: Mapping[str, Rows]) -> list[np.ndarray]:
    """The weight of each part in each stage."""
    given = [config.parts[name].weight for name in parts]
    if not all(given):
        return [np.array([len(rows) for rows in parts.values()], np.float64)]
    stages = range(1 + len(config.mixture_stages))
    return [np.array([w[stage if len(w) > 1 else 0] for w in given], np.float64) for stage in stages]


def _shares(weights_K: np.ndarray, temperature: float) -> np.ndarray:
    raised_K = (weights_K / weights_K.max()) ** (1 / temperature)
    return raised_K / raised_K.sum()


def _rounded(share_K: np.ndarray) -> np.ndarray:
    """Integers that add up to PERIOD, by largest remainder."""
    counts_K = np.floor(share_K * PERIOD).astype(np.int64)
    largest = np.argsort(counts_K - share_K * PERIOD, kind="stable")[: PERIOD - counts_K.sum()]
    counts_K[largest] += 1
    return counts_K


def _counts(share_K: np.ndarray, names: list[str], step: int) -> np.ndarray:
    counts_K = _rounded(share_K)
    if (lost := np.flatnonzero((counts_K == 0) & (share_K > 0))).size:
        name, share = names[lost[0]], share_K[lost[0]]
        raise DataError(
            f"data.mixture.{name}: its share of {share:.2e} from step {step} on is less than 1 of {PERIOD} examples "
            f"({1 / PERIOD:.2e}): give it more weight, raise mixture_temperature, or leave it out (a weight of 0.0)"
        )
    return counts_K
