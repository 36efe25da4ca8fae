"""A small transducer learns a small task as well from a sample of the vocabulary as from all of it.

Each of 41 labels sounds like a vector of its own between two frames of silence, in noise. The encoder is one layer
that sees a frame and its neighbours, so the task is learnt within seconds; a CTC head beside the joint chooses the
negatives, as in our models, and is trained from scratch with it.
"""

import pytest
import torch
from nemo.collections.asr.losses.rnnt import RNNTLoss
from nemo.collections.asr.metrics.wer import WER
from nemo.collections.asr.modules import RNNTDecoder
from nemo.collections.asr.parts.submodules.rnnt_decoding import RNNTDecoding
from omegaconf import OmegaConf

from nemo_sampled_rnnt.modules import SampledRNNTJoint
from nemo_sampled_rnnt.sampling import ctc_posteriors

V, FEATURES, ENCODED, PREDICTED, HIDDEN = 41, 24, 64, 16, 64
VOCABULARY = [chr(0x4E00 + i) for i in range(V)]
DURATIONS = [0, 1, 2, 3, 4]
TDT_LOSS = {"durations": DURATIONS, "sigma": 0.02, "omega": 0.1}


def speak(random: torch.Generator, batch: int = 16):
    """Frames (B, T, F) and their lengths, labels (B, U) and theirs."""
    voices = torch.randn(V, FEATURES, generator=torch.Generator().manual_seed(0))
    labels = torch.randint(3, 7, (batch,), generator=random)
    targets = torch.stack([torch.randperm(V, generator=random)[:6] for _ in range(batch)])
    frames = torch.zeros(batch, 18, FEATURES)
    frames[:, 1::3] = voices[targets]
    return frames + 0.2 * torch.randn(frames.shape, generator=random), labels * 3, targets, labels


class Transducer(torch.nn.Module):
    def __init__(self, sampled_softmax, tdt=False):
        super().__init__()
        self.encoder = torch.nn.Conv1d(FEATURES, ENCODED, 3, padding=1)
        self.ctc_head = torch.nn.Linear(ENCODED, V + 1)
        self.decoder = RNNTDecoder(
            prednet={"pred_hidden": PREDICTED, "pred_rnn_layers": 1}, vocab_size=V, blank_as_pad=True
        )
        self.joint = SampledRNNTJoint(
            jointnet={
                "encoder_hidden": ENCODED, "pred_hidden": PREDICTED, "joint_hidden": HIDDEN, "activation": "relu",
            },
            num_classes=V, vocabulary=VOCABULARY, sampled_softmax=sampled_softmax,
            num_extra_outputs=len(DURATIONS) if tdt else 0,
        )  # fmt: skip
        config = {"strategy": "greedy_batch", "greedy": {"max_symbols": 3}}
        if tdt:
            config |= {"model_type": "tdt", "durations": DURATIONS}
        config = OmegaConf.create(config)
        decoding = RNNTDecoding(decoding_cfg=config, decoder=self.decoder, joint=self.joint, vocabulary=VOCABULARY)
        name, options = ("tdt", dict(TDT_LOSS)) if tdt else ("default", {})  # NeMo empties them
        self.joint.set_loss(RNNTLoss(num_classes=V, loss_name=name, loss_kwargs=options))
        self.joint.set_wer(WER(decoding=decoding, use_cer=True, log_prediction=False))

    def forward(self, frames, lengths, targets, labels, compute_wer=False):
        encoded = torch.relu(self.encoder(frames.transpose(1, 2)))
        log_probs = self.ctc_head(encoded.transpose(1, 2)).log_softmax(dim=-1)
        predicted, _, _ = self.decoder(targets=targets, target_length=labels)
        loss, error_rate, _, _ = self.joint(
            encoder_outputs=encoded,
            decoder_outputs=predicted,
            encoder_lengths=lengths,
            transcripts=targets,
            transcript_lengths=labels,
            compute_wer=compute_wer,
            ctc_posteriors=ctc_posteriors(log_probs, lengths) if self.joint.needs_ctc_posteriors else None,
        )
        ctc_loss = torch.nn.functional.ctc_loss(log_probs.transpose(0, 1), targets, lengths, labels, blank=V)
        return loss, ctc_loss, error_rate


def train(sampled_softmax, steps=400, tdt=False):
    """The exact loss and the label error rate on sequences that training did not see."""
    torch.manual_seed(1)
    model, random = Transducer(sampled_softmax, tdt), torch.Generator().manual_seed(2)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-2)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, steps)
    for _ in range(steps):
        loss, ctc_loss, _ = model(*speak(random))
        optimizer.zero_grad()
        (0.7 * loss + 0.3 * ctc_loss).backward()
        optimizer.step()
        schedule.step()
    model.eval()
    with torch.no_grad():
        loss, _, error_rate = model(*speak(random, batch=100), compute_wer=True)
    return loss.item(), error_rate.item()


@pytest.fixture(scope="module")
def exact():
    loss, error_rate = train(None)
    assert error_rate < 0.06, "the task is learnable"
    return loss, error_rate


@pytest.mark.parametrize(
    "options",
    [
        {"sampler": "ctc"},
        {"sampler": "ctc", "correction": False},
        {"sampler": "ctc", "scope": "batch"},
    ],
    ids=["for each utterance", "for each utterance, not corrected", "for the batch"],
)
def test_sampled_by_ctc_is_as_good_as_exact(options, exact):
    loss, error_rate = train({"n_samples": 5, "seed": 3} | options)
    print(f"{options}: loss {loss:.3f}, label error rate {error_rate:.4f}; exact {exact[0]:.3f}, {exact[1]:.4f}")
    assert error_rate < exact[1] + 0.03
    assert loss < exact[0] + 0.5


@pytest.fixture(scope="module")
def exact_tdt():
    loss, error_rate = train(None, tdt=True)
    assert error_rate < 0.06, "the task is learnable"
    return loss, error_rate


@pytest.mark.parametrize(
    "options",
    [{"sampler": "ctc"}, {"sampler": "ctc", "scope": "batch", "correction": False}],
    ids=["for each utterance", "for the batch, not corrected"],
)
def test_sampled_tdt_is_as_good_as_exact(options, exact_tdt):
    """Within 2 points of the exact TDT model's label error rate."""
    loss, error_rate = train({"n_samples": 5, "seed": 3} | options, tdt=True)
    print(f"{options}: loss {loss:.3f}, error rate {error_rate:.4f}; exact {exact_tdt[0]:.3f}, {exact_tdt[1]:.4f}")
    assert error_rate < exact_tdt[1] + 0.02
    assert loss < exact_tdt[0] + 0.5
