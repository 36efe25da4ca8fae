"""The TDT loss on the CPU: against every path, engine against reference, and what belongs to TDT alone."""

import logging
import re
from dataclasses import replace

import pytest
import torch
from precision import judge, mixed
from tdt_truth import DOUBLING, DURATIONS, USUAL, make_tdt_problem, tdt_formula
from truth import (
    ACTIVATIONS,
    IMPLS,
    LEAVES,
    OPTIONS,
    REDUCTIONS,
    SCOPES,
    assert_near,
    assert_same,
    gradients_of,
    reduction_weights,
)

from nemo_sampled_rnnt import sampled_rnnt_loss

both = pytest.mark.parametrize("impl", IMPLS)
TINY = {
    USUAL: {"T": 5, "U": 3},
    DOUBLING: {"T": 9, "U": 2},
    (0, 2, 4, 8): {"T": 10, "U": 2},  # even lengths: to odd ones there is no path
    (1, 2, 5): {"T": 6, "U": 3},  # a label cannot stay
    (3,): {"T": 9, "U": 2},
}
UPSTREAM = torch.tensor([0.3, -1.7, 2.9])


def tiny(durations, seed, padded=True, **options):
    """Three utterances; padded, all of even length or a multiple of three where the durations ask for it."""
    sizes = {"B": 3, "H": 5, "V": 7, "N": 6, **TINY[durations]}
    problem = make_tdt_problem(seed, durations, padded=padded, **sizes, **options)
    step = {(0, 2, 4, 8): 2, (3,): 3}.get(durations, 1)
    return replace(problem, encoder_lengths=torch.clamp(problem.encoder_lengths // step * step, min=step))


# --- right ------------------------------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("durations", TINY, ids=str)
def test_every_path(impl, durations, scope, padded, fresh_seed):
    for i, (sigma, activation) in enumerate(zip((0.0, 0.05, 0.05), ACTIVATIONS, strict=True)):
        problem = tiny(durations, fresh_seed + i, padded, sigma=sigma, scope=scope, correction=scope is not None)
        want = tdt_formula(problem, UPSTREAM, activation)
        options = {"impl": impl, "reduction": None, "activation": activation}
        got = gradients_of(problem, sampled_rnnt_loss, upstream=UPSTREAM, **options)
        if torch.isfinite(want[0]).all():  # the other case: test_no_path
            assert_same(got, want, 1e-10)


@both
@pytest.mark.parametrize("T, U", [(1, 0), (1, 3), (5, 0), (2, 1)])
@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("durations", DURATIONS, ids=str)
def test_thin_lattices(impl, durations, scope, T, U):
    for padded in (False, True):
        problem = make_tdt_problem(2, durations, 0.05, B=3, T=T, U=U, H=3, V=5, N=4, scope=scope, padded=padded)
        got = gradients_of(problem, sampled_rnnt_loss, impl=impl, reduction=None, upstream=UPSTREAM)
        assert_same(got, tdt_formula(problem, UPSTREAM), 1e-11)


@both
@pytest.mark.parametrize("fastemit_lambda, clamp", [(0.7, -1.0), (0.0, 0.05), (0.7, 0.05)])
@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_fastemit_and_clamp(impl, reduction, scope, fastemit_lambda, clamp, fresh_seed):
    """By the formula: neither touches the gradient of the durations."""
    problem = tiny(USUAL, fresh_seed, sigma=0.05, scope=scope, correction=scope is not None)
    options = {"activation": "tanh", "fastemit_lambda": fastemit_lambda, "clamp": clamp}
    weights = reduction_weights(problem.target_lengths, reduction)
    upstream = UPSTREAM if reduction is None else torch.tensor(2.3)
    losses, gradients = tdt_formula(problem, weights * upstream, **options)
    want = losses if reduction is None else (losses * weights).sum()
    got = gradients_of(problem, sampled_rnnt_loss, impl=impl, reduction=reduction, upstream=upstream, **options)
    assert_same(got, (want, gradients), 1e-9)  # float32's 2.3


@both
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("scope", SCOPES)
def test_finite_differences(impl, scope, reduction):
    problem = make_tdt_problem(0, sigma=0.05, B=2, T=5, U=2, H=4, V=6, N=5, scope=scope, fill=0.5).leaves()

    def loss(*leaves):
        moved = replace(problem, **dict(zip(LEAVES, leaves, strict=True)))
        return moved.call(sampled_rnnt_loss, impl=impl, reduction=reduction, activation="tanh")

    inputs = [getattr(problem, name) for name in LEAVES]
    assert torch.autograd.gradcheck(loss, inputs, eps=1e-6, atol=1e-7, rtol=1e-5, fast_mode=reduction is not None)


def compare(problem, tolerance, **options):
    """Both implementations; the generator moves on before backward, the masks must not."""
    results = []
    for impl in IMPLS:
        torch.manual_seed(5)
        leaves = problem.leaves()
        loss = leaves.call(sampled_rnnt_loss, impl=impl, **options)
        torch.rand(3)
        loss.backward(torch.linspace(0.5, 2, loss.numel(), dtype=loss.dtype).reshape(loss.shape))
        results.append((loss, {name: getattr(leaves, name).grad for name in LEAVES}))
    assert_same(results[1], results[0], tolerance)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-10), (torch.float32, 1e-4)], ids=str)
