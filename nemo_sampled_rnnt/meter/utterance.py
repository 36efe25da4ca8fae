"""One utterance of a batch, its candidate set, and scores of its cells without its logits.

The vocabulary goes by in stretches, so that CELLS x COLUMNS logits lie in memory at a time. Worked number: V = 131,072,
H = 640, bfloat16, 200 frames and 40 labels: 1024 cells x 4,096 columns x (2 + 4 + 4) bytes = 40 MiB, in 33 x 9 products
of together 1.4 TFLOP.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from nemo_sampled_rnnt.loss.candidates import gather_candidates
from nemo_sampled_rnnt.loss.problem import accumulation_dtype
from nemo_sampled_rnnt.loss.reference import activate

CELLS, COLUMNS = 1024, 4096  # at a time


@dataclass(frozen=True)
class CandidateSet:
    """Who is in the softmax of one utterance.

    Attributes:
        ids: (S,) int64, distinct, blank first.
        log_q: (S,) float, log inclusion probabilities, 0 for blank and labels; None: not known.
        place: (U,) int64, where each label of the utterance stands in `ids`.
        positive: (S,) bool, blank and labels; the others were drawn.
    """

    ids: torch.Tensor
    log_q: torch.Tensor | None
    place: torch.Tensor
    positive: torch.Tensor

    @classmethod
    def of_batch(
        cls, utterance: int, vocabulary: int, targets, target_lengths, negatives, negative_log_prob=None
    ) -> CandidateSet:
        """That of an utterance; the other arguments are those of :func:`sampled_rnnt_loss`. Waits for the device."""
        shared = negatives.dim() == 1
        own = slice(None) if shared else slice(utterance, utterance + 1)
        labelled = torch.arange(targets.shape[1], device=targets.device) < target_lengths[own, None]
        log_prob = negative_log_prob if negative_log_prob is None or shared else negative_log_prob[own]
        drawn = negatives if shared else negatives[own]
        candidates = gather_candidates(targets[own].long(), labelled, drawn.long(), log_prob, vocabulary)
        ids = candidates.ids[0, : int(candidates.count)]
        return cls(
            ids,
            None if log_prob is None else candidates.log_q[0, : len(ids)],
            candidates.target[utterance if shared else 0, : int(target_lengths[utterance])],
            torch.isin(ids, targets[own][labelled]) | (ids == vocabulary),
        )

    @classmethod
    def of_draw(cls, labels: torch.Tensor, positives: torch.Tensor, drawn, log_prob, blank: int) -> CandidateSet:
        """Blank, the labels that `positives` (V,) bool marks, and those drawn beside them, -1 for none.

        Args: labels: (U,) int64 of the utterance, all of them marked. Waits for the device.
        """
        known, taken = positives.nonzero()[:, 0], drawn >= 0
        ids = torch.cat([known.new_full((1,), blank), known, drawn[taken]])
        log_q = torch.cat([log_prob.new_zeros(1 + len(known)), log_prob[taken]])
        positive = torch.arange(len(ids), device=ids.device) <= len(known)
        return cls(ids, log_q, 1 + torch.searchsorted(known, labels), positive)


@dataclass(frozen=True)
class Utterance:
    """Projections of one utterance, and the output layer.

    Attributes:
        encoder: (T, H) float, projected encoder outputs. Its dtype is the compute dtype.
        predictor: (U+1, H) float, projected predictor outputs.
        weight, bias: (V+1, H) and (V+1,) float, blank last.
        labels: (U,) int64.
        activation: "relu", "tanh" or "sigmoid".
    """

    encoder: torch.Tensor
    predictor: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor
    labels: torch.Tensor
    activation: str = "relu"

    @classmethod
    def of_batch(
        cls, utterance: int, encoder, predictor, weight, bias, targets, encoder_lengths, target_lengths,
        activation: str = "relu",
    ) -> Utterance:  # fmt: skip
        """Of a batch; the other arguments are those of :func:`sampled_rnnt_loss`. Waits for the device."""
        frames, count = int(encoder_lengths[utterance]), int(target_lengths[utterance])
        return cls(
            encoder[utterance, :frames],
            predictor[utterance, : count + 1].to(encoder.dtype),
            weight,
            bias,
            targets[utterance, :count].long(),
            activation,
        )

    @property
    def blank(self) -> int:
        return len(self.weight) - 1

    @property
    def shape(self) -> tuple[int, int]:
        """T, U + 1."""
        return len(self.encoder), len(self.predictor)

    @property
    def dtype(self) -> torch.dtype:
        """Of scores, log-sum-exps and gradients."""
        return accumulation_dtype(self.encoder.dtype)

    def cells(self) -> torch.Tensor:
        """(T (U+1),) int64, the numbers t (U + 1) + u of all cells."""
        frames, width = self.shape
        return torch.arange(frames * width, device=self.encoder.device)

    def next_label(self, values: torch.Tensor, last, cells: torch.Tensor) -> torch.Tensor:
        """(n,) of `values` (U,) that of each cell's next label; in the last column, which has none, `last`."""
        return torch.nn.functional.pad(values, (0, 1), value=last)[cells % self.shape[1]]

    def hidden(self, cells: torch.Tensor) -> torch.Tensor:
        """(n, H) of cells (n,)."""
        width = self.shape[1]
        return activate(self.encoder[cells // width] + self.predictor[cells % width], self.activation)

    def rows(self, which) -> torch.Tensor:
        """(S, H) rows of the weight, a slice or ids, in the compute dtype."""
        return self.weight[which].to(self.encoder.dtype)

    def scores(self, hidden: torch.Tensor, which) -> torch.Tensor:
        """(n, S) scores of some rows of the weight; the product is computed in the compute dtype, and is wide after."""
        return (hidden @ self.rows(which).T).to(self.dtype) + self.bias[which].to(self.dtype)

    def blocks(self, cells: torch.Tensor, columns: int = COLUMNS) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """(some of the cells, their hidden); as many as may have so many columns of logits."""
        for block in cells.split(max(1, CELLS * COLUMNS // max(columns, COLUMNS))):
            yield block, self.hidden(block)

    def stretches(self) -> Iterator[slice]:
        """Of the rows of the weight."""
        for first in range(0, len(self.weight), COLUMNS):
            yield slice(first, min(first + COLUMNS, len(self.weight)))

    @torch.no_grad()
    def log_sum_exp(self) -> torch.Tensor:
        """(T (U+1),) over the whole vocabulary."""
        result = []
        for _, hidden in self.blocks(self.cells()):
            total = None
            for rows in self.stretches():
                part = self.scores(hidden, rows).logsumexp(dim=1)
                total = part if total is None else torch.logaddexp(total, part)
            result.append(total)
        return torch.cat(result)


@torch.no_grad()
def coverage(utterance: Utterance, candidates: CandidateSet) -> torch.Tensor:
    """(T (U+1),) share of each cell's exact softmax that falls on the candidates."""
    blocks = utterance.blocks(utterance.cells(), len(candidates.ids))
    sampled = torch.cat([utterance.scores(hidden, candidates.ids).logsumexp(dim=1) for _, hidden in blocks])
    return (sampled - utterance.log_sum_exp()).exp()
