"""NeMo's joints with their losses, fused as its training runs them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import torch
from implementations import Row
from nemo.collections.asr.losses.rnnt import RNNTLoss
from nemo.collections.asr.modules.rnnt import RNNTJoint, SampledRNNTJoint
from nemo.collections.asr.parts.numba.rnnt_loss import rnnt
from workloads import Batch, Joint, Workload


def _in_a_thread(loss):
    """Where torch's profiler does not see it: the CPU loss makes three million tensors of one number, and their record
    fills 18 GB. Its gradient tensor is made before, and counted."""

    def work(*arguments, **options):
        with torch.no_grad():  # a thread starts with gradients on; the autograd function that calls this has them off
            return loss(*arguments, **options)

    def call(*arguments, **options):
        with ThreadPoolExecutor(max_workers=1) as thread:
            return thread.submit(work, *arguments, **options).result()

    return call


rnnt.rnnt_loss_cpu = _in_a_thread(rnnt.rnnt_loss_cpu)


class Nemo:
    """``nemo_full``: RNNTJoint with the default loss, or ``tdt``. ``flash_rnnt``: with that loss. ``nemo_sampled``:
    SampledRNNTJoint."""

    def __init__(self, joint: Joint, row: Row, workload: Workload):
        self.vocabulary, self.sub_batch = workload.vocabulary, row.fused_batch_size
        self.samples = None if row.scope is None else workload.negatives
        arguments = {
            "jointnet": {
                "encoder_hidden": workload.encoder_width,
                "pred_hidden": workload.predictor_width,
                "joint_hidden": workload.hidden,
                "activation": "relu",
            },
            "num_classes": workload.vocabulary,
            "fuse_loss_wer": True,
            "fused_batch_size": self.sub_batch,
        }
        if self.samples:  # a joint that knows nothing of durations
            arguments["n_samples"] = self.samples
        else:
            arguments["num_extra_outputs"] = len(workload.durations)
        output = joint.joint_net[-1].weight
        with torch.device(output.device):
            self.joint = (SampledRNNTJoint if self.samples else RNNTJoint)(**arguments)
        self.joint.to(output.dtype).load_state_dict(joint.state_dict())
        name = "flash_rnnt" if row.implementation == "flash_rnnt" else "tdt" if workload.durations else "default"
        loss = RNNTLoss(num_classes=workload.vocabulary, loss_name=name, loss_kwargs=workload.loss_options)
        self.joint.set_loss(loss)
        self.joint.set_wer(torch.nn.Identity())  # has to be there, is not called

    def __call__(self, batch: Batch) -> torch.Tensor:
        loss, *_ = self.joint(
            encoder_outputs=batch.encoder,
            decoder_outputs=batch.predictor,
            encoder_lengths=batch.encoder_lengths,
            transcripts=batch.targets,
            transcript_lengths=batch.target_lengths,
            compute_wer=False,
        )
        return loss

    def candidate_sets(self, batch: Batch):
        """Each sub-batch draws with ``randperm`` and takes every id in its transcripts, padding too, for a label."""
        if not self.samples:
            return [(slice(None), None)]
        sets = []
        for first in range(0, len(batch.targets), self.sub_batch):
            part = slice(first, first + self.sub_batch)
            drawn = torch.randperm(self.vocabulary, device=batch.targets.device)[: self.samples]
            present = batch.targets[part, : int(batch.target_lengths[part].max())].unique()
            sets.append((part, torch.cat([drawn, present])))
        return sets
