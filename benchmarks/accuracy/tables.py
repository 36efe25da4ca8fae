"""The tables of docs/accuracy.md from the results, with two kinds of confidence interval.

Of utterances: how much a number hangs on the held-out utterances that happened to be taken. Each resample draws them
with replacement, the same for all settings, and keeps the runs:

    rate = sum over drawn utterances of errors, averaged over the runs / sum over drawn utterances of units

Of runs: how much the difference of two settings hangs on the runs that happened to be made, by Welch's t on the
logarithms of the runs' rates. Runs are independent of each other: those of one seed share data and parameters at the
start, and differ as much as others do. With three runs a setting it is wide.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from functools import cached_property

import numpy as np
from results import Results
from scipy.stats import ttest_ind
from settings import SETTINGS

RESAMPLES = 5000
BASELINE = "exact"
HEADER = ["setting", "runs", "step", "error rate, %", "95 % interval, utterances", "against {}, %",
          "95 % interval, utterances", "95 % interval, runs", "GPU minutes", "peak, GiB", "coverage"]  # fmt: skip


def table(
    results: Results, corpus: str, baseline: str = BASELINE, minutes_of: str | None = None, step: int | None = None,
    without: Iterable[str] = (),
) -> Iterable[str]:  # fmt: skip
    """Lines of a Markdown table, a setting each.

    Args:
        results: of any number of corpora.
        corpus: the one to show.
        baseline: setting that the others are compared with.
        minutes_of: None shows each run's last evaluation; a setting, the last one before the minute at which the
            runs of that setting are complete, and only of settings that are compared in equal time.
        step: None, or the evaluation to show, and only the runs that have it; not with `minutes_of`.
        without: speakers whose utterances are left out.
    Raises:
        ValueError: no rows of the corpus, of the baseline or of `minutes_of`, none at that step; both of the latter;
            or a speaker that the held-out set does not know.
    """
    if step is not None and minutes_of is not None:
        raise ValueError(f"compare at a step or a setting's minutes, not both: got {step} and {minutes_of}")
    rows_of = _rows_of(results, corpus, step)
    if minutes_of is not None:
        timed = {name for name, setting in SETTINGS.items() if setting.equal_time} | {minutes_of, baseline}
        rows_of = {setting: rows for setting, rows in rows_of.items() if setting in timed}
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
    draws = _Draws(results, corpus, without)
    header = [name.format(baseline) for name in HEADER]
    yield from heading(header)
    for setting, all_rows in rows_of.items():
        if rows := _last(all_rows, limit):
            cells = [setting, str(len(rows)), _steps(rows), *_rates(draws, rows, reference)]
            cells += [_mean(rows, name) for name in ("gpu_minutes", "peak_gib", "coverage")]
            yield line(cells)


def speakers_table(results: Results, corpus: str, step: int | None = None) -> Iterable[str]:
    """Lines of a Markdown table, a setting each: its runs' mean error rate in %, by held-out speaker.

    Args and raises: as `table`.
    """
    rows_of = _rows_of(results, corpus, step)
    if not rows_of:
        raise ValueError(f"{results.path} holds no row of {corpus}" + ("" if step is None else f" after {step} steps"))
    speakers = sorted(set(results.speakers[corpus]))
    yield from heading(["setting", *speakers])
    only = [_Draws(results, corpus, [other for other in speakers if other != speaker]) for speaker in speakers]
    for setting, all_rows in rows_of.items():
        rates = [f"{100 * draws.rates(_last(all_rows, np.inf)).mean():.1f}" for draws in only]
        yield line([setting, *rates])


def line(cells: Iterable[str]) -> str:
    """Of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def heading(names: list[str]) -> list[str]:
    """The first two lines of a Markdown table."""
    return [line(names), "|" + "---|" * len(names)]


def _rows_of(results: Results, corpus: str, step: int | None) -> dict[str, dict[tuple, dict]]:
    """Setting -> key -> row."""
    rows_of = defaultdict(dict)
    for key, row in results.rows.items():
        if key[0] == corpus and (step is None or int(key[3]) == step):
            rows_of[key[1]][key] = row
    return dict(rows_of)


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


def _rates(draws: _Draws, rows: dict, reference: dict) -> list[str]:
    """Rate and interval, difference from the reference relative to it and its two intervals; in per cent."""
    mine, theirs = draws.rates(rows), draws.rates(reference)
    resampled = draws.resampled(rows)
    cells = [f"{100 * mine.mean():.2f}", _interval(*np.percentile(resampled, [2.5, 97.5]))]
    if rows.keys() == reference.keys():
        return [*cells, "", "", ""]
    ratios = resampled / draws.resampled(reference)
    cells += [f"{100 * (mine.mean() / theirs.mean() - 1):+.1f}"]
    return [*cells, _interval(*np.percentile(ratios, [2.5, 97.5]) - 1, "+"), _of_runs(mine, theirs)]


def _of_runs(mine: np.ndarray, theirs: np.ndarray) -> str:
    """Of the relative difference; "-" where a setting has one run."""
    if min(len(mine), len(theirs)) < 2:
        return "-"
    interval = ttest_ind(np.log(mine), np.log(theirs), equal_var=False).confidence_interval()
    return _interval(np.exp(interval.low) - 1, np.exp(interval.high) - 1, "+")


def _interval(low: float, high: float, sign: str = "") -> str:
    return f"{100 * low:{sign}.1f} to {100 * high:{sign}.1f}"


class _Draws:
    """Utterances drawn with replacement, the same for all settings.

    Args:
        results: with the errors.
        corpus: whose utterances.
        without: speakers whose utterances are left out.
    """

    def __init__(self, results: Results, corpus: str, without: Iterable[str]):
        speakers = results.speakers[corpus]
        if unknown := set(without) - set(speakers):
            raise ValueError(
                f"expected speakers of {corpus}, {', '.join(sorted(set(speakers)))}; got {', '.join(sorted(unknown))}"
            )
        self._results, self._kept = results, ~np.isin(speakers, list(without))
        self._units = results.units[corpus][self._kept].astype(float)

    @cached_property
    def _times(self) -> np.ndarray:
        """(R, N) that each utterance is drawn."""
        count = len(self._units)
        return np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), RESAMPLES).astype(float)

    def _errors(self, keys: Iterable[tuple]) -> np.ndarray:
        """(S, N) of runs and utterances."""
        return np.stack([self._results.errors[key][self._kept] for key in keys]).astype(float)

    def rates(self, keys: Iterable[tuple]) -> np.ndarray:
        """(S,) of each run."""
        return self._errors(keys).sum(axis=1) / self._units.sum()

    def resampled(self, keys: Iterable[tuple]) -> np.ndarray:
        """(R,) means over the runs."""
        return self._times @ self._errors(keys).mean(axis=0) / (self._times @ self._units)
