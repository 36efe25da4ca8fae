"""Gradients: finite differences in float64, FastEmit and clamp by their formula, frozen inputs, padding."""

from dataclasses import replace

import pytest
import torch
from truth import (
    ACTIVATIONS,
    IMPLS,
    LEAVES,
    REDUCTIONS,
    SCOPES,
    assert_near,
    assert_same,
    formula,
    gradients_of,
    make_problem,
    reduction_weights,
)

from nemo_sampled_rnnt import sampled_rnnt_loss

pytestmark = pytest.mark.parametrize("impl", IMPLS)


def small(seed=0, **options):
    return make_problem(seed, **{"B": 2, "T": 3, "U": 2, "H": 4, "V": 6, "N": 5, **options})


def check_by_differences(problem, impl, fast=False, **options):
    def loss(*leaves):
        moved = replace(problem, **dict(zip(LEAVES, leaves, strict=True)))
        return moved.call(sampled_rnnt_loss, impl=impl, **options)

    leaves = problem.leaves()
    inputs = [getattr(leaves, name) for name in LEAVES]
    assert torch.autograd.gradcheck(loss, inputs, eps=1e-6, atol=1e-7, rtol=1e-5, fast_mode=fast)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("scope", SCOPES)
def test_finite_differences_every_activation(impl, scope, activation):
    problem = small(scope=scope, correction=scope is not None, fill=0.5)
    check_by_differences(problem, impl, activation=activation)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("scope", SCOPES)
def test_finite_differences_every_reduction(impl, scope, reduction):
    for activation in ACTIVATIONS:
        problem = small(1, B=3, scope=scope, fill=0.5)
        check_by_differences(problem, impl, fast=True, activation=activation, reduction=reduction)


@pytest.mark.parametrize("fastemit_lambda, clamp", [(0.0, -1.0), (0.7, -1.0), (0.0, 0.05), (0.7, 0.05)])
@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_formula(impl, reduction, scope, fastemit_lambda, clamp, fresh_seed):
    problem = make_problem(fresh_seed, B=3, T=6, U=4, H=5, V=11, N=7, scope=scope, correction=scope is not None)
    options = {"activation": "tanh", "fastemit_lambda": fastemit_lambda, "clamp": clamp}
    weights = reduction_weights(problem.target_lengths, reduction)
    if reduction is None:
        upstream = torch.tensor([0.3, -1.7, 2.9], dtype=torch.float64)
        weights = upstream
    else:
        upstream = torch.tensor(2.3, dtype=torch.float64)
        weights = weights * 2.3
    losses, gradients = formula(problem, weights, **options)
    got = gradients_of(problem, sampled_rnnt_loss, impl=impl, reduction=reduction, upstream=upstream, **options)
    want = losses if reduction is None else (losses * weights).sum() / 2.3
    assert_same(got, (want, gradients), 1e-10)


def test_clamp_is_at_unit_scale(impl):
    """The bound holds before the weight of the reduction: `sum` is exactly B times `mean_batch`, clamped or not."""
    problem = small(2, B=3, T=5, U=3)
    for clamp in (-1.0, 0.1):
        total = gradients_of(problem, sampled_rnnt_loss, impl=impl, reduction="sum", clamp=clamp)
        mean = gradients_of(problem, sampled_rnnt_loss, impl=impl, reduction="mean_batch", clamp=clamp)
        for name in LEAVES:
            assert_near(name, mean[1][name] * 3, total[1][name], 1e-12)
    unclamped = gradients_of(problem, sampled_rnnt_loss, impl=impl, reduction="sum")
    assert not torch.allclose(total[1]["bias"], unclamped[1]["bias"])
    assert torch.equal(total[0], unclamped[0])  # the loss itself is not touched


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("reduction", [None, "mean"])
def test_frozen_inputs(impl, reduction, scope):
    problem = small(3, scope=scope, correction=scope is not None)
    want = gradients_of(problem, sampled_rnnt_loss, impl=impl, reduction=reduction)
    for asking in [(name,) for name in LEAVES] + [("encoder", "bias"), ("predictor", "weight"), ("weight", "bias")]:
        frozen = set(LEAVES) - set(asking)
        loss, gradients = gradients_of(problem, sampled_rnnt_loss, frozen, impl=impl, reduction=reduction)
        assert_near("loss", loss, want[0], 1e-12)
        for name in LEAVES:
            if name in frozen:
                assert gradients[name] is None, f"{name} is frozen and got a gradient"
            else:
                assert_near(f"gradient of {name}", gradients[name], want[1][name], 1e-12)


