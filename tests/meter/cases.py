"""Batches to measure: few labels are likely, as after some training, and the sampler knows which."""

from __future__ import annotations

import torch

from nemo_sampled_rnnt.meter import CandidateSet, Utterance
from nemo_sampled_rnnt.sampling import NegativeSampler, SampledSoftmax

LENGTHS, LABELS = (9, 13, 6), (4, 2, 0)


def batch(vocabulary=41, hidden=11, sharpness=3.0, seed=0, dtype=torch.float64, device="cpu"):
    """Arguments of the loss, by name."""
    random = torch.Generator().manual_seed(seed)

    def normal(*size):
        return torch.randn(*size, generator=random, dtype=torch.float64)

    arguments = {
        "encoder": normal(3, 13, hidden),
        "predictor": normal(3, 6, hidden),
        "weight": sharpness * normal(vocabulary + 1, hidden) / hidden**0.5,
        "bias": normal(vocabulary + 1),
    }
    arguments = {name: x.to(device, dtype) for name, x in arguments.items()}
    return arguments | {
        "targets": torch.randint(vocabulary, (3, 5), generator=random).to(device),
        "encoder_lengths": torch.tensor(LENGTHS, device=device),
        "target_lengths": torch.tensor(LABELS, device=device),
    }


def posteriors(arguments, noise=0.5):
    """(B, V) float32: the mean softmax of each utterance, as a CTC head might guess it."""
    random = torch.Generator().manual_seed(1)
    hidden = torch.relu(arguments["encoder"][:, :, None] + arguments["predictor"][:, None]).flatten(1, 2)
    scores = (hidden @ arguments["weight"].T + arguments["bias"]).float().cpu()
    mean = scores.softmax(dim=-1).mean(dim=1)[:, :-1]
    return (mean * (noise * torch.randn(mean.shape, generator=random)).exp()).to(arguments["weight"].device)


def sampler(arguments, n_samples=7, **config):
    config = {"seed": 3, "sampler": "uniform"} | config
    return NegativeSampler(SampledSoftmax(n_samples, **config), len(arguments["weight"]) - 1)


def pieces(arguments, drawn, b, activation="relu"):
    """Utterance b and its candidate set."""
    lengths = arguments["targets"], arguments["target_lengths"]
    return (
        Utterance.of_batch(b, *arguments.values(), activation),
        CandidateSet.of_batch(b, len(arguments["weight"]) - 1, *lengths, *drawn),
    )
