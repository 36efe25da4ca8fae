"""What training logs beside the loss."""

import pytest
import torch
from families import BPE
from tiny import fit

from nemo_sampled_rnnt.joint_memory import joint_memory
from nemo_sampled_rnnt.loss.lattice import Lattice


def step(joint, device="cpu"):
    """A training batch with labels (1, 1, 2) and (5, 6, 7)."""
    random = torch.Generator().manual_seed(0)
    inputs = {
        "encoder_outputs": torch.randn(2, 16, 9, generator=random),
        "decoder_outputs": torch.randn(2, 12, 4, generator=random),
        "encoder_lengths": torch.tensor([9, 8]),
        "transcripts": torch.tensor([[1, 1, 2], [5, 6, 7]]),
        "transcript_lengths": torch.tensor([3, 3]),
    }
    return joint(**{name: tensor.to(device) for name, tensor in inputs.items()}, compute_wer=True)


@pytest.mark.parametrize(
    "sampled_softmax, candidates",
    [
        ({"scope": "utterance"}, 0.5 * (1 + 2 + 7) + 0.5 * (1 + 3 + 7)),
        ({"scope": "batch"}, 1 + 5 + 7),
        ({"n_samples": 61}, 62),
        (None, 62),
    ],
)
def test_candidates(sampled_softmax, candidates, tokenizer, speech):
    """Blank, distinct labels and negatives, on average over the batch."""
    if sampled_softmax is not None:
        sampled_softmax = {"n_samples": 7, "sampler": "uniform"} | sampled_softmax
    model = BPE.build(tokenizer, speech, sampled_softmax=sampled_softmax).train()
    step(model.joint)
    assert model.joint.training_statistics["train_candidates"] == candidates
    assert model.joint.training_statistics["train_candidate_share"] == pytest.approx(candidates / 62)
    step(model.joint.eval())
    assert model.joint.training_statistics == {}, "validation scores every label"


def test_logged_where_the_trainer_logs(tokenizer, speech):
    model = BPE.build(tokenizer, speech)
    seen = []
    model.log_dict = lambda logs: seen.append({"train_candidates", "train_candidate_share"} <= set(logs))
    fit(model, 4, log_every_n_steps=2, limit_val_batches=0)
    assert seen == [False, True, False, True]


@pytest.mark.parametrize("sampled_softmax", [{"scope": "utterance"}, {"scope": "batch"}, {"full_after": 3}, None])
def test_joint_memory(sampled_softmax, tokenizer, speech):
    """By the arithmetic of the batch that was trained on."""
    if sampled_softmax is not None:
        sampled_softmax = {"n_samples": 7, "sampler": "uniform", "workspace_mib": 64} | sampled_softmax
    model = BPE.build(tokenizer, speech, sampled_softmax=sampled_softmax).train()
    model.joint.step = 3
    step(model.joint)
    statistics = model.joint.training_statistics
    known = {"scope": (sampled_softmax or {}).get("scope", "utterance"), "itemsize": 4}
    if statistics["train_candidates"] < 62:
        known["candidates"] = {"utterance": 11, "batch": 13}[known["scope"]]
    want = joint_memory(Lattice([9, 8], [3, 3]), 61, model.joint.joint_hidden, 16, **known)
    assert statistics["train_joint_memory_mib"] == want.total / 2**20 > 0


@pytest.mark.gpu
def test_nobodys_peak_is_reset(tokenizer, speech):
    model = BPE.build(tokenizer, speech, sampled_softmax={"n_samples": 7, "sampler": "uniform"}).cuda().train()
    torch.empty(2**28, dtype=torch.uint8, device="cuda")  # a peak that someone else has seen
    highest = torch.cuda.max_memory_allocated()
    step(model.joint, "cuda")
    assert torch.cuda.max_memory_allocated() == highest
