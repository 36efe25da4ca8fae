"""Which posteriors the sampler is given: how frames are joined, and of which layer of the encoder."""

import pytest
import torch
from families import BPE, HYBRID
from omegaconf import OmegaConf
from tiny import fit

from nemo_sampled_rnnt.sampling import ctc_posteriors

INNER = {"interctc": {"loss_weights": [0.1, 0.2], "apply_at_layers": [0, 1]}, "encoder": {"n_layers": 3}}
FAMILIES = pytest.mark.parametrize("family", [BPE, HYBRID], ids=["plain", "hybrid"])


def build(tokenizer, speech, family=BPE, more=None, **sampled):
    sampled = {"n_samples": 7, "sampler": "ctc", "workspace_mib": 1, "seed": 4, "floor": 0.0} | sampled
    return family.build(tokenizer, speech, sampled_softmax=sampled, more=OmegaConf.create(more or {}))


def given(model, steps=1):
    """(posteriors that the sampler got, log-probs of the head and lengths) of each step."""
    seen, original, head = [], type(model.joint.sampler).__call__, model.ctc_decoder.forward
    outputs = []

    def watch_head(*args, **kwargs):
        outputs.append(head(*args, **kwargs))
        return outputs[-1]

    def watch(sampler, targets, lengths, posteriors, *rest):
        seen.append(posteriors.clone())
        return original(sampler, targets, lengths, posteriors, *rest)

    model.ctc_decoder.forward = watch_head
    try:
        type(model.joint.sampler).__call__ = watch
        metrics = fit(model, steps, limit_val_batches=0).callback_metrics
    finally:
        type(model.joint.sampler).__call__ = original
    return seen, outputs, metrics


@pytest.mark.parametrize("frame_weights", ["mean", "nonblank", "max"])
def test_frame_weights(frame_weights, tokenizer, speech):
    (posteriors,), (log_probs,), metrics = given(build(tokenizer, speech, frame_weights=frame_weights))
    longest = torch.tensor([log_probs.shape[1]])
    torch.testing.assert_close(posteriors[2:], ctc_posteriors(log_probs[2:].detach(), longest, frame_weights))
    assert metrics["train_loss"].isfinite()


@FAMILIES
@pytest.mark.parametrize("layer", [0, 1])
def test_inner_layer(family, layer, tokenizer, speech):
    """The sampler sees the layer that is named, and InterCTC trains as before."""
    model = build(tokenizer, speech, family, INNER, ctc_layer=layer)
    (posteriors,), outputs, metrics = given(model)
    final, inner, *trained = outputs
    assert len(trained) == 2 and torch.equal(trained[layer], inner) and not torch.equal(inner, final)
    assert not inner.requires_grad and trained[layer].requires_grad
    torch.testing.assert_close(posteriors[2], inner[2, :, :-1].exp().mean(dim=0))  # the longest utterance
    assert {"final_loss", "inter_ctc_loss_l0", "inter_ctc_loss_l1"} <= set(metrics)


def test_without_ctc_layer_the_last_one(tokenizer, speech):
    (posteriors,), (final, *trained), _ = given(build(tokenizer, speech, BPE, INNER))
    assert len(trained) == 2
    torch.testing.assert_close(posteriors[2], final[2, :, :-1].exp().mean(dim=0))


@FAMILIES
@pytest.mark.parametrize(
    ("more", "layers"), [({}, r"\[\]"), ({"interctc": {"loss_weights": [0.1], "apply_at_layers": [1]}}, r"\[1\]")]
)
def test_layer_that_interctc_does_not_train(family, more, layers, tokenizer, speech):
    with pytest.raises(Exception, match=rf"ctc_layer is 2, but interctc.apply_at_layers is {layers}.*name one of them"):
        build(tokenizer, speech, family, INNER | more if more else {}, ctc_layer=2)


def test_layer_that_the_encoder_has_not(tokenizer, speech):
    more = {"interctc": {"loss_weights": [0.1], "apply_at_layers": [9]}}
    with pytest.raises(RuntimeError, match="layer 9 of the encoder left no output for sampled_softmax.ctc_layer"):
        fit(build(tokenizer, speech, BPE, more, ctc_layer=9), 1)


def test_utterance_whose_posteriors_are_not_finite_is_drawn_for_uniformly_and_counted(tokenizer, speech):
    model = build(tokenizer, speech)
    posteriors = model._posteriors
    model._posteriors = lambda *inputs: posteriors(*inputs) + torch.tensor([[0.0], [float("nan")], [0.0]])
    metrics = fit(model, 2, limit_val_batches=0).callback_metrics
    assert metrics["train_drawn_uniformly"] == 2
    assert metrics["train_rnnt_loss"].isfinite()
