"""Train the demo's models: one CTC warm-up, then the sampled and the exact transducer from it.

All three are trained by Lightning on NeMo's classes. The warm-up is a stock NeMo CTC model of the same encoder: its
head becomes the transducer's auxiliary head, so the sampler knows from the first step which tokens are likely.
"""

import copy
import time
from dataclasses import dataclass, field

import lightning.pytorch as pl
from nemo.collections.asr.models import EncDecCTCModelBPE
from nemo.utils.trainer_utils import resolve_trainer_cfg
from omegaconf import OmegaConf, open_dict
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from nemo_sampled_rnnt.models import EncDecSampledRNNTBPEModel


@dataclass
class Curves:
    """What a training left behind: (step, loss) in training, (step, exact loss) in validation, and its seconds."""

    training: list = field(default_factory=list)
    validation: list = field(default_factory=list)
    seconds: float = 0.0


class Watch(pl.Callback):
    """A progress bar over all steps, and the curves."""

    def __init__(self, title, loss_name):
        self.loss_name = loss_name
        self.curves = Curves()
        self.bar = Progress(
            TextColumn(f"{title:<16}"),
            BarColumn(),
            TextColumn("step {task.completed}/{task.total}  loss {task.fields[loss]:.2f}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )

    def on_fit_start(self, trainer, model):
        self.bar.start()
        self.task = self.bar.add_task("", total=trainer.max_steps, loss=float("nan"))
        self.started = time.perf_counter()

    def on_train_batch_end(self, trainer, model, outputs, batch, batch_idx):
        loss = trainer.callback_metrics[f"train_{self.loss_name}"].item()
        self.curves.training.append((trainer.global_step, loss))
        self.bar.update(self.task, completed=trainer.global_step, loss=loss)

    def on_validation_end(self, trainer, model):
        self.curves.validation.append((trainer.global_step, trainer.callback_metrics[f"val_{self.loss_name}"].item()))

    def on_fit_end(self, trainer, model):
        self.curves.seconds = time.perf_counter() - self.started
        self.bar.stop()

    def on_exception(self, trainer, model, exception):
        self.bar.stop()


def fit(model, trainer_cfg, loaders, title, loss_name):
    """Train `model` under a fixed seed, and return its curves; the order of the batches is that of the seed."""
    pl.seed_everything(0, verbose=False)
    watch = Watch(title, loss_name)
    trainer = pl.Trainer(
        **resolve_trainer_cfg(trainer_cfg), callbacks=[watch], enable_progress_bar=False, enable_model_summary=False
    )
    model.set_trainer(trainer)
    model.setup_optimization()
    trainer.fit(model, train_dataloaders=loaders[0], val_dataloaders=loaders[1])
    return watch.curves


def ctc_model(cfg):
    """NeMo's own CTC model with the encoder and the auxiliary head that the transducer will have."""
    model_cfg = copy.deepcopy(cfg.model)
    with open_dict(model_cfg):
        model_cfg.decoder = model_cfg.aux_ctc.decoder
        model_cfg.ctc_reduction = model_cfg.aux_ctc.ctc_reduction
        model_cfg.optim = cfg.warm_up.optim
        for section in ("target", "joint", "decoding", "loss", "aux_ctc", "model_defaults"):
            model_cfg.pop(section)
    pl.seed_everything(0, verbose=False)
    return EncDecCTCModelBPE(cfg=model_cfg)


def transducer(cfg, warm, sampled_softmax):
    """A transducer that starts from the warm CTC model; `sampled_softmax` None makes its loss exact."""
    model_cfg = copy.deepcopy(cfg.model)
    model_cfg.joint.sampled_softmax = sampled_softmax
    pl.seed_everything(0, verbose=False)  # both start from the same predictor and joint, too
    model = EncDecSampledRNNTBPEModel(cfg=model_cfg)
    head = {name.replace("decoder.", "ctc_decoder.", 1): value for name, value in warm.state_dict().items()}
    missing, unexpected = model.load_state_dict(head, strict=False)
    new = {name.split(".")[0] for name in missing}
    if unexpected or not new <= {"decoder", "joint"}:
        raise RuntimeError(f"the CTC model does not fit the transducer: unexpected {unexpected}, missing {missing}")
    return model


def warm_up_trainer(cfg):
    """The trainer's section for the warm-up: fewer steps, no validation."""
    return OmegaConf.merge(cfg.trainer, cfg.warm_up.trainer)
