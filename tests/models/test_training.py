"""Training and validation as a user runs them: Lightning's trainer, on the CPU, for a few steps."""

import logging

import pytest
import torch
from nemo.collections.asr.models import EncDecRNNTBPEModel
from omegaconf import OmegaConf
from tiny import fit, make_config, make_tokenizer, stock_joint

from nemo_sampled_rnnt.models import EncDecSampledRNNTBPEModel


def build(tokenizer, speech, more=None, aux_ctc=True, joint=None, **sampled):
    sampled = {"n_samples": 7, "sampler": "ctc", "workspace_mib": 1, "seed": 4} | sampled
    config = make_config(tokenizer, speech, sampled_softmax=sampled, aux_ctc=aux_ctc, **(joint or {}))
    torch.manual_seed(0)
    return EncDecSampledRNNTBPEModel(OmegaConf.merge(config, more or {}))


def counts_file(model, folder):
    path = folder / "counts.txt"
    path.write_text("\n".join(f"{piece}\t{1 + i % 5}" for i, piece in enumerate(model.joint.vocabulary)))
    return path


RUNS = {
    "ctc": dict(sampler="ctc"),
    "ctc, not corrected": dict(sampler="ctc", correction=False),
    "ctc, one set for the batch": dict(sampler="ctc", scope="batch", n_samples=0.2),
    "uniform, one set for the batch": dict(sampler="uniform", scope="batch"),
    "uniform, corrected, no CTC head": dict(sampler="uniform", correction=True, aux_ctc=False),
    "unigram from the manifest": dict(sampler="unigram"),
    "unigram from a file, one set for the batch, not corrected": dict(
        sampler="unigram", scope="batch", correction=False, from_file=True
    ),
}


@pytest.mark.parametrize("options", RUNS.values(), ids=RUNS)
def test_trains(options, tokenizer, speech, tmp_path):
    options = dict(options)
    has_ctc = options.get("aux_ctc", True)
    if options.pop("from_file", False):
        options["unigram_counts"] = str(counts_file(build(tokenizer, speech), tmp_path))
    model = build(tokenizer, speech, **options)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    trainer = fit(model, 3)
    assert trainer.global_step == 3
    assert model.joint.sampler.draws == 3
    assert model.joint.sampler.config.sampler == options["sampler"]
    for name, parameter in model.named_parameters():
        assert parameter.isfinite().all(), name
        # keys of attention have no bias gradient: a softmax does not see a constant
        assert not torch.equal(parameter, before[name]) or "linear_k.bias" in name, f"{name} was not trained"
    logged = set(trainer.callback_metrics)
    expected = {"train_loss", "learning_rate", "global_step", "training_batch_wer", "val_loss", "val_wer"}
    expected |= {"train_candidates", "train_candidate_share", "train_joint_memory_mib"}
    if has_ctc:
        expected |= {"train_rnnt_loss", "train_ctc_loss", "training_batch_wer_ctc"}
        expected |= {"val_rnnt_loss", "val_ctc_loss", "val_wer_ctc"}
    if options["sampler"] == "ctc":
        expected |= {"train_drawn_uniformly"}
        assert trainer.callback_metrics["train_drawn_uniformly"] == 0
    assert logged == expected
    assert all(value.isfinite() for value in trainer.callback_metrics.values())
    share, candidates = (trainer.callback_metrics[f"train_candidate{x}"] for x in ("_share", "s"))
    torch.testing.assert_close(share, candidates / (len(model.joint.vocabulary) + 1))
    if has_ctc:
        for part in ("train", "val"):
            mixed = 0.7 * trainer.callback_metrics[f"{part}_rnnt_loss"]
            mixed += 0.3 * trainer.callback_metrics[f"{part}_ctc_loss"]
            torch.testing.assert_close(trainer.callback_metrics[f"{part}_loss"], mixed)


def test_validation_loss_is_exact(tokenizer, speech):
    """It equals a stock model's, whose joint is the full one; so does the WER."""
    model = build(tokenizer, speech, aux_ctc=False, sampler="uniform", n_samples=2)
    fit(model, 2)
    stock = EncDecRNNTBPEModel(stock_joint(make_config(tokenizer, speech)))
    stock.load_state_dict(model.state_dict(), strict=True)
    ours, stocks = validate(model), validate(stock)
    assert ours["val_loss"] == pytest.approx(stocks["val_loss"], rel=1e-5)
    assert ours["val_wer"] == stocks["val_wer"]


