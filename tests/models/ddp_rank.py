"""One rank of test_ddp.py: trains by Lightning's DDP over gloo, and writes down what it saw."""

import os
import sys
from pathlib import Path

import torch
from nemo.utils import logging
from tiny import fit, make_config

from nemo_sampled_rnnt.models import EncDecSampledRNNTBPEModel

folder, tokenizer = map(Path, sys.argv[1:])
rank = int(os.environ["LOCAL_RANK"])
logging.setLevel(logging.ERROR)
torch.set_num_threads(1)


class Watched(EncDecSampledRNNTBPEModel):
    """Notes the batch, the draw, the gradients and the logs of each step."""

    spoilt_from = None

    def training_step(self, batch, batch_nb):
        seen.append({"lengths": batch[1].tolist(), "labels": batch[3].tolist()})
        sampler = type(self.joint.sampler)
        original = sampler.__call__
        try:
            sampler.__call__ = lambda *call: note("negatives", original(*call))
            result = super().training_step(batch, batch_nb)
            note("measured", self.joint.measurement)
            return result
        finally:
            sampler.__call__ = original

    def _encode(self, batch):
        encoded, *rest = super()._encode(batch)
        if self.training and self.spoilt_from is not None and len(seen) > self.spoilt_from and rank == 1:
            encoded = encoded * float("nan")
        return encoded, *rest

    def on_before_optimizer_step(self, optimizer):
        note("gradients", {name: parameter.grad.clone() for name, parameter in self.named_parameters()})

    def log_dict(self, logs, **more):
        if "training_batch_wer" in logs:
            note("logged", {name: float(value) for name, value in logs.items()})
        super().log_dict(logs, **more)


def note(name, value):
    seen[-1][name] = value
    return value


def build():
    # Batches of 5 utterances on rank 0 and of 2 on rank 1: NeMo's joint would take 3 sub-batches here and 1 there.
    config = make_config(tokenizer, folder / f"rank{rank}_manifest.json", fused_batch_size=2)
    config.train_ds.batch_size = config.validation_ds.batch_size = 5 if rank == 0 else 2
    config.joint.sampled_softmax.meter_every = 2
    config.aux_ctc.memory_efficient = rank == 1  # as "auto" may find: one holds the log-probs of its head, one does not
    torch.manual_seed(0)  # the same seed on all ranks, as Lightning's seed_everything sets it
    return Watched(config)


options = {"devices": 2, "strategy": "ddp", "use_distributed_sampler": False}
seen = []
model = build()
trainer = fit(model, 3, **options)
report = {"steps": seen, "metrics": {name: float(value) for name, value in trainer.callback_metrics.items()}}
pieces = len(model.joint.vocabulary)
report["draw for one input"] = model.joint.sampler(
    torch.tensor([[1, 2]]), torch.tensor([2]), torch.full((1, pieces), 1 / pieces)
)

seen = []
model = build()
model.spoilt_from = 1
try:
    fit(model, 3, **options)
except FloatingPointError as error:
    report["error"] = str(error)
report["steps before the error"] = len(seen)
torch.save(report, folder / f"rank{rank}.pt")
