"""NegativeSampler: scopes, samplers, seeds, exact limits, bad input, and that it never waits for a GPU."""

import copy
import math
import re

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from nemo_sampled_rnnt.sampling import Frames, NegativeSampler, SampledSoftmax, ctc_posteriors
from nemo_sampled_rnnt.sampling.sampler import mixed_seed

B, U, V, K = 3, 5, 23, 7
LENGTHS = [4, 0, 2]
PADDING = [-1, V, V + 99, -(2**40), 2**40]


def batch(device="cpu"):
    """Targets with impossible ids in the padding, lengths, posteriors."""
    generator = torch.Generator().manual_seed(0)
    targets = torch.randint(V, (B, U), generator=generator)
    lengths = torch.tensor(LENGTHS)
    for b, length in enumerate(LENGTHS):
        targets[b, length:] = torch.tensor(PADDING[: U - length])
    return targets.to(device), lengths.to(device), (0.1 + torch.rand(B, V, generator=generator)).to(device)


def labels_of(b):
    targets, lengths, _ = batch()
    return set(targets[b, : lengths[b]].tolist())


def sampler_of(n_samples=K, rank=0, counts=None, vocab_size=V, **config):
    config = {"seed": 11, "correction": True, **config}
    if config.get("sampler") == "unigram" and counts is None:
        counts = range(1, vocab_size + 1)
    counts = None if counts is None else torch.tensor(list(counts))
    return NegativeSampler(SampledSoftmax(n_samples, **config), vocab_size, rank, counts)


SAMPLERS = pytest.mark.parametrize("sampler", ["ctc", "uniform", "unigram"])
SCOPES = pytest.mark.parametrize("scope", ["utterance", "batch"])


# ------------------------------------------------------------------------------------------------------------- scopes


@SAMPLERS
def test_utterance_scope_leaves_out_the_utterances_own_labels(sampler):
    draw = sampler_of(sampler=sampler, scope="utterance")
    came = [set() for _ in range(B)]
    for _ in range(300):
        ids, log_prob = draw(*batch())
        assert ids.shape == log_prob.shape == (B, K)
        assert ids.dtype == torch.int64 and log_prob.dtype == torch.float32
        for b in range(B):
            assert len(set(ids[b].tolist())) == K
            came[b].update(ids[b].tolist())
    for b in range(B):
        assert came[b] == set(range(V)) - labels_of(b), "every other label comes in time"


@SAMPLERS
def test_batch_scope_leaves_out_all_labels_of_the_batch(sampler):
    draw = sampler_of(sampler=sampler, scope="batch")
    came = set()
    for _ in range(300):
        ids, log_prob = draw(*batch())
        assert ids.shape == log_prob.shape == (K,)
        assert ids.dtype == torch.int64 and log_prob.dtype == torch.float32
        assert len(set(ids.tolist())) == K
        came.update(ids.tolist())
    assert came == set(range(V)) - labels_of(0) - labels_of(1) - labels_of(2)


@SCOPES
@SAMPLERS
@pytest.mark.parametrize("n_samples", [V, V + 10, 0.999])
def test_exact_limit_every_label_comes(sampler, scope, n_samples):
    """Also those without mass: no floor, posteriors and counts of 0."""
    targets, lengths, posteriors = batch()
    posteriors[:, :20] = 0
    draw = sampler_of(n_samples, sampler=sampler, scope=scope, floor=0.0, counts=[0] * (V - 1) + [1])
    ids, log_prob = draw(targets, lengths, posteriors)
    assert ids.shape[-1] == V
    wanted = [labels_of(b) for b in range(B)] if scope == "utterance" else [labels_of(0) | labels_of(1) | labels_of(2)]
    for row, labels in zip(ids.view(-1, V).tolist(), wanted, strict=True):
        assert sorted(i for i in row if i >= 0) == sorted(set(range(V)) - labels)
        assert row.count(-1) == len(labels)
    assert torch.equal(log_prob, torch.zeros_like(log_prob)), "q = 1"


def test_fewer_than_k_are_padded():
    targets, lengths, posteriors = batch()
    posteriors[0] = 0
    posteriors[0, min(labels_of(0))] = 0.5  # what has mass is a label, and there is no floor
    ids, log_prob = sampler_of(sampler="ctc", floor=0.0)(targets, lengths, posteriors)
    assert ids[0].tolist() == [-1] * K and log_prob[0].tolist() == [0.0] * K
    assert (ids[1] >= 0).all()