def validate(model):
    import lightning.pytorch as pl

    trainer = pl.Trainer(
        accelerator="cpu", devices=1, logger=False, enable_progress_bar=False, enable_model_summary=False
    )
    model.set_trainer(trainer)
    return trainer.validate(model, verbose=False)[0]


def test_test_set(tokenizer, speech):
    import lightning.pytorch as pl

    model = build(tokenizer, speech)
    model.setup_multiple_test_data(model.cfg.validation_ds)
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False)
    model.set_trainer(trainer)
    tested, validated = trainer.test(model, verbose=False)[0], validate(model)
    for name in ("loss", "wer", "wer_ctc", "rnnt_loss", "ctc_loss"):
        assert tested[f"test_{name}"] == pytest.approx(validated[f"val_{name}"], rel=1e-5)


def test_two_validation_sets(tokenizer, speech):
    more = {"validation_ds": {"manifest_filepath": [str(speech), str(speech)]}}
    metrics = fit(build(tokenizer, speech, more), 2).callback_metrics
    assert sum("val_wer_ctc" in name for name in metrics) == 2, sorted(metrics)


def test_without_validation_loss(tokenizer, speech):
    metrics = fit(build(tokenizer, speech, {"compute_eval_loss": False}), 2).callback_metrics
    assert {"val_wer", "val_wer_ctc", "train_loss"} <= set(metrics)
    assert not [name for name in metrics if name.startswith("val") and "loss" in name]


def test_wer_is_logged_at_the_trainers_interval(tokenizer, speech):
    model = build(tokenizer, speech)
    seen = []
    model.log_dict = lambda logs: seen.append("training_batch_wer" in logs and "training_batch_wer_ctc" in logs)
    fit(model, 4, log_every_n_steps=2, limit_val_batches=0)
    assert seen == [False, True, False, True]


def test_accumulates_gradients(tokenizer, speech):
    model = build(tokenizer, speech)
    fit(model, 2, accumulate_grad_batches=2)
    assert model.joint.sampler.draws == 4, "each micro-batch draws anew"


def test_sampler_ctc_without_a_head(tokenizer, speech):
    with pytest.raises(ValueError, match="sampler is ctc, but the model has no CTC head: add an aux_ctc section"):
        build(tokenizer, speech, aux_ctc=False, sampler="ctc")


@pytest.mark.parametrize("section", [512, "ctc"])
def test_sampled_softmax_that_is_no_mapping(section, tokenizer, speech):
    config = build(tokenizer, speech).cfg.copy()
    config.joint.sampled_softmax = section
    with pytest.raises(ValueError, match=f"expected a mapping .*got {section!r}"):
        EncDecSampledRNNTBPEModel(config)


def test_all_labels_are_said_to_be_exact(tokenizer, speech, caplog):
    from nemo.utils import logging

    model = build(tokenizer, speech, n_samples=10_000)
    level = logging.getEffectiveLevel()
    logging.setLevel(logging.WARNING)
    fit(model, 1)
    logging.setLevel(level)
    assert "n_samples 10000 is the whole vocabulary" in caplog.text


def test_weight_of_the_ctc_loss_out_of_range(tokenizer, speech):
    with pytest.raises(ValueError, match=r"ctc_loss_weight must lie in \[0, 1\], got 1.5"):
        build(tokenizer, speech, {"aux_ctc": {"ctc_loss_weight": 1.5}})


def test_ctc_head_is_made_by_the_schema_of_hybrid_models(tokenizer, speech):
    more = {"aux_ctc": {"ctc_reduction": "mean_volume", "use_cer": True, "ctc_loss_weight": 0.2}}
    model = build(tokenizer, speech, more)
    assert model.ctc_loss_weight == 0.2
    assert model.ctc_wer.use_cer
    assert not model.wer.use_cer
    assert model.ctc_loss.reduction == "none" and model.ctc_loss._apply_reduction
    assert model.ctc_decoder.num_classes_with_blank == model.joint.num_classes_with_blank
    assert fit(model, 1).callback_metrics["train_ctc_loss"].isfinite()


