"""The size that would do: in words, and followed."""

import dataclasses

import pytest
import torch
from cases import batch, pieces, posteriors, sampler

from nemo_sampled_rnnt.meter import Adviser, Exact, Meter
from nemo_sampled_rnnt.meter.advice import GOOD, PATIENCE, POOR, rounded, sufficient_size
from nemo_sampled_rnnt.sampling import SampledSoftmax

V = 503


@pytest.fixture(scope="module")
def arguments():
    """A model that is sure of some labels."""
    return batch(vocabulary=V, hidden=24, sharpness=5.0)


@pytest.fixture(scope="module")
def p(arguments):
    return posteriors(arguments, noise=1.0)


def measured(draw, arguments, p, b=0):
    drawn = draw(arguments["targets"], arguments["target_lengths"], p, inclusion=True)
    one, candidates = pieces(arguments, drawn, b)
    exact = Exact(one)
    return exact.compare(candidates, draw.config.corrects), exact


def advice_of(draw, arguments, p):
    """What is said at the last of so many measurements that it speaks."""
    adviser = Adviser(draw.config, V)
    distribution = draw.distribution(arguments["targets"], arguments["target_lengths"], p, 0)
    said = [adviser(*measured(draw, arguments, p), *distribution) for _ in range(PATIENCE)]
    assert said[:-1] == [None] * (PATIENCE - 1)
    return said[-1]


@pytest.mark.parametrize("scope, correction", [("utterance", False), ("utterance", True), ("batch", True)])
def test_advice_that_is_followed_mends_it(scope, correction, arguments, p):
    """Before, the cosine is poor; with the size that is named, over 30 draws, it is about what was aimed at."""
    config = dict(sampler="ctc", scope=scope, correction=correction)
    few = sampler(arguments, 2, **config)
    said = advice_of(few, arguments, p)
    size = int(said.split("raise n_samples above ")[1].replace(",", ""))
    assert 2 < size < V // 2
    more = sampler(arguments, size, **config)
    before, after = (sum(measured(draw, arguments, p)[0].cosine for _ in range(30)) / 30 for draw in (few, more))
    assert before < POOR < GOOD - 0.05 < after < 0.99
    adviser = Adviser(more.config, V)
    distribution = more.distribution(arguments["targets"], arguments["target_lengths"], p, 0)
    assert all(adviser(*measured(more, arguments, p), *distribution) is None for _ in range(2 * PATIENCE))


def test_advice_for_a_budget_that_is_followed_mends_it(arguments, p):
    """Of a batch of one: its candidates grow as its budget does."""
    from nemo_sampled_rnnt.sampling import Frames

    arguments = {name: x[:1] if name not in ("weight", "bias") else x for name, x in arguments.items()}
    frames = Frames(arguments["encoder_lengths"], 9)

    def cosine(max_logits):
        draw = sampler(arguments, "auto", sampler="ctc", max_logits=max_logits)
        drawn = draw(arguments["targets"], arguments["target_lengths"], p[:1], frames, inclusion=True)
        one, candidates = pieces(arguments, drawn, 0)
        exact = Exact(one)
        return draw, exact, exact.compare(candidates, False)

    draw, exact, poor = cosine(450)
    adviser = Adviser(draw.config, V)
    distribution = draw.distribution(arguments["targets"], arguments["target_lengths"], p[:1], 0)
    said = [adviser(dataclasses.replace(poor, cosine=0.7), exact, *distribution) for _ in range(PATIENCE)][-1]
    max_logits = int(said.split("raise max_logits above ")[1].replace(",", ""))
    assert sum(cosine(max_logits)[2].cosine for _ in range(10)) / 10 > GOOD - 0.05


def test_a_better_sampler_needs_fewer(arguments, p):
    sizes = []
    for name in ("ctc", "uniform"):
        draw = sampler(arguments, 2, sampler=name)
        distribution = draw.distribution(arguments["targets"], arguments["target_lengths"], p, 0)
        sizes.append(sufficient_size(measured(draw, arguments, p)[1], *distribution, corrected=False, size=2))
    assert sizes[0] < (sizes[1] or V)


