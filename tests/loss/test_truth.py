"""The truths agree with each other, so that a test that fails accuses the implementation."""

import pytest
import torch
from truth import ACTIVATIONS, LEAVES, SCOPES, assert_near, dense_loss, enumerate_paths, formula, make_problem


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("correction", [False, True])
def test_three_truths_agree(scope, correction, activation):
    problem = make_problem(1, B=3, T=4, U=3, H=5, V=7, N=6, scope=scope, correction=correction).leaves()
    upstream = torch.tensor([0.3, 1.7, 0.9], dtype=torch.float64)
    recursion = dense_loss(problem, activation)
    (recursion * upstream).sum().backward()
    losses, gradients = formula(problem, upstream, activation)
    paths = torch.tensor(enumerate_paths(problem, activation), dtype=torch.float64)
    assert_near("recursion", recursion, paths, 1e-12)
    assert_near("formula", losses, paths, 1e-12)
    for name in LEAVES:
        assert_near(f"gradient of {name}", gradients[name], getattr(problem, name).grad, 1e-11)


def test_candidates_by_hand():
    problem = make_problem(0, B=2, T=3, U=2, V=9, padded=False)
    problem.targets = torch.tensor([[3, 3], [5, 10**9]])
    problem.target_lengths = torch.tensor([2, 1])
    problem.negatives = torch.tensor([5, 7, -1, 7, 3, 0])
    problem.negative_log_prob = torch.tensor([-1.0, -2.0, -3.0, -4.0, -5.0, -6.0])
    assert problem.candidates(0) == {9: 0.0, 3: 0.0, 5: 0.0, 7: -2.0, 0: -6.0}
    problem.negatives = problem.negatives.expand(2, -1)
    problem.negative_log_prob = problem.negative_log_prob.expand(2, -1)
    assert problem.candidates(0) == {9: 0.0, 3: 0.0, 5: -1.0, 7: -2.0, 0: -6.0}
    assert problem.candidates(1) == {9: 0.0, 5: 0.0, 7: -2.0, 3: -5.0, 0: -6.0}