@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_options(options, scope, dtype, tolerance, fresh_seed):
    for durations in DURATIONS:
        sizes = {"B": 5, "T": 13, "U": 6, "H": 7, "V": 31, "N": 9}
        problem = make_tdt_problem(fresh_seed, durations, 0.05, **sizes, scope=scope, correction=scope is not None)
        compare(problem.to(dtype), tolerance, **options)


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_utterances_cut_by_rows(options, scope):
    """One utterance alone outgrows a workspace of 1 MiB; arcs jump from one cut to another."""
    problem = make_tdt_problem(1, DOUBLING, 0.05, B=2, T=71, U=20, H=67, V=157, N=101, scope=scope, scale=0.5)
    compare(problem, 1e-9, workspace_mib=1, **options)


@pytest.mark.parametrize("scope", SCOPES)
def test_workspace_changes_nothing(scope):
    problem = make_tdt_problem(2, B=3, T=61, U=19, H=67, V=131, N=101, scope=scope, scale=0.5)
    one, other = (gradients_of(problem, sampled_rnnt_loss, workspace_mib=mib, dropout=0.0) for mib in (1, 256))
    assert_same(one, other, 1e-10)


@both
@pytest.mark.parametrize("scope", ["batch", "utterance"])
@pytest.mark.parametrize("padded", [False, True])
def test_all_labels_as_negatives(impl, padded, scope, fresh_seed):
    """The exact limit; neither blank nor a duration may be taken for a label."""
    exact = make_tdt_problem(fresh_seed, B=3, T=9, U=5, H=7, V=13, padded=padded)
    row = torch.cat([torch.randperm(13), torch.tensor([-1, 4])])
    negatives = row.expand(3, -1) if scope == "utterance" else row
    sampled = replace(exact, negatives=negatives, negative_log_prob=torch.zeros(negatives.shape))
    want = gradients_of(exact, sampled_rnnt_loss, impl=impl)
    assert_same(gradients_of(sampled, sampled_rnnt_loss, impl=impl), want, 1e-11)


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("mix", ["bf16", "fp16", "autocast"])
def test_low_precision(mix, scope):
    """No error exceeds that of the reference in the same dtypes, plain PyTorch, by more than a quarter."""
    sizes = {"B": 5, "T": 23, "U": 9, "H": 65, "V": 97, "N": 31, "fill": 0.0, "scale": 0.5}
    problems = [mixed(make_tdt_problem(seed, sigma=0.05, scope=scope, **sizes), mix) for seed in range(6)]

    def results(dtype, impl):
        cast = (problem if dtype is None else problem.to(dtype) for problem in problems)
        return [gradients_of(problem, sampled_rnnt_loss, impl=impl, reduction=None) for problem in cast]

    judge(results(None, "cpu"), results(torch.float64, "reference"), results(None, "reference"))


@both
def test_strided_inputs(impl):
    for scope in SCOPES:
        problem = make_tdt_problem(10, B=3, T=5, U=3, H=5, V=7, N=4, scope=scope, correction=scope is not None)
        want = gradients_of(problem, sampled_rnnt_loss, impl=impl)
        assert_same(gradients_of(problem.strided(), sampled_rnnt_loss, impl=impl), want, 1e-11)
        assert_same(gradients_of(problem.misaligned(), sampled_rnnt_loss, impl=impl), want, 1e-11)


@both
@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("reduction", [None, "mean"])
def test_frozen_inputs(impl, reduction, scope):
    problem = make_tdt_problem(3, B=3, T=6, U=2, H=4, V=6, N=4, scope=scope)
    want = gradients_of(problem, sampled_rnnt_loss, impl=impl, reduction=reduction)
    for asking in [(name,) for name in LEAVES] + [("encoder", "bias"), ()]:
        frozen = set(LEAVES) - set(asking)
        if not asking:
            loss = problem.leaves(frozen).call(sampled_rnnt_loss, impl=impl, reduction=reduction)
            assert_near("loss", loss, want[0], 1e-12)
            continue
        loss, gradients = gradients_of(problem, sampled_rnnt_loss, frozen, impl=impl, reduction=reduction)
        assert_near("loss", loss, want[0], 1e-12)
        for name in LEAVES:
            if name in frozen:
                assert gradients[name] is None
            else:
                assert_near(f"gradient of {name}", gradients[name], want[1][name], 1e-12)