def test_no_targets_at_all():
    draw = sampler_of(sampler="uniform")
    ids, _ = draw(torch.zeros(B, 0, dtype=torch.int64), torch.zeros(B, dtype=torch.int64))
    assert (ids >= 0).all()


@SCOPES
def test_wrong_labels_are_left_to_the_loss(scope):
    """Out of range within the lengths: no crash here, the loss names the value."""
    targets, lengths, posteriors = batch()
    targets[0, :2] = torch.tensor([V, -5])
    assert (sampler_of(scope=scope)(targets, lengths, posteriors).ids >= 0).all()


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_integer_types(dtype):
    targets, lengths, posteriors = batch()
    targets = targets.clamp(-1, V)  # 2^40 is no int32
    ids = sampler_of()(targets.to(dtype), lengths.to(dtype), posteriors).ids
    assert torch.equal(ids, sampler_of()(*batch()).ids)


@SCOPES
def test_bytes(scope):
    """A vocabulary of 256 is one more than a byte can say of a label that is left out."""
    targets, lengths = torch.tensor([[0, 255], [7, 9]], dtype=torch.uint8), torch.tensor([2, 1], dtype=torch.uint8)
    draw = sampler_of(20, vocab_size=256, sampler="uniform", scope=scope)
    assert draw(targets, lengths).ids.shape[-1] == 20


def test_in_inference_mode_and_then_in_training():
    draw = sampler_of()
    with torch.inference_mode():
        draw(*batch())
    draw(*batch())
    assert draw.uniform_instead == 0


@SCOPES
def test_size_as_a_fraction(scope):
    assert sampler_of(0.2, scope=scope)(*batch()).ids.shape[-1] == 5  # ceil(4.6)


@SCOPES
def test_without_correction_the_same_draw_and_no_log_prob(scope):
    drawn = sampler_of(correction=False, scope=scope)(*batch())
    assert drawn.log_prob is None
    assert torch.equal(drawn.ids, sampler_of(correction=True, scope=scope)(*batch()).ids)


def test_draws_have_no_gradient():
    targets, lengths, posteriors = batch()
    drawn = sampler_of()(targets, lengths, posteriors.requires_grad_())
    assert not drawn.log_prob.requires_grad


# ------------------------------------------------------------------------------------------------------ distributions


def frequencies(draw, targets, lengths, posteriors, n_draws=400):
    """How often each label comes, over many draws and utterances."""
    total = torch.zeros(V)
    for _ in range(n_draws):
        ids = draw(targets, lengths, posteriors).ids
        total += torch.bincount(ids.flatten(), minlength=V)
    return total / n_draws


def two_levels(high):
    weights = torch.full((V,), 0.1)
    weights[list(high)] = 3.0
    return weights


@SCOPES
def test_ctc_follows_the_posteriors(scope):
    """In the utterance scope each follows its own; in the batch scope the mean of them."""
    targets, lengths = torch.zeros(2, 1, dtype=torch.int64), torch.zeros(2, dtype=torch.int64)
    posteriors = torch.stack([two_levels({2, 3}), two_levels({11, 13})])
    draw, rows = sampler_of(4, scope=scope), 2 if scope == "utterance" else 1
    counts = torch.zeros(rows, V)
    for _ in range(400):
        counts.scatter_add_(1, draw(targets, lengths, posteriors).ids.view(rows, -1), torch.ones(rows, 4))
    liked = [{2, 3}, {11, 13}] if scope == "utterance" else [{2, 3, 11, 13}]
    for row, high in zip(counts, liked, strict=True):
        assert set(row.topk(len(high)).indices.tolist()) == high
        low = [k for k in range(V) if k not in high]
        assert row[list(high)].min() > 2 * row[low].max()


def test_batch_scope_averages_the_distributions():
    """One draw of the mean of two distributions: 4.5 standard errors."""
    targets, lengths = torch.zeros(2, 1, dtype=torch.int64), torch.zeros(2, dtype=torch.int64)
    posteriors = torch.tensor([[0.6, 0.2, 0.1, 0.0, 0.05], [0.0, 0.001, 0.0, 0.004, 0.002]])  # the second: mostly blank
    draw, n_draws = sampler_of(1, scope="batch", vocab_size=5, floor=0.1), 4001
    count = torch.zeros(5)
    for _ in range(n_draws):
        count[draw(targets, lengths, posteriors).ids] += 1
    expected = 0.9 * (posteriors / posteriors.sum(1, keepdim=True)).mean(0) + 0.1 / 5
    z = (count / n_draws - expected) / (expected * (1 - expected) / n_draws).sqrt()
    assert z.abs().max() < 4.5


