"""A script whose data set is its own: two ranks by Lightning, each with a worker that is spawned; no Hydra."""

import os
import sys

import lightning.pytorch as pl
import torch
from nemo.core.classes.common import Serialization


class Numbers(torch.utils.data.Dataset):
    def __len__(self):
        return 8

    def __getitem__(self, i):
        joint = {"_target_": "nemo_sampled_rnnt.modules.SampledRNNTJoint", "num_classes": 2, "vocabulary": ["a", "b"]}
        widths = {"encoder_hidden": 1, "pred_hidden": 1, "joint_hidden": 1, "activation": "relu"}
        Serialization.from_config_dict(joint | {"jointnet": widths})  # refused where our package was not imported
        return torch.ones(1)


class Model(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def training_step(self, batch, _):
        return self.layer(batch).sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def main():
    trainer = pl.Trainer(
        accelerator="cpu", devices=2, strategy="ddp", max_steps=2, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False,
    )  # fmt: skip
    data = torch.utils.data.DataLoader(Numbers(), batch_size=2, num_workers=1, multiprocessing_context="spawn")
    trainer.fit(Model(), data)
    print(f"rank {trainer.global_rank} of {os.path.basename(__file__)} {sys.argv[1:]}: {trainer.global_step} steps\n")


if __name__ == "__main__":
    main()
