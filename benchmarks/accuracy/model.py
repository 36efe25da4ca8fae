"""The recipe and the models of a run: of one seed, all start from the same parameters."""

from __future__ import annotations

from pathlib import Path

import lightning.pytorch as pl
import torch
from corpus import COUNTS
from nemo.collections.asr.models import EncDecHybridRNNTCTCBPEModel
from omegaconf import DictConfig, OmegaConf, open_dict
from settings import SETTINGS, Run, Setting

from nemo_sampled_rnnt.models import EncDecSampledRNNTBPEModel

HERE = Path(__file__).resolve().parent
DROPOUTS = {"dropout", "dropout_pre_encoder", "dropout_att"}
CONFIG = HERE.parents[1] / "configs" / "conformer_transducer_bpe_sampled.yaml"


def load_recipe(corpus: str, overrides: tuple[str, ...] = ()) -> DictConfig:
    """The package's config, what recipe.yaml changes in it, what a file of the corpus's name changes, `overrides`."""
    package = OmegaConf.load(CONFIG)
    package.model.pop("optim")  # replaced whole: its schedule has other arguments
    files = [path for path in (HERE / "recipe.yaml", HERE / f"{corpus}.yaml") if path.exists()]
    recipe = OmegaConf.merge(package, *map(OmegaConf.load, files), OmegaConf.from_dotlist(list(overrides)))
    OmegaConf.resolve(recipe)
    return recipe


def build(recipe: DictConfig, setting: Setting, folder: Path, seed: int) -> pl.LightningModule:
    """The model of a setting, its tokenizer from the corpus's folder, its parameters from the seed."""
    cfg = OmegaConf.create(OmegaConf.to_container(recipe.model))
    with open_dict(cfg):
        cfg.tokenizer.dir = str(folder)
        if setting.dropout is not None:
            for section in (cfg.encoder, cfg.decoder.prednet, cfg.joint.jointnet):
                section.update({name: setting.dropout for name in DROPOUTS & section.keys()})
        cfg.joint.sampled_softmax = with_counts(setting.stage(0, 1), folder)
        if setting.stock:
            cfg.target = f"{EncDecHybridRNNTCTCBPEModel.__module__}.{EncDecHybridRNNTCTCBPEModel.__name__}"
            cfg.joint._target_ = "nemo.collections.asr.modules.RNNTJoint"
            cfg.joint.fused_batch_size = setting.batch_size or recipe.batch_size  # whole: the fastest there is room for
            cfg.joint.pop("sampled_softmax")
    pl.seed_everything(seed, verbose=False)
    return (EncDecHybridRNNTCTCBPEModel if setting.stock else EncDecSampledRNNTBPEModel)(cfg=cfg)


def restore(
    run: Run, recipe: DictConfig, folder: Path, checkpoints: Path, device: str | torch.device
) -> tuple[pl.LightningModule, int]:
    """The model of a run's checkpoint, in eval mode, and the checkpoint's step.

    Args:
        run: setting and seed.
        recipe: that of the corpus.
        folder: of the corpus.
        checkpoints: folder; the file of the run is SETTING_SEED.ckpt.
        device: for the model.
    """
    saved = torch.load(checkpoints / run.checkpoint, map_location="cpu", weights_only=False, mmap=True)
    model = build(recipe, SETTINGS[run.setting], folder, run.seed)
    model.load_state_dict(saved["state_dict"])
    return model.to(device).eval(), saved["global_step"]


def with_counts(sampled_softmax: dict | None, folder: Path) -> dict | None:
    """The section with the corpus's counts of labels, which the sampler unigram wants."""
    if sampled_softmax is None or sampled_softmax["sampler"] != "unigram":
        return sampled_softmax
    return sampled_softmax | {"unigram_counts": str(folder / COUNTS)}
