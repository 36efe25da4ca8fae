"""SampledRNNTJoint: NeMo's joint in all but the training loss."""

import inspect
import logging

import pytest
import torch
from joints import (
    ENCODED,
    HIDDEN,
    OURS,
    PREDICTED,
    STOCK,
    VOCABULARY,
    LargestTensor,
    equip,
    gradients,
    make_batch,
    make_joint,
    pair,
)
from nemo.collections.asr.modules import RNNTJoint

from nemo_sampled_rnnt import sampled_rnnt_loss
from nemo_sampled_rnnt.memory import peak_memory
from nemo_sampled_rnnt.modules import SampledRNNTJoint
from nemo_sampled_rnnt.modules.joint import EXACT_IN_EVAL

V = len(VOCABULARY)
UNIFORM = {"sampled_softmax": {"n_samples": 4, "sampler": "uniform", "seed": 3, "workspace_mib": 1}}
EVERYTHING = {"sampled_softmax": {"n_samples": V, "sampler": "uniform"}}
BATCHES = {
    "lengths differ": dict(lengths=(5, 8, 6), labels=(3, 1, 4)),
    "lengths agree": dict(lengths=(6, 6), labels=(3, 3)),
    "longer tensors than lengths": dict(lengths=(5, 7, 4), labels=(2, 3, 1), frames=9, padded_labels=5),
    "an empty transcript": dict(lengths=(4, 5), labels=(0, 2)),
}


def assert_same_loss_and_gradients(stock, ours, batch):
    expected, got = batch.call(stock)[0], batch.call(ours)[0]
    torch.testing.assert_close(got, expected.to(got.dtype).reshape(got.shape), atol=1e-4, rtol=1e-5)
    expected, got = gradients(stock, batch, expected), gradients(ours, batch, got)
    for name, gradient in expected.items():
        torch.testing.assert_close(got[name], gradient, atol=2e-5, rtol=1e-4, msg=lambda m, name=name: f"{name}: {m}")


class TestExact:
    @pytest.mark.parametrize("loss_name", ["warprnnt_numba", "pytorch"])
    @pytest.mark.parametrize("batch", BATCHES.values(), ids=BATCHES)
    def test_in_eval_equals_the_stock_joint(self, batch, loss_name):
        stock, ours = pair(loss_name, ours=UNIFORM)
        assert_same_loss_and_gradients(stock, ours.eval(), make_batch(**batch))

    @pytest.mark.parametrize("scope", ["utterance", "batch"])
    @pytest.mark.parametrize("batch", BATCHES.values(), ids=BATCHES)
    def test_training_with_every_label_as_negative(self, batch, scope):
        stock, ours = pair(ours={"sampled_softmax": EVERYTHING["sampled_softmax"] | {"scope": scope}})
        assert_same_loss_and_gradients(stock, ours.train(), make_batch(**batch))

    def test_training_without_sampled_softmax(self):
        stock, ours = pair()
        assert ours.sampled_softmax is None
        assert_same_loss_and_gradients(stock, ours.train(), make_batch())

    @pytest.mark.parametrize("activation", ["tanh", "sigmoid"])
    def test_activation(self, activation):
        stock, ours = pair(activation=activation, ours=EVERYTHING)
        assert_same_loss_and_gradients(stock, ours.train(), make_batch())

    @pytest.mark.parametrize("reduction", ["mean", "sum", "mean_batch", "mean_volume"])
    def test_reduction_is_the_losss(self, reduction):
        stock, ours = pair(reduction=reduction, ours=EVERYTHING)
        assert_same_loss_and_gradients(stock, ours.train(), make_batch())

    def test_no_reduction(self):
        stock, ours = pair(reduction=None, ours=EVERYTHING)
        batch = make_batch()
        expected = batch.call(stock)[0]
        assert expected.shape == (3,)
        torch.testing.assert_close(batch.call(ours)[0], expected, atol=1e-4, rtol=1e-5)

    def test_fastemit_is_the_losss(self):
        plain, _ = pair()
        stock, ours = pair(loss_kwargs={"fastemit_lambda": 0.23}, ours=EVERYTHING)
        batch = make_batch()
        assert not torch.allclose(batch.call(plain)[0], batch.call(stock)[0], rtol=0.1)
        assert_same_loss_and_gradients(stock, ours.train(), batch)
        assert_same_loss_and_gradients(stock, ours.eval(), batch)

    def test_clamp_is_the_losss(self):
        """NeMo's CPU loss clamps after the reduction, its CUDA loss and ours before: judged by our function."""
        ours = equip(make_joint(OURS, **EVERYTHING), clamp=0.05).train()
        batch = make_batch()
        inputs = dict(
            encoder=ours.project_encoder(batch.encoder_outputs.transpose(1, 2)),
            predictor=ours.project_prednet(batch.decoder_outputs.transpose(1, 2)),
            weight=ours.joint_net[-1].weight,
            bias=ours.joint_net[-1].bias,
            targets=batch.transcripts,
            encoder_lengths=batch.encoder_lengths,
            target_lengths=batch.transcript_lengths,
        )
        weight = ours.joint_net[-1].weight
        (got,) = torch.autograd.grad(batch.call(ours)[0], weight)
        (clamped,) = torch.autograd.grad(sampled_rnnt_loss(**inputs, clamp=0.05), weight, retain_graph=True)
        (plain,) = torch.autograd.grad(sampled_rnnt_loss(**inputs), weight)
        torch.testing.assert_close(got, clamped)
        assert not torch.allclose(clamped, plain, rtol=0.1)


