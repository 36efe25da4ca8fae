"""How low precision is judged: against float64 truth, beside what plain PyTorch makes of the same inputs."""

import math
from dataclasses import replace
from functools import lru_cache
from statistics import mean, stdev

import torch
from truth import LEAVES, Problem, dense_loss, gradients_of, make_problem, relative_error

MARGIN = 1.25
HALF, SINGLE = torch.bfloat16, torch.float32
MIXES = {
    "float32": dict.fromkeys(LEAVES, SINGLE),
    "bf16": dict.fromkeys(LEAVES, HALF),
    "fp16": dict.fromkeys(LEAVES, torch.float16),
    "autocast": {"encoder": HALF, "predictor": HALF, "weight": SINGLE, "bias": SINGLE},
    "only the encoder": {"encoder": HALF, "predictor": SINGLE, "weight": SINGLE, "bias": SINGLE},
}


def mixed(problem, mix):
    return replace(problem, **{name: getattr(problem, name).to(dtype) for name, dtype in MIXES[mix].items()})


def plain(*tensors, reduction, **candidates):
    """What one would write in PyTorch without thinking of memory."""
    losses = dense_loss(Problem(*tensors, **candidates))
    return losses if reduction is None else losses.sum()


@lru_cache
def yardstick(mix, scope, reduction, count, **sizes):
    """Problems, their float64 truths, and plain PyTorch's results on them."""
    problems = [mixed(make_problem(seed, scope=scope, fill=0.0, scale=0.5, **sizes), mix) for seed in range(count)]
    truths = [gradients_of(problem.to(torch.float64), plain, reduction=reduction) for problem in problems]
    return problems, truths, [gradients_of(problem, plain, reduction=reduction) for problem in problems]


def judge(results, truths, plains, names=("loss", *LEAVES)):
    """Mean over the problems of log(our error / plain PyTorch's error) against log(MARGIN).

    One problem's ratio is luck (the rounding of a few lattice cells moves all its gradients: +-40%), so two standard
    errors of the mean are allowed on top.
    """

    def errors(pairs, what):
        pick = (lambda pair: pair[0]) if what == "loss" else (lambda pair: pair[1][what])
        return [relative_error(pick(got), pick(want)) for got, want in zip(pairs, truths, strict=True)]

    for what in names:
        ours, theirs = errors(results, what), errors(plains, what)
        logs = [math.log(mine / yours) for mine, yours in zip(ours, theirs, strict=True)]
        ratio, luck = math.exp(mean(logs)), math.exp(2 * stdev(logs) / math.sqrt(len(logs)))
        assert ratio <= MARGIN * luck, f"{what}: {ratio:.2f} times plain PyTorch's error, luck gives {luck:.2f}"
