"""An utterance with a non-finite loss: no loss, no gradient, out of the mean's denominator, a warning names it."""

import logging
from dataclasses import replace

import pytest
import torch
from truth import IMPLS, LEAVES, REDUCTIONS, assert_near, assert_same, gradients_of, make_problem

from nemo_sampled_rnnt import sampled_rnnt_loss

pytestmark = pytest.mark.parametrize("impl", IMPLS)


def poisoned(problem, b, value, where="encoder"):
    tensor = getattr(problem, where).clone()
    tensor[b, 0] = value
    return replace(problem, **{where: tensor})


def mentions(caplog, b):
    """A warning of ours has b among its numbers."""
    ours = [r for r in caplog.records if r.name.split(".")[0] == "nemo_sampled_rnnt" and r.levelno == logging.WARNING]
    return any(str(b) in "".join(c if c.isdigit() else " " for c in r.getMessage()).split() for r in ours)


@pytest.mark.parametrize("scope", [None, "utterance"])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", ["encoder", "predictor"])
def test_as_if_it_were_not_there(impl, where, value, reduction, scope, caplog):
    whole = make_problem(0, B=5, T=6, U=4, H=5, V=9, N=5, scope=scope, correction=scope is not None)
    others = [0, 1, 2, 4]
    upstream = torch.linspace(0.5, 2.0, 5, dtype=torch.float64)
    ups = (upstream, upstream[others]) if reduction is None else (upstream[0], upstream[0])
    loss, gradients = gradients_of(
        poisoned(whole, 3, value, where), sampled_rnnt_loss, impl=impl, reduction=reduction, upstream=ups[0]
    )
    assert mentions(caplog, 3), caplog.text
    without = gradients_of(whole.keep(others), sampled_rnnt_loss, impl=impl, reduction=reduction, upstream=ups[1])
    if reduction is None:
        assert loss[3] == 0
        loss = loss[others]
    for name in ("encoder", "predictor"):
        assert (gradients[name][3] == 0).all(), name
        gradients[name] = gradients[name][others]
    assert_same((loss, gradients), without, 1e-11)


@pytest.mark.parametrize("reduction", ["mean", "mean_volume"])
def test_batch_scope(impl, reduction):
    """Its labels stay candidates of the batch: they are whoever's loss is finite."""
    whole = make_problem(1, B=3, T=6, U=4, H=5, V=19, N=5, scope="batch")
    got = gradients_of(poisoned(whole, 1, float("nan")), sampled_rnnt_loss, impl=impl, reduction=reduction)
    others = whole.keep([0, 2])
    others.negatives = torch.cat([others.negatives, torch.tensor(whole.labels(1))])
    want = gradients_of(others, sampled_rnnt_loss, impl=impl, reduction=reduction)
    assert_near("loss", got[0], want[0], 1e-11)
    for name in ("weight", "bias"):
        assert_near(name, got[1][name], want[1][name], 1e-11)


def test_several_and_a_finite_batch_is_silent(impl, caplog):
    whole = make_problem(2, B=13, T=5, U=3, H=5, V=9)
    whole.call(sampled_rnnt_loss, impl=impl)
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING], caplog.text
    bad = poisoned(poisoned(whole, 4, float("nan")), 11, float("inf"))
    got = gradients_of(bad, sampled_rnnt_loss, impl=impl)
    assert mentions(caplog, 4) and mentions(caplog, 11), caplog.text
    others = [b for b in range(13) if b not in (4, 11)]
    want = gradients_of(whole.keep(others), sampled_rnnt_loss, impl=impl)
    assert_near("loss", got[0], want[0], 1e-11)
    assert_near("weight", got[1]["weight"], want[1]["weight"], 1e-11)


def test_without_gradients(impl, caplog):
    whole = make_problem(3, B=3)
    with torch.no_grad():
        got = poisoned(whole, 2, float("nan")).call(sampled_rnnt_loss, impl=impl)
        want = whole.keep([0, 1]).call(sampled_rnnt_loss, impl=impl)
    assert_near("loss", got, want, 1e-12)
    assert mentions(caplog, 2), caplog.text


def test_cut_by_rows(impl):
    """Also where the poisoned utterance is larger than the workspace."""
    whole = make_problem(4, B=3, T=61, U=19, H=67, V=131)
    bad = poisoned(whole, 1, float("nan"))
    got = gradients_of(bad, sampled_rnnt_loss, impl=impl, workspace_mib=1)
    want = gradients_of(whole.keep([0, 2]), sampled_rnnt_loss, impl=impl)
    assert_near("loss", got[0], want[0], 1e-10)
    assert_near("weight", got[1]["weight"], want[1]["weight"], 1e-10)
    assert (got[1]["encoder"][1] == 0).all()


@pytest.mark.parametrize("reduction", [None, "mean_batch"])
@pytest.mark.parametrize("where", LEAVES)
def test_nothing_finite_raises(impl, where, reduction):
    bad = make_problem(5, B=3)
    tensor = getattr(bad, where).clone()
    tensor[:] = float("nan")
    bad = replace(bad, **{where: tensor})
    with pytest.raises(FloatingPointError):
        bad.leaves().call(sampled_rnnt_loss, impl=impl, reduction=reduction)
    with torch.no_grad(), pytest.raises(FloatingPointError):
        bad.call(sampled_rnnt_loss, impl=impl, reduction=reduction)
