"""Train a Conformer-Transducer with a sampled vocabulary, as NeMo's script of the same name trains one with the full.

    python examples/process_asr_text_tokenizer.py --manifest=train.json --data_root=tokenizers \
        --vocab_size=1024 --tokenizer=spe --spe_type=unigram
    python examples/speech_to_text_rnnt_bpe.py \
        model.train_ds.manifest_filepath=train.json model.validation_ds.manifest_filepath=validation.json \
        model.tokenizer.dir=tokenizers/tokenizer_spe_unigram_v1024 model.tokenizer.type=bpe \
        size=small trainer.max_epochs=100

On a CPU add `trainer.accelerator=cpu trainer.devices=1 trainer.strategy=auto`.
`--config-name=fastconformer_transducer_bpe_sampled` takes the FastConformer, `fastconformer_tdt_bpe_sampled` the same
as a TDT model; `--config-path` and `--config-name` take any other config, also one written for NeMo's script: change
`model.joint._target_`.
`+init_from_nemo_model=stock.nemo` starts from a model trained before, as NeMo's fine-tuning does.
"""

import lightning.pytorch as pl
from nemo.core.config import hydra_runner
from nemo.utils import logging
from nemo.utils.exp_manager import exp_manager
from nemo.utils.trainer_utils import resolve_trainer_cfg
from omegaconf import OmegaConf

from nemo_sampled_rnnt.models import EncDecSampledRNNTBPEModel


@hydra_runner(config_path="../configs", config_name="conformer_transducer_bpe_sampled")
def main(cfg):
    """Train, and test where `model.test_ds` names a manifest."""
    logging.info(f"Hydra config: {OmegaConf.to_yaml(cfg)}")

    trainer = pl.Trainer(**resolve_trainer_cfg(cfg.trainer))
    exp_manager(trainer, cfg.get("exp_manager", None))
    model = EncDecSampledRNNTBPEModel(cfg=cfg.model, trainer=trainer)
    model.maybe_init_from_pretrained_checkpoint(cfg)

    trainer.fit(model)

    if cfg.model.get("test_ds") is not None and cfg.model.test_ds.manifest_filepath is not None:
        if model.prepare_test(trainer):
            trainer.test(model)


if __name__ == "__main__":
    main()
