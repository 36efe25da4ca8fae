"""The meter in training: when it measures, whom it tells, what it leaves alone, and what it costs."""

import csv
import logging
import time

import pytest
import torch
from families import BPE
from lightning.pytorch.loggers import CSVLogger, Logger
from tiny import fit

NAMES = {
    f"meter_{name}"
    for name in (
        "coverage", "negative_coverage", "gap", "corrected_gap", "cosine", "cell_cosine", "exact_loss",
        "sampled_loss", "candidates",
    )
}  # fmt: skip


def build(tokenizer, speech, **sampled):
    sampled = {"n_samples": 7, "sampler": "ctc", "workspace_mib": 1, "seed": 4, "meter_every": 2} | sampled
    torch.manual_seed(0)
    return BPE.build(tokenizer, speech, sampled_softmax=sampled)


class Notes(Logger):
    """A logger of nobody's."""

    name, version = "notes", 0

    def __init__(self):
        super().__init__()
        self.seen = []

    def log_metrics(self, metrics, step=None):
        self.seen.append((step, metrics))

    def log_hyperparams(self, *_, **__):
        pass

    def measured(self):
        return {step: metrics for step, metrics in self.seen if any(name.startswith("meter_") for name in metrics)}


def test_logged_to_every_logger(tokenizer, speech, tmp_path):
    """Also where Lightning itself logs nothing at these steps."""
    notes, table = Notes(), CSVLogger(tmp_path)
    model = build(tokenizer, speech, correction=False)
    trainer = fit(model, 5, logger=[notes, table], log_every_n_steps=1000, limit_val_batches=0)
    assert list(notes.measured()) == [1, 3]
    for metrics in notes.measured().values():
        assert set(metrics) == NAMES
        assert 0 < metrics["meter_coverage"] < 1 and metrics["meter_gap"] < 0 and -1 <= metrics["meter_cosine"] <= 1
        assert metrics["meter_sampled_loss"] < metrics["meter_exact_loss"], "it is not corrected"
    assert NAMES <= set(trainer.callback_metrics)
    with open(f"{table.log_dir}/metrics.csv") as file:
        assert sum(row["meter_coverage"] != "" for row in csv.DictReader(file)) == 2


@pytest.mark.parametrize("correction", [True, False])
@pytest.mark.parametrize("scope", ["utterance", "batch"])
@pytest.mark.parametrize("size", [{"n_samples": 7}, {"n_samples": "auto", "max_logits": 20_000}], ids=["count", "auto"])
def test_changes_nothing(size, scope, correction, tokenizer, speech):
    """The same draws, losses and parameters as without."""
    models = [build(tokenizer, speech, meter_every=n, scope=scope, correction=correction, **size) for n in (0, 1)]
    losses = [fit(model, 3, limit_val_batches=0).callback_metrics["train_rnnt_loss"] for model in models]
    assert losses[0] == losses[1]
    for (name, expected), got in zip(models[0].state_dict().items(), models[1].state_dict().values(), strict=True):
        assert torch.equal(got, expected), name
    assert models[0].joint.measurement == {} and models[1].joint.measurement.keys() == NAMES


def test_once_a_step_however_many_batches_it_sums_up(tokenizer, speech):
    notes = Notes()
    fit(build(tokenizer, speech), 4, logger=notes, accumulate_grad_batches=2, limit_val_batches=0)
    steps = [step for step, metrics in notes.seen if "meter_coverage" in metrics]
    assert steps == [1, 3]


def test_not_in_exact_training(tokenizer, speech):
    notes = Notes()
    fit(build(tokenizer, speech, full_after=3), 6, logger=notes, limit_val_batches=0)
    assert list(notes.measured()) == [1]


@pytest.mark.parametrize("sampled_softmax", [None, {"n_samples": 7, "sampler": "uniform", "meter_every": 0}])
def test_off(sampled_softmax, tokenizer, speech):
    notes = Notes()
    fit(BPE.build(tokenizer, speech, sampled_softmax=sampled_softmax), 3, logger=notes, limit_val_batches=0)
    assert notes.measured() == {} and notes.seen


