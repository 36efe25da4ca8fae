"""Exact and sampled log-sum-exp of every cell of one utterance, without its logits.

The vocabulary goes by in stretches, so that CELLS x stretch logits lie in memory at a time. Worked number: V = 131,072,
H = 640, bfloat16, 200 frames and 40 labels: 1024 cells x 4,096 columns x (2 + 4 + 4) bytes = 40 MiB, in 33 x 9 products
of together 1.4 TFLOP.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from nemo_sampled_rnnt.loss.candidates import gather_candidates
from nemo_sampled_rnnt.loss.problem import accumulation_dtype
from nemo_sampled_rnnt.loss.reference import activate

CELLS, COLUMNS = 1024, 4096  # at a time


@dataclass(frozen=True)
class Utterance:
    """One utterance of a batch, and who is in its candidate set.

    Attributes:
        encoder: (T, H) float, projected encoder outputs. Its dtype is the compute dtype.
        predictor: (U+1, H) float, projected predictor outputs.
        weight, bias: (V+1, H) and (V+1,) float, the output layer, blank last.
        labels: (U,) int64.
        ids: (S,) int64, distinct candidates, blank first.
        log_q: (S,) float, log inclusion probabilities, 0 for blank and labels; None: not known.
        place: (U,) int64, where each label stands in `ids`.
        activation: "relu", "tanh" or "sigmoid".
    """

    encoder: torch.Tensor
    predictor: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor
    labels: torch.Tensor
    ids: torch.Tensor
    log_q: torch.Tensor | None
    place: torch.Tensor
    activation: str = "relu"

    @classmethod
    def of_batch(
        cls, utterance: int, encoder, predictor, weight, bias, targets, encoder_lengths, target_lengths, negatives,
        negative_log_prob=None, activation: str = "relu",
    ) -> Utterance:  # fmt: skip
        """Utterance number `utterance` of a batch; the other arguments are those of :func:`sampled_rnnt_loss`.

        Waits for the device.
        """
        frames, count = int(encoder_lengths[utterance]), int(target_lengths[utterance])
        of = slice(None) if negatives.dim() == 1 else slice(utterance, utterance + 1)  # whose labels are in the set
        labelled = torch.arange(targets.shape[1], device=targets.device) < target_lengths[of, None]
        log_prob = None if negative_log_prob is None else negative_log_prob[of]
        candidates = gather_candidates(
            targets[of].long(), labelled, negatives[of].long(), log_prob, weight.shape[0] - 1
        )
        size = int(candidates.count)
        return cls(
            encoder[utterance, :frames],
            predictor[utterance, : count + 1].to(encoder.dtype),
            weight,
            bias,
            targets[utterance, :count].long(),
            candidates.ids[0, :size],
            None if log_prob is None else candidates.log_q[0, :size],
            candidates.target[utterance if negatives.dim() == 1 else 0, :count],
            activation,
        )

    @property
    def shape(self) -> tuple[int, int]:
        """T, U + 1."""
        return len(self.encoder), len(self.predictor)

    def hidden(self, cells: torch.Tensor) -> torch.Tensor:
        """(n, H) hidden of cells (n,) int64, t (U + 1) + u."""
        width = len(self.predictor)
        return activate(self.encoder[cells // width] + self.predictor[cells % width], self.activation)

    def scores(self, hidden: torch.Tensor, rows) -> torch.Tensor:
        """(n, S) scores of some rows of the weight, a slice or ids; computed in the compute dtype, wide after."""
        wide = accumulation_dtype(hidden.dtype)
        return (hidden @ self.weight[rows].to(hidden.dtype).T).to(wide) + self.bias[rows].to(wide)

    def blocks(self, cells: torch.Tensor):
        """The cells (n,), so many at a time."""
        return cells.split(CELLS)

    def stretches(self):
        """Slices of the rows of the weight."""
        rows = len(self.weight)
        return [slice(first, min(first + COLUMNS, rows)) for first in range(0, rows, COLUMNS)]


@dataclass(frozen=True)
class LatticeScores:
    """Of every cell, (T, U+1) in the accumulation dtype, on the device.

    Attributes:
        exact: log-sum-exp over the vocabulary.
        sampled: over the candidates, none corrected.
        corrected: over the candidates, less log q; None where q is not known.
        blank, label: scores of blank and of the next label (in the last column blank's again: there is none).
    """

    exact: torch.Tensor
    sampled: torch.Tensor
    corrected: torch.Tensor | None
    blank: torch.Tensor
    label: torch.Tensor

    @property
    def coverage(self) -> torch.Tensor:
        """Share of the exact softmax that falls on the candidates."""
        return (self.sampled - self.exact).exp()


@torch.no_grad()
def score(utterance: Utterance) -> LatticeScores:
    """Exact, in one pass over the vocabulary for each CELLS cells."""
    frames, width = utterance.shape
    device = utterance.encoder.device
    # Blank is candidate 0; it stands in for the label that the last column has not.
    place = torch.nn.functional.pad(utterance.place, (0, 1), value=0)
    exact, sampled, corrected, blank, label = [], [], [], [], []
    for cells in utterance.blocks(torch.arange(frames * width, device=device)):
        hidden = utterance.hidden(cells)
        total = None
        for rows in utterance.stretches():
            part = utterance.scores(hidden, rows).logsumexp(dim=1)
            total = part if total is None else torch.logaddexp(total, part)
        exact.append(total)
        candidates = utterance.scores(hidden, utterance.ids)
        sampled.append(candidates.logsumexp(dim=1))
        if utterance.log_q is not None:
            corrected.append((candidates - utterance.log_q).logsumexp(dim=1))
        blank.append(candidates[:, 0])
        label.append(candidates.gather(1, place[cells % width, None])[:, 0])
    return LatticeScores(
        *(torch.cat(x).view(frames, width) if x else None for x in (exact, sampled, corrected, blank, label))
    )