def test_unigram_follows_the_counts():
    draw = sampler_of(4, sampler="unigram", counts=(100 * two_levels({2, 3})).int().tolist())
    frequency = frequencies(draw, torch.zeros(B, 1, dtype=torch.int64), torch.zeros(B, dtype=torch.int64), None)
    assert set(frequency.topk(2).indices.tolist()) == {2, 3}


def test_uniform_reads_no_posteriors():
    targets, lengths, posteriors = batch()
    draws = [sampler_of(sampler="uniform")(targets, lengths, p).ids for p in (None, posteriors, posteriors * math.nan)]
    assert torch.equal(draws[0], draws[1]) and torch.equal(draws[0], draws[2])


def test_floor_of_1_is_uniform():
    ids = sampler_of(floor=1.0)(*batch()).ids
    assert torch.equal(ids, sampler_of(sampler="uniform")(*batch()).ids)


def test_utterance_with_nan_posteriors_is_drawn_for_uniformly():
    targets, lengths, posteriors = batch()
    posteriors[0] = two_levels({2, 3, 5})
    clean = sampler_of(rank=4)(targets, lengths, posteriors)
    broken = posteriors.clone()
    broken[0, 6] = math.nan
    drawn = sampler_of(rank=4)(targets, lengths, broken)
    uniform = sampler_of(rank=4, sampler="uniform")(targets, lengths)
    assert torch.equal(drawn.ids[0], uniform.ids[0])
    torch.testing.assert_close(drawn.log_prob[0], uniform.log_prob[0])
    assert torch.equal(drawn.ids[1:], clean.ids[1:])
    ids, log_prob = sampler_of(scope="batch")(targets, lengths, broken)
    assert (ids >= 0).all() and log_prob.isfinite().all()


@SAMPLERS
def test_corrected_sum_over_candidates_is_unbiased(sampler):
    """E[sum over labels and negatives of exp(z) / q] = sum over all, to 4 standard errors (p = 6e-5), error below 1 %.

    One draw for a batch of equal utterances is as many independent draws.
    """
    n_draws, generator = 20_011, torch.Generator().manual_seed(2)
    scores = torch.randn(V, dtype=torch.float64, generator=generator)
    posteriors = (2 * torch.randn(V, generator=generator)).softmax(0).expand(n_draws, -1)
    labels = [3, 8, 20]
    targets = torch.tensor([*labels, 5]).expand(n_draws, -1)
    lengths = torch.full((n_draws,), 3)
    ids, log_prob = sampler_of(sampler=sampler, floor=0.05)(targets, lengths, posteriors)
    estimates = (scores[ids] - log_prob).exp().sum(1) + scores[labels].exp().sum()
    truth, error = scores.exp().sum(), estimates.std() / math.sqrt(n_draws)
    assert error < 0.01 * truth
    assert abs(estimates.mean() - truth) < 4 * error, f"{estimates.mean()} +- {error} instead of {truth}"


def test_utterances_drawn_for_uniformly_are_counted():
    targets, lengths, posteriors = batch()
    draw = sampler_of()
    assert draw.uniform_instead is None
    draw(targets, lengths, posteriors)
    assert draw.uniform_instead == 0
    posteriors[0, 6], posteriors[2, 1] = math.nan, math.inf
    draw(targets, lengths, posteriors)
    posteriors[1] = 0
    draw(targets, lengths, posteriors)
    assert draw.uniform_instead == 5


# --------------------------------------------------------------------------------------------------- schedule, budget


@SCOPES
@SAMPLERS
def test_schedule(sampler, scope):
    draw = sampler_of({0: 3, 10: 7, 20: V}, sampler=sampler, scope=scope)
    widths = [draw(*batch(), step=step).ids.shape[-1] for step in (0, 9, 10, 19, 20, 99)]
    assert widths == [3, 3, 7, 7, V, V]
    fixed = sampler_of(7, sampler=sampler, scope=scope)
    draw.draws = fixed.draws = 4
    assert torch.equal(draw(*batch(), step=15).ids, fixed(*batch()).ids), "the draw of a plain size"


FRAMES = [11, 4, 7]


def frames_of(device="cpu"):
    return Frames(torch.tensor(FRAMES, device=device), max(FRAMES))


