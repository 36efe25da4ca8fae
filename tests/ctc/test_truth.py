"""The CTC head against PyTorch's own loss in float64, and against an enumeration of all alignments."""

import math
from dataclasses import replace

import pytest
import torch
from ctc_truth import LEAVES, assert_near, assert_same, enumerated, make_problem, plain, results, truth

from nemo_sampled_rnnt.ctc import ctc_loss, engine
from nemo_sampled_rnnt.ctc.batch import Options, make_batch
from nemo_sampled_rnnt.ctc.engine import plan
from nemo_sampled_rnnt.loss.candidates import recurring

IMPLS = ("reference", "cpu")
SIZES = {"B": 5, "T": 23, "U": 7, "D": 9, "V": 14}
OPTIONS = {
    "defaults": {},
    "nonblank": {"frame_weights": "nonblank"},
    "max": {"frame_weights": "max"},
    "mean": {"reduction": "mean"},
    "sum": {"reduction": "sum"},
    "mean_volume": {"reduction": "mean_volume", "frame_weights": "max"},
}


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_torch(options, impl, fresh_seed):
    problem = make_problem(fresh_seed, **SIZES)
    assert_same(results(problem, ctc_loss, impl=impl, upstream=-1.7, **options), truth(problem, -1.7, **options), 1e-10)


@pytest.mark.parametrize("impl", IMPLS)
def test_every_alignment(impl):
    problem = make_problem(3, B=4, T=5, U=3, D=3, V=3, lengths=[5, 4, 5, 3], labels=[2, 1, 3, 0])
    problem.targets[0, :2] = 1  # a label that follows itself
    losses = problem.call(ctc_loss, impl=impl).losses
    _, _, log_probs = plain(problem)
    for b, (frames, labels) in enumerate(zip([5, 4, 5, 3], [2, 1, 3, 0], strict=True)):
        want = -math.log(enumerated(log_probs[b, :frames], problem.targets[b, :labels].tolist()))
        assert losses[b].item() == pytest.approx(want, rel=1e-12)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_utterances_cut_by_frames(options, monkeypatch):
    """A frame of 5,008 float64 logits takes 40 kB, and 1 MiB holds 15 beside the masses: an utterance has up to 23."""
    monkeypatch.setattr(engine, "SMALL", 2**20)
    visits = []
    monkeypatch.setattr(engine, "plan", lambda *sizes: visits.extend(plan(*sizes)) or visits)
    problem = make_problem(2, **SIZES | {"V": 5002})
    got = results(problem, ctc_loss, impl="cpu", workspace_mib=1, **options)
    assert max(map(len, visits)) > 1
    assert_same(got, truth(problem, **options), 1e-9)


def test_many_utterances_in_a_tile_and_many_tiles(monkeypatch):
    monkeypatch.setattr(engine, "SMALL", 2**20)
    for V, workspace_mib in ((11, 1), (1500, 2)):
        problem = make_problem(4, B=17, T=19, U=6, D=5, V=V)
        assert_same(results(problem, ctc_loss, impl="cpu", workspace_mib=workspace_mib), truth(problem), 1e-9)


def test_tiles_are_of_even_size():
    """Sixteen utterances of 200 frames, five of which fit: four tiles of four, not three of five and one of one."""
    problem = make_problem(0, B=16, T=200, U=1, D=1, V=3, lengths=[200] * 16, labels=[1] * 16)
    batch = make_batch(
        problem.encoder, problem.weight, problem.targets, problem.encoder_lengths, problem.target_lengths, Options()
    )
    assert [[tile.cells for tile in visit] for visit in plan(batch, 10, 11_000)] == [[800]] * 4
    assert [[tile.cells for tile in visit] for visit in plan(batch, 10, 1_500)] == [[50, 150]] * 16
    on_a_gpu = replace(batch, table=torch.empty(16, 4))
    assert [[tile.cells for tile in visit] for visit in plan(on_a_gpu, 10, 11_000)] == [[800]] * 4


