"""Dropout: inverted, drawn from torch's generator, independent across utterance, frame, label and unit.

With no label (U = 0) the encoder's gradient is zero exactly where a frame's unit was dropped; with one frame (T = 1)
the predictor's is. That shows the masks, and the truth can then be computed with them.
"""

import math

import pytest
import torch
from truth import IMPLS, LEAVES, assert_near, assert_same, formula, gradients_of, make_problem

from nemo_sampled_rnnt import sampled_rnnt_loss

pytestmark = pytest.mark.parametrize("impl", IMPLS)


def seen(impl, problem, which, dropout, seed, **options):
    """(loss, gradients, kept): `kept` is the (B, ., H) mask that the gradient of `which` shows."""
    torch.manual_seed(seed)
    options = {"activation": "tanh", "reduction": None, **options}
    loss, gradients = gradients_of(problem, sampled_rnnt_loss, impl=impl, dropout=dropout, **options)
    return loss, gradients, gradients[which] != 0


def one_state(B=3, T=29, H=41, **options):
    return make_problem(1, B=B, T=T, U=0, H=H, V=7, padded=False, **options), "encoder"


def one_frame(B=3, U=23, H=41, **options):
    return make_problem(2, B=B, T=1, U=U, H=H, V=7, padded=False, **options), "predictor"


@pytest.mark.parametrize("shape", [one_state, one_frame])
@pytest.mark.parametrize("dropout", [0.1, 0.5, 0.9])
def test_loss_and_gradients_with_the_mask_that_was_drawn(impl, shape, dropout):
    problem, which = shape()
    loss, gradients, kept = seen(impl, problem, which, dropout, seed=3)
    masks = kept.double() / (1 - dropout)
    masks = masks[:, :, None] if which == "encoder" else masks[:, None]
    assert_same((loss, gradients), formula(problem, torch.ones(3), "tanh", masks=masks), 1e-10)


@pytest.mark.parametrize("shape", [one_state, one_frame])
@pytest.mark.parametrize("dropout", [0.1, 0.5, 0.9])
def test_share_that_is_kept(impl, shape, dropout):
    """Within five standard deviations of 1 - p: overall, and in every utterance, cell and unit."""
    problem, which = shape(B=7)
    kept = torch.stack([seen(impl, problem, which, dropout, seed)[2] for seed in range(30)]).double()
    for axes in ((0, 1, 2, 3), (0, 2, 3), (0, 1, 3), (0, 1, 2)):
        share = kept.mean(axes)
        count = kept.numel() / share.numel()
        sigma = math.sqrt(dropout * (1 - dropout) / count)
        assert ((share - (1 - dropout)).abs() < 5 * sigma).all(), f"axes {axes}: {share}"


@pytest.mark.parametrize("shape", [one_state, one_frame])
def test_masks_are_independent(impl, shape):
    """No two utterances, cells, units or seeds share a pattern: neighbours agree on half of the elements at p = 0.5."""
    problem, which = shape(B=7)
    kept = torch.stack([seen(impl, problem, which, 0.5, seed)[2] for seed in range(12)]).double()
    for axis, name in enumerate(("seed", "utterance", "cell", "unit")):
        for step in (1, 2, 3, 4):
            agree = float((kept.roll(step, axis) == kept).double().mean())
            sigma = 0.5 / math.sqrt(kept.numel())
            assert abs(agree - 0.5) < 6 * sigma, f"{name}s {step} apart agree on {agree:.3f}"


def test_generator(impl):
    """Same seed, same loss and gradients; the next call, and another seed, differ."""
    problem = make_problem(3, B=3, T=9, U=4, H=17, V=11, N=5, scope="utterance")
    torch.manual_seed(11)
    first = gradients_of(problem, sampled_rnnt_loss, impl=impl, dropout=0.3)
    second = gradients_of(problem, sampled_rnnt_loss, impl=impl, dropout=0.3)
    torch.manual_seed(11)
    again = gradients_of(problem, sampled_rnnt_loss, impl=impl, dropout=0.3)
    torch.manual_seed(12)
    other = gradients_of(problem, sampled_rnnt_loss, impl=impl, dropout=0.3)
    assert torch.equal(first[0], again[0])
    for name in LEAVES:
        assert_near(name, again[1][name], first[1][name], 1e-12)
    assert len({float(x[0]) for x in (first, second, other)}) == 3
    with torch.no_grad():
        torch.manual_seed(11)
        silent = problem.call(sampled_rnnt_loss, impl=impl, dropout=0.3)
    assert_near("no_grad", silent, first[0], 1e-12)


def test_none_is_none(impl):
    """dropout=0 draws nothing and leaves the generator where it was."""
    problem = make_problem(4)
    torch.manual_seed(1)
    problem.call(sampled_rnnt_loss, impl=impl, dropout=0.0)
    after = torch.rand(2)
    torch.manual_seed(1)
    assert torch.equal(after, torch.rand(2))


def test_average_over_seeds(impl):
    """Small logits make the loss nearly linear in the hidden, so its mean over masks is the loss without dropout."""
    problem = make_problem(5, B=3, T=7, U=3, H=29, V=11, padded=False, scale=0.15)
    plain = float(problem.call(sampled_rnnt_loss, impl=impl))
    torch.manual_seed(0)
    losses = torch.stack([problem.call(sampled_rnnt_loss, impl=impl, dropout=0.2) for _ in range(200)])
    standard_error = float(losses.std()) / math.sqrt(200)
    assert abs(float(losses.mean()) - plain) < 5 * standard_error + 2e-3 * plain
    assert float(losses.std()) > 0
