"""The size that would do: against draws, in words, and followed."""

import math

import pytest
import torch
from cases import batch, posteriors, sampler

from nemo_sampled_rnnt.meter import Adviser, Meter, Utterance, measure, needed_size
from nemo_sampled_rnnt.meter.advice import GOOD, PATIENCE, POOR
from nemo_sampled_rnnt.sampling import SampledSoftmax, draw_without_replacement


def peaked(vocabulary=1009, seed=0, spread=2.5):
    random = torch.Generator().manual_seed(seed)
    return (spread * torch.randn(vocabulary + 1, dtype=torch.float64, generator=random)).softmax(dim=0)


def noisy(softmax, noise, seed=1):
    """Log-weights of a sampler that knows the softmax up to some noise."""
    random = torch.Generator().manual_seed(seed)
    return softmax[:-1].log() + noise * torch.randn(len(softmax) - 1, dtype=torch.float64, generator=random)


@pytest.mark.parametrize("noise", [0.0, 1.0, 20.0])  # the last knows nothing
@pytest.mark.parametrize("share", [0.6, 0.9, 0.95])
def test_a_draw_of_the_needed_size_covers_the_share(share, noise):
    """The mean over 400 draws, within 1 %; a tenth fewer labels cover less."""
    softmax, positives = peaked(), torch.zeros(1009, dtype=torch.bool)
    positives[[3, 77]] = True
    log_weights = noisy(softmax, noise)
    size = needed_size(softmax, log_weights, positives, share)

    def covered(k):
        ids, _ = draw_without_replacement(
            log_weights.expand(400, -1), k, positives.expand(400, -1), torch.Generator().manual_seed(k)
        )
        return (softmax[ids].sum(dim=1) + softmax[-1] + softmax[:-1][positives].sum()).mean().item()

    assert covered(size) == pytest.approx(share, abs=0.01)
    assert covered(max(1, int(0.9 * size))) < share


def test_a_better_sampler_needs_fewer():
    softmax, nothing = peaked(), torch.zeros(1009, dtype=torch.bool)
    sizes = [needed_size(softmax, noisy(softmax, noise), nothing) for noise in (0.0, 1.0, 20.0)]
    assert sizes[0] < sizes[1] < sizes[2] < 1009


def test_nothing_is_needed_where_the_positives_are_enough():
    softmax = torch.tensor([0.5, 0.0, 0.02, 0.48])
    assert needed_size(softmax, torch.zeros(3), torch.tensor([True, False, False])) == 0


def test_no_size_is_enough_where_likely_labels_are_never_drawn():
    softmax = torch.tensor([0.5, 0.2, 0.1, 0.2])
    log_weights = torch.tensor([-math.inf, 0.0, 0.0])
    assert needed_size(softmax, log_weights, torch.zeros(3, dtype=torch.bool)) is None


def measured(draw, arguments, p, b=0):
    drawn = draw(arguments["targets"], arguments["target_lengths"], p, inclusion=True)
    return measure(Utterance.of_batch(b, *arguments.values(), *drawn), draw.config.correction)


@pytest.mark.parametrize("scope", ["utterance", "batch"])
@pytest.mark.parametrize("name", ["ctc", "uniform"])
def test_advice_that_is_followed_mends_it(name, scope):
    """With the size it names the candidates cover what it says, on average over 30 draws, and no advice comes."""
    arguments = batch(vocabulary=503, sharpness=4.0)
    p = posteriors(arguments, noise=1.0)
    few = sampler(arguments, 5, sampler=name, scope=scope)
    adviser = Adviser(few.config, 503)
    distribution = few.distribution(arguments["targets"], arguments["target_lengths"], p, 0)
    advice = [adviser(measured(few, arguments, p), *distribution) for _ in range(PATIENCE)]
    assert advice[:-1] == [None] * (PATIENCE - 1)
    if "raise n_samples above" in advice[-1]:
        size = int(advice[-1].split()[-1].replace(",", ""))
    else:
        assert name == "uniform" and "use sampler: ctc, or the exact loss" in advice[-1]
        size = int(advice[-1].split(": ")[1].split()[0])
    more = sampler(arguments, size, sampler=name, scope=scope)
    coverage = sum(measured(more, arguments, p).coverage for _ in range(30)) / 30
    assert GOOD - 0.02 < coverage < 0.99, "about what was aimed at"
    adviser = Adviser(more.config, 503)
    assert adviser(measured(more, arguments, p), *distribution) is None


