"""The CTC head's kernels on a GPU (in the simulator: test_kernels.py), against PyTorch in float64 on the CPU."""

import warnings
from dataclasses import replace

import pytest
import torch
from ctc_truth import LEAVES, assert_near, assert_same, make_problem, plain, relative_error, results, truth

from nemo_sampled_rnnt.ctc import ctc_loss

pytestmark = pytest.mark.gpu

MIB = 2**20
SIZES = {"B": 7, "T": 61, "U": 19, "D": 67, "V": 523}
OPTIONS = {
    "defaults": {},
    "nonblank": {"frame_weights": "nonblank"},
    "max": {"frame_weights": "max"},
    "mean": {"reduction": "mean"},
    "sum": {"reduction": "sum"},
    "mean_volume": {"reduction": "mean_volume", "frame_weights": "max"},
}


@pytest.fixture(autouse=True)
def float32_products():
    """Plain float32 matrix products, not TF32."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32 = before


def on_gpu(problem, **options):
    return results(problem.to("cuda"), ctc_loss, **options)


@pytest.mark.parametrize("V", [523, 9001])  # a warp and a block to a group of frames
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-10), (torch.float32, 2e-4)], ids=str)
def test_torch(dtype, tolerance, options, V, fresh_seed):
    problem = make_problem(fresh_seed, **SIZES | {"V": V}, scale=0.3).to(dtype)
    want = truth(problem.to(torch.float64), -1.7, **options)
    assert_same(on_gpu(problem, upstream=-1.7, **options), want, tolerance)


@pytest.mark.parametrize("dtypes", ["bf16", "fp16", "autocast"])
@pytest.mark.parametrize("D", [65, 72])
def test_low_precision(D, dtypes):
    """Against float64 truth, beside what PyTorch makes of the same inputs on the same GPU: a quarter more at most."""
    half = torch.float16 if dtypes == "fp16" else torch.bfloat16
    ours, theirs = dict.fromkeys(("losses", *LEAVES), 0.0), dict.fromkeys(("losses", *LEAVES), 0.0)
    for seed in range(6):
        # 144 utterances: of 36 the ratio of the losses' errors is anything from 0.6 to 1.5, of these 0.8 to 1.0
        problem = make_problem(seed, B=24, T=61, U=9, D=D, V=697, fill=0.0, scale=0.3).to(half)
        if dtypes == "autocast":
            problem = replace(problem, weight=problem.weight.float(), bias=problem.bias.float())
        want = truth(problem.to(torch.float64), reduction="sum")
        got, torchs = on_gpu(problem, reduction="sum"), truth(problem.to("cuda"), reduction="sum")
        for errors, other in ((ours, got), (theirs, torchs)):
            errors["losses"] += (other[1].cpu() - want[1]).abs().sum().item()
            for name in LEAVES:
                errors[name] += (other[3][name].cpu().double() - want[3][name]).norm().item()
        for name in LEAVES:
            assert got[3][name].dtype == getattr(problem, name).dtype
    for name, error in ours.items():
        assert error <= 1.25 * theirs[name], f"{name}: {error / theirs[name]:.2f} times PyTorch's error"


@pytest.mark.parametrize("workspace_mib", [1, 256])
@pytest.mark.parametrize("frame_weights", ["mean", "nonblank", "max"])
def test_utterances_cut_by_frames(frame_weights, workspace_mib):
    """A frame of 20,008 float32 logits takes 80 kB: of 1 MiB a fourth is logits, three frames."""
    problem = make_problem(1, **SIZES | {"V": 20_001}, scale=0.3).to(torch.float32)
    got = on_gpu(problem, workspace_mib=workspace_mib, frame_weights=frame_weights)
    assert_same(got, truth(problem.to(torch.float64), frame_weights=frame_weights), 2e-4)


@pytest.mark.parametrize("U", [511, 512, 700])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-9), (torch.float32, 5e-3)], ids=str)
def test_more_labels_than_a_block_has_threads(dtype, tolerance, U):
    problem = make_problem(2, B=2, T=2 * U, U=U, D=7, V=11, lengths=[2 * U, 2 * U - 5], labels=[U, U // 2], scale=0.5)
    problem = problem.to(dtype)
    assert_same(on_gpu(problem), truth(problem.to(torch.float64)), tolerance)


def test_empty_transcripts_and_single_frames():
    for sizes in ({"U": 0, "labels": [0] * 3}, {"T": 1, "U": 1, "lengths": [1] * 3, "labels": [0, 1, 1]}):
        problem = make_problem(3, **{"B": 3, "T": 5, "D": 9, "V": 31} | sizes)
        assert_same(on_gpu(problem, reduction="sum"), truth(problem, reduction="sum"), 1e-10)


def test_left_out():
    """An utterance that is not finite, and one that is too short for its labels."""
    problem = make_problem(4, B=4, T=19, U=10, D=9, V=31, lengths=[19, 18, 12, 17], labels=[3, 2, 10, 1])
    problem.targets[2] = 4
    bad = replace(problem, encoder=problem.encoder.clone())
    bad.encoder[1, 4, 2] = float("nan")
    for zero_infinity, counted in ((True, 3), (False, 2)):
        got = on_gpu(bad, zero_infinity=zero_infinity)
        want = truth(problem.keep([0, 3]), reduction="sum")
        assert got[1][1].isnan() and got[1][2] == (0 if zero_infinity else float("inf"))
        assert_near("loss", got[0], want[0] / counted, 1e-10)
        assert (got[3]["encoder"][1:3] == 0).all()
        for name in ("weight", "bias"):
            assert_near(name, got[3][name], want[3][name] / counted, 1e-10)


@pytest.mark.parametrize("V", [523, 20_001])
def test_best_labels(V):
    problem = make_problem(5, **SIZES | {"V": V})
    out = problem.to("cuda").call(ctc_loss, best=True)
    beyond = torch.arange(SIZES["T"]) >= problem.encoder_lengths[:, None]
    assert torch.equal(out.best.cpu(), plain(problem)[2].argmax(dim=-1).masked_fill(beyond, V))


@pytest.mark.parametrize("layout", ["strided", "misaligned"])
def test_layouts(layout):
    problem = make_problem(6, **SIZES | {"D": 72}, fill=0.0).to(torch.bfloat16).to("cuda")
    if layout == "strided":
        other = problem.map(lambda x: x.transpose(0, -1).contiguous().transpose(0, -1))
    else:
        other = problem.map(lambda x: torch.cat([x.flatten()[:1], x.flatten()])[1:].view(x.shape))
    assert_same(results(other, ctc_loss), results(problem, ctc_loss), 1e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("workspace_mib", [1, 256])
@pytest.mark.parametrize("frame_weights", ["mean", "nonblank", "max"])
def test_two_runs_are_bitwise_equal(frame_weights, workspace_mib, dtype):
    problem = make_problem(7, **SIZES | {"V": 9001}, fill=0.0, scale=0.3).to(dtype)
    one, other = (on_gpu(problem, workspace_mib=workspace_mib, frame_weights=frame_weights) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one[:3], other[:3], strict=True))
    assert all(torch.equal(one[3][name], other[3][name]) for name in LEAVES)


def test_another_stream():
    """The inputs arrive late, on the stream that the loss is called on: kernels on any other stream would not wait."""
    problem = make_problem(8, **SIZES, scale=0.3).to(torch.float32)
    want = on_gpu(problem)
    late = problem.to("cuda")
    arriving = late.map(lambda x: x.clone())
    for name in LEAVES:
        getattr(arriving, name).zero_().requires_grad_()
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        torch.cuda._sleep(200_000_000)  # about 0.1 s
        with torch.no_grad():
            for name in LEAVES:
                getattr(arriving, name).copy_(getattr(late, name))
        out = arriving.call(ctc_loss, frame_weights="mean")
        out.loss.backward()
    torch.cuda.synchronize()
    gradients = {name: getattr(arriving, name).grad for name in LEAVES}
    assert_same((out.loss.detach(), out.losses, out.posteriors, gradients), want, 1e-5)


def test_one_read_of_the_device_a_step():
    problem = make_problem(9, **SIZES, scale=0.3).to(torch.bfloat16).to("cuda")
    results(problem, ctc_loss)  # compiles, and makes cuBLAS's handles
    leaves = [getattr(problem, name).requires_grad_() for name in LEAVES]
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.autograd.grad(problem.call(ctc_loss, frame_weights="mean").loss, leaves)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    waits = [str(warning.message) for warning in caught if "synchroniz" in str(warning.message)]
    assert len(waits) == 1, waits


# --- a vocabulary of 131,072 ------------------------------------------------------------------------------------------


def large(weights=torch.bfloat16, B=16, T=200):
    problem = make_problem(10, B=B, T=T, U=40, D=512, V=131_072, fill=0.0, scale=0.05, lengths=[T] * B, labels=[40] * B)
    problem = replace(problem, targets=torch.randint(0, 131_072, problem.targets.shape))
    problem = replace(problem, encoder=problem.encoder.bfloat16(), weight=problem.weight.to(weights))
    return replace(problem, bias=problem.bias.to(weights)).to("cuda")


@pytest.mark.parametrize("weights", [torch.bfloat16, torch.float32], ids=["bf16", "autocast"])
def test_memory_with_a_vocabulary_of_131072(weights):
    """The line the project promises: 256 MiB over inputs, weights, gradients and one float32 accumulator (in bfloat16)
    or one copy of the weight (under autocast, where the accumulator is the gradient)."""
    problem = large(weights)
    leaves = [getattr(problem, name).requires_grad_() for name in LEAVES]
    for _ in range(2):  # the first run pays for cuBLAS's own workspace and the kernels' compilation
        for leaf in leaves:
            leaf.grad = None
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        problem.call(ctc_loss, frame_weights="mean").loss.backward()
        torch.cuda.synchronize()
        peak = torch.cuda.max_memory_allocated() - before
    half, full = (problem.weight.numel() * size for size in (2, 4))
    over = peak - sum(leaf.grad.nbytes for leaf in leaves) - (full if weights == torch.bfloat16 else half)
    print(f"peak {peak / MIB:.0f} MiB, {over / MIB:.0f} over what must be")
    assert over <= 256 * MIB, f"{over / MIB:.0f} MiB"


def test_losses_with_a_vocabulary_of_131072():
    """Within 1e-4 of PyTorch's, relative; utterance by utterance, since all log-probs take gigabytes."""
    problem = large(B=3, T=150)
    losses = problem.call(ctc_loss).losses
    want = torch.cat([plain(problem.keep([b]))[0] for b in range(3)])
    assert relative_error(losses, want) <= 1e-4


def test_offsets_beyond_two_to_the_31st():
    """One tile of 16,800 frames x 131,080 logits: 2.2e9 elements, 4.4 GB in bf16."""
    problem = make_problem(11, B=3, T=5600, U=40, D=16, V=131_072, fill=0.0, scale=0.2, lengths=[5600, 5600, 5599],
                           labels=[40, 3, 39]).to(torch.bfloat16)  # fmt: skip
    whole = on_gpu(problem, workspace_mib=8192)
    cut = on_gpu(problem, workspace_mib=64)
    for name, mine, theirs in zip(("loss", "losses", "posteriors"), whole, cut, strict=False):
        assert_near(name, mine, theirs, 1e-4)
    for name in LEAVES:
        assert_near(name, whole[3][name], cut[3][name], 2e-2)
