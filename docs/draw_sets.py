"""The picture of docs/sampling.md that explains candidate sets, scopes and inclusion probabilities, by real draws.

python docs/draw_sets.py docs/sampling_sets.png
"""

from __future__ import annotations

import sys

import matplotlib
import torch

from nemo_sampled_rnnt.sampling import NegativeSampler, SampledSoftmax, draw_without_replacement

matplotlib.use("Agg")
from matplotlib import pyplot  # noqa: E402 - the backend comes first

LABELS, DRAWN = 24, 6
BLANK, POSITIVE, NEGATIVE, OUTSIDE = "black", "tab:blue", "tab:orange", "0.9"
TARGETS = torch.tensor([[2, 5, 5, 9], [1, 9, 17, 20]])
LENGTHS = torch.tensor([4, 4])


def posteriors() -> torch.Tensor:
    """(2, V): each utterance has likely labels of its own."""
    random = torch.Generator().manual_seed(5)
    return (1.6 * torch.randn(2, LABELS, generator=random)).softmax(dim=1)


def candidate_rows() -> list[tuple[str, set[int], set[int]]]:
    """(what the row is called, labels, negatives) of both scopes."""
    rows = []
    for scope in ("utterance", "batch"):
        sampler = NegativeSampler(SampledSoftmax(DRAWN, scope=scope, seed=2), LABELS)
        ids = sampler(TARGETS, LENGTHS, posteriors()).ids
        if scope == "utterance":
            rows += [
                (f"scope utterance,\nutterance {b + 1}", set(TARGETS[b].tolist()), set(ids[b].tolist())) for b in (0, 1)
            ]
        else:
            rows.append(("scope batch,\nboth", set(TARGETS.flatten().tolist()), set(ids.tolist())))
    return rows


def draw_sets(axes) -> None:
    rows = candidate_rows()
    for y, (_, labels, negatives) in enumerate(rows):
        for k in range(LABELS):
            colour = POSITIVE if k in labels else NEGATIVE if k in negatives else OUTSIDE
            axes.add_patch(pyplot.Rectangle((k, -y), 0.85, 0.6, color=colour))
        axes.add_patch(pyplot.Rectangle((LABELS, -y), 0.85, 0.6, color=BLANK))
    for name, colour in (("blank", BLANK), ("labels", POSITIVE), ("negatives", NEGATIVE), ("not scored", OUTSIDE)):
        axes.add_patch(pyplot.Rectangle((0, 9), 0, 0, color=colour, label=name))
    axes.set(xlim=(-0.2, LABELS + 1.2), ylim=(-len(rows) + 0.8, 1.2), xlabel="label", xticks=[])
    axes.set_yticks([0.3 - y for y in range(len(rows))], [name for name, _, _ in rows])
    axes.legend(loc="upper center", ncols=4, frameon=False)
    axes.set_title(f"candidates = blank + labels + {DRAWN} negatives")
    axes.spines[:].set_visible(False)


def draw_inclusion(axes) -> None:
    """Keys of one draw against the threshold, and how probable it was that each label would pass it."""
    log_p = posteriors()[0].sort(descending=True).values.log()
    random = torch.Generator().manual_seed(4)
    keys = log_p.double() - torch.empty(LABELS, dtype=torch.float64).exponential_(generator=random).log()
    ids, log_q = draw_without_replacement(log_p[None], DRAWN, generator=torch.Generator().manual_seed(4))
    kappa = keys.sort(descending=True).values[DRAWN].item()
    assert set(ids[0].tolist()) == set((keys > kappa).nonzero().flatten().tolist()), "the draw that is shown"
    q = 1 - torch.exp(-torch.exp(log_p - kappa))
    torch.testing.assert_close(q[ids[0]], log_q[0].exp(), rtol=1e-4, atol=1e-5)
    labels = range(LABELS)
    colours = [NEGATIVE if key > kappa else "0.6" for key in keys]
    axes.vlines(labels, log_p, keys, color="0.8", linewidth=1)
    axes.scatter(labels, log_p, marker="_", color="tab:blue", label="log p")
    axes.scatter(labels, keys, color=colours, zorder=3, label="log p + Gumbel noise")
    axes.axhline(kappa, color="tab:red", linewidth=1, label=f"κ, the key number {DRAWN + 1}")
    axes.set(
        xlabel="labels, by the sampler's probability",
        ylabel="key",
        title=f"the {DRAWN} largest keys are drawn",
        xticks=[],
    )
    twin = axes.twinx()
    twin.plot(labels, q, color="tab:green", linewidth=1, label=r"q = 1 - exp(-p / $e^κ$)")
    twin.set(ylabel="inclusion probability q", ylim=(0, 1.05))
    handles = [x for part in (axes, twin) for x in part.get_legend_handles_labels()[0]]
    axes.legend(handles=handles, fontsize="small", loc="upper right")


def main(path: str) -> None:
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(13, 4.2), layout="constrained")
    draw_sets(left)
    draw_inclusion(right)
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    main(sys.argv[1])