class TestSampled:
    def test_training_loss_is_below_the_exact_one(self):
        """Without correction a sum over fewer labels is smaller, for whichever sample."""
        ours, batch = equip(make_joint(OURS, **UNIFORM)), make_batch()
        exact = batch.call(ours.eval())[0]
        sampled = torch.stack([batch.call(ours.train())[0] for _ in range(5)])
        assert (sampled < exact - 0.5).all()
        assert len(sampled.unique()) == 5, "every step draws anew"
        assert ours.sampler.draws == 5

    def test_corrected_training_loss_is_close_to_the_exact_one(self):
        corrected = UNIFORM["sampled_softmax"] | {"correction": True, "n_samples": 9}
        ours, batch = equip(make_joint(OURS, sampled_softmax=corrected)), make_batch()
        exact = batch.call(ours.eval())[0].item()
        losses = torch.stack([batch.call(ours.train())[0].detach() for _ in range(60)])
        assert losses.mean().item() == pytest.approx(exact, rel=0.03)
        assert losses.std() > 0

    @pytest.mark.parametrize("sampler", ["uniform", "ctc"])
    @pytest.mark.parametrize("correction", ["auto", True, False])
    def test_is_the_public_loss_of_the_samplers_draw(self, sampler, correction):
        config = UNIFORM["sampled_softmax"] | {"sampler": sampler, "correction": correction}
        ours, batch = equip(make_joint(OURS, sampled_softmax=config)).train(), make_batch()
        posteriors = torch.rand(len(batch.transcripts), V) if sampler == "ctc" else None
        loss = batch.call(ours, ctc_posteriors=posteriors)[0]
        ours.continue_draws(0)
        negatives = ours.sampler(batch.transcripts, batch.transcript_lengths, posteriors)
        corrected = sampler == "ctc" if correction == "auto" else correction
        assert (negatives.log_prob is not None) == corrected
        expected = sampled_rnnt_loss(
            ours.project_encoder(batch.encoder_outputs.transpose(1, 2)),
            ours.project_prednet(batch.decoder_outputs.transpose(1, 2)),
            ours.joint_net[-1].weight,
            ours.joint_net[-1].bias,
            batch.transcripts,
            batch.encoder_lengths,
            batch.transcript_lengths,
            negatives=negatives.ids,
            negative_log_prob=negatives.log_prob,
            impl="reference",
        )
        torch.testing.assert_close(loss, expected)

    def test_ctc_posteriors_choose_the_negatives(self):
        config = {"n_samples": 3, "sampler": "ctc", "floor": 0.0, "seed": 1}
        ours, batch = equip(make_joint(OURS, sampled_softmax=config)).train(), make_batch()
        likely = torch.tensor([[20, 21, 22], [5, 6, 7], [23, 24, 25]])
        batch.transcripts.remainder_(4)  # none of the likely ones
        posteriors = torch.zeros(3, V).scatter_(1, likely, 0.3)
        (gradient,) = torch.autograd.grad(batch.call(ours, ctc_posteriors=posteriors)[0], ours.joint_net[-1].weight)
        touched = gradient.abs().sum(dim=1) > 0
        assert set(likely.flatten().tolist()) <= set(touched.nonzero().flatten().tolist())
        assert not touched[8:20].any()

    def test_ctc_without_posteriors(self):
        ours = equip(make_joint(OURS, sampled_softmax={"n_samples": 3})).train()
        with pytest.raises(ValueError, match="'ctc' needs the posteriors of a CTC head.*aux_ctc"):
            make_batch().call(ours)
        make_batch().call(ours.eval())  # the exact loss needs none

    def test_unigram_without_counts(self):
        ours = equip(make_joint(OURS, sampled_softmax={"n_samples": 3, "sampler": "unigram"})).train()
        with pytest.raises(ValueError, match="'unigram' needs counts"):
            make_batch().call(ours)
        ours.set_unigram_counts(torch.arange(V))
        assert make_batch().call(ours)[0].isfinite()

    def test_continues_its_draws(self):
        ours, batch = equip(make_joint(OURS, **UNIFORM)).train(), make_batch()
        losses = [batch.call(ours)[0] for _ in range(4)]
        resumed = equip(make_joint(OURS, **UNIFORM)).train()
        resumed.continue_draws(2)
        assert [batch.call(resumed)[0] for _ in range(2)] == losses[2:]

    def test_left_out_utterance(self, caplog):
        ours = equip(make_joint(OURS, **EVERYTHING)).train()
        batch = make_batch(lengths=(5, 5, 5), labels=(3, 3, 3))
        alone = {name: getattr(batch, name)[::2] for name in vars(batch)}
        expected = ours(**alone)[0]
        poison = torch.zeros(3, 1, 1).index_fill_(0, torch.tensor([1]), float("nan"))
        hook = ours.enc.register_forward_hook(lambda *call: call[-1] + poison)
        with caplog.at_level(logging.WARNING, logger="nemo_sampled_rnnt"):
            loss = batch.call(ours)[0]
        torch.testing.assert_close(loss, expected)
        assert all(gradient.isfinite().all() for gradient in gradients(ours, batch, loss).values())
        assert "indices [1]" in caplog.text
        hook.remove()
        ours.enc.register_forward_hook(lambda *call: call[-1] * float("nan"))
        with pytest.raises(FloatingPointError, match="no utterance of a batch has a finite loss"):
            batch.call(ours)


