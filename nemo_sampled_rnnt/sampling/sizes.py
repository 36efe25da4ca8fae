"""How many negatives: a count, a fraction of the vocabulary, or a schedule of them by optimizer step."""

import math
from collections.abc import Mapping
from numbers import Integral, Real

Size = int | float


def is_a(kind, value) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)  # True is an int to Python, not to a config


def wrong(key: str, value, expected: str) -> ValueError:
    return ValueError(f"sampled_softmax.{key}: expected {expected}, got {value!r} ({type(value).__name__})")


def sample_size(value, key: str = "n_samples") -> Size:
    """An int >= 1 (512.0 from YAML counts as 512) or a float in (0, 1)."""
    if is_a(Integral, value) and value >= 1:
        return int(value)
    if is_a(Real, value) and 0 < value < 1:
        return float(value)
    if is_a(Real, value) and not isinstance(value, Integral):
        if value == 1:
            raise ValueError(
                f"sampled_softmax.{key}: {value!r} could mean one label or the whole vocabulary; write "
                "n_samples: 1 for one label, a fraction below 1, or the vocabulary size for every label"
            )
        if value > 1 and float(value).is_integer():
            return int(value)
    expected = "an integer of at least 1, or a fraction of the vocabulary between 0 and 1"
    raise wrong(key, value, expected + (", or auto, or a schedule {step: size}" if key == "n_samples" else ""))


def size_of(size: Size, vocab_size: int) -> int:
    """Labels to draw from a vocabulary of `vocab_size`: from 1 to `vocab_size`."""
    if isinstance(size, float):
        # 0.07 * 100 is 7.000000000000001 in floating point, and is meant to be 7
        return max(1, math.ceil(size * vocab_size - 1e-6))
    return min(size, vocab_size)


def check_schedule(schedule: Mapping, full_after: int | None) -> dict[int, Size]:
    """A schedule {step: size}, which goes forward only: steps ascend from 0, and sizes do not shrink.

    Raises: ValueError: it does not; or `full_after` comes before its last step; or counts stand beside fractions.
    """
    steps = list(schedule)
    for step in steps:
        if not is_a(Integral, step) or step < 0:
            raise wrong("n_samples", step, "a schedule {step: size} whose steps are integers of at least 0")
    if not steps or steps[0] != 0:
        raise wrong("n_samples", dict(schedule), "a schedule {step: size} that begins at step 0")
    sizes = [sample_size(size, f"n_samples[{step}]") for step, size in schedule.items()]
    if len({type(size) for size in sizes}) > 1:
        raise wrong("n_samples", dict(schedule), "a schedule of counts, or of fractions of the vocabulary, not of both")
    for (step, size), (later, next_size) in zip(
        zip(steps, sizes, strict=True), zip(steps[1:], sizes[1:], strict=True), strict=False
    ):
        if later <= step or next_size < size:
            raise ValueError(
                f"sampled_softmax.n_samples: the schedule goes backwards from {step}: {size} to {later}: {next_size}; "
                "steps must ascend, and sizes may stay or grow (few first, more later)"
            )
    if full_after is not None and full_after <= steps[-1]:
        raise ValueError(
            f"sampled_softmax.full_after: the schedule goes backwards: training is exact from step {full_after} on, "
            f"but n_samples has a size for step {steps[-1]}; let full_after be more than that, or drop the later sizes"
        )
    return {int(step): size for step, size in zip(steps, sizes, strict=True)}


def size_at(schedule: dict[int, Size], step: int, vocab_size: int) -> int:
    """Labels to draw at an optimizer step."""
    return size_of([size for start, size in schedule.items() if start <= step][-1], vocab_size)
