"""The fast implementations against the reference: every option off its default, every float dtype."""

from dataclasses import replace

import pytest
import torch
from truth import (
    IMPLS,
    LEAVES,
    OPTIONS,
    REDUCTIONS,
    SCOPES,
    assert_near,
    assert_same,
    dense_loss,
    formula,
    gradients_of,
    make_problem,
    reduction_weights,
)

from nemo_sampled_rnnt import sampled_rnnt_loss

DTYPES = {torch.float64: 1e-10, torch.float32: 1e-4}


def compare(problem, tolerance, **options):
    """The vector's upstream is uneven, and the generator moves on before backward: its masks must not."""
    results = []
    for impl in IMPLS:
        torch.manual_seed(5)
        leaves = problem.leaves()
        loss = leaves.call(sampled_rnnt_loss, impl=impl, **options)
        torch.rand(3)
        loss.backward(torch.linspace(0.5, 2, loss.numel(), dtype=loss.dtype).reshape(loss.shape))
        results.append((loss, {name: getattr(leaves, name).grad for name in LEAVES}))
    reference, fast = results
    assert fast[0].dtype == reference[0].dtype
    assert_same(fast, reference, tolerance)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_options(options, scope, dtype, fresh_seed):
    problem = make_problem(fresh_seed, B=5, T=11, U=6, H=7, V=31, N=9, scope=scope, correction=scope is not None)
    compare(problem.to(dtype), DTYPES[dtype], **options)


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_utterances_cut_by_rows(options, scope):
    """One utterance alone outgrows a workspace of 1 MiB (1,500 cells of hidden and logits: 3 to 5 MiB)."""
    problem = make_problem(1, B=2, T=71, U=20, H=67, V=157, N=101, scope=scope)
    compare(problem, 1e-10, workspace_mib=1, **options)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("options", [{}, {"dropout": 0.25}, {"dropout": 0.25, "reduction": None}], ids=str)
def test_workspace_changes_nothing(impl, scope, options):
    problem = make_problem(2, B=3, T=61, U=19, H=67, V=131, N=101, scope=scope)
    results = []
    for workspace_mib in (1, 1.7, 3, 256):
        torch.manual_seed(0)
        results.append(gradients_of(problem, sampled_rnnt_loss, impl=impl, workspace_mib=workspace_mib, **options))
    for other in results[1:]:
        assert_same(other, results[0], 1e-10)


@pytest.mark.parametrize("sizes", [(1, 1, 0), (4, 1, 3), (1, 9, 0), (1, 1, 7), (7, 2, 1)], ids=str)
@pytest.mark.parametrize("scope", SCOPES)
def test_thin(sizes, scope):
    B, T, U = sizes
    for padded in (False, True):
        problem = make_problem(3, B=B, T=T, U=U, H=5, V=9, N=4, scope=scope, padded=padded)
        for options in ({}, {"reduction": None, "dropout": 0.5}, {"reduction": "mean"}):
            compare(problem, 1e-10, **options)


def test_wider_than_a_thread_block():
    """U + 1 > 1024."""
    problem = make_problem(4, B=2, T=3, U=1030, H=3, V=5, N=4, scope="utterance")
    compare(problem, 1e-9, activation="tanh")


def test_auto_on_cpu_tensors():
    problem = make_problem(5, B=3, scope="batch")
    want = gradients_of(problem, sampled_rnnt_loss, impl="cpu")
    assert_same(gradients_of(problem, sampled_rnnt_loss, impl="auto"), want, 1e-12)
    assert_same(gradients_of(problem, sampled_rnnt_loss), want, 1e-12)


# --- against the truths -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("scope", SCOPES)
def test_truth_on_a_longer_lattice(impl, scope, fresh_seed):
    problem = make_problem(fresh_seed, B=4, T=23, U=9, H=11, V=37, N=13, scope=scope, correction=scope is not None)
    upstream = torch.tensor([1.0, -0.5, 2.0, 0.25], dtype=torch.float64)
    want = formula(problem, upstream)
    got = gradients_of(problem, sampled_rnnt_loss, impl=impl, reduction=None, upstream=upstream)
    assert_same(got, want, 1e-10)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("reduction", REDUCTIONS[1:])
def test_reductions_by_definition(impl, reduction):
    """One transcript is empty, then all are: NeMo's `mean` and `mean_volume` would divide by 0."""
    problem = make_problem(6, B=4, T=7, U=5, H=5, V=9)
    for lengths in ([4, 0, 3, 1], [0, 0, 0, 0]):
        problem = replace(problem, target_lengths=torch.tensor(lengths))
        problem.predictor.nan_to_num_(0.5), problem.targets.clamp_(0, 8)
        losses = problem.call(sampled_rnnt_loss, impl=impl, reduction=None)
        assert losses.shape == (4,)
        want = (losses * reduction_weights(problem.target_lengths, reduction)).sum()
        got = problem.call(sampled_rnnt_loss, impl=impl, reduction=reduction)
        assert got.shape == ()
        assert_near(reduction, got, want, 1e-12)


def test_default_reduction_is_mean_batch():
    problem = make_problem(7)
    assert_near("loss", problem.call(sampled_rnnt_loss), dense_loss(problem).mean(), 1e-12)


@pytest.mark.parametrize("impl", IMPLS)
def test_large_logits(impl):
    """Scores of hundreds: sums of exponentials overflow float32 unless they are shifted."""
    problem = make_problem(8, B=3, T=9, U=4, H=11, V=13, N=7, scope="utterance", scale=8.0).to(torch.float32)
    want = formula(problem, torch.ones(3))
    got = gradients_of(problem, sampled_rnnt_loss, impl=impl, reduction=None)
    assert torch.isfinite(got[0]).all() and want[0].max() > 500
    assert_same(got, want, 1e-3)
