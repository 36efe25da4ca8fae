"""A measurement beside what the definitions say, computed with the full joint in float64 by autograd."""

import math

import pytest
import torch
from cases import batch, pieces, sampler

from nemo_sampled_rnnt import sampled_rnnt_loss
from nemo_sampled_rnnt.loss.reference import activate, log_likelihood
from nemo_sampled_rnnt.meter import CandidateSet, Exact, coverage, utterance


def measure(arguments, drawn, corrected):
    """The first utterance."""
    one, candidates = pieces(arguments, drawn, 0)
    return Exact(one).compare(candidates, corrected)


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
    known = set().union(
        *(
            arguments["targets"][i, : arguments["target_lengths"][i]].tolist()
            for i in (range(len(arguments["targets"])) if together else [b])
        )
    )
    certain = (weight * scores.softmax(dim=-1)[..., [*known, blank]].sum(dim=-1)).sum().item()
    covered = (weight * (sampled - exact).exp()).sum().item()
    both = torch.stack([ours, theirs]).flatten(1)
    return {
        "coverage": covered,
        "negative_coverage": (covered - certain) / (1 - certain),
        "gap": (weight * (sampled - exact)).sum().item(),
        "corrected_gap": (weight * (with_q - exact)).sum().item(),
        "cosine": torch.cosine_similarity(both[0], both[1], dim=0).item(),
        "cell_cosine": (weight * torch.cosine_similarity(ours, theirs, dim=-1)).sum().item(),
        "exact_loss": exact_loss.item(),
        "sampled_loss": sampled_loss.item(),
        "candidates": int(offsets.isfinite().sum()),
    }, (weight[..., None] * scores.softmax(dim=-1)).sum(dim=(0, 1)).detach()


@SCOPES
@pytest.mark.parametrize("corrected", [False, True])
@pytest.mark.parametrize("b", [0, 1, 2])
@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_is_what_the_full_joint_says(b, corrected, scope, activation, monkeypatch):
    """In float64, with every cell drawn, since there are few."""
    monkeypatch.setattr(utterance, "CELLS", 17)
    monkeypatch.setattr(utterance, "COLUMNS", 13)  # a vocabulary of 42 rows goes by in four stretches
    arguments = batch()
    drawn = sampler(arguments, scope=scope)(arguments["targets"], arguments["target_lengths"], inclusion=True)
    one, candidates = pieces(arguments, drawn, b, activation)
    exact = Exact(one)
    measured = exact.compare(candidates, corrected)
    expected, softmax = brute_force(arguments, drawn, b, corrected, activation)
    for name, value in expected.items():
        assert getattr(measured, name) == pytest.approx(value, abs=1e-9), name
    torch.testing.assert_close(exact.softmax, softmax)


