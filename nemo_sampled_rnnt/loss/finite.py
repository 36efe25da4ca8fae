"""Utterances without a finite loss: left out, counted, named; a batch of nothing else is an error."""

from __future__ import annotations

import logging

import torch

logger = logging.getLogger("nemo_sampled_rnnt")


class FiniteWatch:
    """Reports which utterances had no finite loss, without stopping the GPU.

    On the CPU a report is immediate. On CUDA the flags travel to the host behind the step and are read at the next
    one, which is when the log line or the error comes.

    Args:
        agree: called with a () bool tensor, "this rank had nothing finite", returns the same for all ranks (any).
            Every rank calls it once a step, so it may be a collective. None: this process decides alone.
    """

    def __init__(self, agree=None):
        self.agree = agree
        self.left_out = 0
        self._pending = None

    def __getstate__(self) -> dict:
        """A copied or pickled model takes no report under way along: CUDA events cannot travel."""
        return self.__dict__ | {"_pending": None}

    def submit(self, costs: torch.Tensor) -> None:
        """Take note of a step's (B,) losses; raises FloatingPointError as described."""
        self.poll()
        bad = ~costs.detach().isfinite()
        nothing_finite = bad.all()
        if self.agree is not None:
            nothing_finite = self.agree(nothing_finite)
        flags = torch.cat([nothing_finite[None], bad])
        if not flags.is_cuda:
            self._report(flags)
            return
        host = torch.empty(flags.shape, dtype=flags.dtype, pin_memory=True)
        host.copy_(flags, non_blocking=True)
        arrived = torch.cuda.Event()
        arrived.record()
        self._pending = host, arrived

    def poll(self) -> None:
        """Report what an earlier step left, if anything."""
        if self._pending is not None:
            (host, arrived), self._pending = self._pending, None
            arrived.synchronize()
            self._report(host)

    def _report(self, flags: torch.Tensor) -> None:
        nothing_finite, *bad = flags.tolist()
        indices = [b for b, is_bad in enumerate(bad) if is_bad]
        self.left_out += len(indices)
        if indices:
            logger.warning(
                "%d of %d utterances have no finite loss and are left out: indices %s in the batch (%d so far). "
                "Look for NaN or inf in their features, or lower the learning rate.",
                len(indices), len(bad), indices, self.left_out,
            )  # fmt: skip
        if nothing_finite:
            raise FloatingPointError(
                "no utterance of a batch has a finite loss"
                + ("" if len(indices) == len(bad) else " (on another rank)")
                + ": inputs or weights hold NaN or inf. Restart from the last checkpoint with a lower learning "
                "rate, or check the features"
            )
