"""The CUDA kernels on a GPU, against the reference in float64 on the CPU (in the simulator: test_simulator.py)."""

import logging
import warnings
from dataclasses import replace

import pytest
import torch
from precision import MIXES, judge, yardstick
from truth import LEAVES, OPTIONS, SCOPES, assert_near, assert_same, gradients_of, make_problem

from nemo_sampled_rnnt import sampled_rnnt_loss

pytestmark = pytest.mark.gpu

MIB = 2**20
SIZES = {"B": 7, "T": 61, "U": 19, "H": 67, "V": 523, "N": 211}


@pytest.fixture(autouse=True)
def float32_products():
    """Plain float32 matrix products, not TF32, unless a test says so."""
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
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-10), (torch.float32, 2e-4)], ids=str)
def test_reference(dtype, tolerance, scope, padded, fresh_seed):
    problem = make_problem(fresh_seed, **SIZES, scope=scope, correction=scope is not None, padded=padded, scale=0.5)
    problem = problem.to(dtype)
    assert_same(on_gpu(problem), truth(problem), tolerance)
    upstream = torch.linspace(-1, 2, SIZES["B"])
    vector = {"reduction": None, "upstream": upstream}
    assert_same(on_gpu(problem, **vector), truth(problem, **vector), tolerance)


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_options(options, scope):
    """Dropout: the same seed on the same device gives the reference the same masks."""
    problem = make_problem(1, **SIZES, scope=scope, correction=scope is not None, scale=0.5).to(torch.float32)
    torch.manual_seed(5)
    got = on_gpu(problem, **options)
    torch.manual_seed(5)
    want = gradients_of(problem.to(torch.float64).to("cuda"), sampled_rnnt_loss, impl="reference", **options)
    assert_same(got, want, 2e-4)


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("mix", [mix for mix in MIXES if mix != "float32"])
@pytest.mark.parametrize("H", [65, 72])
def test_low_precision(mix, scope, H):
    """No error exceeds plain PyTorch's in the same dtypes by more than a quarter; rows aligned to 16 bytes and not."""
    problems, truths, plains = yardstick(mix, scope, None, count=6, B=5, T=23, U=9, H=H, V=97, N=31)
    results = [on_gpu(problem, reduction=None) for problem in problems]
    for loss, gradients in results:
        assert loss.dtype == torch.float32
        for name, dtype in MIXES[mix].items():
            assert gradients[name].dtype == dtype, f"gradient of {name}"
    judge(results, truths, plains)


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("encoder, weight", [("float32", "float64"), ("float64", "float32"), ("bfloat16", "float64")])
def test_double_precision_in_part(encoder, weight, scope):
    """Kernels that copy rows do not make float64 of others; then torch does."""
    problem = make_problem(7, **SIZES | {"H": 16}, scope=scope, scale=0.5)
    dtypes = dict.fromkeys(("encoder", "predictor"), encoder) | dict.fromkeys(("weight", "bias"), weight)
    problem = replace(problem, **{k: getattr(problem, k).to(getattr(torch, v)) for k, v in dtypes.items()})
    loss, gradients = on_gpu(problem)
    assert all(gradients[name].dtype == getattr(torch, dtype) for name, dtype in dtypes.items())
    want = truth(replace(problem, **{name: getattr(problem, name).double() for name in dtypes}))
    assert_same((loss, gradients), want, 6e-2 if encoder == "bfloat16" else 2e-4)


def test_low_precision_summed_over_many_tiles():
    problems, truths, plains = yardstick("bf16", None, "sum", count=3, B=11, T=41, U=9, H=65, V=257)
    results = [on_gpu(problem, reduction="sum", workspace_mib=1) for problem in problems]
    judge(results, truths, plains, ["weight", "bias"])


def test_tf32():
    """Float32 products follow torch's setting; under TF32 they keep 10 bits."""
    problem = make_problem(2, **SIZES, scale=0.5).to(torch.float32)
    torch.backends.cuda.matmul.allow_tf32 = True
    assert_same(on_gpu(problem), truth(problem), 2e-2)


@pytest.mark.parametrize("scope", ["batch", "utterance"])
@pytest.mark.parametrize("padded", [False, True])
def test_all_labels_as_negatives(scope, padded):
    exact = make_problem(3, **SIZES, padded=padded, scale=0.5).to(torch.float32)
    everything = torch.randperm(SIZES["V"], generator=torch.Generator().manual_seed(0))
    negatives = everything if scope == "batch" else everything.expand(SIZES["B"], -1)
    sampled = replace(exact, negatives=negatives, negative_log_prob=torch.zeros(negatives.shape))
    assert_same(on_gpu(sampled), on_gpu(exact), 2e-4)