class TestMemory:
    """A vocabulary so large that the joint tensor would stand out."""

    vocabulary = [f"piece{i}" for i in range(809)]
    lengths, labels = (31, 27), (17, 13)
    cells = 2 * 31 * 18

    def run(self, joint, **more):
        batch = make_batch(self.lengths, self.labels, self.vocabulary)
        with LargestTensor() as largest:
            loss = batch.call(joint, **more)[0]
            loss.backward()
        return largest.elements

    @pytest.mark.parametrize("sampler", ["uniform", "ctc"])
    @pytest.mark.parametrize("training", [True, False])
    def test_never_builds_the_joint_tensor(self, training, sampler):
        config = {"n_samples": 30, "sampler": sampler, "workspace_mib": 1}
        ours = equip(make_joint(OURS, vocabulary=self.vocabulary, sampled_softmax=config)).train(training)
        more = {"ctc_posteriors": torch.full((2, 809), 1 / 809)} if sampler == "ctc" else {}
        # 1 MiB is 262,144 floats for hidden, its gradient and logits together; the joint tensor has 903,960
        assert self.run(ours, **more) < self.cells * len(self.vocabulary) / 3

    def test_sampled_tiles_are_of_the_samples_size(self):
        config = {"n_samples": 30, "sampler": "uniform", "workspace_mib": 1}
        ours = equip(make_joint(OURS, vocabulary=self.vocabulary, sampled_softmax=config)).train()
        # blank, labels and negatives
        assert self.run(ours) <= self.cells * (1 + sum(self.labels) + 30)

    def test_beside_the_stock_joint(self):
        """Which does hold the full tensor, so what the tests above look for would be seen."""
        config = {"n_samples": 30, "sampler": "uniform", "workspace_mib": 1}
        largest, peaks = [], []
        for joint in (
            equip(make_joint(STOCK, vocabulary=self.vocabulary), "pytorch"),
            equip(make_joint(OURS, vocabulary=self.vocabulary, sampled_softmax=config)),
        ):
            with peak_memory("cpu") as peak:
                largest.append(self.run(joint))
            peaks.append(peak.bytes)
        full = self.cells * (len(self.vocabulary) + 1)
        assert largest[0] == full
        assert peaks[0] > 4 * full > 4 * peaks[1]


