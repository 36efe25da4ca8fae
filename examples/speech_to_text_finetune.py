"""Fine-tune any of NeMo's transducers with a sampled vocabulary, as NeMo's script of the same name does with the full.

    python examples/speech_to_text_finetune.py init_from_nemo_model=stock.nemo \
        model.train_ds.manifest_filepath=train.json model.validation_ds.manifest_filepath=validation.json \
        trainer.max_epochs=20
    nemo-sampled-rnnt export nemo_experiments/Speech_To_Text_Finetuning/*/checkpoints/*.nemo tuned.nemo

`init_from_pretrained_model=NAME` takes a published model instead. With subwords or characters, plain or hybrid, the
model stays in its family; a plain transducer gains a CTC head for the sampler, unless `model.aux_ctc=null`.

Vocabulary: `model.tokenizer.update_tokenizer=true model.tokenizer.dir=...`, or `model.char_labels.update_labels=true
model.char_labels.labels=[...]`; with `extend=true` beside them the model keeps what it knows of labels it has already.

Unlike NeMo's script it lays everything else under `model` over the config of the model, `spec_augment` too (which
NeMo's sets without effect), and loads to the CPU, not from all ranks to the first GPU.
On a CPU add `trainer.accelerator=cpu trainer.devices=1 trainer.strategy=auto`.
"""

from pathlib import Path

import lightning.pytorch as pl
from filelock import FileLock
from nemo.collections.asr.models import ASRModel
from nemo.core.config import hydra_runner
from nemo.utils import logging
from nemo.utils.exp_manager import exp_manager
from nemo.utils.model_utils import resolve_cache_dir
from nemo.utils.trainer_utils import resolve_trainer_cfg
from omegaconf import OmegaConf, open_dict

from nemo_sampled_rnnt import models
from nemo_sampled_rnnt.models.config import AUX_CTC
from nemo_sampled_rnnt.stock import read_config

OWN_STEPS = ("sample_rate", "train_ds", "validation_ds", "test_ds", "tokenizer", "char_labels")


def restore(cfg, trainer=None):
    """The model to start from, as the class of its family that samples, with the changes that `cfg.model` asks for."""
    path, name = cfg.get("init_from_nemo_model"), cfg.get("init_from_pretrained_model")
    if (path is None) == (name is None):
        raise ValueError(
            f"give either init_from_nemo_model (got {path}) or init_from_pretrained_model (got {name}): the model to "
            "fine-tune"
        )
    if name is not None:
        cache = Path(resolve_cache_dir())
        cache.mkdir(parents=True, exist_ok=True)
        with FileLock(cache / "download.lock"):  # the other ranks wait for the copy of the first
            stored = ASRModel.from_pretrained(name, return_config=True)
    else:
        stored = read_config(Path(path).expanduser())

    family = stored.target.rsplit(".", 1)[1].replace("EncDecSampled", "EncDec").replace("EncDec", "EncDecSampled")
    if family not in models.__all__:
        raise ValueError(f"{path or name} is a {stored.target}, which cannot be sampled; these can: {models.__all__}")
    check_vocabulary(cfg, pieces="BPE" in family)
    changes = {key: value for key, value in cfg.model.items() if key not in OWN_STEPS}
    had_head, wants_head = stored.get("aux_ctc") is not None, changes.get("aux_ctc") is not None
    if "Hybrid" in family and "aux_ctc" in changes and not wants_head:
        raise ValueError(f"{path or name} is a hybrid, which keeps its CTC head: leave model.aux_ctc as it is")
    gains_head, loses_head = wants_head and not had_head, had_head and "aux_ctc" in changes and not wants_head
    with open_dict(stored):
        if gains_head:
            stored.aux_ctc = OmegaConf.create(AUX_CTC)
        # What has other arguments than before is replaced, not mixed.
        if "optim" in changes:
            stored.pop("optim", None)
        if "sampled_softmax" in (changes.get("joint") or {}):
            for ours in ("sampled_softmax", "n_samples"):
                stored.joint.pop(ours, None)
        config = OmegaConf.merge(stored, changes)
    set_sample_rate(cfg, config.preprocessor.get("sample_rate", 16000))  # without it, NeMo's preprocessors take 16000
    options = {"override_config_path": config, "map_location": "cpu", "trainer": trainer}
    options["strict"] = not (gains_head or loses_head)
    model_class = getattr(models, family)
    return model_class.restore_from(path, **options) if path else model_class.from_pretrained(name, **options)