@pytest.mark.parametrize("U", [1023, 1024, 1500])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-9), (torch.float32, 5e-3)], ids=str)
def test_wider_than_a_thread_block(U, dtype, tolerance):
    """Losses of thousands: a float32 lattice knows them, and so its posteriors' logarithms, to some 1e-3."""
    problem = make_problem(4, B=2, T=5, U=U, H=7, V=11, N=4, scope="utterance", scale=0.5).to(dtype)
    assert_same(on_gpu(problem), truth(problem), tolerance)


@pytest.mark.parametrize("T, U", [(1, 0), (1, 7), (9, 0), (1500, 1)])
@pytest.mark.parametrize("scope", SCOPES)
def test_thin(scope, T, U):
    for padded in (False, True):
        problem = make_problem(5, B=3, T=T, U=U, H=7, V=11, N=4, scope=scope, padded=padded, scale=0.5)
        assert_same(on_gpu(problem), truth(problem), 1e-9)


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("options", [{}, {"dropout": 0.25}, {"dropout": 0.25, "reduction": None}], ids=str)
def test_utterances_cut_by_rows(options, scope):
    """1 MiB: each utterance (up to 1,220 cells of hidden and logits) outgrows it."""
    problem = make_problem(6, **SIZES, scope=scope, scale=0.5).to(torch.float32)
    torch.manual_seed(0)
    cut = on_gpu(problem, workspace_mib=1, **options)
    torch.manual_seed(0)
    whole = on_gpu(problem, workspace_mib=256, **options)
    assert_same(cut, whole, 1e-4)


def test_offsets_beyond_two_to_the_31st():
    """One tile of 21,320 cells x 131,072 logits: 2.8e9 elements, 5.6 GB in bf16."""
    problem = make_problem(7, B=3, T=160, U=40, H=16, V=131071, padded=False, scale=0.3).to(torch.bfloat16)
    problem = replace(problem, encoder_lengths=torch.tensor([160, 159, 157]), target_lengths=torch.tensor([40, 40, 39]))
    large = on_gpu(problem, workspace_mib=8192)
    small = on_gpu(problem, workspace_mib=64)
    assert_near("loss", large[0], small[0], 1e-4)
    for name in LEAVES:
        assert_near(name, large[1][name], small[1][name], 2e-2)


@pytest.mark.parametrize("layout", ["strided", "misaligned"])
@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)], ids=str)
def test_layouts(dtype, tolerance, scope, layout):
    """Views that are not contiguous, or that start where no wide load may; cuBLAS may round otherwise for them."""
    problem = make_problem(18, **{**SIZES, "H": 72}, scope=scope, scale=0.5).to(dtype)
    other = getattr(problem.to("cuda"), layout)()
    got = gradients_of(other, sampled_rnnt_loss, impl="cuda")
    assert_same(got, on_gpu(problem), tolerance)


def test_float16_sums_over_many_frames():
    problem = make_problem(1, B=8, T=200, U=10, H=17, V=41, scale=0.3).to(torch.float16)
    assert_same(on_gpu(problem), truth(problem), 2e-2)


def test_auto_is_cuda():
    problem = make_problem(8, **SIZES, scope="batch").to(torch.float32)
    auto = gradients_of(problem.to("cuda"), sampled_rnnt_loss)
    explicit = on_gpu(problem)
    assert torch.equal(auto[0], explicit[0])


# --- the same twice, on any stream, in bounded memory -----------------------------------------------------------------


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("workspace_mib", [1, 256])
def test_two_runs_are_bitwise_equal(workspace_mib, dtype, scope):
    problem = make_problem(9, **SIZES, scope=scope, fill=0.0, scale=0.5).to(dtype)
    runs = []
    for _ in range(2):
        torch.manual_seed(3)
        runs.append(on_gpu(problem, workspace_mib=workspace_mib, dropout=0.1))
    assert torch.equal(runs[0][0], runs[1][0])
    for name in LEAVES:
        assert torch.equal(runs[0][1][name], runs[1][1][name]), name


