"""Sizes of products recur from batch to batch."""

import random

import pytest
from truth import assert_same, gradients_of, make_problem

from nemo_sampled_rnnt import sampled_rnnt_loss
from nemo_sampled_rnnt.loss.candidates import ALIGNMENT, recurring, recurring_below
from nemo_sampled_rnnt.loss.lattice import Lattice
from nemo_sampled_rnnt.loss.tiles import plan_tiles


@pytest.mark.parametrize("size", [1, 7, 8, 9, 63, 64, 65, 511, 513, 1000, 7321, 40_001, 3_000_017])
def test_a_little_more(size):
    assert size <= recurring(size) < size * (1 + 1 / 32) + ALIGNMENT
    assert recurring(size) % ALIGNMENT == 0 and recurring(recurring(size)) == recurring(size)


@pytest.mark.parametrize("size", [8, 9, 63, 64, 65, 511, 513, 1000, 7321, 40_001, 3_000_017])
def test_a_little_less(size):
    assert size * (1 - 1 / 32) - ALIGNMENT < recurring_below(size) <= size
    assert recurring(recurring_below(size)) == recurring_below(size)
    assert recurring_below(5) == 5 and recurring_below(0) == 0


def test_few_sizes():
    assert len({recurring(size) for size in range(5000, 10_000)}) <= 64
    assert [recurring(size) for size in (8191, 8192, 8193)] == [8192, 8192, 8448]


def lattices(count, utterances, frames, labels):
    for number in range(count):
        draw = random.Random(number).randint
        sizes = [(draw(frames // 2, frames), draw(labels // 2, labels)) for _ in range(utterances)]
        yield Lattice(*map(list, zip(*sizes, strict=True)))


@pytest.mark.parametrize("most", [7, 200, 333, 901])
def test_rows_keep_to_the_workspace(most):
    for lattice in lattices(20, 5, 50, 12):
        tiles = [tile for visit in plan_tiles(lattice, 10, 10 * most, recur=True) for tile in visit]
        assert sum(tile.cells for tile in tiles) == lattice.cells
        assert all(tile.cells <= tile.rows <= max(most, tile.cells) for tile in tiles)
        plain = [tile for visit in plan_tiles(lattice, 10, 10 * most) for tile in visit]
        assert all(tile.rows == tile.cells for tile in plain)


def test_no_more_tiles_where_rows_are_few():
    """A million labels: 60 cells a tile. Steps of 8 would cost a row of the lattice each."""
    for lattice in lattices(20, 16, 200, 50):
        for cells in (15, 60, 127, 511):
            plain, recurring_ones = (plan_tiles(lattice, 10, 10 * cells, recur=recur) for recur in (False, True))
            assert plain == recurring_ones


def test_an_utterance_that_fits_is_not_cut():
    lattice = Lattice([300, 1001, 5], [0, 0, 0])
    tiles = plan_tiles(lattice, 10, 10_010, recur=True)
    assert [[(tile.cells, tile.rows) for tile in visit] for visit in tiles] == [[(300, 304)], [(1001, 1001)], [(5, 8)]]


def test_sizes_recur_where_the_budget_differs_from_batch_to_batch():
    met, new = set(), []
    for number, lattice in enumerate(lattices(300, 16, 200, 50)):
        budget = 256 * 2**20 - 40 * lattice.places
        tiles = [tile for visit in plan_tiles(lattice, 6264, budget, recur=True) for tile in visit]
        rows = {tile.rows for tile in tiles}
        assert all(recurring(tile.rows) == tile.rows for tile in tiles)
        if number >= 200:
            new.append(len(rows - met))
        met |= rows
    assert sum(new) <= 20, "of some three hundred products"


def test_a_workspace_of_any_number():
    """Of whole utterances, and of cut ones: 90 cells of 3,000 float64 are 2.1 MiB."""
    problem = make_problem(3, B=1, T=30, U=2, H=5, V=2999, padded=False)
    want = gradients_of(problem, sampled_rnnt_loss, impl="cpu", workspace_mib=256)
    for mib in (1.3, 2.7):
        assert_same(gradients_of(problem, sampled_rnnt_loss, impl="cpu", workspace_mib=mib), want, 1e-10)