def test_sizes_recur_on_a_gpu():
    """Three products a tile, and cuBLAS takes 0.3 ms of the host for each of a size that it has not met."""
    met, new = set(), 0
    for number in range(300):
        problem = make_problem(number, B=16, T=200, U=1, D=1, V=3, lengths=None, labels=[1] * 16)
        batch = make_batch(
            problem.encoder, problem.weight, problem.targets, problem.encoder_lengths, problem.target_lengths, Options()
        )
        frames = sum(batch.frames)
        batch = replace(batch, table=torch.empty(16, 4))
        tiles = [tile for visit in plan(batch, 10, min(11_000, 10 * recurring(frames))) for tile in visit]
        assert sum(tile.cells for tile in tiles) == frames
        assert all(tile.cells <= tile.rows <= 1100 for tile in tiles)
        rows = {tile.rows for tile in tiles}
        new += len(rows - met) if number >= 200 else 0
        met |= rows
    assert new <= 5, "of some two hundred tiles"


@pytest.mark.parametrize("impl", IMPLS)
def test_gradient_by_finite_differences(impl):
    problem = make_problem(5, B=2, T=5, U=2, D=3, V=4, fill=0.0)
    leaves = [getattr(problem, name).requires_grad_() for name in LEAVES]

    def loss(*leaves):
        changed = replace(problem, **dict(zip(LEAVES, leaves, strict=True)))
        return changed.call(ctc_loss, impl=impl, reduction="mean").loss

    assert torch.autograd.gradcheck(loss, leaves)


@pytest.mark.parametrize("impl", IMPLS)
def test_empty_transcripts(impl):
    for U in (0, 3):
        problem = make_problem(6, B=3, T=4, U=U, labels=[0, 0, 0])
        assert_same(results(problem, ctc_loss, impl=impl, reduction="sum"), truth(problem, reduction="sum"), 1e-12)


@pytest.mark.parametrize("impl", IMPLS)
def test_repeated_labels(impl):
    problem = make_problem(7, B=3, T=12, U=5, lengths=[12, 10, 9], labels=[5, 5, 5])
    problem.targets.copy_(torch.tensor([[2, 2, 2, 2, 2], [1, 1, 2, 1, 1], [3, 4, 3, 4, 3]]))
    assert_same(results(problem, ctc_loss, impl=impl), truth(problem), 1e-10)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("zero_infinity", [True, False])
def test_too_short_for_its_labels(zero_infinity, impl):
    """Five equal labels need nine frames: the loss is infinite. PyTorch's zero_infinity counts it as 0."""
    problem = make_problem(8, B=3, T=12, U=5, lengths=[12, 8, 11], labels=[3, 5, 2])
    problem.targets[1] = 4
    loss, losses, posteriors, gradients = results(problem, ctc_loss, impl=impl, zero_infinity=zero_infinity)
    want = truth(problem.keep([0, 2]), reduction="sum")
    counted = 3 if zero_infinity else 2
    assert_near("loss", loss, want[0] / counted, 1e-12)
    assert losses[1] == (0 if zero_infinity else math.inf)
    assert (gradients["encoder"][1] == 0).all()
    gradients["encoder"] = gradients["encoder"][[0, 2]]
    for name in LEAVES:
        assert_near(name, gradients[name], want[3][name] / counted, 1e-10)
    assert_near("posteriors", posteriors, plain(problem)[1], 1e-6)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_utterance_that_is_not_finite(value, impl):
    """It is left out of loss and gradient; its posteriors are those of a frame of 0 in the place of each bad one."""
    problem = make_problem(9, **SIZES)
    bad = replace(problem, encoder=problem.encoder.clone())
    bad.encoder[1, 2, 3] = value
    loss, losses, posteriors, gradients = results(bad, ctc_loss, impl=impl)
    others = [0, 2, 3, 4]
    want = truth(problem.keep(others))
    assert losses[1].isnan() and (gradients["encoder"][1] == 0).all()
    gradients["encoder"] = gradients["encoder"][others]
    bad.encoder[1, 2] = 0
    assert_near("posteriors", posteriors, plain(bad)[1], 1e-6)
    assert_same((loss, losses[others], posteriors[others], gradients), want, 1e-6)


