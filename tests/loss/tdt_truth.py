"""Float64 truths of the TDT loss, from its contract and from nothing of its code: every path, one by one.

The gradient is the closed formula, with posteriors that are sums over the paths through an arc: no recursion anywhere.
"""

import math
from collections import Counter
from dataclasses import dataclass, fields, replace

import torch
from truth import LEAVES, Problem, _hidden, make_problem

USUAL, DOUBLING = (0, 1, 2, 3, 4), (0, 1, 2, 4, 8)
DURATIONS = (USUAL, DOUBLING)


@dataclass
class TdtProblem(Problem):
    """The tensors of one call, whose weight and bias have D rows more behind blank's; and what belongs to TDT."""

    durations: tuple[int, ...] = ()
    sigma: float = 0.0

    @property
    def blank(self):
        return self.weight.shape[0] - 1 - len(self.durations)

    def map(self, change):
        tensors = {f.name: getattr(self, f.name) for f in fields(Problem)}
        return replace(self, **{name: None if x is None else change(x) for name, x in tensors.items()})

    def call(self, loss, **options):
        return super().call(loss, **{"durations": self.durations, "sigma": self.sigma, **options})

    def plain(self):
        """The label part alone, of plain RNN-T."""
        tensors = {f.name: getattr(self, f.name) for f in fields(Problem)}
        rows = self.blank + 1
        return Problem(**tensors | {"weight": self.weight[:rows], "bias": self.bias[:rows]})


def make_tdt_problem(seed, durations=USUAL, sigma=0.0, scale=1.0, **options):
    """As :func:`truth.make_problem`."""
    problem = make_problem(seed, scale=scale, **options)
    g = torch.Generator().manual_seed(seed + 1)
    rows = torch.randn(len(durations), problem.weight.shape[1] + 1, generator=g, dtype=torch.float64) * scale
    tensors = {f.name: getattr(problem, f.name) for f in fields(Problem)}
    tensors["weight"] = torch.cat([problem.weight, rows[:, :-1]])
    tensors["bias"] = torch.cat([problem.bias, rows[:, -1]])
    return TdtProblem(**tensors, durations=tuple(durations), sigma=sigma)


def paths(frames, labels, durations, t=0, u=0):
    """Every sequence of arcs (t, u, is it a label, number of the duration) from (0, 0) to (T, U), the last by blank."""
    for i, d in enumerate(durations):
        if d > 0 and t + d < frames:
            for rest in paths(frames, labels, durations, t + d, u):
                yield ((t, u, False, i), *rest)
        if d > 0 and t + d == frames and u == labels:
            yield ((t, u, False, i),)
        if u < labels and t + d < frames:
            for rest in paths(frames, labels, durations, t + d, u + 1):
                yield ((t, u, True, i), *rest)


def tdt_formula(problem, upstream, activation="relu", fastemit_lambda=0.0, clamp=-1.0, masks=None):
    """(B,) reported losses and {name: gradient} of sum_b upstream[b] loss[b], in float64, over every path.

    gamma of an arc = sum of the probabilities of the paths through it / sum over all paths

    dz_k = p(k) (occ + lambda gamma_label) - [k=blank] gamma_blank - [k=y] (1 + lambda) gamma_label, bounded by the
    clamp; dz_d = p(d) occ - gamma_d, which neither FastEmit nor clamp touch. An utterance without a path: loss inf and
    no gradient.
    """
    problem = problem.map(lambda x: x.double() if x.is_floating_point() else x)
    slope = {
        "relu": lambda x: (x > 0).double(),
        "tanh": lambda x: 1 - torch.tanh(x) ** 2,
        "sigmoid": lambda x: torch.sigmoid(x) * (1 - torch.sigmoid(x)),
    }[activation]
    gradients = {name: torch.zeros_like(getattr(problem, name)) for name in LEAVES}
    losses = []
    for b in range(len(problem.targets)):
        log_q, labels, durations = problem.candidates(b), problem.labels(b), problem.durations
        ids = list(log_q)
        rows = ids + [problem.blank + 1 + i for i in range(len(durations))]
        mask = torch.ones(()) if masks is None else masks[b]
        pre, hidden = _hidden(problem, b, activation, mask)
        z = hidden @ problem.weight[rows].T + problem.bias[rows]
        z, z_duration = z[..., : len(ids)], z[..., len(ids) :]
        corrected = z - torch.tensor([log_q[k] for k in ids], dtype=torch.float64)
        lse = corrected.logsumexp(-1)
        log_p, log_p_duration = (z - lse[..., None]).tolist(), z_duration.log_softmax(-1).tolist()

        def token(u, is_label, ids=ids, labels=labels):
            return ids.index(labels[u] if is_label else problem.blank)

        through, everything = Counter(), []
        for path in paths(pre.shape[0], len(labels), durations):
            arcs = (
                log_p[t][u][token(u, is_label)] - problem.sigma + log_p_duration[t][u][i] for t, u, is_label, i in path
            )
            probability = math.exp(math.fsum(arcs))
            everything.append(probability)
            for arc in path:
                through[arc] += probability
        total = math.fsum(everything)
        if total == 0:
            losses.append(math.inf)
            continue
        losses.append(-(1 + fastemit_lambda) * math.log(total))

        dz, dz_duration = torch.zeros_like(z), torch.zeros_like(z_duration)
        p, p_duration = (corrected - lse[..., None]).exp(), z_duration.softmax(-1)
        for (t, u, is_label, i), mass in through.items():
            gamma = mass / total
            dz_duration[t, u] += p_duration[t, u] * gamma
            dz_duration[t, u, i] -= gamma
            if is_label:
                gamma *= 1 + fastemit_lambda
            dz[t, u] += p[t, u] * gamma
            dz[t, u, token(u, is_label)] -= gamma
        if clamp > 0:
            dz = dz.clamp(-clamp, clamp)
        dz = torch.cat([dz, dz_duration], -1) * float(upstream[b])
        dpre = (dz @ problem.weight[rows]) * mask * slope(pre)
        gradients["weight"][rows] += torch.einsum("tuk,tuh->kh", dz, hidden)
        gradients["bias"][rows] += dz.sum((0, 1))
        frames, states = pre.shape[:2]
        gradients["encoder"][b, :frames] = dpre.sum(1)
        gradients["predictor"][b, :states] = dpre.sum(0)
    return torch.tensor(losses, dtype=torch.float64), gradients
