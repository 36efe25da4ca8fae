"""The TDT kernels on a GPU: against the reference in float64, and against NeMo's own `tdt` loss in float32."""

import warnings
from dataclasses import replace

import pytest
import torch
from precision import MIXES, judge, mixed
from tdt_truth import DOUBLING, DURATIONS, USUAL, make_tdt_problem
from truth import LEAVES, OPTIONS, SCOPES, assert_same, gradients_of

from nemo_sampled_rnnt import sampled_rnnt_loss

pytestmark = pytest.mark.gpu

SIZES = {"B": 7, "T": 61, "U": 19, "H": 67, "V": 523, "N": 211, "scale": 0.5}


@pytest.fixture(autouse=True)
def float32_products():
    """Plain float32 matrix products, not TF32."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32 = before


def on_gpu(problem, **options):
    return gradients_of(problem.to("cuda"), sampled_rnnt_loss, impl="cuda", **options)


def truth(problem, **options):
    return gradients_of(problem.to(torch.float64), sampled_rnnt_loss, impl="reference", **options)


# --- right ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("durations", DURATIONS, ids=str)
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-10), (torch.float32, 2e-4)], ids=str)
def test_reference(dtype, tolerance, durations, scope, padded, fresh_seed):
    problem = make_tdt_problem(
        fresh_seed, durations, 0.05, **SIZES, scope=scope, correction=scope is not None, padded=padded
    ).to(dtype)
    assert_same(on_gpu(problem), truth(problem), tolerance)
    vector = {"reduction": None, "upstream": torch.linspace(-1, 2, SIZES["B"])}
    assert_same(on_gpu(problem, **vector), truth(problem, **vector), tolerance)


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_options(options, scope):
    """Dropout: the same seed on the same device gives the reference the same masks."""
    problem = make_tdt_problem(1, sigma=0.05, **SIZES, scope=scope, correction=scope is not None).to(torch.float32)
    torch.manual_seed(5)
    got = on_gpu(problem, **options)
    torch.manual_seed(5)
    want = gradients_of(problem.to(torch.float64).to("cuda"), sampled_rnnt_loss, impl="reference", **options)
    assert_same(got, want, 2e-4)


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("mix", [mix for mix in MIXES if mix != "float32"])
@pytest.mark.parametrize("H", [65, 72])
def test_low_precision(mix, scope, H):
    """No error exceeds that of plain PyTorch, the reference, in the same dtypes by more than a quarter.

    H = 72 in bfloat16 and the utterance scope: grouped products, whose padding must not swallow the durations.
    """
    sizes = {"B": 5, "T": 23, "U": 9, "V": 97, "N": 31, "fill": 0.0, "scale": 0.5}
    problems = [mixed(make_tdt_problem(seed, sigma=0.05, scope=scope, H=H, **sizes), mix) for seed in range(6)]
    results = [on_gpu(problem, reduction=None) for problem in problems]
    truths = [truth(problem, reduction=None) for problem in problems]
    plains = [gradients_of(problem, sampled_rnnt_loss, impl="reference", reduction=None) for problem in problems]
    judge(results, truths, plains)


@pytest.mark.parametrize("scope", ["batch", "utterance"])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 2e-4), (torch.bfloat16, 3e-2)], ids=str)
@pytest.mark.parametrize("padded", [False, True])
def test_all_labels_as_negatives(padded, dtype, tolerance, scope):
    exact = make_tdt_problem(3, **{**SIZES, "H": 72}, padded=padded).to(dtype)
    everything = torch.randperm(SIZES["V"], generator=torch.Generator().manual_seed(0))
    negatives = everything if scope == "batch" else everything.expand(SIZES["B"], -1)
    sampled = replace(exact, negatives=negatives, negative_log_prob=torch.zeros(negatives.shape))
    assert_same(on_gpu(sampled), on_gpu(exact), tolerance)


@pytest.mark.parametrize("U", [255, 256, 700])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-9), (torch.float32, 5e-3)], ids=str)
def test_wider_than_a_thread_block(U, dtype, tolerance):
    problem = make_tdt_problem(4, B=2, T=7, U=U, H=7, V=11, N=4, scope="utterance", scale=0.5).to(dtype)
    assert_same(on_gpu(problem), truth(problem), tolerance)


@pytest.mark.parametrize("T, U", [(1, 0), (1, 7), (9, 0), (700, 1)])
@pytest.mark.parametrize("scope", SCOPES)
def test_thin(scope, T, U):
    for padded in (False, True):
        problem = make_tdt_problem(5, DOUBLING, B=3, T=T, U=U, H=7, V=11, N=4, scope=scope, padded=padded, scale=0.5)
        assert_same(on_gpu(problem), truth(problem), 1e-9)


@pytest.mark.parametrize("durations", [(1, 2, 3), (0, 16), (0, 1, 2, 3, 4, 5, 6, 7, 8), (0, 1, 33)], ids=str)
def test_other_durations(durations):
    problem = make_tdt_problem(6, durations, 0.05, **SIZES).to(torch.float32)
    if durations == (0, 16):
        problem = replace(problem, encoder_lengths=problem.encoder_lengths // 16 * 16)
    assert_same(on_gpu(problem), truth(problem), 2e-4)


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("options", [{}, {"dropout": 0.25}, {"dropout": 0.25, "reduction": None}], ids=str)
def test_utterances_cut_by_rows(options, scope):
    problem = make_tdt_problem(6, DOUBLING, 0.05, **SIZES, scope=scope).to(torch.float32)
    torch.manual_seed(0)
    cut = on_gpu(problem, workspace_mib=1, **options)
    torch.manual_seed(0)
    assert_same(cut, on_gpu(problem, workspace_mib=256, **options), 1e-4)


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("workspace_mib", [1, 256])
def test_two_runs_are_bitwise_equal(workspace_mib, dtype, scope):
    problem = make_tdt_problem(9, sigma=0.05, **{**SIZES, "H": 72}, scope=scope, fill=0.0).to(dtype)
    runs = []
    for _ in range(2):
        torch.manual_seed(3)
        runs.append(on_gpu(problem, workspace_mib=workspace_mib, dropout=0.1))
    assert torch.equal(runs[0][0], runs[1][0])
    for name in LEAVES:
        assert torch.equal(runs[0][1][name], runs[1][1][name]), name


@pytest.mark.parametrize("scope", SCOPES)
def test_no_path(scope):
    whole = make_tdt_problem(0, (0, 2, 4, 8), **SIZES, scope=scope, padded=False).to(torch.float32)
    lengths = torch.tensor([60, 58, 61, 44, 32, 60, 2])  # to 61 there is no path, in 2 frames there is
    whole = replace(whole, encoder_lengths=lengths)
    loss, gradients = on_gpu(whole, reduction="sum")
    want = truth(whole, reduction="sum")  # which tests on the CPU judge
    assert (gradients["encoder"][2] == 0).all() and (gradients["predictor"][2] == 0).all()
    assert_same((loss, gradients), want, 2e-4)


@pytest.mark.parametrize("scope", SCOPES)
def test_omega_one_is_plain(scope):
    problem = make_tdt_problem(3, sigma=0.05, **SIZES, scope=scope).to(torch.float32)
    loss, gradients = on_gpu(problem, omega=1.0)
    rows = SIZES["V"] + 1
    want = on_gpu(problem.plain())
    for name in ("weight", "bias"):
        assert (gradients[name][rows:] == 0).all()
        gradients[name] = gradients[name][:rows]
    assert_same((loss, gradients), want, 1e-6)


@pytest.mark.parametrize("scope", SCOPES)
def test_one_read_of_the_device_a_step(scope):
    problem = make_tdt_problem(16, **SIZES, scope=scope, correction=scope is not None).to(torch.bfloat16).to("cuda")
    gradients_of(problem, sampled_rnnt_loss, impl="cuda", omega=0.5)
    leaves = [getattr(problem, name).requires_grad_() for name in LEAVES]
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.autograd.grad(problem.call(sampled_rnnt_loss, impl="cuda"), leaves)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    waits = [str(warning.message) for warning in caught if "synchroniz" in str(warning.message)]
    assert len(waits) == 1, waits


# --- another oracle ---------------------------------------------------------------------------------------------------


def nemo_tdt(durations, sigma, reduction, **options):
    """NeMo's loss on the full joint."""
    from nemo.collections.asr.losses.rnnt import RNNTLoss

    def loss_of(encoder, predictor, weight, bias, targets, encoder_lengths, target_lengths, **_):
        labels = len(weight) - 1 - len(durations)
        loss = RNNTLoss(
            num_classes=labels,
            reduction=reduction,
            loss_name="tdt",
            loss_kwargs={"durations": list(durations), "sigma": sigma, "omega": 0.0, **options},
        )
        frames, positions = int(encoder_lengths.max()), int(target_lengths.max())
        hidden = torch.relu(encoder[:, :frames, None] + predictor[:, None, : positions + 1])
        scores = torch.nn.functional.linear(hidden, weight, bias)
        targets = targets[:, :positions].clamp(0, labels - 1)
        return loss(log_probs=scores, targets=targets, input_lengths=encoder_lengths, target_lengths=target_lengths)

    return loss_of