@pytest.mark.parametrize("impl", IMPLS)
def test_frozen_inputs_get_no_gradient(impl):
    problem = make_problem(10, **SIZES)
    want = truth(problem)
    for asking in (*LEAVES, None):
        frozen = set(LEAVES) - {asking}
        got = results(problem, ctc_loss, impl=impl, frozen=frozen)
        assert all(got[3][name] is None for name in frozen)
        assert_same(got, want, 1e-6)
    with torch.no_grad():
        out = problem.call(ctc_loss, impl=impl, frame_weights="mean")
    assert_near("loss", out.loss, want[0], 1e-12)
    assert_near("posteriors", out.posteriors, want[2], 1e-6)


@pytest.mark.parametrize("impl", IMPLS)
def test_best_labels(impl):
    problem = make_problem(11, **SIZES)
    out = problem.call(ctc_loss, impl=impl, best=True)
    beyond = torch.arange(SIZES["T"]) >= problem.encoder_lengths[:, None]
    assert torch.equal(out.best, plain(problem)[2].argmax(dim=-1).masked_fill(beyond, SIZES["V"]))
    assert out.posteriors is None and problem.call(ctc_loss, impl=impl).best is None


@pytest.mark.parametrize("impl", IMPLS)
def test_weight_of_a_convolution(impl):
    problem = make_problem(12, **SIZES)
    weight = problem.weight[..., None].clone().requires_grad_()
    replace(problem, weight=weight).call(ctc_loss, impl=impl).loss.backward()
    assert_near("weight", weight.grad[..., 0], truth(problem)[3]["weight"], 1e-10)


def test_no_second_derivatives():
    """A penalty on the gradient would train nothing, in silence."""
    problem = make_problem(14, B=2, T=9, U=3, D=5, V=7)
    weight = problem.weight.requires_grad_()
    with pytest.raises(RuntimeError, match="create_graph"):
        torch.autograd.grad(problem.call(ctc_loss, impl="cpu").loss, weight, create_graph=True)


def test_backward_twice():
    problem = make_problem(13, **SIZES)
    encoder = problem.encoder.clone().requires_grad_()
    loss = replace(problem, encoder=encoder).call(ctc_loss).loss
    first, second = (torch.autograd.grad(loss, encoder, retain_graph=keep)[0] for keep in (True, False))
    assert torch.equal(first, second)
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(loss, encoder)


# --- dtypes -----------------------------------------------------------------------------------------------------------

HALF, SINGLE = torch.bfloat16, torch.float32
MIXES = {
    "float32": (SINGLE, SINGLE, SINGLE, 1e-4),
    "bf16": (HALF, HALF, HALF, 3e-2),
    "fp16": (torch.float16, torch.float16, torch.float16, 4e-3),
    "encoder bf16, weight float32": (HALF, SINGLE, SINGLE, 3e-2),
}


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("mix", MIXES.values(), ids=MIXES)
def test_dtypes(mix, impl):
    *dtypes, tolerance = mix
    problem = make_problem(14, **SIZES, fill=0.0)
    problem = replace(
        problem, **{name: getattr(problem, name).to(dtype) for name, dtype in zip(LEAVES, dtypes, strict=True)}
    )
    got = results(problem, ctc_loss, impl=impl)
    for name, dtype in zip(LEAVES, dtypes, strict=True):
        assert got[3][name].dtype == dtype, name
    assert got[0].dtype == got[1].dtype == got[2].dtype == SINGLE
    assert_same(got, truth(problem.to(torch.float64)), tolerance)


