"""Float dtypes: what comes out in which, and low precision judged against float64 truth beside plain PyTorch."""

from dataclasses import replace

import pytest
import torch
from precision import MIXES, judge, mixed, yardstick
from truth import IMPLS, LEAVES, SCOPES, assert_near, assert_same, gradients_of, make_problem

from nemo_sampled_rnnt import sampled_rnnt_loss


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("mix", [mix for mix in MIXES if mix != "float32"])
@pytest.mark.parametrize("impl", IMPLS)
def test_low_precision(impl, mix, scope):
    """No error exceeds plain PyTorch's in the same dtypes by more than a quarter."""
    problems, truths, plains = yardstick(mix, scope, None, count=12, B=5, T=9, U=4, H=65, V=97, N=31)
    results = [gradients_of(problem, sampled_rnnt_loss, impl=impl, reduction=None) for problem in problems]
    for loss, gradients in results:
        assert loss.dtype == torch.float32
        for name, dtype in MIXES[mix].items():
            assert gradients[name].dtype == dtype, f"gradient of {name}"
    judge(results, truths, plains)


@pytest.mark.parametrize("impl", IMPLS)
def test_low_precision_summed_over_many_tiles(impl):
    """A workspace of 1 MiB makes several tiles a batch; their weight gradients must not be rounded on the way."""
    problems, truths, plains = yardstick("bf16", None, "sum", count=3, B=11, T=41, U=9, H=65, V=257)
    results = [
        gradients_of(problem, sampled_rnnt_loss, impl=impl, reduction="sum", workspace_mib=1) for problem in problems
    ]
    judge(results, truths, plains, ["weight", "bias"])


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_loss_dtype(impl, dtype):
    problem = make_problem(1).to(dtype)
    for reduction in (None, "mean"):
        loss, gradients = gradients_of(problem, sampled_rnnt_loss, impl=impl, reduction=reduction)
        assert loss.dtype == dtype
        assert all(gradient.dtype == dtype for gradient in gradients.values())


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("mix", ["float32", "autocast"])
def test_inside_an_autocast_region(impl, scope, mix):
    """The encoder's dtype is the compute dtype: the region around the call changes nothing."""
    problem = mixed(make_problem(2, H=33, scope=scope), mix)
    want = gradients_of(problem, sampled_rnnt_loss, impl=impl)
    with torch.autocast("cpu", torch.bfloat16):
        leaves = problem.leaves()
        loss = leaves.call(sampled_rnnt_loss, impl=impl)
    loss.backward()
    assert_same((loss, {name: getattr(leaves, name).grad for name in LEAVES}), want, 1e-6)


@pytest.mark.parametrize("impl", IMPLS)
def test_float16_gradients_survive_small_weights_of_the_reduction(impl):
    """The mean over a long batch makes logit gradients that float16 cannot hold; a gradient scaler's factor helps."""
    problem = make_problem(4, B=3, T=31, U=9, H=17, V=41).to(torch.float16)
    scale = torch.tensor(2.0**12)
    _, gradients = gradients_of(problem, sampled_rnnt_loss, impl=impl, reduction="mean_volume", upstream=scale)
    _, truth = gradients_of(
        problem.to(torch.float64), sampled_rnnt_loss, impl="reference", reduction="mean_volume", upstream=scale
    )
    for name in LEAVES:
        assert_near(name, gradients[name], truth[name], 2e-2)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("reduction", ["mean_batch", "sum"])
def test_float16_sums_over_many_frames(impl, reduction):
    """1,600 frames push blank's row of the weight all one way. The true gradient (53 to 421) fits float16 well, so
    nothing on the way to it may overflow: no gradient scaler could turn that down."""
    problem = make_problem(1, B=8, T=200, U=10, H=17, V=41, scale=0.3)
    problem = mixed(problem, "fp16")
    got = gradients_of(problem, sampled_rnnt_loss, impl=impl, reduction=reduction)
    want = gradients_of(problem.to(torch.float64), sampled_rnnt_loss, impl="reference", reduction=reduction)
    assert_same(got, want, 2e-2)


@pytest.mark.parametrize("scope", SCOPES)
def test_float16_losses_under_a_gradient_scaler(scope):
    """Its factor of 65,536 arrives at each loss of a vector, and is a scalar's: the logits' gradients may not carry it.
    One utterance weighs nothing, and one that is left out is weighed by what is no number."""
    problem = make_problem(2, B=4, T=12, U=4, H=17, V=41, N=19, scope=scope, scale=0.2)
    problem.encoder[3, 0] = float("inf")
    half = {name: getattr(problem, name).to(torch.float16) for name in ("encoder", "predictor")}
    problem = replace(problem.to(torch.float32), **half)
    upstream = torch.tensor([1.0, 0.3, 0.0, float("inf")]) * 2.0**16 / 4
    _, gradients = gradients_of(problem, sampled_rnnt_loss, impl="cpu", reduction=None, upstream=upstream)
    upstream[3] = 0
    truth = problem.to(torch.float64)
    _, want = gradients_of(truth, sampled_rnnt_loss, impl="reference", reduction=None, upstream=upstream)
    for name in LEAVES:
        assert gradients[name].dtype == torch.float32 or want[name].abs().max() < 2**15, "float16 could not hold it"
        assert_near(name, gradients[name], want[name], 1e-2)


@pytest.mark.parametrize("upstream", [0.0, float("nan")])
def test_losses_of_no_weight(upstream):
    """Zero gives no gradient; what is no number is seen by a gradient scaler."""
    problem = make_problem(3).to(torch.float16)
    weights = torch.full((len(problem.targets),), upstream)
    _, gradients = gradients_of(problem, sampled_rnnt_loss, impl="cpu", reduction=None, upstream=weights)
    for name in LEAVES:
        assert (gradients[name] == 0).all() if upstream == 0 else gradients[name].isnan().any(), name
