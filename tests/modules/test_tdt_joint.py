"""SampledRNNTJoint with durations: NeMo's own TDT loss on the full joint's logits is what it is compared with."""

import pytest
import torch
from joints import OURS, PREDICTED, STOCK, VOCABULARY, gradients, make_batch, make_joint
from nemo.collections.asr.losses.rnnt import RNNTLoss
from nemo.collections.asr.losses.rnnt_pytorch import TDTLossPytorch
from nemo.collections.asr.metrics.wer import WER
from nemo.collections.asr.modules import RNNTDecoder
from nemo.collections.asr.parts.submodules.rnnt_decoding import RNNTDecoding
from omegaconf import OmegaConf

from nemo_sampled_rnnt import sampled_rnnt_loss

V = len(VOCABULARY)
DURATIONS = [0, 1, 2, 3]
UNIFORM = {"n_samples": 4, "sampler": "uniform", "seed": 3, "workspace_mib": 1}
EVERYTHING = {"n_samples": V, "sampler": "uniform"}


def equip(joint, loss_name="tdt", reduction="mean_batch", **loss_kwargs):
    torch.manual_seed(1)
    decoder = RNNTDecoder(prednet={"pred_hidden": PREDICTED, "pred_rnn_layers": 1}, vocab_size=V, blank_as_pad=True)
    config = {"strategy": "greedy_batch", "model_type": "tdt", "durations": DURATIONS, "greedy": {"max_symbols": 3}}
    decoding = RNNTDecoding(
        decoding_cfg=OmegaConf.create(config), decoder=decoder, joint=joint, vocabulary=joint.vocabulary
    )
    joint.set_loss(
        RNNTLoss(
            num_classes=V, loss_name=loss_name, reduction=reduction, loss_kwargs={"durations": DURATIONS, **loss_kwargs}
        )
    )
    joint.set_wer(WER(decoding=decoding, batch_dim_index=0, log_prediction=False, dist_sync_on_step=True))
    return joint


def make(sampled_softmax=None, **loss):
    return equip(make_joint(OURS, num_extra_outputs=4, sampled_softmax=sampled_softmax), **loss)


@pytest.fixture
def nemo_loss(monkeypatch):
    """NeMo's TDT loss in PyTorch, of the stock joint's logits; it would call .cuda()."""
    monkeypatch.setattr(torch.Tensor, "cuda", lambda tensor: tensor)

    def loss_of(ours, batch, sigma=0.0):
        stock = make_joint(STOCK, num_extra_outputs=len(DURATIONS))
        stock.load_state_dict({name: x for name, x in ours.state_dict().items() if not name.startswith("_wer")})
        with torch.no_grad():
            logits = stock.joint(batch.encoder_outputs.transpose(1, 2), batch.decoder_outputs.transpose(1, 2))
            loss = TDTLossPytorch(blank=V, durations=DURATIONS, reduction="mean_batch", sigma=sigma)
            return loss(
                acts=logits, labels=batch.transcripts, act_lens=batch.encoder_lengths,
                label_lens=batch.transcript_lengths,
            )  # fmt: skip

    return loss_of


@pytest.mark.parametrize("sigma", [0.0, 0.05])
@pytest.mark.parametrize("loss_name", ["tdt", "tdt_pytorch"])
def test_exact_in_eval(loss_name, sigma, nemo_loss):
    ours, batch = make(UNIFORM, loss_name=loss_name, sigma=sigma).eval(), make_batch()
    torch.testing.assert_close(batch.call(ours)[0], nemo_loss(ours, batch, sigma), atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("scope", ["utterance", "batch"])
def test_every_label_as_negative(scope, nemo_loss):
    ours, batch = make(EVERYTHING | {"scope": scope}, sigma=0.05).train(), make_batch()
    torch.testing.assert_close(batch.call(ours)[0], nemo_loss(ours, batch, 0.05), atol=1e-4, rtol=1e-5)


def test_gradients_are_the_functions():
    """FastEmit, clamp and sigma reach it, and with them all parameters."""
    settings = {"fastemit_lambda": 0.2, "clamp": 0.05, "sigma": 0.05}
    ours, batch = make(None, **settings).train(), make_batch()
    output = ours.joint_net[-1]
    loss = sampled_rnnt_loss(
        ours.project_encoder(batch.encoder_outputs.transpose(1, 2)),
        ours.project_prednet(batch.decoder_outputs.transpose(1, 2)),
        output.weight, output.bias, batch.transcripts, batch.encoder_lengths, batch.transcript_lengths,
        durations=DURATIONS, **settings,
    )  # fmt: skip
    expected, got = gradients(ours, batch, loss), gradients(ours, batch, batch.call(ours)[0])
    for name, gradient in expected.items():
        torch.testing.assert_close(got[name], gradient, msg=lambda m, name=name: f"{name}: {m}")
        assert gradient.abs().max() > 0, name


def test_omega_in_training_only():
    ours, batch = make(None, omega=1.0, sigma=0.05), make_batch()
    plain = equip(make_joint(OURS, sampled_softmax=None), loss_name="warprnnt_numba")
    weights = {name: x[: V + 1] if name.startswith("joint_net") else x for name, x in ours.state_dict().items()}
    plain.load_state_dict(weights, strict=False)
    torch.testing.assert_close(batch.call(ours.train())[0], batch.call(plain)[0])
    torch.testing.assert_close(batch.call(ours.eval())[0], batch.call(make(None, sigma=0.05).eval())[0])


def test_sampled_is_below_exact_and_decodes():
    ours, batch = make(UNIFORM), make_batch()
    exact = batch.call(ours.eval())[0]
    sampled, wer, *_ = batch.call(ours.train(), compute_wer=True)
    assert sampled < exact - 0.5 and wer.isfinite()
    assert ours.training_statistics["train_candidates"] <= 1 + 4 + 4  # blank, labels, negatives, but no duration


def test_state_dict_is_the_stock_joints():
    stock, ours = make_joint(STOCK, num_extra_outputs=4), make_joint(OURS, num_extra_outputs=4)
    assert ours.num_classes_with_blank == V + 5 and ours.num_extra_outputs == 4
    ours.load_state_dict(stock.state_dict(), strict=True)


@pytest.mark.parametrize("extra", [0, 3, 5])
def test_outputs_that_do_not_fit_the_durations(extra):
    joint = make_joint(OURS, num_extra_outputs=extra)
    joint.set_loss(RNNTLoss(num_classes=V, loss_name="tdt", loss_kwargs={"durations": DURATIONS}))
    joint.set_wer(torch.nn.Identity())
    with pytest.raises(ValueError, match=rf"num_extra_outputs is {extra}, .* 4 durations \[0, 1, 2, 3\]"):
        make_batch().call(joint)


def test_outputs_without_durations():
    joint = make_joint(OURS, num_extra_outputs=2)
    joint.set_loss(RNNTLoss(num_classes=V, loss_name="warprnnt_numba"))
    joint.set_wer(torch.nn.Identity())
    with pytest.raises(ValueError, match="num_extra_outputs is 2, .* has 0 durations"):
        make_batch().call(joint)


def test_impossible_durations():
    joint = make_joint(OURS, num_extra_outputs=2)
    with pytest.raises(ValueError, match="durations must ascend"):
        joint.set_loss(RNNTLoss(num_classes=V, loss_name="tdt", loss_kwargs={"durations": [1, 0]}))