@pytest.mark.parametrize("impl", IMPLS)
def test_autocast(impl):
    """NeMo's encoder ends in a layer norm, whose output is float32 under autocast: the products are in bfloat16 yet."""
    problem = make_problem(15, **SIZES, fill=0.0).to(SINGLE)
    with torch.autocast("cpu", HALF):
        got = results(problem, ctc_loss, impl=impl)
    want = results(replace(problem, encoder=problem.encoder.to(HALF)), ctc_loss, impl=impl)
    assert got[3]["encoder"].dtype == SINGLE
    assert torch.equal(got[0], want[0]) and torch.equal(got[3]["weight"], want[3]["weight"])


def test_bf16_is_no_worse_than_plain_torch():
    """Against float64 truth, beside what PyTorch makes of the same bfloat16 inputs."""
    ours, theirs = dict.fromkeys(("losses", *LEAVES), 0.0), dict.fromkeys(("losses", *LEAVES), 0.0)
    for seed in range(6):
        problem = make_problem(seed, B=6, T=31, U=9, D=33, V=97, fill=0.0).to(HALF)
        want = truth(problem.to(torch.float64), reduction="sum")
        for errors, got in (
            (ours, results(problem, ctc_loss, impl="cpu", reduction="sum")),
            (theirs, truth(problem, reduction="sum")),
        ):
            errors["losses"] += (got[1] - want[1]).abs().sum().item()
            for name in LEAVES:
                errors[name] += (got[3][name].double() - want[3][name]).norm().item()
    for name, error in ours.items():
        assert error <= 1.25 * theirs[name], f"{name}: {error / theirs[name]:.2f} times PyTorch's error"


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda p: p.targets.__setitem__((1, 0), 14), r"targets\[1, 0\] is 14 \(that is blank\)"),
        (lambda p: p.targets.__setitem__((1, 0), -3), r"targets\[1, 0\] is -3"),
        (lambda p: p.encoder_lengths.__setitem__(2, 24), r"encoder_lengths\[2\] is 24, but must lie in \[1, 23\]"),
        (lambda p: p.encoder_lengths.__setitem__(2, 0), r"encoder_lengths\[2\] is 0"),
        (lambda p: p.target_lengths.__setitem__(0, 8), r"target_lengths\[0\] is 8, but must lie in \[0, 7\]"),
    ],
)
def test_lengths_and_ids_out_of_range(change, message):
    problem = make_problem(16, **SIZES, labels=[3, 3, 7, 1, 2])
    change(problem)
    with pytest.raises(ValueError, match=message):
        problem.call(ctc_loss)


@pytest.mark.parametrize(
    "name, change, message",
    [
        ("weight", lambda x: x[:, 1:], r"encoder must have shape \(B, T, D\)"),
        ("bias", lambda x: x[1:], r"bias must have shape \(V \+ 1,\)"),
        ("targets", lambda x: x[1:], r"targets must have shape \(B, U\)"),
        ("targets", lambda x: x.float(), "targets must be integers, got torch.float32"),
        ("encoder", lambda x: x.long(), "encoder must be floating point"),
        ("target_lengths", lambda x: x[:, None], r"target_lengths must have shape \(B,\)"),
    ],
)
def test_tensors_that_do_not_fit(name, change, message):
    problem = make_problem(17, **SIZES)
    with pytest.raises(ValueError, match=message):
        replace(problem, **{name: change(getattr(problem, name))}).call(ctc_loss)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"reduction": "none"}, "reduction must be one of 'mean', 'sum'"),
        ({"frame_weights": "median"}, "frame_weights must be one of None, 'mean', 'nonblank', 'max', got 'median'"),
        ({"workspace_mib": 0}, "workspace_mib must be at least 1 MiB, got 0"),
        ({"impl": "gpu"}, "impl must be one of 'auto'"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        make_problem(18, **SIZES).call(ctc_loss, **options)