def measurement(arguments, coverage):
    """A real one, with another coverage."""
    import dataclasses

    draw = sampler(arguments, 5)
    return dataclasses.replace(measured(draw, arguments, None), coverage=coverage, cosine=0.82)


@pytest.fixture(scope="module")
def poor():
    return measurement(batch(vocabulary=503, sharpness=4.0), 0.612)


NOTHING = torch.zeros(503, dtype=torch.bool)


def advise(config, *measurements, log_weights=None):
    adviser = Adviser(SampledSoftmax(**config), 503)
    log_weights = torch.zeros(503) if log_weights is None else log_weights
    return [adviser(m, log_weights, NOTHING) for m in measurements]


def test_words(poor):
    """What the sampler ctc would say if it knew the softmax."""
    likely = poor.softmax[:-1].log()
    size = needed_size(poor.softmax, likely, NOTHING)
    assert 5 < size < 250
    said = advise({"n_samples": 5}, *[poor] * 3, log_weights=likely)
    above = math.ceil(size / 10) * 10 if size >= 100 else size
    expected = "the candidates cover 61 % of the exact softmax (gradient cosine 0.82, last 3 measurements): "
    assert said == [None, None, expected + f"raise n_samples above {above}"]


def test_words_for_a_budget(poor):
    likely = poor.softmax[:-1].log()
    (_, _, said) = advise({"n_samples": "auto", "max_logits": 10_000}, *[poor] * 3, log_weights=likely)
    factor = (needed_size(poor.softmax, likely, NOTHING) + 1) / poor.candidates
    named = int(said.split("raise max_logits above ")[1].replace(",", ""))
    assert factor * 10_000 <= named <= 1.1 * factor * 10_000


def test_words_for_half_the_vocabulary_and_more(poor):
    uniform = advise({"n_samples": 5, "sampler": "uniform"}, *[poor] * 3)[-1]
    ctc = advise({"n_samples": 5}, *[poor] * 3)[-1]
    assert "of 503 labels would be needed: use sampler: ctc, or the exact loss" in uniform
    assert "of 503 labels would be needed: use the exact loss" in ctc


def test_words_for_labels_that_never_come(poor):
    never = torch.where(poor.softmax[:-1] > poor.softmax[:-1].median(), -math.inf, 0.0)
    assert "no n_samples is enough" in advise({"n_samples": 5, "floor": 0.0}, *[poor] * 3, log_weights=never)[-1]


def test_is_said_once_until_it_was_good_again(poor):
    import dataclasses

    good = dataclasses.replace(poor, coverage=POOR)
    said = advise({"n_samples": 5}, *[poor] * 5, good, poor, poor, good, poor, poor, poor)
    assert [x is not None for x in said] == [False, False, True, *[False] * 8, True]


def test_the_meter_logs_advice_and_takes_turns(caplog):
    arguments = batch(vocabulary=503, sharpness=4.0)
    p = posteriors(arguments)
    draw = sampler(arguments, 3, sampler="ctc", correction=True)
    meter = Meter(draw)
    logs = []
    for turn in range(4):
        drawn = draw(arguments["targets"], arguments["target_lengths"], p, inclusion=True)
        logs.append(meter(*arguments.values(), drawn, p, "relu", turn))
    assert logs[0].keys() == logs[3].keys() >= {"meter_coverage", "meter_corrected_gap", "meter_cosine"}
    assert logs[0]["meter_exact_loss"] == logs[3]["meter_exact_loss"] != logs[1]["meter_exact_loss"]
    assert caplog.text.count("sampled softmax: the candidates cover") == 1


def test_the_meter_goes_without_memory(caplog, monkeypatch):
    from nemo_sampled_rnnt.meter import batch as metering

    def fail(*_, **__):
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr(metering, "measure", fail)
    arguments = batch()
    draw = sampler(arguments)
    drawn = draw(arguments["targets"], arguments["target_lengths"], inclusion=True)
    assert Meter(draw)(*arguments.values(), drawn, None, "relu", 0) == {}
    assert "set sampled_softmax.meter_every to 0" in caplog.text
