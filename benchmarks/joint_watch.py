"""What each training step's batch was, and what its joint took: for a training script that is run as it stands."""

from __future__ import annotations

import csv

import torch
from lightning.pytorch import Callback
from nemo.core.classes import common

common.ALLOWED_TARGET_PREFIXES.append(f"{__name__}.")  # NeMo builds nothing else from a command line


class JointWatch(Callback, common.Serialization):
    """Write a line of CSV a step: ``+trainer.callbacks=[{_target_: joint_watch.JointWatch, path: steps.csv}]``.

    Columns: step; frames and labels of the utterances, separated by blanks; MiB that the joint took, empty on a CPU;
    GiB that all of the step took, empty on a CPU. ``trainer.log_every_n_steps`` has to be 1 and
    ``model.joint.sampled_softmax.log_memory`` true: the joint measures where it logs.

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

    def _keep_lengths(self, joint, arguments, named):
        self._lengths = named["encoder_lengths"].tolist(), named["transcript_lengths"].tolist()

    def on_train_batch_end(self, trainer, model, outputs, batch, batch_idx):
        frames, labels = (" ".join(map(str, lengths)) for lengths in self._lengths)
        joint = model.joint.training_statistics.get("train_joint_memory_mib", "")
        # since the joint's forward pass, where the statistics are reset
        step = torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else ""
        self._writer.writerow([trainer.global_step, frames, labels, joint, step])
        self._file.flush()
        print(f"step {trainer.global_step}: {len(self._lengths[0])} utterances, joint {joint} MiB", flush=True)

    def on_train_end(self, trainer, model):
        self._file.close()
