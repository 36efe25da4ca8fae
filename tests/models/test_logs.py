"""What training logs beside the loss."""

import pytest
import torch
from families import BPE
from tiny import fit

from nemo_sampled_rnnt.memory import peak_memory


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


@pytest.mark.gpu
@pytest.mark.parametrize("log_memory", [False, True])
def test_joint_memory(log_memory, tokenizer, speech):
    """Measured where asked for: what the allocator gave joint and loss beyond what was there."""
    sampled = {"n_samples": 7, "sampler": "uniform", "log_memory": log_memory}
    model = BPE.build(tokenizer, speech, sampled_softmax=sampled).cuda().train()
    step(model.joint, "cuda")  # kernels are compiled
    model.joint.training_statistics = {}
    torch.empty(2**28, dtype=torch.uint8, device="cuda")  # a peak that someone else has seen
    highest = torch.cuda.max_memory_allocated()
    step(model.joint, "cuda")
    logged = model.joint.training_statistics.get("train_joint_memory_mib")
    if not log_memory:
        assert logged is None and torch.cuda.max_memory_allocated() == highest
        return
    assert torch.cuda.max_memory_allocated() < highest, "what the key costs"
    with peak_memory("cuda") as peak:
        step(model.joint, "cuda")
    assert 0 < logged <= peak.mib
