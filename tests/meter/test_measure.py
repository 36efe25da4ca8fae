"""A measurement beside what the definitions say, computed with the full joint in float64 by autograd."""

import math

import pytest
import torch
from cases import batch, sampler

from nemo_sampled_rnnt import sampled_rnnt_loss
from nemo_sampled_rnnt.loss.reference import activate, log_likelihood
from nemo_sampled_rnnt.meter import Utterance, lattice, measure, score

SCOPES = pytest.mark.parametrize("scope", ["utterance", "batch"])


def brute_force(arguments, drawn, b, corrected, activation="relu"):
    """By the full joint of one utterance: a dict of what a measurement holds, and occupancy, gradients, softmax."""
    frames, labels = int(arguments["encoder_lengths"][b]), int(arguments["target_lengths"][b])
    hidden = arguments["encoder"][b, :frames, None] + arguments["predictor"][b, None, : labels + 1]
    hidden = activate(hidden, activation).requires_grad_()
    scores = hidden @ arguments["weight"].T + arguments["bias"]
    blank, target = scores.shape[-1] - 1, arguments["targets"][b, :labels]

    together = drawn.ids.dim() == 1
    offsets = torch.full((blank + 1,), math.inf, dtype=torch.float64)  # log q; inf: no candidate
    ids, log_q = (drawn.ids, drawn.log_prob) if together else (drawn.ids[b], drawn.log_prob[b])
    offsets[ids[ids >= 0]] = log_q[ids >= 0].double()
    for i in range(len(arguments["targets"])) if together else [b]:
        offsets[arguments["targets"][i, : arguments["target_lengths"][i]]] = 0
    offsets[blank] = 0
    inside = torch.where(offsets.isinf(), math.inf, 0.0)

    def loss(normaliser):
        log_blank = scores[..., blank] - normaliser
        log_label = scores[:, :-1].gather(2, target.expand(frames, -1)[..., None])[..., 0] - normaliser[:, :-1]
        return -log_likelihood(log_blank, log_label), log_blank, log_label

    exact, sampled, with_q = (x.logsumexp(dim=-1) for x in (scores, scores - inside, scores - offsets))
    exact_loss, log_blank, log_label = loss(exact)
    sampled_loss = loss(with_q if corrected else sampled)[0]
    ours, theirs = (torch.autograd.grad(x, hidden, retain_graph=True)[0] for x in (exact_loss, sampled_loss))
    by_blank, by_label = torch.autograd.grad(-exact_loss, [log_blank, log_label])
    occupancy = by_blank.clone()
    occupancy[:, :-1] += by_label
    weight = occupancy / occupancy.sum()
    return {
        "coverage": (weight * (sampled - exact).exp()).sum().item(),
        "gap": (weight * (sampled - exact)).sum().item(),
        "corrected_gap": (weight * (with_q - exact)).sum().item(),
        "cosine": (weight * torch.cosine_similarity(ours, theirs, dim=-1)).sum().item(),
        "exact_loss": exact_loss.item(),
        "sampled_loss": sampled_loss.item(),
        "candidates": int(offsets.isfinite().sum()),
    }, (weight[..., None] * scores.softmax(dim=-1)).sum(dim=(0, 1)).detach()


@SCOPES
@pytest.mark.parametrize("corrected", [False, True])
@pytest.mark.parametrize("b", [0, 1, 2])
@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_is_what_the_full_joint_says(b, corrected, scope, activation, monkeypatch):
    """float64; what is drawn, cosine and softmax, from 20,000 cells: a cell's share is off by 1 / 20,000 at most."""
    monkeypatch.setattr(lattice, "CELLS", 17)
    monkeypatch.setattr(lattice, "COLUMNS", 13)  # a vocabulary of 42 rows goes by in four stretches
    arguments = batch()
    drawn = sampler(arguments, scope=scope)(arguments["targets"], arguments["target_lengths"], inclusion=True)
    one = Utterance.of_batch(b, *arguments.values(), *drawn, activation)
    measured = measure(one, corrected, cells=20_000)
    expected, softmax = brute_force(arguments, drawn, b, corrected, activation)
    for name, value in expected.items():
        tolerance = 5e-3 if name == "cosine" else 1e-9
        assert getattr(measured, name) == pytest.approx(value, abs=tolerance), name
    torch.testing.assert_close(measured.softmax, softmax, atol=5e-3, rtol=0)


def test_exact_loss_is_the_losss():
    arguments = batch()
    drawn = sampler(arguments)(arguments["targets"], arguments["target_lengths"], inclusion=True)
    exact = sampled_rnnt_loss(**arguments, reduction=None)
    uncorrected = sampled_rnnt_loss(**arguments, negatives=drawn.ids, reduction=None)
    corrected = sampled_rnnt_loss(**arguments, negatives=drawn.ids, negative_log_prob=drawn.log_prob, reduction=None)
    for b in range(3):
        one = Utterance.of_batch(b, *arguments.values(), *drawn)
        for sampled, correction in ((uncorrected, False), (corrected, True)):
            measured = measure(one, correction)
            assert measured.exact_loss == pytest.approx(exact[b].item())
            assert measured.sampled_loss == pytest.approx(sampled[b].item())


