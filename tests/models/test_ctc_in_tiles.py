"""A CTC head scored tile by tile is the head that holds [B, T, V]: same losses, same training, same checkpoints."""

import pytest
import torch
from families import FAMILIES, HYBRID
from omegaconf import OmegaConf
from tiny import fit, make_config, texts

from nemo_sampled_rnnt.models import EncDecSampledRNNTBPEModel, ctc_scores

SGD = {"optim": {"name": "sgd", "lr": 1e-3}}  # AdamW makes whole steps of rounding errors
INTERCTC = {"interctc": {"loss_weights": [0.4], "apply_at_layers": [0]}, "encoder": {"n_layers": 2}}


def build(tokenizer, speech, memory_efficient, *more, family=None, **sampled):
    sampled = {"n_samples": 7, "sampler": "ctc", "workspace_mib": 1, "seed": 4} | sampled
    choice = {} if memory_efficient is None else {"aux_ctc": {"memory_efficient": memory_efficient}}
    more = OmegaConf.merge(choice, SGD, *more)
    if family is not None:
        return family.build(tokenizer, speech, more=more, sampled_softmax=sampled)
    torch.manual_seed(0)
    return EncDecSampledRNNTBPEModel(OmegaConf.merge(make_config(tokenizer, speech, sampled_softmax=sampled), more))


def without_log_probs(model):
    """The head may not be asked for them."""

    def refuse(*args, **kwargs):
        raise AssertionError("the head was asked for [B, T, V]")

    model.ctc_decoder.forward = refuse
    return model