@pytest.mark.parametrize("reduction", [None, "mean_batch"])
def test_another_stream(reduction):
    """The inputs arrive late, on the stream that the loss is called on: kernels on any other stream would not wait."""
    problem = make_problem(10, **SIZES, scope="utterance", scale=0.5).to(torch.float32)
    want = on_gpu(problem, reduction=reduction)
    arriving = problem.to("cuda").leaves()
    late = {name: getattr(arriving, name).detach().clone() for name in LEAVES}
    with torch.no_grad():
        for name in LEAVES:
            getattr(arriving, name).zero_()
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        torch.cuda._sleep(200_000_000)  # about 0.1 s
        with torch.no_grad():
            for name in LEAVES:
                getattr(arriving, name).copy_(late[name])
        loss = arriving.call(sampled_rnnt_loss, impl="cuda", reduction=reduction)
        loss.backward(torch.ones_like(loss))
    torch.cuda.synchronize()
    assert_same((loss, {name: getattr(arriving, name).grad for name in LEAVES}), want, 1e-5)


def peak_over_inputs_and_results(problem, **options):
    """Bytes, of torch's allocator: the peak of forward and backward less the inputs and the four gradients."""
    problem = problem.to("cuda").leaves()
    for _ in range(2):  # the first run pays for cuBLAS's own workspace and the kernels' compilation
        for name in LEAVES:
            getattr(problem, name).grad = None
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        problem.call(sampled_rnnt_loss, impl="cuda", **options).sum().backward()
        torch.cuda.synchronize()
        peak = torch.cuda.max_memory_allocated() - before
    return peak - sum(getattr(problem, name).grad.nbytes for name in LEAVES)


@pytest.mark.parametrize("workspace_mib", [16, 64])
@pytest.mark.parametrize("dropout, reduction", [(0.0, "mean_batch"), (0.1, "mean_batch"), (0.1, None)])
@pytest.mark.parametrize("scope", SCOPES)
def test_memory_is_bounded(scope, dropout, reduction, workspace_mib):
    """B=16, T=200, U=40, H=320, V=1023, bf16: 131,200 cells, whole 80 MiB of hidden, 256 of logits. Lattice (5 MiB) and
    sums of the projections' gradients (5) are in the workspace, of which the tiles have at least half. Over it: float32
    sums of the weight's gradient (1), in the utterance scope a row for each utterance's candidates (9), the gradients
    in float32 beside their copies (6), what fills up blocks: 24 MiB."""
    problem = make_problem(11, B=16, T=200, U=40, H=320, V=1023, N=400, scope=scope, padded=False, scale=0.3)
    problem = problem.to(torch.bfloat16)
    peak = peak_over_inputs_and_results(problem, workspace_mib=workspace_mib, dropout=dropout, reduction=reduction)
    assert peak <= (workspace_mib + 24) * MIB, f"{peak / MIB:.1f} MiB over a workspace of {workspace_mib} MiB"


@pytest.mark.parametrize("scope", ["batch", "utterance"])
def test_memory_with_a_vocabulary_of_131072(scope):
    """The line the project promises: 0.7 GiB over inputs, weights and their gradients at 2,048 negatives."""
    sizes = {"B": 16, "T": 200, "U": 40, "H": 640, "V": 131071}
    problem = make_problem(12, **sizes, N=2048, scope=scope, padded=False, scale=0.3).to(torch.bfloat16)
    peak = peak_over_inputs_and_results(problem)
    print(f"peak {peak / MIB:.0f} MiB")
    assert peak <= 0.7 * 1024 * MIB, f"{peak / MIB:.0f} MiB"


def test_a_real_shortage_of_memory(caplog):
    """100 MiB where the workspace alone would take 256: the same result, and a line that says so."""
    problem = make_problem(15, B=6, T=150, U=40, H=64, V=2047, padded=False, scale=0.3).to(torch.bfloat16).to("cuda")
    want = gradients_of(problem, sampled_rnnt_loss, impl="cuda")
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 100 * MIB) / total)
    try:
        with caplog.at_level(logging.WARNING, "nemo_sampled_rnnt"):
            got = gradients_of(problem, sampled_rnnt_loss, impl="cuda", workspace_mib=256)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert "ran out of memory with workspace_mib=256" in caplog.text
    assert_same(got, want, 1e-2)


@pytest.mark.parametrize("scope", SCOPES)
def test_one_read_of_the_device_a_step(scope):
    problem = make_problem(16, **SIZES, scope=scope, correction=scope is not None).to(torch.bfloat16).to("cuda")
    gradients_of(problem, sampled_rnnt_loss, impl="cuda")  # compiles, and makes cuBLAS's handles
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


