"""Every implementation against the sum over every path, on lattices tiny enough to enumerate."""

from dataclasses import replace

import pytest
import torch
from truth import ACTIVATIONS, IMPLS, SCOPES, assert_near, enumerate_paths, make_problem

from nemo_sampled_rnnt import sampled_rnnt_loss

pytestmark = pytest.mark.parametrize("impl", IMPLS)


def check(problem, impl, activation="relu"):
    got = problem.call(sampled_rnnt_loss, activation=activation, reduction=None, impl=impl)
    want = torch.tensor(enumerate_paths(problem, activation), dtype=torch.float64)
    assert got.dtype == torch.float64
    assert_near("losses", got, want, 1e-11)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("correction", [False, True])
@pytest.mark.parametrize("scope", SCOPES)
def test_random_lattices(impl, scope, correction, padded, fresh_seed):
    for activation in ACTIVATIONS:
        for i in range(3):
            problem = make_problem(
                fresh_seed + i, B=2 + i, T=4, U=3, H=5, V=7, N=6, scope=scope, correction=correction, padded=padded
            )
            check(problem, impl, activation)


@pytest.mark.parametrize("T, U", [(1, 0), (1, 3), (5, 0), (2, 1)])
@pytest.mark.parametrize("scope", SCOPES)
def test_thin_lattices(impl, scope, T, U):
    problem = make_problem(2, B=1, T=T, U=U, H=3, V=5, N=4, scope=scope, correction=scope is not None, padded=False)
    check(problem, impl)
    check(make_problem(3, B=3, T=T, U=U, H=3, V=5, N=4, scope=scope), impl)


@pytest.mark.parametrize("scope", SCOPES)
def test_no_transcript_has_a_label(impl, scope):
    problem = make_problem(4, B=3, T=4, U=2, H=3, V=5, N=4, scope=scope)
    check(replace(problem, target_lengths=torch.zeros(3, dtype=torch.long)), impl)
    none = make_problem(5, B=3, T=4, U=0, H=3, V=5, N=4, scope=scope, padded=False)
    assert none.targets.shape == (3, 0)
    check(none, impl)


@pytest.mark.parametrize("scope", ["batch", "utterance"])
def test_no_negative_at_all(impl, scope):
    problem = make_problem(6, B=3, T=4, U=3, H=5, V=7, N=4, scope=scope)
    check(replace(problem, negatives=torch.full_like(problem.negatives, -1)), impl)
    check(replace(problem, negatives=problem.negatives[..., :0]), impl)


@pytest.mark.parametrize("scope", ["batch", "utterance"])
def test_every_negative_is_a_label_or_comes_twice(impl, scope):
    problem = make_problem(7, B=2, T=4, U=3, H=5, V=9, padded=False)
    problem.targets = torch.tensor([[2, 2, 4], [4, 1, 8]])
    problem.target_lengths = torch.tensor([3, 2])  # label 8 is beyond the second transcript: no candidate
    row = torch.tensor([4, 6, 2, 6, -1, 1, 6])
    log_prob = torch.tensor([-0.1, -0.2, -0.3, -4.0, 9.0, -0.5, -0.7])
    problem.negatives = row if scope == "batch" else torch.stack([row, row.flip(0)])
    check(problem, impl)
    problem.negative_log_prob = log_prob if scope == "batch" else torch.stack([log_prob, log_prob.flip(0)])
    check(problem, impl)


def test_blank_is_uncorrected_and_never_twice(impl):
    """The one-frame, no-label loss in closed form: log sum over the candidates minus the blank's score."""
    problem = make_problem(8, B=1, T=1, U=0, H=3, V=5, padded=False)
    problem.negatives = torch.tensor([[3, 0]])
    problem.negative_log_prob = torch.log(torch.tensor([[0.25, 0.5]]))
    z = problem.weight @ torch.relu(problem.encoder[0, 0] + problem.predictor[0, 0]) + problem.bias
    want = torch.log(z[5].exp() + z[3].exp() / 0.25 + z[0].exp() / 0.5) - z[5]
    got = problem.call(sampled_rnnt_loss, impl=impl)
    assert_near("loss", got, want, 1e-6)  # the log probabilities came in float32


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_integer_dtypes(impl, dtype):
    problem = make_problem(9, B=3, T=4, U=3, H=5, V=7, N=4, scope="utterance", padded=False)
    check(problem.map(lambda x: x if x.is_floating_point() else x.to(dtype)), impl)


def test_strided_inputs(impl):
    """NeMo's encoder gives (B, H, T), transposed to (B, T, H): a view."""
    for scope in SCOPES:
        problem = make_problem(10, B=3, T=4, U=3, H=5, V=7, N=4, scope=scope, correction=scope is not None)
        strided = problem.strided()
        assert not any(x.is_contiguous() for x in (strided.encoder, strided.weight, strided.targets))
        check(strided, impl)
        check(problem.misaligned(), impl)