NOTHING, ANY = torch.zeros(V, dtype=torch.bool), torch.zeros(V)


@pytest.fixture(scope="module")
def poor(arguments):
    draw = sampler(arguments, 2)
    measurement, exact = measured(draw, arguments, None)
    return dataclasses.replace(measurement, coverage=0.612, negative_coverage=0.14, cosine=0.724), exact


def test_words(poor, monkeypatch):
    monkeypatch.setattr("nemo_sampled_rnnt.meter.advice.sufficient_size", lambda *_: 871)
    adviser = Adviser(SampledSoftmax(2), V)
    said = [adviser(*poor, ANY, NOTHING) for _ in range(PATIENCE)]
    assert said == [None] * (PATIENCE - 1) + [
        "the candidates cover 61.2 % of the exact softmax (14 % of what blank and labels leave), and the cosine "
        "between the gradient and the exact one is 0.72, below 0.8 for 3 measurements: raise n_samples above 880"
    ]


@pytest.mark.parametrize("name, words", [("uniform", "set sampler to ctc, or train exactly"), ("ctc", "train exactly")])
def test_words_where_half_the_vocabulary_is_not_enough(name, words, poor, monkeypatch):
    monkeypatch.setattr("nemo_sampled_rnnt.meter.advice.sufficient_size", lambda *_: None)
    adviser = Adviser(SampledSoftmax(2, sampler=name), V)
    said = [adviser(*poor, ANY, NOTHING) for _ in range(PATIENCE)][-1]
    assert said.endswith(f": 251 negatives would not be enough; {words}")


def test_half_the_vocabulary_is_not_enough_where_the_sampler_never_draws_what_is_likely(arguments, poor):
    _, exact = poor
    likely = exact.softmax[:-1] > exact.softmax[:-1].sort().values[V // 2]
    positives = NOTHING.clone()
    positives[exact.utterance.labels] = True
    never = torch.where(likely, -torch.inf, 0.0)
    assert sufficient_size(exact, never, positives, corrected=False, size=2) is None


def test_is_said_once_until_it_was_good_again(poor, monkeypatch):
    monkeypatch.setattr("nemo_sampled_rnnt.meter.advice.sufficient_size", lambda *_: 9)
    bad, exact = poor
    good, adviser = dataclasses.replace(bad, cosine=POOR), Adviser(SampledSoftmax(2), V)
    series = [bad] * 5 + [good, bad, bad, good, bad, bad, bad]
    said = [adviser(m, exact, ANY, NOTHING) is not None for m in series]
    assert said == [False, False, True, *[False] * 8, True]


@pytest.mark.parametrize("size, expected", [(1, 1), (9, 9), (10, 10), (99, 99), (100, 100), (101, 110), (871, 880)])
def test_rounded(size, expected):
    assert rounded(size) == expected


def test_the_meter_logs_advice_and_takes_turns(arguments, p, caplog):
    draw = sampler(arguments, 2, sampler="uniform", correction=True)
    meter = Meter(draw)
    logs = []
    for turn in range(4):
        drawn = draw(arguments["targets"], arguments["target_lengths"], p, inclusion=True)
        logs.append(meter(*arguments.values(), drawn, p, "relu", turn))
    assert logs[0].keys() == logs[3].keys() >= {"meter_coverage", "meter_corrected_gap", "meter_cosine"}
    assert logs[0]["meter_exact_loss"] == logs[3]["meter_exact_loss"] != logs[1]["meter_exact_loss"]
    assert caplog.text.count("sampled softmax: the candidates cover") == 1


def test_the_meter_goes_without_memory(arguments, caplog, monkeypatch):
    from nemo_sampled_rnnt.meter import batch as metering

    def fail(*_, **__):
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr(metering, "Exact", fail)
    draw = sampler(arguments)
    drawn = draw(arguments["targets"], arguments["target_lengths"], inclusion=True)
    assert Meter(draw)(*arguments.values(), drawn, None, "relu", 0) == {}
    assert "set sampled_softmax.meter_every to 0" in caplog.text