def candidates_of(ids, scope):
    """How many candidates each set has: blank, distinct labels, negatives."""
    labels = [labels_of(b) for b in range(B)] if scope == "utterance" else [set().union(*map(labels_of, range(B)))]
    return [
        1 + len(own) + sum(i >= 0 for i in row)
        for own, row in zip(labels, ids.view(len(labels), -1).tolist(), strict=True)
    ]


@SCOPES
@SAMPLERS
@pytest.mark.parametrize("max_logits", [700, 1000, 1500])
def test_auto_keeps_the_budget(sampler, scope, max_logits):
    cells = [t * (u + 1) for t, u in zip(FRAMES, LENGTHS, strict=True)]
    cells = cells if scope == "utterance" else [sum(cells)]
    draw = sampler_of("auto", max_logits=max_logits, sampler=sampler, scope=scope)
    for _ in range(20):
        ids, log_prob = draw(*batch(), frames_of())
        counts = candidates_of(ids, scope)
        used = sum(n * s for n, s in zip(cells, counts, strict=True))
        assert max_logits - sum(cells) <= used <= max_logits or max(counts) == V + 1
        assert (log_prob[ids < 0] == 0).all()
        for row in ids.view(len(cells), -1).tolist():
            drawn = [i for i in row if i >= 0]
            assert len(set(drawn)) == len(drawn) and row[len(drawn) :] == [-1] * (len(row) - len(drawn))


def test_auto_gives_short_utterances_more():
    targets, posteriors = torch.arange(12).repeat(3, 1), torch.full((3, 400), 1 / 400)
    lengths, frames = torch.tensor([12, 6, 3]), torch.tensor([48, 24, 12])
    draw = sampler_of("auto", vocab_size=400, max_logits=60_000)
    counts = (draw(targets, lengths, posteriors, Frames(frames, 48)).ids >= 0).sum(dim=1).tolist()
    assert counts[0] < counts[1] < counts[2]


def test_auto_with_too_small_a_budget_draws_the_fewest():
    """The loss refuses the batch: it alone knows sizes on the host."""
    ids, _ = sampler_of("auto", max_logits=10)(*batch(), frames_of())
    assert ((ids >= 0).sum(dim=1) == 2).all()


@SCOPES
@SAMPLERS
def test_auto_with_a_large_budget_is_exact(sampler, scope):
    targets, lengths, posteriors = batch()
    posteriors[:, :20] = 0
    draw = sampler_of("auto", max_logits=10**6, sampler=sampler, scope=scope, floor=0.0, counts=[0] * (V - 1) + [1])
    ids, log_prob = draw(targets, lengths, posteriors, frames_of())
    assert candidates_of(ids, scope) == [V + 1] * len(candidates_of(ids, scope))
    assert torch.equal(log_prob, torch.zeros_like(log_prob)), "q = 1"


def test_auto_without_frames():
    with pytest.raises(ValueError, match="n_samples auto needs the frames of the batch"):
        sampler_of("auto", max_logits=100)(*batch())


@SCOPES
def test_auto_leaves_wrong_lengths_to_the_loss(scope):
    targets, lengths, posteriors = batch()
    lengths[0], frames = U + 7, Frames(torch.tensor([0, -3, 99]), 11)
    ids, log_prob = sampler_of("auto", max_logits=700, scope=scope)(targets, lengths, posteriors, frames)
    assert log_prob.isfinite().all() and (ids < V).all()


def test_inclusion_probabilities_beside_an_uncorrected_loss():
    draw, corrected = sampler_of(correction=False), sampler_of(correction=True)
    drawn, expected = draw(*batch(), inclusion=True), corrected(*batch())
    assert torch.equal(drawn.ids, expected.ids) and torch.equal(drawn.log_prob, expected.log_prob)
    assert draw(*batch()).log_prob is None


