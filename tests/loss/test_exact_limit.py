"""Every approximation at its exact limit: all labels as negatives is the full loss."""

from dataclasses import replace

import pytest
import torch
from truth import IMPLS, assert_same, gradients_of, make_problem

from nemo_sampled_rnnt import sampled_rnnt_loss


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("reduction", [None, "mean_batch", "mean_volume"])
@pytest.mark.parametrize("scope", ["batch", "utterance"])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("corrected", [False, True])
def test_all_labels_as_negatives(impl, corrected, padded, scope, reduction, fresh_seed):
    """In any order, with padding ids and repeats among them; log probabilities of 0 correct nothing."""
    exact = make_problem(fresh_seed, B=3, T=8, U=5, H=7, V=13, padded=padded)
    order = torch.Generator().manual_seed(fresh_seed)
    rows = [torch.cat([torch.randperm(13, generator=order), torch.tensor([-1, 4])]) for _ in range(3)]
    rows = [row[torch.randperm(15, generator=order)] for row in rows]
    negatives = torch.stack(rows) if scope == "utterance" else rows[0]
    sampled = replace(exact, negatives=negatives)
    if corrected:
        sampled = replace(sampled, negative_log_prob=torch.zeros(negatives.shape))
    for dtype, tolerance in ((torch.float64, 1e-11), (torch.float32, 1e-4)):
        want = gradients_of(exact.to(dtype), sampled_rnnt_loss, impl=impl, reduction=reduction)
        got = gradients_of(sampled.to(dtype), sampled_rnnt_loss, impl=impl, reduction=reduction)
        assert_same(got, want, tolerance)


@pytest.mark.parametrize("impl", IMPLS)
def test_both_scopes_agree_where_the_sets_do(impl):
    """The batch's labels given as each utterance's negatives: the utterance scope becomes the batch scope."""
    batch = make_problem(1, B=3, T=8, U=5, H=7, V=43, N=6, scope="batch")
    everyone = sorted({label for b in range(3) for label in batch.labels(b)})
    row = torch.cat([batch.negatives, torch.tensor(everyone)])
    utterance = replace(batch, negatives=row.expand(3, -1))
    want = gradients_of(batch, sampled_rnnt_loss, impl=impl)
    got = gradients_of(utterance, sampled_rnnt_loss, impl=impl)
    assert_same(got, want, 1e-11)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("scope", ["batch", "utterance"])
def test_sampled_is_below_exact(impl, scope):
    """Fewer candidates, uncorrected: a smaller sum, so a smaller loss (strictly, where a label is missing)."""
    sampled = make_problem(2, B=3, T=8, U=5, H=7, V=43, N=6, scope=scope)
    exact = replace(sampled, negatives=None)
    assert (
        sampled.call(sampled_rnnt_loss, impl=impl, reduction=None)
        < exact.call(sampled_rnnt_loss, impl=impl, reduction=None)
    ).all()
