"""Utterances without a finite loss: left out, counted, named; a batch of nothing else is an error."""

from __future__ import annotations

import logging
import math

import torch

logger = logging.getLogger("nemo_sampled_rnnt")


class FiniteWatch:
    """Reports which utterances had no finite loss, without stopping the GPU.

    On the CPU a report is immediate. On CUDA the flags travel to the host behind the step and are read at the next
    one on that GPU, which is when the log line or the error comes.

    Args:
        agree: called with a () bool tensor, "this rank had nothing finite", returns the same for all ranks (any).
            Every rank calls it once a step, so it may be a collective. None: this process decides alone.
    """

    def __init__(self, agree=None):
        self.agree = agree
        self.left_out = 0
        # Of each GPU: pinned memory and an event, kept for its next step. None waits for another's work.
        self._mail, self._under_way = {}, set()

    def __getstate__(self) -> dict:
        """A copied or pickled model takes no report under way along: CUDA events cannot travel."""
        return self.__dict__ | {"_mail": {}, "_under_way": set()}

    def submit(self, costs: torch.Tensor) -> None:
        """Take note of a step's (B,) losses; raises FloatingPointError as described."""
        self.poll(costs.device)
        costs = costs.detach()
        if self.agree is None:
            flags = costs
        else:
            nothing_finite = self.agree(~costs.isfinite().any())
            flags = torch.cat([nothing_finite[None].to(costs.dtype), costs])
        if not flags.is_cuda:
            self._report(flags)
            return
        device = flags.device
        host, arrived = self._mail.get(device, (None, None))
        if host is None or host.shape != flags.shape or host.dtype != flags.dtype:
            with torch.inference_mode(False):  # a later step may be one of training
                host = torch.empty(flags.shape, dtype=flags.dtype, device="cpu", pin_memory=True)
            arrived = torch.cuda.Event()
            self._mail[device] = host, arrived
        host.copy_(flags, non_blocking=True)
        arrived.record(torch.cuda.current_stream(device))  # which the current device may not be
        self._under_way.add(device)

    def poll(self, device: torch.device | None = None) -> None:
        """Report what an earlier step on this device left, if anything; None: on any."""
        for arriving in tuple(self._under_way):
            if device in (None, arriving):
                self._under_way.remove(arriving)
                host, arrived = self._mail[arriving]
                arrived.synchronize()
                self._report(host)

    def _report(self, numbers: torch.Tensor) -> None:
        """Of (B,) losses, behind what the ranks agreed on if they did."""
        costs = numbers.tolist()  # on a list: every step does this, and as tensors it took five operations
        agreed = None if self.agree is None else costs.pop(0) != 0
        indices = [b for b, cost in enumerate(costs) if not math.isfinite(cost)]
        nothing_finite = len(indices) == len(costs) if agreed is None else agreed
        self.left_out += len(indices)
        if indices:
            logger.warning(
                "%d of %d utterances have no finite loss and are left out: indices %s in the batch (%d so far). "
                "Look for NaN or inf in their features, or lower the learning rate.",
                len(indices), len(costs), indices, self.left_out,
            )  # fmt: skip
        if nothing_finite:
            raise FloatingPointError(
                "no utterance of a batch has a finite loss"
                + ("" if len(indices) == len(costs) else " (on another rank)")
                + ": inputs or weights hold NaN or inf. Restart from the last checkpoint with a lower learning "
                "rate, or check the features"
            )