@both
@pytest.mark.parametrize("scope", SCOPES)
def test_rows_that_are_no_candidate_get_exactly_zero(impl, scope):
    problem = make_tdt_problem(5, B=3, T=8, U=4, H=5, V=23, N=4, scope=scope)
    _, gradients = gradients_of(problem, sampled_rnnt_loss, impl=impl)
    used = set().union(*(problem.candidates(b) for b in range(3))) | set(range(24, 29))
    for k in range(29):
        assert (gradients["bias"][k] != 0) == (k in used), k
        assert (gradients["weight"][k] != 0).any() == (k in used), k


# --- utterances without a path ----------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("scope", [None, "utterance"])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_no_path(impl, reduction, scope, caplog):
    """To an odd length there is none with steps of 2, 4 and 8: as if the utterance were not there, and it is named."""
    whole = make_tdt_problem(0, (0, 2, 4, 8), B=4, T=8, U=3, H=5, V=9, N=5, scope=scope)
    whole = replace(whole, encoder_lengths=torch.tensor([8, 6, 7, 4]))
    upstream = torch.linspace(0.5, 2.0, 4) if reduction is None else torch.tensor(1.5)
    with caplog.at_level(logging.WARNING, "nemo_sampled_rnnt"):
        loss, gradients = gradients_of(whole, sampled_rnnt_loss, impl=impl, reduction=reduction, upstream=upstream)
    assert "indices [2]" in caplog.text
    others = [0, 1, 3]
    if reduction is None:
        assert loss[2] == 0
        loss, upstream = loss[others], upstream[others]
    options = {"impl": impl, "reduction": reduction, "upstream": upstream}
    want = gradients_of(whole.keep(others), sampled_rnnt_loss, **options)
    for name in ("encoder", "predictor"):
        assert (gradients[name][2] == 0).all(), name
        gradients[name] = gradients[name][others]
    assert_same((loss, gradients), want, 1e-11)


@both
@pytest.mark.parametrize("frames", [7, 1])
def test_no_path_and_a_clamp(impl, frames):
    """Steps of 2 leave an utterance of one frame not even an arc."""
    whole = make_tdt_problem(0, (0, 2, 4), B=3, T=8, U=3, H=5, V=9)
    whole = replace(whole, encoder_lengths=torch.tensor([8, frames, 6]))
    loss, gradients = gradients_of(whole, sampled_rnnt_loss, impl=impl, clamp=0.05)
    want = gradients_of(whole.keep([0, 2]), sampled_rnnt_loss, impl=impl, clamp=0.05)
    for name in ("encoder", "predictor"):
        assert (gradients[name][1] == 0).all(), name
        gradients[name] = gradients[name][[0, 2]]
    assert_same((loss, gradients), want, 1e-11)


@both
def test_no_path_at_all(impl):
    """More labels than steps, where each label takes one; and a batch of nothing else."""
    problem = make_tdt_problem(1, (1, 2), B=3, T=3, U=4, H=5, V=9, padded=False)
    problem = replace(problem, encoder_lengths=torch.tensor([3, 2, 1]))
    assert torch.isinf(tdt_formula(problem, UPSTREAM)[0]).all()
    with pytest.raises(FloatingPointError):
        problem.leaves().call(sampled_rnnt_loss, impl=impl)


@both
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", ["encoder", "predictor"])
def test_nonfinite_utterance(impl, where, value):
    whole = make_tdt_problem(2, B=3, T=6, U=3, H=5, V=9, N=5, scope="utterance")
    tensor = getattr(whole, where).clone()
    tensor[1, 0] = value
    got = gradients_of(replace(whole, **{where: tensor}), sampled_rnnt_loss, impl=impl)
    want = gradients_of(whole.keep([0, 2]), sampled_rnnt_loss, impl=impl)
    assert_near("loss", got[0], want[0], 1e-11)
    for name in ("weight", "bias"):
        assert_near(name, got[1][name], want[1][name], 1e-11)
    assert (got[1]["encoder"][1] == 0).all() and (got[1]["predictor"][1] == 0).all()


# --- omega ------------------------------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("scope", SCOPES)
def test_omega_one_is_plain(impl, scope):
    """Plain RNN-T of the label part: no duration has a gradient, and sigma plays no part."""
    problem = make_tdt_problem(3, sigma=0.05, B=3, T=6, U=3, H=5, V=9, N=5, scope=scope)
    loss, gradients = gradients_of(problem, sampled_rnnt_loss, impl=impl, omega=1.0, fastemit_lambda=0.1, clamp=0.2)
    want = gradients_of(problem.plain(), sampled_rnnt_loss, impl=impl, fastemit_lambda=0.1, clamp=0.2)
    for name in ("weight", "bias"):
        assert (gradients[name][10:] == 0).all()
        gradients[name] = gradients[name][:10]
    assert_same((loss, gradients), want, 1e-12)


