"""The tables of docs/accuracy.md from the results, with confidence intervals by bootstrap.

An interval says how much the number hangs on the seeds and on the held-out utterances that happened to be taken. Each
resample draws utterances and seeds with replacement, the same for all settings; a setting is compared with the
baseline's runs of its own seeds, which had the same data in the same order (with all of them where it shares none):

    rate = sum over drawn seeds and utterances of errors / (seeds x sum over drawn utterances of units)
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import numpy as np
from results import Results

RESAMPLES = 5000
BASELINE = "exact"
HEADER = ["setting", "seeds", "step", "error rate, %", "95 % interval", "against {}, %", "95 % interval", "GPU minutes",
          "peak, GiB", "coverage"]  # fmt: skip


def table(
    results: Results, corpus: str, baseline: str = BASELINE, minutes_of: str | None = None, step: int | None = None
) -> Iterable[str]:
    """Lines of a Markdown table, a setting each.

    Args:
        results: of any number of corpora.
        corpus: the one to show.
        baseline: setting that the others are compared with.
        minutes_of: None shows each run's last evaluation; a setting, the last one before the minute at which the
            runs of that setting are complete.
        step: None, or the evaluation to show, and only the runs that have it; not with `minutes_of`.
    Raises:
        ValueError: no rows of the corpus, of the baseline or of `minutes_of`, none at that step; or both of the latter.
    """
    if step is not None and minutes_of is not None:
        raise ValueError(f"compare at a step or a setting's minutes, not both: got {step} and {minutes_of}")
    rows_of = defaultdict(dict)
    for key, row in results.rows.items():
        if key[0] == corpus and (step is None or int(key[3]) == step):
            rows_of[key[1]][key] = row
    for setting in filter(None, (baseline, minutes_of)):
        if setting not in rows_of:
            at = "" if step is None else f" after {step} steps"
            raise ValueError(f"{results.path} holds no row of {setting} on {corpus}{at}: run it first")
    limit = np.inf
    if minutes_of is not None:
        limit = max(_minutes(row) for row in _last(rows_of[minutes_of], np.inf).values())
    reference = _last(rows_of[baseline], limit)
    if not reference:
        raise ValueError(f"{results.path} holds no row of {baseline} on {corpus} in the first {limit:.3g} GPU minutes")
    draws = _Draws(results.units[corpus])
    header = [name.format(baseline) for name in HEADER]
    yield "| " + " | ".join(header) + " |"
    yield "|" + "---|" * len(header)
    for setting, all_rows in rows_of.items():
        if rows := _last(all_rows, limit):
            cells = [setting, str(len(rows)), _steps(rows), *_rates(results, draws, rows, reference)]
            cells += [_mean(rows, name) for name in ("gpu_minutes", "peak_gib", "coverage")]
            yield "| " + " | ".join(cells) + " |"


def _last(rows: dict[tuple, dict], limit: float) -> dict[tuple, dict]:
    """Key -> row, the last within so many minutes of each seed of a setting."""
    last: dict[str, tuple] = {}
    for key, row in rows.items():
        if _minutes(row) <= limit:
            last[key[2]] = max(key, last.get(key[2], key), key=lambda key: int(key[3]))
    return {key: rows[key] for key in last.values()}


def _minutes(row: dict) -> float:
    return float(row["gpu_minutes"])


def _steps(rows: dict[tuple, dict]) -> str:
    return " ".join(sorted({key[3] for key in rows}, key=int))


def _mean(rows: dict[tuple, dict], column: str) -> str:
    values = [float(row[column]) for row in rows.values() if row[column]]
    return f"{np.mean(values):.3g}" if values else "-"


def _rates(results: Results, draws: _Draws, rows: dict, reference: dict) -> list[str]:
    """Rate and interval, difference from the reference relative to it and interval; in per cent."""
    seeds = {key[2] for key in rows}
    paired = [key for key in reference if key[2] in seeds] or list(reference)
    mine, theirs = (np.stack([results.errors[key] for key in keys]).astype(float) for keys in (rows, paired))
    rate, against = draws.rate(mine), draws.rate(theirs)
    resampled = draws.resampled(mine)
    cells = [f"{100 * rate:.2f}", _interval(resampled)]
    if rows.keys() == reference.keys():
        return [*cells, "", ""]
    return [*cells, f"{100 * (rate / against - 1):+.1f}", _interval(resampled / draws.resampled(theirs) - 1, "+")]


def _interval(values: np.ndarray, sign: str = "") -> str:
    low, high = 100 * np.percentile(values, [2.5, 97.5])
    return f"{low:{sign}.2f} to {high:{sign}.2f}"


class _Draws:
    """Utterances drawn with replacement, the same for all settings.

    Args:
        units: (N,) words or characters of the utterances.
    """

    def __init__(self, units: np.ndarray):
        self.units = units.astype(float)
        random = np.random.default_rng(0)
        share = np.full(len(units), 1 / len(units))
        self.times = random.multinomial(len(units), share, RESAMPLES).astype(float)  # (R, N) each utterance is drawn

    def rate(self, errors: np.ndarray) -> float:
        """Of all utterances and all seeds; errors (S, N)."""
        return errors.mean(axis=0).sum() / self.units.sum()

    def resampled(self, errors: np.ndarray) -> np.ndarray:
        """(R,) rates."""
        seeds = np.random.default_rng(1).integers(len(errors), size=(RESAMPLES, len(errors)))
        of_seeds = self.times @ errors.T / (self.times @ self.units)[:, None]  # (R, S)
        return np.take_along_axis(of_seeds, seeds, axis=1).mean(axis=1)