def set_sample_rate(cfg, rate):
    """Of the model, in `cfg.model` and its data wherever they leave it open; raises where they ask for another."""
    for name in ("model", "model.train_ds", "model.validation_ds", "model.test_ds"):
        section = OmegaConf.select(cfg, name)
        if section is None:
            continue
        if section.get("sample_rate") is None:
            with open_dict(section):
                section.sample_rate = rate
        elif section.sample_rate != rate:
            raise ValueError(
                f"{name}.sample_rate is {section.sample_rate}, but the preprocessor of the model takes {rate} samples "
                f"a second: give {name}.sample_rate={rate}; audio of other rates is resampled where it is loaded"
            )


def check_vocabulary(cfg, pieces):
    """Raise where `cfg.model` asks for another vocabulary only in part, or not in the section of such a model."""
    fitting, kind = ("tokenizer", "a tokenizer") if pieces else ("char_labels", "characters")
    for name, update, new in (("tokenizer", "update_tokenizer", "dir"), ("char_labels", "update_labels", "labels")):
        section = cfg.model.get(name) or {}
        given = [key for key in (update, new, "extend") if section.get(key)]
        if given and name != fitting:
            raise ValueError(
                f"model.{name}.{given[0]} is given, but this is a model with {kind}: use model.{fitting} instead"
            )
        missing = [key for key in (update, new) if key not in given]
        if given and missing:
            raise ValueError(
                f"another vocabulary takes model.{name}.{update}=true and model.{name}.{new}=..., but of this section "
                f"only {' and '.join(given)} came: add {' and '.join(missing)}, or leave all out to keep the vocabulary"
            )


def change_vocabulary(model, cfg):
    """Another tokenizer or other characters, where `cfg.model` asks for them."""
    tokenizer, characters = cfg.model.get("tokenizer") or {}, cfg.model.get("char_labels") or {}
    if tokenizer.get("update_tokenizer"):
        section, new = tokenizer, {"new_tokenizer_dir": tokenizer.dir, "new_tokenizer_type": tokenizer.type}
    elif characters.get("update_labels"):
        section, new = characters, {"new_vocabulary": list(characters.labels)}
    else:
        logging.info("The vocabulary of the model is kept.")
        return
    extend, size, weights = section.get("extend", False), len(model.joint.vocabulary), model.state_dict()
    model.change_vocabulary(**new, extend=extend)
    if len(model.joint.vocabulary) == size and not extend:
        logging.warning("As many labels as before: the weights are kept, as in NeMo's script, each row at its place.")
        model.load_state_dict(weights)


@hydra_runner(config_path="../configs", config_name="speech_to_text_finetune_sampled")
def main(cfg):
    """Fine-tune, and test where `model.test_ds` names a manifest."""
    logging.info(f"Hydra config: {OmegaConf.to_yaml(cfg)}")
    OmegaConf.resolve(cfg)

    trainer = pl.Trainer(**resolve_trainer_cfg(cfg.trainer))
    exp_manager(trainer, cfg.get("exp_manager", None))
    model = restore(cfg, trainer)
    change_vocabulary(model, cfg)
    model.setup_training_data(cfg.model.train_ds)
    model.setup_multiple_validation_data(cfg.model.validation_ds)

    trainer.fit(model)

    if cfg.model.get("test_ds") is not None and cfg.model.test_ds.manifest_filepath is not None:
        model.setup_multiple_test_data(cfg.model.test_ds)
        trainer.test(model)


if __name__ == "__main__":
    main()