class TestConfig:
    def test_nemos_own_sampled_joint_with_our_target(self):
        """Every key that NeMo's SampledRNNTJoint takes."""
        nemos = inspect.signature(__import__("nemo.collections.asr.modules", fromlist=["x"]).SampledRNNTJoint.__init__)
        keys = {"n_samples": 5, "log_softmax": None, "preserve_memory": False}
        keys |= {"fuse_loss_wer": True, "fused_batch_size": 1}
        assert set(keys) | {"self", "jointnet", "num_classes", "vocabulary"} == set(nemos.parameters)
        ours = equip(make_joint(OURS, **keys)).train()
        assert ours.sampled_softmax.sampler == "uniform"
        assert ours.sampled_softmax.n_samples == 5
        assert not ours.needs_ctc_posteriors
        batch = make_batch()
        assert batch.call(ours)[0] < batch.call(ours.eval())[0]

    def test_unknown_key(self):
        with pytest.raises(Exception, match="unknown key 'n_sample'.*allowed keys: n_samples, sampler"):
            make_joint(OURS, sampled_softmax={"n_sample": 5})
        with pytest.raises(ValueError, match="unknown key 'n_sample'"):
            SampledRNNTJoint(jointnet(), V, vocabulary=VOCABULARY, sampled_softmax={"n_sample": 5})

    def test_n_samples_beside_sampled_softmax(self):
        with pytest.raises(ValueError, match=r"n_samples \(5\) stands beside sampled_softmax"):
            SampledRNNTJoint(jointnet(), V, vocabulary=VOCABULARY, n_samples=5, **UNIFORM)

    @pytest.mark.parametrize("n_samples", [0, -2])
    def test_sample_of_nothing(self, n_samples):
        with pytest.raises(ValueError, match="n_samples: expected an integer of at least 1"):
            SampledRNNTJoint(jointnet(), V, vocabulary=VOCABULARY, n_samples=n_samples)

    @pytest.mark.parametrize(
        ("loss_name", "kwargs", "kind"),
        [
            ("multiblank_rnnt_pytorch", {"big_blank_durations": [2]}, "MultiblankRNNTLossPytorch"),
            ("multiblank_rnnt", {"big_blank_durations": [2]}, "MultiblankRNNTLossNumba"),
        ],
    )
    def test_loss_that_cannot_be_sampled(self, loss_name, kwargs, kind):
        with pytest.raises(ValueError, match=f"the model's loss is {kind}: a multi-blank .*RNNTJoint for this model"):
            equip(make_joint(OURS, **UNIFORM), loss_name, **kwargs)

    def test_no_loss_yet(self):
        ours = make_joint(OURS, **UNIFORM)
        with pytest.raises(ValueError, match=r"no loss or WER yet: call set_loss\(\) and set_wer\(\)"):
            make_batch().call(ours)

    def test_state_dict_is_the_stock_joints(self):
        for dropout in (0.0, 0.2):
            stock, ours = make_joint(STOCK, dropout=dropout), make_joint(OURS, dropout=dropout, **UNIFORM)
            assert list(ours.state_dict()) == list(stock.state_dict())
            assert list(equip(ours).state_dict()) == list(equip(stock).state_dict())
            batch = make_batch()
            batch.call(ours.train(), compute_wer=True)  # what training makes is no part of it either
            assert list(ours.state_dict()) == list(stock.state_dict())
            ours.load_state_dict(stock.state_dict(), strict=True)

    def test_is_a_stock_joint_to_decoders(self):
        inherited = ("project_encoder", "project_prednet", "joint_after_projection", "joint", "num_extra_outputs")
        for name in (*inherited, "num_classes_with_blank"):
            assert inspect.getattr_static(SampledRNNTJoint, name) is inspect.getattr_static(RNNTJoint, name), name