@SCOPES
def test_every_label_is_exact(scope):
    arguments = batch()
    drawn = sampler(arguments, n_samples=41, scope=scope)(
        arguments["targets"], arguments["target_lengths"], inclusion=True
    )
    measured = measure(Utterance.of_batch(0, *arguments.values(), *drawn), corrected=True)
    assert measured.coverage == pytest.approx(1) and measured.cosine == pytest.approx(1)
    assert measured.gap == pytest.approx(0, abs=1e-12) and measured.corrected_gap == pytest.approx(0, abs=1e-6)
    assert measured.exact_loss == pytest.approx(measured.sampled_loss)


def test_without_inclusion_probabilities():
    arguments = batch()
    ids = torch.tensor([[3, 5, -1], [7, -1, -1], [1, 2, 9]])
    measured = measure(Utterance.of_batch(0, *arguments.values(), ids), corrected=False)
    assert measured.corrected_gap is None
    assert set(measured.logs()) == {
        "meter_coverage", "meter_gap", "meter_cosine", "meter_exact_loss", "meter_sampled_loss", "meter_candidates",
    }  # fmt: skip


def test_what_lies_beyond_the_lengths_is_not_read():
    arguments = batch()
    drawn = sampler(arguments)(arguments["targets"], arguments["target_lengths"], inclusion=True)
    clean = measure(Utterance.of_batch(0, *arguments.values(), *drawn), corrected=True)
    for name, lengths, more in (("encoder", "encoder_lengths", 0), ("predictor", "target_lengths", 1)):
        for b in range(3):
            arguments[name][b, arguments[lengths][b] + more :] = math.nan
    arguments["targets"][0, 4:] = -7
    spoilt = measure(Utterance.of_batch(0, *arguments.values(), *drawn), corrected=True)
    assert spoilt.logs() == clean.logs()


def test_utterance_that_is_not_finite():
    arguments = batch()
    drawn = sampler(arguments)(arguments["targets"], arguments["target_lengths"])
    arguments["encoder"][1, 3, 0] = math.nan
    assert measure(Utterance.of_batch(1, *arguments.values(), *drawn), corrected=False) is None
    assert measure(Utterance.of_batch(0, *arguments.values(), *drawn), corrected=False) is not None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compute_dtype(dtype):
    """Float32 weights beside half-precision projections, as under autocast: within what the dtype resolves."""
    arguments = batch()
    drawn = sampler(arguments)(arguments["targets"], arguments["target_lengths"], inclusion=True)
    truth = measure(Utterance.of_batch(0, *arguments.values(), *drawn), corrected=True)
    for name in ("encoder", "predictor", "weight", "bias"):
        arguments[name] = arguments[name].to(torch.float32 if name in ("weight", "bias") else dtype)
    measured = measure(Utterance.of_batch(0, *arguments.values(), *drawn), corrected=True)
    tolerance = 1e-4 if dtype == torch.float32 else 0.03
    for name, value in truth.logs().items():
        assert measured.logs()[name] == pytest.approx(value, rel=tolerance, abs=tolerance), name
    assert measured.softmax.dtype == torch.float32


def test_holds_no_logits_of_the_lattice(monkeypatch):
    """A stretch of the vocabulary for a few cells at a time."""
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    class Largest(TorchDispatchMode):
        elements = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            for x in tree_leaves(result):
                if isinstance(x, torch.Tensor) and x.untyped_storage().data_ptr() not in given:
                    self.elements = max(self.elements, x.untyped_storage().nbytes() // x.element_size())
            return result

    monkeypatch.setattr(lattice, "CELLS", 16)
    monkeypatch.setattr(lattice, "COLUMNS", 100)
    arguments = batch(vocabulary=2003, dtype=torch.float32)
    drawn = sampler(arguments)(arguments["targets"], arguments["target_lengths"])
    given = {x.untyped_storage().data_ptr() for x in (*arguments.values(), *drawn) if x is not None}
    one = Utterance.of_batch(0, *arguments.values(), *drawn)
    given |= {one.weight.untyped_storage().data_ptr()}
    with Largest() as largest:
        measure(one, corrected=False, cells=64)
    assert 1600 <= largest.elements <= 2004  # 16 x 100 logits; the mean softmax
    with Largest() as largest:
        score(one)
    assert largest.elements <= 1600


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_cuda_as_on_the_cpu(dtype):
    arguments = batch(dtype=torch.float32)
    drawn = sampler(arguments)(arguments["targets"], arguments["target_lengths"], inclusion=True)
    expected = measure(Utterance.of_batch(0, *arguments.values(), *drawn), corrected=True).logs()
    moved = {name: x.cuda() for name, x in arguments.items()}
    for name in ("encoder", "predictor"):
        moved[name] = moved[name].to(dtype)
    measured = measure(Utterance.of_batch(0, *moved.values(), *(x.cuda() for x in drawn)), corrected=True).logs()
    tolerance = 1e-3 if dtype == torch.float32 else 0.03
    for name, value in expected.items():
        assert measured[name] == pytest.approx(value, rel=tolerance, abs=tolerance), name
