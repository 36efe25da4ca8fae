"""What each training step's batch was, and what its joint took: for a training script that is run as it stands."""

from __future__ import annotations

import csv

import torch
from lightning.pytorch import Callback
from nemo.core.classes import common

from nemo_sampled_rnnt.memory import peak_memory

common.ALLOWED_TARGET_PREFIXES.append(f"{__name__}.")  # NeMo builds nothing else from a command line


class JointWatch(Callback, common.Serialization):
    """Write a line of CSV a step: ``+trainer.callbacks=[{_target_: joint_watch.JointWatch, path: steps.csv}]``.

    Columns: step; frames and labels of the utterances, separated by blanks; MiB that the joint took, empty on a CPU;
    GiB that all of the step took since the joint began, empty on a CPU.

    Args:
        path: of the CSV.
    """

    def __init__(self, path: str):
        self.path = path

    def on_train_start(self, trainer, model):
        self._file = open(self.path, "w", newline="")
        self._writer = csv.writer(self._file)
        self._writer.writerow(["step", "frames", "labels", "joint_mib", "step_gib"])
        model.joint.register_forward_pre_hook(self._keep_lengths, with_kwargs=True)
        self._loss, model.joint._transducer_loss = model.joint._transducer_loss, self._measured

    def _keep_lengths(self, joint, arguments, named):
        self._lengths = named["encoder_lengths"].tolist(), named["transcript_lengths"].tolist()

    def _measured(self, encoder, *arguments):
        """Joint and loss, without the recognition that follows where WER is logged."""
        self._joint_mib = ""
        if not encoder.is_cuda:
            return self._loss(encoder, *arguments)
        with peak_memory(encoder.device) as peak:
            result = self._loss(encoder, *arguments)
        self._joint_mib = peak.mib
        return result

    def on_train_batch_end(self, trainer, model, outputs, batch, batch_idx):
        frames, labels = (" ".join(map(str, lengths)) for lengths in self._lengths)
        step = torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else ""
        self._writer.writerow([trainer.global_step, frames, labels, self._joint_mib, step])
        self._file.flush()
        print(
            f"step {trainer.global_step}: {len(self._lengths[0])} utterances, joint {self._joint_mib} MiB", flush=True
        )

    def on_train_end(self, trainer, model):
        self._file.close()