@pytest.mark.parametrize("sampler", ["ctc", "unigram"])
def test_corrected_sum_with_sizes_of_a_budget_is_unbiased(sampler):
    """As below, for each of three lengths in one batch: 4 standard errors (p = 6e-5), each below 1 %."""
    n_draws, generator = 60_000, torch.Generator().manual_seed(7)
    scores = torch.randn(V, dtype=torch.float64, generator=generator)
    posteriors = (1.5 * torch.randn(V, generator=generator)).softmax(0).expand(n_draws, -1)
    labels = torch.tensor([3, 8, 20])
    targets = labels.expand(n_draws, -1)
    lengths, frames = (torch.tensor(x).repeat(n_draws // 3) for x in ([1, 2, 3], [5, 9, 30]))
    draw = sampler_of("auto", sampler=sampler, floor=0.05, max_logits=14 * int((frames * (lengths + 1)).sum()))
    ids, log_prob = draw(targets, lengths, posteriors, Frames(frames, 30))
    terms = torch.where(ids >= 0, (scores[ids.clamp_min(0)] - log_prob).exp(), 0).sum(1)
    sizes = (ids >= 0).sum(dim=1)
    assert len(sizes.unique()) == 3 and sizes.max() < V - 3, "three sizes, none of them everything"
    for length in (1, 2, 3):
        estimates = terms[lengths == length] + scores[labels[:length]].exp().sum()
        truth, error = scores.exp().sum(), estimates.std() / math.sqrt(len(estimates))
        assert error < 0.01 * truth
        assert abs(estimates.mean() - truth) < 4 * error, f"{estimates.mean()} +- {error} instead of {truth}"


# -------------------------------------------------------------------------------------------------------------- seeds


@SCOPES
@SAMPLERS
def test_a_draw_is_a_function_of_seed_rank_and_draws(sampler, scope):
    def three(**kwargs):
        draw = sampler_of(sampler=sampler, scope=scope, **kwargs)
        return [draw(*batch()).ids.tolist() for _ in range(3)]

    first = three(rank=0, seed=11)
    assert first == three(rank=0, seed=11)
    others = first + three(rank=1, seed=11) + three(rank=0, seed=12) + three(rank=11, seed=0)
    assert len({str(ids) for ids in others}) == 12, "steps, ranks and seeds all differ"


def test_a_resumed_run_continues():
    draw = sampler_of()
    all_ids = [draw(*batch()).ids for _ in range(5)]
    assert draw.draws == 5
    resumed = sampler_of()
    resumed.draws = 3
    assert torch.equal(resumed(*batch()).ids, all_ids[3])
    assert torch.equal(copy.deepcopy(resumed)(*batch()).ids, all_ids[4])


def test_refused_input_is_no_draw():
    draw = sampler_of()
    with pytest.raises(ValueError):
        draw(*batch()[:2], None)
    assert draw.draws == 0


def test_torchs_own_generator_is_left_alone():
    before = torch.get_rng_state()
    sampler_of(seed=None)(*batch())
    assert torch.equal(before, torch.get_rng_state())


def test_without_a_seed_follows_torchs():
    with torch.random.fork_rng(devices=[]):
        draws = []
        for seed in (5, 5, 6):
            torch.manual_seed(seed)
            torch.rand(3)  # how far torch's generator has run does not matter
            draws.append(sampler_of(seed=None)(*batch()).ids)
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])
    assert torch.equal(draws[0], sampler_of(seed=5)(*batch()).ids)


def test_mixed_seed():
    seeds = [mixed_seed(a, b, c) for a in range(-3, 10) for b in range(10) for c in range(10)]
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert len({seed % 2**32 for seed in seeds}) == len(seeds), "torch's CPU generator reads 32 bits"
    assert mixed_seed(2**64 - 1, 3, 2**40) < 2**63


# ---------------------------------------------------------------------------------------------------------- bad input


def test_ctc_without_posteriors():
    with pytest.raises(ValueError, match="'ctc' needs the posteriors.* with an aux_ctc section, .*sampler: uniform"):
        sampler_of(sampler="ctc")(*batch()[:2])