def test_training_goes_on_after_change_decoding_strategy(tokenizer, speech):
    model = build(tokenizer, speech)
    fit(model, 1)
    model.change_decoding_strategy(OmegaConf.create({"strategy": "greedy", "greedy": {"max_symbols": 2}}))
    assert model.joint.wer is model.wer
    metrics = fit(model, 2).callback_metrics
    assert metrics["train_loss"].isfinite() and metrics["val_wer"].isfinite()


def test_same_seed_same_run(tokenizer, speech):
    first, second, other = (build(tokenizer, speech, seed=seed) for seed in (4, 4, 5))
    for model in (first, second, other):
        fit(model, 2)
    weights = [model.joint.joint_net[-1].weight for model in (first, second, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize("accumulated", [1, 2])
def test_resumes_from_a_checkpoint(accumulated, tokenizer, speech, tmp_path):
    """A run that was interrupted ends where one that was not does: the negatives are those of the steps to come."""
    options = {"accumulate_grad_batches": accumulated}
    straight = build(tokenizer, speech)
    fit(straight, 6, **options)
    first = build(tokenizer, speech)
    fit(first, 4, **options).save_checkpoint(tmp_path / "step4.ckpt")
    second = build(tokenizer, speech)
    assert fit(second, 6, ckpt_path=tmp_path / "step4.ckpt", **options).global_step == 6
    assert second.joint.sampler.draws == 6 * accumulated
    for (name, expected), got in zip(straight.state_dict().items(), second.state_dict().values(), strict=True):
        torch.testing.assert_close(got, expected, msg=lambda m, name=name: f"{name}: {m}")


def poison(value, utterance=1):
    """A forward hook that spoils one utterance of the output."""

    def hook(module, inputs, output):
        first, *rest = output if isinstance(output, tuple) else (output,)
        spoilt = torch.zeros(len(first), *[1] * (first.dim() - 1)).index_fill_(0, torch.tensor(utterance), value)
        return (first + spoilt, *rest) if rest else first + spoilt

    return hook


def assert_left_out(model, caplog):
    with caplog.at_level(logging.WARNING, logger="nemo_sampled_rnnt"):
        metrics = fit(model, 1, limit_val_batches=0).callback_metrics
    assert "1 of 3 utterances have no finite loss and are left out: indices [1]" in caplog.text
    assert metrics["train_loss"].isfinite()
    for name, parameter in model.named_parameters():
        assert parameter.isfinite().all(), name


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_utterance_whose_loss_is_not_finite_is_left_out(value, tokenizer, speech, caplog):
    model = build(tokenizer, speech)
    model.joint.enc.register_forward_hook(poison(value))
    assert_left_out(model, caplog)


@pytest.mark.parametrize("aux_ctc", [True, False])
def test_utterance_whose_encoding_is_not_finite_is_left_out(aux_ctc, tokenizer, speech, caplog):
    model = build(tokenizer, speech, aux_ctc=aux_ctc, sampler="uniform")
    model.encoder.register_forward_hook(poison(float("nan")))
    assert_left_out(model, caplog)


def test_batch_without_a_finite_loss(tokenizer, speech):
    model = build(tokenizer, speech)
    model.encoder.register_forward_hook(poison(float("nan"), [0, 1, 2]))
    with pytest.raises(FloatingPointError, match="no utterance of a batch has a finite loss.*learning rate"):
        fit(model, 1)


def test_change_vocabulary_keeps_loss_and_head(tokenizer, speech, tmp_path):
    """FastEmit, reduction and CTC head follow a new tokenizer, and training goes on."""
    cfg = make_config(tokenizer, speech)
    cfg.loss.warprnnt_numba_kwargs.fastemit_lambda = 0.03
    cfg.rnnt_reduction = "mean_volume"
    model = EncDecSampledRNNTBPEModel(cfg)
    model.change_vocabulary(str(make_tokenizer(tmp_path / "other", pieces=47)), "bpe")
    vocabulary = len(model.joint.vocabulary)
    assert vocabulary == 47
    assert model.loss._loss.fastemit_lambda == 0.03
    assert model.loss.reduction == "mean_volume"
    assert model.ctc_decoder.num_classes_with_blank == vocabulary + 1
    model.setup_training_data(cfg.train_ds)
    trainer = fit(model, 1)
    assert torch.isfinite(trainer.callback_metrics["train_loss"])