class TestJointFeatures:
    def test_masking_prob(self):
        """HAINAN: the stock joint and ours take the same mask from the same seed."""
        stock, ours = pair(masking_prob=0.4)
        batch = make_batch()
        torch.manual_seed(5)
        expected = batch.call(stock.train())[0]
        torch.manual_seed(5)
        got = batch.call(ours.train())[0]
        torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-5)
        exact = batch.call(ours.eval())[0]
        torch.testing.assert_close(exact, batch.call(stock.eval())[0], atol=1e-4, rtol=1e-5)
        assert abs(exact - got) > 1e-3, "eval is not masked"

    def test_dropout(self):
        stock, ours = pair(dropout=0.5, ours=EVERYTHING)
        batch = make_batch()
        assert_same_loss_and_gradients(stock.eval(), ours.eval(), batch)
        losses = torch.stack([batch.call(ours.train())[0].detach() for _ in range(100)])
        stocks = torch.stack([batch.call(stock.train())[0].detach() for _ in range(100)])
        assert losses.std() > 0
        margin = 5 * (losses.var() / 100 + stocks.var() / 100).sqrt()
        assert abs(losses.mean() - stocks.mean()) < margin
        torch.manual_seed(2)
        first = batch.call(ours)[0]
        torch.manual_seed(2)
        assert batch.call(ours)[0] == first, "torch's generator decides"

    def test_adapters(self):
        from nemo.collections.common.parts.adapter_modules import LinearAdapterConfig

        ours, batch = equip(make_joint(OURS, **UNIFORM)).train(), make_batch()
        ours.set_accepted_adapter_types([LinearAdapterConfig._target_])
        ours.add_adapter("accent", LinearAdapterConfig(in_features=HIDDEN, dim=4))
        with pytest.raises(NotImplementedError, match=r"adapters on the joint \(accent\).*disable them"):
            batch.call(ours)
        ours.set_enabled_adapters(enabled=False)
        assert batch.call(ours)[0].isfinite()

    def test_temperature(self):
        ours, batch = equip(make_joint(OURS, log_softmax=True, **UNIFORM)).train(), make_batch()
        assert batch.call(ours)[0].isfinite()
        ours.temperature = 1.3
        with pytest.raises(NotImplementedError, match="temperature 1.3 with log_softmax true.*log_softmax to null"):
            batch.call(ours)
        ours.log_softmax = None
        assert batch.call(ours)[0].isfinite()

    def test_frozen_joint_lets_gradients_through(self):
        stock, ours = pair(ours=EVERYTHING)
        for parameter in ours.parameters():
            parameter.requires_grad_(False)
        batch = make_batch()
        loss = batch.call(ours.train())[0]
        got = torch.autograd.grad(loss, [batch.encoder_outputs, batch.decoder_outputs])
        expected = torch.autograd.grad(batch.call(stock)[0], [batch.encoder_outputs, batch.decoder_outputs])
        torch.testing.assert_close(got, expected, atol=2e-5, rtol=1e-4)

    def test_bfloat16_autocast(self):
        stock, ours = pair(ours=EVERYTHING)
        batch = make_batch()
        expected = batch.call(stock)[0]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = batch.call(ours.train())[0]
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, expected, rtol=0.02, atol=0)
        for name, gradient in gradients(ours, batch, loss).items():
            assert gradient.dtype == torch.float32, name