def test_unigram_without_counts():
    with pytest.raises(ValueError, match="'unigram' needs counts"):
        NegativeSampler(SampledSoftmax(K, sampler="unigram"), V)


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ([1] * (V - 1), f"expected {V} counts, one for each label of the vocabulary, got {V - 1}"),
        ([1] * (V - 1) + [-1], f"at least 0, got -1.0 for label {V - 1}"),
        ([0] * V, "all counts are 0"),
    ],
)
def test_unigram_with_wrong_counts(counts, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        sampler_of(sampler="unigram", counts=counts)


def test_wrong_shapes():
    targets, lengths, posteriors = batch()
    with pytest.raises(ValueError, match=re.escape(f"posteriors (B, V) = ({B}, {V}), labels without blank, got")):
        sampler_of()(targets, lengths, torch.rand(B, V + 1))
    with pytest.raises(ValueError, match=re.escape(f"got shapes ({B}, {U}) and ({B - 1},)")):
        sampler_of()(targets, lengths[1:], posteriors)
    with pytest.raises(ValueError, match=re.escape("expected targets (B, U)")):
        sampler_of()(targets[0], lengths, posteriors)


def test_wrong_devices():
    targets, lengths, posteriors = batch()
    with pytest.raises(ValueError, match="on one device, got cpu, cpu, meta"):
        sampler_of()(targets, lengths, posteriors.to("meta"))


# ---------------------------------------------------------------------------------------------------------------- GPU


SYNCS = {"_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim", "is_nonzero", "equal"}


class NoHostSync(TorchDispatchMode):
    """Refuses what would make the host wait for a GPU; the same operations run on the CPU."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        assert name not in SYNCS, name
        if name in {"index", "index_put", "index_put_"}:
            assert not any(i is not None and i.dtype == torch.bool for i in args[1]), "boolean indexing"
        return func(*args, **(kwargs or {}))


def test_the_mode_sees_host_syncs():
    for sync in (lambda x: x.sum().item(), lambda x: x[x > 0], lambda x: bool(x.any()), lambda x: x.unique()):
        with pytest.raises(AssertionError), NoHostSync():
            sync(torch.ones(3))


@SCOPES
@SAMPLERS
@pytest.mark.parametrize("n_samples", [K, V])
def test_never_waits(sampler, scope, n_samples):
    draw, arguments = sampler_of(n_samples, sampler=sampler, scope=scope), batch()
    with NoHostSync():
        draw(*arguments)


@SCOPES
@SAMPLERS
def test_auto_never_waits(sampler, scope):
    draw, arguments = sampler_of("auto", max_logits=900, sampler=sampler, scope=scope), batch()
    frames = frames_of()
    with NoHostSync():
        draw(*arguments, frames)


@pytest.mark.parametrize("frame_weights", ["mean", "nonblank", "max"])
def test_posteriors_never_wait(frame_weights):
    log_probs, lengths = torch.randn(B, 11, V + 1).log_softmax(-1), torch.tensor([11, 4, 1])
    with NoHostSync():
        ctc_posteriors(log_probs, lengths, frame_weights)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@SCOPES
@SAMPLERS
def test_on_cuda(sampler, scope):
    targets, lengths, _ = batch("cuda")
    log_probs = torch.randn(B, 11, V + 1, device="cuda").log_softmax(-1)
    frames = torch.tensor([11, 4, 1], device="cuda")
    draw, again = (sampler_of(sampler=sampler, scope=scope) for _ in range(2))
    draw(targets, lengths, ctc_posteriors(log_probs, frames))  # moves the unigram weights
    torch.cuda.set_sync_debug_mode("error")
    try:
        ids, log_prob = draw(targets, lengths, ctc_posteriors(log_probs, frames))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert ids.is_cuda and log_prob.is_cuda and (ids >= 0).all() and log_prob.isfinite().all()
    own = [labels_of(b) for b in range(B)] if scope == "utterance" else [labels_of(0) | labels_of(1) | labels_of(2)]
    for row, labels in zip(ids.view(-1, K).tolist(), own, strict=True):
        assert len(set(row)) == K and not labels & set(row)
    again.draws = 1
    assert torch.equal(again(targets, lengths, ctc_posteriors(log_probs, frames)).ids, ids)


@pytest.mark.gpu
@SCOPES
@SAMPLERS
@pytest.mark.parametrize("frame_weights", ["mean", "nonblank", "max"])
def test_auto_on_cuda(sampler, scope, frame_weights):
    """No synchronisation, and the sizes of the CPU."""
    targets, lengths, _ = batch("cuda")
    log_probs = torch.randn(B, 11, V + 1, device="cuda").log_softmax(-1)
    draw = sampler_of("auto", max_logits=900, sampler=sampler, scope=scope)
    frames = frames_of("cuda")

    def once():
        return draw(targets, lengths, ctc_posteriors(log_probs, frames.lengths, frame_weights), frames)

    once()  # moves the unigram weights
    torch.cuda.set_sync_debug_mode("error")
    try:
        ids, log_prob = once()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    on_cpu = sampler_of("auto", max_logits=900, sampler=sampler, scope=scope)(*batch(), frames_of()).ids
    assert candidates_of(ids.cpu(), scope) == candidates_of(on_cpu, scope)
    assert log_prob.isfinite().all() and (log_prob[ids < 0] == 0).all()