def test_omega_is_the_share_of_plain_batches_and_seeded():
    """2,000 draws at 0.3: five standard deviations are 0.05."""
    problem = make_tdt_problem(4, B=1, T=2, U=1, H=3, V=3)
    plain, tdt = (problem.call(sampled_rnnt_loss, omega=omega) for omega in (1.0, 0.0))
    assert abs(plain - tdt) > 0.01

    def draw(count):
        torch.manual_seed(7)
        losses = torch.stack([problem.call(sampled_rnnt_loss, omega=0.3) for _ in range(count)])
        assert ((losses == plain) | (losses == tdt)).all()
        return losses == plain

    drawn = draw(2000)
    assert abs(drawn.double().mean() - 0.3) < 0.05
    assert torch.equal(draw(50), drawn[:50])


def test_without_omega_nothing_is_drawn():
    torch.manual_seed(3)
    make_tdt_problem(4, B=1, T=2, U=1, H=3, V=3).call(sampled_rnnt_loss)
    after = torch.rand(2)
    torch.manual_seed(3)
    assert torch.equal(torch.rand(2), after)


# --- bad input --------------------------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize(
    "durations, words",
    [
        ((-1, 0, 1), "durations.*>= 0.*-1"),
        ((0, 1, 1, 2), "durations.*without repetition.*1 behind 1"),
        ((0, 2, 1), "durations.*ascend.*1 behind 2"),
        ((0,), "durations.*above 0"),
        ((), "durations.*above 0"),
        ((0, 1.5), "durations.*whole numbers.*1.5"),
        ((True, 2), "durations.*whole numbers.*True"),
    ],
)
def test_impossible_durations(impl, durations, words):
    with pytest.raises(ValueError, match=words):
        make_tdt_problem(0, USUAL).call(sampled_rnnt_loss, impl=impl, durations=durations)


@both
def test_weight_that_does_not_fit(impl):
    """The rows of durations are taken from the end, so a target names the vocabulary that is left."""
    good = make_tdt_problem(0, USUAL, B=2, T=4, U=2, V=7, H=3, padded=False)
    few = replace(good, weight=good.weight[:6], bias=good.bias[:6])
    with pytest.raises(ValueError, match="V >= 1 labels, one for blank and one for each of 5 durations, got 6 rows"):
        few.call(sampled_rnnt_loss, impl=impl)
    with pytest.raises(ValueError, match="bias"):
        replace(good, bias=good.bias[:8]).call(sampled_rnnt_loss, impl=impl)
    missing = replace(good, weight=good.weight[:8], bias=good.bias[:8], targets=torch.full((2, 2), 6))
    with pytest.raises(ValueError, match=r"targets\[0, 0\] is 6.*\[0, 2\)"):
        missing.call(sampled_rnnt_loss, impl=impl)


@both
@pytest.mark.parametrize("value", [7, 8, 12])
def test_blank_and_durations_are_no_labels(impl, value):
    good = make_tdt_problem(0, USUAL, B=2, T=4, U=2, V=7, H=3, N=3, scope="batch", padded=False)
    targets, negatives = good.targets.clone(), good.negatives.clone()
    targets[1, 1] = negatives[2] = value
    with pytest.raises(ValueError, match=rf"targets\[1, 1\] is {value}.*\[0, 7\)"):
        replace(good, targets=targets).call(sampled_rnnt_loss, impl=impl)
    with pytest.raises(ValueError, match=rf"negatives\[2\] is {value}.*\[0, 7\)"):
        replace(good, negatives=negatives).call(sampled_rnnt_loss, impl=impl)


@both
@pytest.mark.parametrize(
    "option, value", [("sigma", float("nan")), ("sigma", float("inf")), ("omega", -0.1), ("omega", 1.5)]
)
def test_impossible_options(impl, option, value):
    with pytest.raises(ValueError, match=rf"{option}.*{re.escape(str(value))}"):
        make_tdt_problem(0, USUAL).call(sampled_rnnt_loss, impl=impl, **{option: value})


@both
@pytest.mark.parametrize("option", ["sigma", "omega"])
def test_sigma_and_omega_want_durations(impl, option):
    problem = make_tdt_problem(0, USUAL).plain()
    with pytest.raises(ValueError, match=rf"{option} \(0.1\).*pass durations"):
        problem.call(sampled_rnnt_loss, impl=impl, **{option: 0.1})


def test_durations_from_a_list():
    problem = make_tdt_problem(0, USUAL)
    want = problem.call(sampled_rnnt_loss)
    assert_near("loss", problem.call(sampled_rnnt_loss, durations=list(USUAL)), want, 0)