# --- bad input --------------------------------------------------------------------------------------------------------


def test_bad_input_is_named_before_any_kernel():
    good = make_problem(13).to("cuda")
    for name, at, value in (
        ("targets", (1, 0), 11),
        ("encoder_lengths", (1,), 0),
        ("target_lengths", (1,), 99),
    ):
        tensor = getattr(good, name).clone()
        tensor[at] = value
        with pytest.raises(ValueError, match=rf"{name}.*\b{value}\b"):
            replace(good, **{name: tensor}).call(sampled_rnnt_loss, impl="cuda")
    with pytest.raises(ValueError, match="targets"):
        replace(good, targets=good.targets.cpu()).call(sampled_rnnt_loss, impl="cuda")
    assert torch.isfinite(good.call(sampled_rnnt_loss, impl="cuda"))  # the device is as it was


def test_cuda_wants_cuda_tensors():
    with pytest.raises((ValueError, RuntimeError), match="(?i)cuda"):
        make_problem(14).call(sampled_rnnt_loss, impl="cuda")


def test_nonfinite_utterance_is_reported_one_step_later(caplog):
    whole = make_problem(15, B=5, T=9, U=4, H=7, V=11)
    bad = replace(whole, encoder=whole.encoder.clone())
    bad.encoder[3, 0] = float("nan")
    want = truth(whole.keep([0, 1, 2, 4]))  # first: the next call of the loss is the one that reports
    loss, gradients = on_gpu(bad)
    for name in ("encoder", "predictor"):
        assert (gradients[name][3] == 0).all()
        gradients[name] = gradients[name][[0, 1, 2, 4]]
    assert_same((loss, gradients), want, 1e-9)
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        on_gpu(whole)
    assert any("[3]" in record.getMessage() for record in caplog.records), caplog.text


def test_nothing_finite_raises_one_step_later():
    good = make_problem(16)
    on_gpu(replace(good, bias=torch.full_like(good.bias, float("nan"))))
    with pytest.raises(FloatingPointError):
        on_gpu(good)
    on_gpu(good)  # raised once


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_gpus_report_their_own(caplog):
    """Whichever is the current one."""
    good, bad = make_problem(15, B=5).to("cuda:0"), make_problem(15, B=5).to("cuda:1")
    bad.encoder[3, 0] = float("nan")
    bad.call(sampled_rnnt_loss, impl="cuda")
    caplog.clear()
    good.call(sampled_rnnt_loss, impl="cuda")
    assert not caplog.records
    bad.call(sampled_rnnt_loss, impl="cuda")
    assert "indices [3]" in caplog.text


# --- another oracle ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", ["mean_batch", "sum", "mean", "mean_volume"])
@pytest.mark.parametrize("fastemit_lambda, clamp", [(0.0, -1.0), (0.01, -1.0), (0.01, 0.02)])
def test_nemo_warprnnt_numba(reduction, fastemit_lambda, clamp):
    """NeMo's own loss on the full joint, float32; on CUDA it clamps at unit scale, as we do."""
    pytest.importorskip("nemo.collections.asr")
    from nemo.collections.asr.losses.rnnt import RNNTLoss

    problem = make_problem(17, B=5, T=41, U=13, H=67, V=101, fill=0.0, scale=0.5).to(torch.float32)
    problem.targets.clamp_(0, 100)
    nemo_loss = RNNTLoss(
        num_classes=101,
        reduction=reduction,
        loss_name="warprnnt_numba",
        loss_kwargs={"fastemit_lambda": fastemit_lambda, "clamp": clamp},
    )

    def nemo(encoder, predictor, weight, bias, targets, encoder_lengths, target_lengths):
        frames, labels = int(encoder_lengths.max()), int(target_lengths.max())
        hidden = torch.relu(encoder[:, :frames, None] + predictor[:, None, : labels + 1])
        scores = torch.nn.functional.linear(hidden, weight, bias)
        return nemo_loss(
            log_probs=scores, targets=targets[:, :labels], input_lengths=encoder_lengths, target_lengths=target_lengths
        )

    want = gradients_of(problem.to("cuda"), nemo)
    got = on_gpu(problem, reduction=reduction, fastemit_lambda=fastemit_lambda, clamp=clamp)
    assert_same(got, want, 5e-4)