@pytest.mark.parametrize("durations", [USUAL, DOUBLING, (0, 2, 4, 8)], ids=str)
@pytest.mark.parametrize("sigma", [0.0, 0.05])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("sampled", [False, True], ids=["exact", "all labels as negatives"])
def test_nemo_tdt(sampled, padded, sigma, durations):
    """Steps of 2, 4 and 8 reach even lengths only."""
    pytest.importorskip("nemo.collections.asr")
    problem = make_tdt_problem(17, durations, sigma, B=5, T=42, U=13, H=67, V=101, fill=0.0, scale=0.5, padded=padded)
    problem = problem.to(torch.float32)
    if durations == (0, 2, 4, 8):
        problem = replace(problem, encoder_lengths=problem.encoder_lengths // 2 * 2)
    want = gradients_of(problem.to("cuda"), nemo_tdt(durations, sigma, "mean_batch"))
    if sampled:
        negatives = torch.randperm(101).expand(5, -1)
        problem = replace(problem, negatives=negatives, negative_log_prob=torch.zeros(negatives.shape))
    assert_same(on_gpu(problem), want, 1e-4)


@pytest.mark.parametrize("reduction", ["mean_batch", "sum", "mean", "mean_volume"])
@pytest.mark.parametrize("fastemit_lambda, clamp", [(0.01, -1.0), (0.3, -1.0), (0.0, 0.02), (0.3, 0.02)])
def test_nemo_tdt_fastemit_and_clamp(fastemit_lambda, clamp, reduction):
    pytest.importorskip("nemo.collections.asr")
    problem = make_tdt_problem(18, USUAL, 0.05, B=5, T=41, U=13, H=67, V=101, fill=0.0, scale=0.5).to(torch.float32)
    options = {"fastemit_lambda": fastemit_lambda, "clamp": clamp}
    want = gradients_of(problem.to("cuda"), nemo_tdt(USUAL, 0.05, reduction, **options))
    assert_same(on_gpu(problem, reduction=reduction, **options), want, 1e-4)
