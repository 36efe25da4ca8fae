"""Train one of NeMo's own transducers, a hybrid with a CTC head, without this package.

    python benchmarks/finetune/train_stock.py TRAIN.json TEST.json TOKENIZER_FOLDER OUT.nemo [KEY=VALUE ...]

The config is the package's, less what only ours has, plus stock.yaml, plus the overrides.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

sys.modules["nemo_sampled_rnnt"] = None  # out of reach: what is trained here is NeMo's alone

import lightning.pytorch as pl  # noqa: E402
from nemo.collections.asr.models import EncDecHybridRNNTCTCBPEModel  # noqa: E402
from omegaconf import DictConfig, OmegaConf  # noqa: E402
from torch.utils.data import DataLoader, Dataset  # noqa: E402

HERE = Path(__file__).resolve().parent
CONFIG = HERE.parents[1] / "configs" / "conformer_transducer_bpe_sampled.yaml"


def load_config(train: str, test: str, tokenizer: str, overrides: list[str]) -> DictConfig:
    package = OmegaConf.load(CONFIG)
    for ours in ("target", "optim"):  # optim: replaced whole, its schedule has other arguments
        package.model.pop(ours)
    package.model.joint.pop("sampled_softmax")
    package.model.aux_ctc.pop("memory_efficient")
    config = OmegaConf.merge(package, OmegaConf.load(HERE / "stock.yaml"), OmegaConf.from_dotlist(overrides))
    config.model.train_ds.manifest_filepath, config.model.validation_ds.manifest_filepath = train, test
    config.model.tokenizer.dir = tokenizer
    OmegaConf.resolve(config)
    return config


class InMemory(Dataset):
    """What a dataset reads, kept: decoding audio anew each epoch takes longer than a small model's steps."""

    def __init__(self, dataset: Dataset):
        self.items = [dataset[i] for i in range(len(dataset))]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int):
        return self.items[index]


def in_memory(loader: DataLoader) -> DataLoader:
    """The same batches from memory, shuffled."""
    return DataLoader(
        InMemory(loader.dataset), loader.batch_size, shuffle=True, collate_fn=loader.collate_fn, drop_last=True
    )


class Progress(pl.Callback):
    """A line at each validation. The model that is kept is the last, whatever they say."""

    def on_train_start(self, trainer, model):
        self.started = time.perf_counter()

    def on_validation_end(self, trainer, model):
        seconds = time.perf_counter() - self.started
        wer = float(trainer.callback_metrics["val_wer"])
        print(f"step {trainer.global_step}: {seconds:.0f} s, WER {100 * wer:.1f} %", flush=True)


def main(train: str, test: str, tokenizer: str, out: str, *overrides: str) -> None:
    config = load_config(train, test, tokenizer, list(overrides))
    pl.seed_everything(config.seed, verbose=False)
    trainer = pl.Trainer(**OmegaConf.to_container(config.trainer), callbacks=[Progress()])
    model = EncDecHybridRNNTCTCBPEModel(cfg=config.model, trainer=trainer)
    print(f"{sum(parameter.numel() for parameter in model.parameters()) / 1e6:.1f} M parameters", flush=True)
    trainer.fit(model, in_memory(model._train_dl))
    print(f"{trainer.global_step} steps", flush=True)
    model.save_to(out)


if __name__ == "__main__":
    main(*sys.argv[1:])
