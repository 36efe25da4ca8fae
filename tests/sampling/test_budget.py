"""Sizes under a budget: never more logits than it allows, all that it allows, and in the proportions asked for."""

import pytest
import torch

from nemo_sampled_rnnt.sampling.budget import allot, merit, widest


def water_level(budget, cells, merits, least, most):
    """The largest level by bisection, in plain Python."""

    def sizes(level):
        return [min(max(level * r, a), b) for r, a, b in zip(merits, least, most, strict=True)]

    low, high = 0.0, 1e12
    for _ in range(300):
        middle = (low + high) / 2
        fits = sum(n * s for n, s in zip(cells, sizes(middle), strict=True)) <= budget
        low, high = (middle, high) if fits else (low, middle)
    return sizes(low)


def problem(seed, sets):
    random = torch.Generator().manual_seed(seed)
    frames, labels = (torch.randint(1, n, (sets,), generator=random) for n in (211, 53))
    least = labels + 3
    most = least + torch.randint(0, 3001, (sets,), generator=random)
    return frames * (labels + 1), merit(frames, labels), least, most


@pytest.mark.parametrize("sets", [1, 2, 7, 64])
@pytest.mark.parametrize("seed", range(25))
def test_is_the_water_level(seed, sets):
    cells, merits, least, most = problem(seed, sets)
    lowest, highest = int((cells * least).sum()), int((cells * most).sum())
    share = torch.rand((), generator=torch.Generator().manual_seed(seed + 1000)).item()
    budget = int(lowest + share * (highest - lowest))
    sizes = allot(budget, cells, merits, least, most)
    assert sizes.dtype == torch.int64
    assert (sizes >= least).all() and (sizes <= most).all()
    used = int((cells * sizes).sum())
    assert budget - int(cells.sum()) <= used <= budget, "all of it, but for what rounding down leaves"
    expected = water_level(budget, cells.tolist(), merits.tolist(), least.tolist(), most.tolist())
    assert (sizes - torch.tensor(expected, dtype=torch.float64).floor()).abs().max() <= 1


def test_at_the_ends():
    cells, merits, least, most = problem(3, 7)
    lowest, highest = int((cells * least).sum()), int((cells * most).sum())
    assert torch.equal(allot(lowest, cells, merits, least, most), least)
    assert torch.equal(allot(lowest - 1, cells, merits, least, most), least), "too small: the caller refuses it"
    assert torch.equal(allot(1, cells, merits, least, most), least)
    assert torch.equal(allot(highest, cells, merits, least, most), most)
    assert torch.equal(allot(10 * highest, cells, merits, least, most), most)
    assert torch.equal(allot(highest, cells, merits, most, most), most), "nothing to choose"


def test_short_utterances_get_more():
    frames, labels = torch.tensor([40, 80, 160]), torch.tensor([10, 20, 40])
    cells = frames * (labels + 1)
    one = torch.ones(3, dtype=torch.int64)
    sizes = allot(3_000_000, cells, merit(frames, labels), one, 10_000 * one)
    assert sizes[0] > sizes[1] > sizes[2]
    path = (frames + labels).double()
    variance = (path / sizes).sum()
    for other in ([1, 0, -1], [-1, 1, 0], [0, -1, 1]):
        moved = sizes + 60_000 * torch.tensor(other) / cells  # the same work
        assert (path / moved).sum() > variance, "the sum of (T + U) / S is the least for this budget"


@pytest.mark.parametrize(
    ("max_logits", "padded_cells", "width"), [(1_000_000, 10_000, 400), (10, 10_000, 2), (10**9, 10_000, 5000)]
)
def test_width_of_the_draw(max_logits, padded_cells, width):
    assert widest(max_logits, padded_cells, vocab_size=5000) == width