def test_cosines_from_a_thousand_cells_of_many():
    """Not every cell is drawn: within 0.02 of the truth for each of 20 seeds, and right on average."""
    arguments = batch(seed=5)
    for name, more in (("encoder", (3, 83, 11)), ("predictor", (3, 32, 11))):
        arguments[name] = torch.randn(more, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    arguments["targets"] = torch.randint(41, (3, 31), generator=torch.Generator().manual_seed(7))
    arguments["encoder_lengths"], arguments["target_lengths"] = torch.tensor([83, 60, 9]), torch.tensor([31, 20, 5])
    drawn = sampler(arguments)(arguments["targets"], arguments["target_lengths"], inclusion=True)
    one, candidates = pieces(arguments, drawn, 0)
    expected, _ = brute_force(arguments, drawn, 0, True)
    measured = [Exact(one, cells=1000, seed=seed).compare(candidates, True) for seed in range(20)]
    for name in ("cosine", "cell_cosine"):
        found = torch.tensor([getattr(m, name) for m in measured], dtype=torch.float64)
        assert (found - expected[name]).abs().max() < 0.02
        assert abs(found.mean() - expected[name]) < max(5 * found.std() / 20**0.5, 1e-3)


def test_exact_loss_is_the_losss():
    arguments = batch()
    drawn = sampler(arguments)(arguments["targets"], arguments["target_lengths"], inclusion=True)
    exact = sampled_rnnt_loss(**arguments, reduction=None)
    uncorrected = sampled_rnnt_loss(**arguments, negatives=drawn.ids, reduction=None)
    corrected = sampled_rnnt_loss(**arguments, negatives=drawn.ids, negative_log_prob=drawn.log_prob, reduction=None)
    for b in range(3):
        one, candidates = pieces(arguments, drawn, b)
        for sampled, correction in ((uncorrected, False), (corrected, True)):
            measured = Exact(one).compare(candidates, correction)
            assert measured.exact_loss == pytest.approx(exact[b].item())
            assert measured.sampled_loss == pytest.approx(sampled[b].item())


@SCOPES
def test_every_label_is_exact(scope):
    arguments = batch()
    drawn = sampler(arguments, n_samples=41, scope=scope)(
        arguments["targets"], arguments["target_lengths"], inclusion=True
    )
    measured = measure(arguments, drawn, corrected=True)
    for name in ("coverage", "negative_coverage", "cosine", "cell_cosine"):
        assert getattr(measured, name) == pytest.approx(1), name
    assert measured.gap == pytest.approx(0, abs=1e-12) and measured.corrected_gap == pytest.approx(0, abs=1e-6)
    assert measured.exact_loss == pytest.approx(measured.sampled_loss)


def test_without_inclusion_probabilities():
    arguments = batch()
    ids = torch.tensor([[3, 5, -1], [7, -1, -1], [1, 2, 9]])
    measured = measure(arguments, (ids, None), corrected=False)
    assert measured.corrected_gap is None
    assert set(measured.logs()) == {
        "meter_coverage", "meter_negative_coverage", "meter_gap", "meter_cosine", "meter_cell_cosine",
        "meter_exact_loss", "meter_sampled_loss", "meter_candidates",
    }  # fmt: skip


def test_what_lies_beyond_the_lengths_is_not_read():
    arguments = batch()
    drawn = sampler(arguments)(arguments["targets"], arguments["target_lengths"], inclusion=True)
    clean = measure(arguments, drawn, corrected=True)
    for name, lengths, more in (("encoder", "encoder_lengths", 0), ("predictor", "target_lengths", 1)):
        for b in range(3):
            arguments[name][b, arguments[lengths][b] + more :] = math.nan
    arguments["targets"][0, 4:] = -7
    spoilt = measure(arguments, drawn, corrected=True)
    assert spoilt.logs() == clean.logs()


def test_utterance_that_is_not_finite():
    arguments = batch()
    drawn = sampler(arguments)(arguments["targets"], arguments["target_lengths"])
    arguments["encoder"][1, 3, 0] = math.nan
    assert not Exact(pieces(arguments, drawn, 1)[0]).finite
    assert measure(arguments, drawn, corrected=False) is not None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compute_dtype(dtype):
    """Float32 weights beside half-precision projections, as under autocast: within what the dtype resolves."""
    arguments = batch()
    drawn = sampler(arguments)(arguments["targets"], arguments["target_lengths"], inclusion=True)
    truth = measure(arguments, drawn, corrected=True)
    for name in ("encoder", "predictor", "weight", "bias"):
        arguments[name] = arguments[name].to(torch.float32 if name in ("weight", "bias") else dtype)
    one, candidates = pieces(arguments, drawn, 0)
    exact = Exact(one)
    measured = exact.compare(candidates, corrected=True)
    tolerance = 1e-4 if dtype == torch.float32 else 0.03
    for name, value in truth.logs().items():
        assert measured.logs()[name] == pytest.approx(value, rel=tolerance, abs=tolerance), name
    assert exact.softmax.dtype == exact.gradient.dtype == torch.float32


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

    monkeypatch.setattr(utterance, "CELLS", 16)
    monkeypatch.setattr(utterance, "COLUMNS", 100)
    arguments = batch(vocabulary=2003, dtype=torch.float32)
    drawn = sampler(arguments)(arguments["targets"], arguments["target_lengths"])
    given = {x.untyped_storage().data_ptr() for x in (*arguments.values(), *drawn) if x is not None}
    one, candidates = pieces(arguments, drawn, 0)
    with Largest() as largest:
        Exact(one, cells=64).compare(candidates, corrected=False)
    assert 1600 <= largest.elements <= 2004  # 16 x 100 logits; the mean softmax
    with Largest() as largest:
        coverage(one, candidates)
    assert largest.elements <= 1600


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_cuda_as_on_the_cpu(dtype):
    arguments = batch(dtype=torch.float32)
    drawn = sampler(arguments)(arguments["targets"], arguments["target_lengths"], inclusion=True)
    expected = measure(arguments, drawn, corrected=True).logs()
    moved = {name: x.cuda() for name, x in arguments.items()}
    for name in ("encoder", "predictor"):
        moved[name] = moved[name].to(dtype)
    measured = measure(moved, [x.cuda() for x in drawn], corrected=True).logs()
    tolerance = 1e-3 if dtype == torch.float32 else 0.03
    for name, value in expected.items():
        assert measured[name] == pytest.approx(value, rel=tolerance, abs=tolerance), name


@SCOPES
def test_a_set_made_of_a_draw_is_that_of_the_batch(scope):
    """In another order."""
    arguments = batch()
    draw = sampler(arguments, scope=scope)
    drawn = draw(arguments["targets"], arguments["target_lengths"], inclusion=True)
    one, expected = pieces(arguments, drawn, 0)
    _, positives = draw.distribution(arguments["targets"], arguments["target_lengths"], None, 0)
    ids, log_q = drawn if scope == "batch" else (x[0] for x in drawn)
    padded = torch.nn.functional.pad(ids, (0, 2), value=-1), torch.nn.functional.pad(log_q, (0, 2))
    candidates = CandidateSet.of_draw(one.labels, positives, *padded, one.blank)
    order, other = candidates.ids.argsort(), expected.ids.argsort()
    for name in ("ids", "log_q", "positive"):
        assert torch.equal(getattr(candidates, name)[order], getattr(expected, name)[other]), name
    for x in (candidates, expected):
        assert x.ids[0] == one.blank and torch.equal(x.ids[x.place], one.labels)


def test_coverage_of_each_cell():
    arguments = batch()
    drawn = sampler(arguments)(arguments["targets"], arguments["target_lengths"])
    one, candidates = pieces(arguments, drawn, 0)
    hidden = torch.relu(one.encoder[:, None] + one.predictor)
    p = (hidden @ one.weight.T + one.bias).softmax(dim=-1)
    torch.testing.assert_close(coverage(one, candidates), p[..., candidates.ids].sum(dim=-1).flatten())
