"""What happens in passing, transcribing or exporting or a bad recording, leaves the training as it was."""

import json

import lightning.pytorch as pl
import pytest
import torch
from families import BPE, HYBRID
from tiny import fit
from torch.utils.data import DataLoader

from nemo_sampled_rnnt.models import sampled
from nemo_sampled_rnnt.models.ctc_scores import scores_of_log_probs
from nemo_sampled_rnnt.models.modes import kept_modes

PARTS = ("encoder", "decoder", "joint", "ctc_decoder")
EVERYWHERE_FINITE = {"encoder": {"conv_norm_type": "layer_norm"}}  # batch norm alone would spread a NaN


class Transcribing(pl.Callback):
    """At the start of each validation."""

    def __init__(self, path):
        self.path, self.found = path, []

    def on_validation_start(self, trainer, model):
        self.found.append(model.transcribe([self.path], verbose=False))


@pytest.mark.parametrize("sampler", ["ctc", "uniform"])
def test_transcribing_before_a_validation(sampler, tokenizer, speech, monkeypatch):
    """NeMo leaves the joint in training mode: the loss is exact all the same, and nothing is drawn."""
    path = json.loads(speech.read_text().splitlines()[0])["audio_filepath"]
    losses, kept = [], []
    monkeypatch.setattr(sampled, "kept_modes", lambda model: kept.append(model) or kept_modes(model))
    for callback in ([], [Transcribing(path)]):
        assert not kept, "no module is looked through where all are in eval mode"
        model = BPE.build(tokenizer, speech, sampled_softmax={"n_samples": 7, "sampler": sampler, "seed": 4})
        losses.append(fit(model, 2, callbacks=callback).callback_metrics["val_loss"])
        assert model.joint.draws == 2
    assert callback[0].found and kept
    torch.testing.assert_close(losses[1], losses[0])


@pytest.mark.filterwarnings("ignore")  # of torch's exporter
def test_training_after_an_export(tokenizer, speech, tmp_path):
    pytest.importorskip("onnx")
    model = BPE.build(tokenizer, speech).train()
    model.export(str(tmp_path / "model.onnx"))
    assert all(parameter.requires_grad for parameter in model.parameters())
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    fit(model, 2)
    changed = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    for part in PARTS:
        assert any(name.startswith(f"{part}.") for name in changed), f"{part} did not learn"
    assert model.joint.draws == 2


def freeze_joint(model):
    model.joint.freeze()


def freeze_all_but_encoder(model):
    model.freeze()
    model.encoder.unfreeze()


@pytest.mark.parametrize("freeze", [freeze_joint, freeze_all_but_encoder])
@pytest.mark.parametrize("sampler", ["ctc", "uniform"])
def test_a_frozen_joint(sampler, freeze, tokenizer, speech):
    """NeMo's freeze leaves it in eval mode; the steps around it are training all the same."""
    model = BPE.build(tokenizer, speech, sampled_softmax={"n_samples": 7, "sampler": sampler})
    freeze(model)
    metrics = fit(model, 2).callback_metrics
    assert not model.joint.training and model.joint.draws == 2
    assert metrics["train_candidates"] < 62 and metrics["val_loss"].isfinite()


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_recording_that_is_not_finite(poison, tokenizer, speech):
    """It is left out, and the encoder's weights stay finite."""
    random = torch.Generator().manual_seed(0)
    signal = 0.1 * torch.randn(3, 16000, generator=random)
    signal[1, 5000] = poison
    targets, target_lengths = torch.randint(5, (3, 4), generator=random), torch.full((3,), 4)
    batch = signal, torch.full((3,), 16000), targets, target_lengths
    model = BPE.build(tokenizer, speech, more=EVERYWHERE_FINITE)
    trainer = pl.Trainer(
        accelerator="cpu", max_steps=2, limit_val_batches=0, num_sanity_val_steps=0, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, log_every_n_steps=1,
    )  # fmt: skip
    model.set_trainer(trainer)
    trainer.fit(model, DataLoader([batch] * 2, batch_size=None))
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    assert trainer.callback_metrics["train_loss"].isfinite()
    assert model.joint._training_watch.left_out == 2


@pytest.mark.parametrize("interctc", [None, {"loss_weights": [0.4], "apply_at_layers": [0]}], ids=["", "interctc"])
@pytest.mark.parametrize("family", [BPE, HYBRID], ids=["BPE", "HYBRID"])
def test_a_validation_with_a_recording_that_is_not_finite(family, interctc, tokenizer, speech, caplog):
    """Its utterance has no part in the mean; nor has its batch, where it is the only one."""
    random = torch.Generator().manual_seed(0)

    def batch(size, poisoned=None):
        signal = 0.1 * torch.randn(size, 16000, generator=random)
        if poisoned is not None:
            signal[poisoned, 5000] = torch.nan
        return signal, torch.full((size,), 16000), torch.randint(5, (size, 4), generator=random), torch.full((size,), 4)

    good, mixed, alone = batch(3), batch(3, poisoned=1), batch(1, poisoned=0)
    rest = tuple(part[[0, 2]] for part in mixed)
    more = EVERYWHERE_FINITE
    if interctc:
        more = more | {"interctc": interctc, "encoder": more.get("encoder", {}) | {"n_layers": 2}}
    model = family.build(tokenizer, speech, more=more)

    def validate(*batches):
        trainer = pl.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False)
        model.set_trainer(trainer)
        return trainer.validate(model, DataLoader(batches, batch_size=None), verbose=False)[0]

    expected, got = validate(good, rest), validate(good, mixed, alone)
    losses = [name for name in expected if "loss" in name]
    assert {"val_loss", "val_rnnt_loss", "val_ctc_loss"} <= set(losses)
    assert any("inter_ctc_loss" in name for name in losses) == bool(interctc)
    for name in losses:
        assert got[name] == pytest.approx(expected[name], rel=1e-5), name
    assert "indices [1] in the batch (1 so far)" in caplog.text and "indices [0] in the batch (2 so far)" in caplog.text
    assert not any(value == value for name, value in validate(alone).items() if name in losses), "NaN: there is none"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_log_probs(dtype):
    """As `trainer.precision: bf16-true` makes them: torch's CTC loss knows none on a CPU."""
    log_probs = torch.randn(2, 9, 6).log_softmax(dim=-1)
    batch = torch.zeros(2, 3, 9), torch.tensor([9, 7]), torch.tensor([[1, 2], [3, 0]]), torch.tensor([2, 1])
    half = scores_of_log_probs(log_probs.to(dtype), *batch, "mean_batch", "mean")
    whole = scores_of_log_probs(log_probs, *batch, "mean_batch", "mean")
    torch.testing.assert_close(half.loss, whole.loss, rtol=2e-2, atol=0)
    assert half.loss.dtype == half.posteriors.dtype == torch.float32
