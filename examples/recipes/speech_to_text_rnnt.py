"""Train a transducer with characters and a sampled vocabulary, as NeMo's script of the same name trains with the full.

    python examples/recipes/speech_to_text_rnnt.py --config-path=aishell --config-name=large \
        labels_filepath=work/characters.txt \
        model.train_ds.manifest_filepath=work/train.json model.validation_ds.manifest_filepath=work/dev.json

The characters stand one a line in `labels_filepath`, see characters.py. For subwords there is
examples/speech_to_text_rnnt_bpe.py.
On a CPU add `trainer.accelerator=cpu trainer.devices=1 trainer.strategy=auto`.
"""

from pathlib import Path

import lightning.pytorch as pl
from characters import read_labels
from nemo.core.config import hydra_runner
from nemo.utils import logging
from nemo.utils.exp_manager import exp_manager
from nemo.utils.trainer_utils import resolve_trainer_cfg
from omegaconf import OmegaConf

from nemo_sampled_rnnt.models import EncDecSampledRNNTModel


@hydra_runner(config_path="aishell", config_name="large")
def main(cfg):
    """Train."""
    logging.info(f"Hydra config: {OmegaConf.to_yaml(cfg)}")
    cfg.model.labels = read_labels(Path(cfg.labels_filepath))

    trainer = pl.Trainer(**resolve_trainer_cfg(cfg.trainer))
    exp_manager(trainer, cfg.get("exp_manager", None))
    model = EncDecSampledRNNTModel(cfg=cfg.model, trainer=trainer)
    model.maybe_init_from_pretrained_checkpoint(cfg)

    trainer.fit(model)


if __name__ == "__main__":
    main()