def test_nothing_asks(impl):
    problem = small(4)
    asked = problem.leaves().call(sampled_rnnt_loss, impl=impl)
    assert asked.requires_grad
    frozen = problem.leaves(LEAVES).call(sampled_rnnt_loss, impl=impl)
    assert not frozen.requires_grad
    with torch.no_grad():
        silent = problem.leaves().call(sampled_rnnt_loss, impl=impl)
    assert not silent.requires_grad
    assert_near("frozen", frozen, asked, 1e-12)
    assert_near("no_grad", silent, asked, 1e-12)


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("reduction", [None, "mean_volume"])
def test_padding_and_rows_that_are_no_candidate_get_exactly_zero(impl, reduction, scope):
    problem = make_problem(5, B=3, T=7, U=4, H=5, V=23, N=4, scope=scope)
    _, gradients = gradients_of(problem, sampled_rnnt_loss, impl=impl, reduction=reduction)
    for b in range(3):
        frames, states = int(problem.encoder_lengths[b]), int(problem.target_lengths[b]) + 1
        assert frames < problem.encoder.shape[1] and states < problem.predictor.shape[1]
        assert (gradients["encoder"][b, frames:] == 0).all()
        assert (gradients["predictor"][b, states:] == 0).all()
        assert (gradients["encoder"][b, :frames] != 0).any(-1).all()
        assert (gradients["predictor"][b, :states] != 0).any(-1).all()
    used = set().union(*(problem.candidates(b) for b in range(3)))
    assert scope is None or len(used) < 24
    for k in range(24):
        assert (gradients["bias"][k] != 0) == (k in used), k
        assert (gradients["weight"][k] != 0).any() == (k in used), k


def test_inputs_are_left_as_they_were(impl):
    problem = small(6, scope="batch", correction=True).leaves()
    before = problem.map(lambda x: x.detach().clone())
    problem.call(sampled_rnnt_loss, impl=impl).backward()
    for name, tensor in vars(before).items():
        assert torch.equal(getattr(problem, name).nan_to_num(77), tensor.nan_to_num(77)), name


@pytest.mark.parametrize("scope", SCOPES)
def test_targets_of_the_next_batch(impl, scope):
    """A vector's gradients are computed in backward: what then stands in the caller's buffers is no matter.

    The reference leaves it to autograd, which refuses.
    """
    problem = small(6, scope=scope)
    want = gradients_of(problem, sampled_rnnt_loss, impl=impl, reduction=None)
    leaves = replace(problem.leaves(), targets=problem.targets.clone(), target_lengths=problem.target_lengths.clone())
    loss = leaves.call(sampled_rnnt_loss, impl=impl, reduction=None)
    leaves.targets.zero_()
    leaves.target_lengths.zero_()
    try:
        loss.sum().backward()
    except RuntimeError as error:
        assert impl == "reference" and "inplace" in str(error)
        return
    assert_same((loss, {name: getattr(leaves, name).grad for name in LEAVES}), want, 1e-12)


def test_gradients_add_up(impl):
    """Two calls on the same leaves: the second's gradients are added to the first's."""
    problem = small(7)
    once = gradients_of(problem, sampled_rnnt_loss, impl=impl)[1]
    leaves = problem.leaves()
    for _ in range(2):
        leaves.call(sampled_rnnt_loss, impl=impl).backward()
    both = problem.leaves()
    (both.call(sampled_rnnt_loss, impl=impl) + both.call(sampled_rnnt_loss, impl=impl)).backward()
    for name in LEAVES:
        assert_near(name, getattr(leaves, name).grad, 2 * once[name], 1e-12)
        assert_near(name, getattr(both, name).grad, 2 * once[name], 1e-12)


@pytest.mark.parametrize("reduction", [None, "mean_batch"])
def test_backward_again(impl, reduction):
    """With retain_graph the same gradients come again; without, a second backward is refused."""
    once = gradients_of(small(8), sampled_rnnt_loss, impl=impl, reduction=reduction)[1]
    leaves = small(8).leaves()
    loss = leaves.call(sampled_rnnt_loss, impl=impl, reduction=reduction).sum()
    loss.backward(retain_graph=True)
    loss.backward()
    for name in LEAVES:
        assert_near(name, getattr(leaves, name).grad, 2 * once[name], 1e-12)
    with pytest.raises(RuntimeError, match="retain_graph"):
        loss.backward()


@pytest.mark.parametrize("reduction", [None, "sum"])
@pytest.mark.parametrize("clamp", [-1.0, 0.05])
def test_second_derivatives(impl, clamp, reduction):
    """They are right or refused: a penalty on the gradient may not vanish in silence."""
    problem = small(9)
    if impl == "reference" and clamp <= 0:

        def loss(weight):
            moved = replace(problem, weight=weight)
            return moved.call(sampled_rnnt_loss, impl=impl, activation="tanh", reduction=reduction)

        assert torch.autograd.gradgradcheck(loss, [problem.leaves().weight], atol=1e-6)
        return
    leaves = problem.leaves()
    total = leaves.call(sampled_rnnt_loss, impl=impl, clamp=clamp, reduction=reduction).sum()
    with pytest.raises(RuntimeError, match="create_graph"):
        torch.autograd.grad(total, leaves.weight, create_graph=True)
