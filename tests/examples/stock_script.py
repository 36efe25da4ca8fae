"""A training script that knows stock NeMo and nothing of this package."""

import lightning.pytorch as pl
from nemo.collections.asr.models import EncDecRNNTBPEModel
from nemo.core.config import hydra_runner
from nemo.utils.exp_manager import exp_manager
from nemo.utils.trainer_utils import resolve_trainer_cfg


@hydra_runner(config_path=".", config_name="none")
def main(cfg):
    trainer = pl.Trainer(**resolve_trainer_cfg(cfg.trainer))
    exp_manager(trainer, cfg.get("exp_manager"))
    trainer.fit(EncDecRNNTBPEModel(cfg=cfg.model, trainer=trainer))


if __name__ == "__main__":
    main()