def assert_same_training(one, other):
    metrics = [fit(model, 3).callback_metrics for model in (one, other)]
    assert metrics[0].keys() == metrics[1].keys()
    for name, value in metrics[0].items():
        torch.testing.assert_close(
            value, metrics[1][name], rtol=1e-4, atol=1e-5, msg=lambda m, name=name: f"{name}: {m}"
        )
    for (name, tensor), twin in zip(one.state_dict().items(), other.state_dict().values(), strict=True):
        torch.testing.assert_close(tensor, twin, rtol=1e-3, atol=1e-4, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("more", [{}, INTERCTC], ids=["", "interctc"])
@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_trains_as_the_head_that_holds_log_probs(family, more, tokenizer, speech):
    """Losses and WERs of training and validation, and the weights after three steps; the negatives are drawn alike."""
    held, tiled = (build(tokenizer, speech, choice, more, family=family) for choice in (False, True))
    assert_same_training(without_log_probs(tiled), held)


@pytest.mark.parametrize(
    "sampled",
    [{"frame_weights": "nonblank"}, {"frame_weights": "max", "ctc_layer": 0}, {"sampler": "uniform"}],
    ids=str,
)
def test_posteriors_that_the_sampler_asks_for(sampled, tokenizer, speech):
    """Of the last layer and of an inner one: the same negatives are drawn from them, so training goes the same way."""
    held, tiled = (build(tokenizer, speech, choice, INTERCTC, **sampled) for choice in (False, True))
    assert_same_training(without_log_probs(tiled), held)


@pytest.mark.parametrize("reduction", ["mean", "sum", "mean_volume", "none"])
def test_reductions(reduction, tokenizer, speech):
    more = {"aux_ctc": {"ctc_reduction": reduction}}
    held, tiled = (build(tokenizer, speech, choice, more) for choice in (False, True))
    assert_same_training(without_log_probs(tiled), held)


def test_a_strategy_that_needs_log_probs_gets_them(tokenizer, speech):
    """Alignments are kept with their log-probs: only then, without gradients, the head makes [B, T, V]."""
    more = {"aux_ctc": {"decoding": {"strategy": "greedy_batch", "preserve_alignments": True}}}
    tiled = build(tokenizer, speech, True, more)
    asked = []
    tiled.ctc_decoder.register_forward_hook(lambda *_: asked.append(torch.is_grad_enabled()))
    trainer = fit(tiled, 4, log_every_n_steps=2, limit_val_batches=0)
    assert asked == [False, False] and trainer.callback_metrics["training_batch_wer_ctc"].isfinite()


def test_utterance_that_is_not_finite_is_left_out(tokenizer, speech):
    def poison(module, inputs, output):
        encoded, lengths = output
        spoilt = torch.zeros(len(encoded), 1, 1)
        spoilt[1] = torch.nan
        return encoded + spoilt, lengths

    held, tiled = (build(tokenizer, speech, choice) for choice in (False, True))
    for model in (held, tiled):
        model.encoder.register_forward_hook(poison)
    metrics = [fit(model, 1, limit_val_batches=0).callback_metrics for model in (held, tiled)]
    torch.testing.assert_close(metrics[1]["train_ctc_loss"], metrics[0]["train_ctc_loss"])
    for name, parameter in tiled.named_parameters():
        assert parameter.isfinite().all(), name


def test_auto_goes_by_the_bytes_of_a_batch(tokenizer, speech, monkeypatch):
    model = build(tokenizer, speech, None)
    assert model.cfg.aux_ctc.get("memory_efficient") is None
    encoded = torch.zeros(3, 16, 9)
    columns = model.ctc_decoder.num_classes_with_blank
    assert not model.scores_in_tiles(encoded)
    monkeypatch.setattr("nemo_sampled_rnnt.models.ctc_head.LARGE", 3 * 9 * columns * 4 - 1)
    assert model.scores_in_tiles(encoded) and not model.scores_in_tiles(encoded[:2])
    assert ctc_scores.LARGE == 64 * 2**20
    fit(without_log_probs(model), 1, limit_val_batches=0)  # its batches are of 15 frames or more


def test_wrong_choice(tokenizer, speech):
    with pytest.raises(ValueError, match="memory_efficient must be true, false or auto, got 'yes'"):
        build(tokenizer, speech, "yes")


def test_what_cannot_be_scored_in_tiles(tokenizer, speech):
    """auto: the head as it is; true: a named error."""
    encoded = torch.zeros(3, 16, 9)
    for choice in (True, "auto"):
        model = build(tokenizer, speech, choice)
        model.ctc_decoder.temperature = 2.0
        if choice == "auto":
            assert not model.scores_in_tiles(torch.zeros(1, 16, 10**7))
        else:
            with pytest.raises(ValueError, match="memory_efficient is true, but .* its temperature is 2.0"):
                model.scores_in_tiles(encoded)
    adapted = build(tokenizer, speech, True)
    adapted.ctc_decoder.add_adapter("small", OmegaConf.create({
        "_target_": "nemo.collections.common.parts.adapter_modules.LinearAdapter", "in_features": 16, "dim": 4,
    }))  # fmt: skip
    with pytest.raises(ValueError, match=r"it has adapters \(small\)"):
        adapted.scores_in_tiles(encoded)
    adapted.ctc_decoder.set_enabled_adapters(enabled=False)
    assert adapted.scores_in_tiles(encoded)


def test_checkpoint_and_transcripts_are_a_stock_hybrids(tokenizer, speech, wav_files, tmp_path):
    """Trained in tiles, written as NeMo's hybrid, read by NeMo's class: same tensors, same transcripts of the head."""
    model = build(tokenizer, speech, True, family=HYBRID)
    fit(model, 2)
    model.save_stock(tmp_path / "stock.nemo", hybrid=True)
    stock = HYBRID.stock.restore_from(str(tmp_path / "stock.nemo"), map_location="cpu")
    assert type(stock) is HYBRID.stock and "memory_efficient" not in stock.cfg.aux_ctc
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, stock.state_dict()[name]), name
    heard = []
    for head in (model, stock):
        with torch.no_grad():
            head.ctc_decoder.decoder_layers[0].weight.normal_(std=0.5, generator=torch.Generator().manual_seed(2))
        head.change_decoding_strategy(decoder_type="ctc", verbose=False)
        heard.append(texts(head.eval().transcribe(wav_files[:3], verbose=False)))
    assert heard[0] == heard[1] and any(heard[0])