class TestWordErrorRate:
    @pytest.mark.parametrize("training", [True, False])
    def test_equals_the_stock_joints(self, training):
        stock, ours = pair(ours=UNIFORM)
        stock.wer.decoding.decoding.decoder.load_state_dict(ours.wer.decoding.decoding.decoder.state_dict())
        batch = make_batch(labels=(3, 2, 4))
        for joint in (stock, ours):
            with torch.no_grad():
                joint.joint_net[-1].bias[-1] = -1.0  # blank: an untrained joint would say nothing
            joint.wer.use_cer = True  # of these words none is ever right
        expected = batch.call(stock.train(training), compute_wer=True)[1:]
        got = batch.call(ours.train(training), compute_wer=True)[1:]
        assert expected == got
        assert expected[0] not in (0, 1), "something was decoded"
        assert expected[2] > 0
        assert ours.training == training, "decoding flips the joint to eval and back"

    def test_is_not_computed_unasked(self):
        ours = equip(make_joint(OURS, **UNIFORM))
        assert make_batch().call(ours)[1:] == (None, None, None)

    def test_without_decoder_outputs_there_is_no_loss(self):
        """What NeMo asks for with compute_eval_loss: false."""
        ours = equip(make_joint(OURS, **UNIFORM)).eval()
        loss, wer, numerator, denominator = make_batch().call(ours, decoder_outputs=None, compute_wer=True)
        assert loss is None
        assert wer == numerator / denominator

    def test_leaves_nothing_behind(self):
        ours = equip(make_joint(OURS, **UNIFORM)).train()
        synced = ours.wer._to_sync
        make_batch().call(ours, compute_wer=True)
        assert ours.wer._to_sync == synced
        assert ours.wer.words == 0

        def fail(**_):
            raise KeyboardInterrupt

        ours.wer.update = fail
        with pytest.raises(KeyboardInterrupt):
            make_batch().call(ours, compute_wer=True)
        assert ours.wer._to_sync == synced, "also after a failure"

    @pytest.mark.skipif(
        "keep_hypotheses" not in inspect.signature(RNNTJoint.forward.__wrapped__).parameters, reason="NeMo 3.0 has it"
    )
    def test_keep_hypotheses(self):
        stock, ours = pair(ours=UNIFORM)
        batch = make_batch()
        batch.call(ours.eval(), compute_wer=True, keep_hypotheses=True)
        batch.call(stock.eval(), compute_wer=True, keep_hypotheses=True)
        got, expected = ours.get_hypotheses(), stock.get_hypotheses()
        assert [x.text for x in got] == [x.text for x in expected]
        assert len(got) == 3
        batch.call(ours.eval(), compute_wer=True)
        with pytest.raises(ValueError, match="No hypotheses"):
            ours.get_hypotheses()


def test_frozen_in_eval_mode(monkeypatch):
    """The caller says what is training; without a word the mode says it, and is named once."""
    from nemo.utils import logging, logging_mode

    said = []
    ours, batch = equip(make_joint(OURS, dropout=0.5, **UNIFORM)).eval(), make_batch()
    monkeypatch.setattr(logging, "warning", lambda *args, **more: said.append((*args, more)))
    exact = batch.call(ours)[0]
    assert said == [(EXACT_IN_EVAL, {"mode": logging_mode.ONCE})] and ours.draws == 0
    sampled = batch.call(ours, training_step=True)[0]
    assert sampled < exact - 0.5 and ours.draws == 1 and not ours.training
    ours.continue_draws(0)
    assert batch.call(ours, training_step=True)[0] == sampled, "without dropout"
    batch.call(ours.train(), training_step=False)
    with torch.no_grad():
        batch.call(ours.eval())
    assert ours.draws == 1 and len(said) == 1


def test_nothing_finite_in_a_validation(caplog):
    """It is named, and the loss of nothing is no number."""
    ours = equip(make_joint(OURS, **UNIFORM)).eval()
    batch = make_batch()
    ours.enc.register_forward_hook(lambda *call: call[-1] * float("nan"))
    with torch.no_grad():
        assert batch.call(ours)[0].isnan()
    assert "3 of 3 utterances have no finite loss" in caplog.text and "indices [0, 1, 2]" in caplog.text


def test_full_joint_is_refused_in_training():
    ours = equip(make_joint(OURS, **UNIFORM)).train()
    batch = make_batch()
    with pytest.raises(RuntimeError, match="needs encoder_lengths, transcripts and transcript_lengths"):
        ours(encoder_outputs=batch.encoder_outputs, decoder_outputs=batch.decoder_outputs)
    ours._fuse_loss_wer = False  # what an export does
    with pytest.raises(RuntimeError, match=r"full joint \[B, T, U, V\] was asked for with gradients"):
        ours(encoder_outputs=batch.encoder_outputs, decoder_outputs=batch.decoder_outputs)


def test_bad_target_is_named():
    ours = equip(make_joint(OURS, **UNIFORM)).train()
    batch = make_batch()
    batch.transcripts[2, 1] = V
    with pytest.raises(ValueError, match=rf"targets\[2, 1\] is {V}"):
        batch.call(ours)


def jointnet():
    return {"encoder_hidden": ENCODED, "pred_hidden": PREDICTED, "joint_hidden": HIDDEN, "activation": "relu"}