def test_is_the_joints_own_loss(tokenizer, speech):
    """With one utterance in the batch, the sampled loss that is measured is the one that is trained."""
    model = build(tokenizer, speech, meter_every=1, correction=True)
    model.cfg.train_ds.batch_size = 1
    model.setup_training_data(model.cfg.train_ds)
    metrics = fit(model, 1, limit_val_batches=0).callback_metrics
    assert metrics["meter_sampled_loss"] == pytest.approx(float(metrics["train_rnnt_loss"]), rel=1e-4)


def test_every_label_covers_everything(tokenizer, speech):
    metrics = fit(build(tokenizer, speech, meter_every=1, n_samples=61), 1, limit_val_batches=0).callback_metrics
    assert metrics["meter_coverage"] == pytest.approx(1, abs=1e-4)
    assert metrics["meter_cosine"] == pytest.approx(1, abs=1e-4)


def test_a_poor_sample_is_said_in_words(tokenizer, speech, caplog, monkeypatch):
    """Here everything is called poor, and nothing good enough."""
    monkeypatch.setattr("nemo_sampled_rnnt.meter.advice.POOR", 1.1)
    monkeypatch.setattr("nemo_sampled_rnnt.meter.advice.GOOD", 1.1)
    with caplog.at_level(logging.WARNING, logger="nemo_sampled_rnnt"):
        fit(build(tokenizer, speech, meter_every=1, sampler="uniform", n_samples=2), 4, limit_val_batches=0)
    assert caplog.text.count("sampled softmax: the candidates cover") == 1
    assert "30 negatives would not be enough; set sampler to ctc, or train exactly" in caplog.text


def test_utterance_without_a_finite_loss_is_not_measured(tokenizer, speech):
    model = build(tokenizer, speech, meter_every=1)
    model.joint.enc.register_forward_hook(
        lambda *call: call[-1] + torch.tensor([float("nan"), 0.0, 0.0])[:, None, None]
    )
    notes = Notes()
    fit(model, 3, logger=notes, limit_val_batches=0)
    assert list(notes.measured()) == [1, 2], "the first measurement is of the first utterance"


def test_costs_less_than_two_percent_of_training(tokenizer, speech, monkeypatch):
    """At the default interval; both timed in one run, the least of several."""
    steps, measurements = [], []
    model = build(tokenizer, speech, meter_every=1)
    measure, step = model.joint._measure, model.training_step

    def timed(function, times):
        def run(*args, **kwargs):
            started = time.perf_counter()
            result = function(*args, **kwargs)
            times.append(time.perf_counter() - started)
            return result

        return run

    model.joint._measure, model.training_step = timed(measure, measurements), timed(step, steps)
    fit(model, 6, limit_val_batches=0)
    interval = model.joint.sampled_softmax.__dataclass_fields__["meter_every"].default
    assert len(measurements) == len(steps) == 6
    forward = min(steps) - min(measurements)  # without backward and optimizer: less than a step
    assert min(measurements) / interval < 0.02 * forward


@pytest.mark.gpu
@pytest.mark.parametrize("size", [{"n_samples": 7}, {"n_samples": "auto", "max_logits": 20_000}], ids=["count", "auto"])
@pytest.mark.parametrize("scope", ["utterance", "batch"])
def test_on_cuda(scope, size, tokenizer, speech):
    """Under autocast: the loss that is measured is about the one that is trained."""
    model = build(tokenizer, speech, meter_every=1, correction=True, scope=scope, **size).cuda().train()
    random = torch.Generator().manual_seed(0)
    inputs = {
        "encoder_outputs": torch.randn(1, 16, 24, generator=random),
        "decoder_outputs": torch.randn(1, 12, 10, generator=random),
        "encoder_lengths": torch.tensor([24]),
        "transcripts": torch.arange(9)[None],
        "transcript_lengths": torch.tensor([9]),
        "ctc_posteriors": torch.full((1, 61), 1 / 61),
    }
    model.joint.step, model.joint.measuring = 0, True
    with torch.autocast("cuda", torch.bfloat16):
        loss = model.joint(**{name: x.cuda() for name, x in inputs.items()})[0]
    assert model.joint.measurement.keys() == NAMES
    assert model.joint.measurement["meter_sampled_loss"] == pytest.approx(loss.item(), rel=0.03)
