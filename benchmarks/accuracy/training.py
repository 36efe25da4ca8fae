"""One run: a setting and a seed, trained by Lightning, evaluated on the way, stopped and resumed at any step."""

from __future__ import annotations

import itertools
import multiprocessing
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import torch
from corpus import Utterances
from evaluation import coverage, errors, units
from model import build, with_counts
from omegaconf import DictConfig, OmegaConf
from order import Order
from results import Evaluation
from settings import SETTINGS, Run, Setting
from spoken import HELD_OUT, TRAIN
from torch.utils.data import DataLoader, IterableDataset

from nemo_sampled_rnnt.sampling import SampledSoftmax
from nemo_sampled_rnnt.sampling.sampler import mixed_seed

UNTIMED = 20  # steps after a start or a resumption, in which kernels are compiled: charged at the mean of the others


def orphaned() -> bool:
    """Whether the process that started this one is gone: nobody takes the results, and a new one may write them."""
    parent = multiprocessing.parent_process()
    return parent is not None and not parent.is_alive()


class Corpus:
    """Both sets on a device.

    Args:
        folder: that `corpus.build` has filled; its name is the corpus's in the results.
        device: for the features.
        bins: of the features.
    """

    def __init__(self, folder: Path, device: str, bins: int):
        self.folder = folder
        self.train, self.held_out = (Utterances(folder, name, device, bins) for name in (TRAIN, HELD_OUT))
        self.bytes = self.train.bytes + self.held_out.bytes


class Steps(IterableDataset):
    """The batches from a step on, without end."""

    def __init__(self, utterances: Utterances, order: Order, first: int):
        self.utterances, self.order, self.first = utterances, order, first

    def __iter__(self) -> Iterator:
        for step in itertools.count(self.first):
            yield self.utterances.batch(self.order(step))


class Conductor(pl.Callback):
    """Seeds, stages, evaluations, checkpoints, the clock and the end of a run.

    Args:
        run: the run.
        recipe: the recipe.
        corpus: the corpus.
        checkpoint: file to keep the state in, written at each evaluation and at the deadline.
        deadline: of time.monotonic().
        report: called with a list of evaluations.
    """

    def __init__(
        self, run: Run, recipe: DictConfig, corpus: Corpus, checkpoint: Path, deadline: float, report: Callable
    ):
        self.run, self.recipe, self.corpus = run, recipe, corpus
        self.checkpoint, self.deadline, self.report = checkpoint, deadline, report
        self.setting = SETTINGS[run.setting]
        self.described = described(recipe, self.setting)
        self.minutes, self.peak, self.evaluations = 0.0, 0, []
        self.held_out_units = np.array([len(units(text, recipe.unit)) for text in corpus.held_out.texts])
        self.held_out_speakers = np.array(corpus.held_out.speakers)

    def on_save_checkpoint(self, trainer, model, checkpoint):
        state = {"minutes": self.minutes, "peak": self.peak, "evaluations": self.evaluations}
        checkpoint["run"] = state | {"steps": trainer.max_steps, "recipe": self.described}

    def on_load_checkpoint(self, trainer, model, checkpoint):
        state = checkpoint["run"]
        self.minutes, self.peak, self.evaluations = state["minutes"], state["peak"], state["evaluations"]

    def on_train_start(self, trainer, model):
        self._start_clock(untimed=UNTIMED)

    def on_train_batch_start(self, trainer, model, batch, batch_idx):
        step = trainer.global_step
        torch.manual_seed(mixed_seed(self.run.seed, step))  # dropout and draws need no memory of earlier steps
        if not self.setting.stock:
            self._set_stage(model.joint, self.setting.stage(step, trainer.max_steps))

    def _set_stage(self, joint, section: dict | None):
        section = with_counts(section, self.corpus.folder)
        wanted = None if section is None else SampledSoftmax.from_config(section)
        if wanted != joint.sampled_softmax:
            draws = joint.draws
            joint.sampled_softmax = wanted
            joint.continue_draws(draws)

    def on_train_batch_end(self, trainer, model, outputs, batch, batch_idx):
        step = trainer.global_step
        self._steps += 1
        if self._steps == self._untimed:
            self._synchronize()
            self._started = time.perf_counter()
        evaluating = step % self.recipe.evaluate_every == 0 or step == trainer.max_steps
        late = time.monotonic() > self.deadline or orphaned()
        if not evaluating and not late:
            return
        self._stop_clock()
        if evaluating:
            self.evaluations.append(self._evaluate(model, step))
        partial = self.checkpoint.with_suffix(".partial")
        trainer.save_checkpoint(partial)
        partial.replace(self.checkpoint)
        if evaluating:
            self.report(self.evaluations[-1:])
        trainer.should_stop = late
        self._start_clock(untimed=0)

    def _evaluate(self, model, step: int) -> Evaluation:
        model.eval()
        wrong = errors(model, self.corpus.held_out, self.recipe.batch_size, self.recipe.unit)
        section = None if self.setting.stock else model.joint.sampled_softmax
        own = section is not None and section.scope == "utterance"  # a batch of another size has another shared set
        covered = coverage(model, self.corpus.held_out) if own else None
        model.train()
        return Evaluation(
            self.corpus.folder.name, self.run.setting, self.run.seed, step, self.minutes, self.peak / 2**30 or None,
            wrong, self.held_out_units, self.held_out_speakers, covered,
        )  # fmt: skip

    def _start_clock(self, untimed: int):
        """The clock runs from the end of the step `untimed` on."""
        self._synchronize()
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        self._steps, self._untimed, self._started = 0, untimed, time.perf_counter()

    def _stop_clock(self):
        self._synchronize()
        timed = self._steps - self._untimed
        if timed > 0:
            self.minutes += (time.perf_counter() - self._started) / 60 * self._steps / timed
        if torch.cuda.is_available():
            self.peak = max(self.peak, torch.cuda.max_memory_allocated() - self.corpus.bytes)

    def _synchronize(self):
        if torch.cuda.is_available():
            torch.cuda.synchronize()


def described(recipe: DictConfig, setting: Setting) -> list[str]:
    """All that a run's results depend on beside its seed, a line a value."""
    return [*_lines("recipe", OmegaConf.to_container(recipe)), *_lines("setting", asdict(setting))]


def _lines(name: str, value) -> Iterator[str]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _lines(f"{name}.{key}", item)
    else:
        yield f"{name}={value}"


def train(run: Run, recipe: DictConfig, corpus: Corpus, checkpoints: Path, deadline: float, report: Callable) -> bool:
    """Train until the run's last step or the deadline; resume where a checkpoint is.

    Args:
        run: setting and seed.
        recipe: that of the corpus.
        corpus: on the device that torch takes by default.
        checkpoints: folder; the file of the run is SETTING_SEED.ckpt.
        deadline: of time.monotonic().
        report: called with a list of evaluations: those that a checkpoint holds, and each new one.
    Returns: whether the run is complete.
    Raises: ValueError: the checkpoint is of a run with another number of steps, or another recipe.
    """
    setting = SETTINGS[run.setting]
    checkpoint = checkpoints / run.checkpoint
    steps = round(recipe.steps * setting.length)
    first = 0
    if checkpoint.exists():
        saved = torch.load(checkpoint, map_location="cpu", weights_only=False, mmap=True)
        first, expected = saved["global_step"], saved["run"]["steps"]
        if expected != steps:
            raise ValueError(
                f"{checkpoint} is of a run of {expected} steps, not {steps}: delete it, or set steps={expected}"
            )
        if other := set(described(recipe, setting)) ^ set(saved["run"]["recipe"]):
            raise ValueError(f"{checkpoint} is of another recipe: delete it, or agree on {', '.join(sorted(other))}")
        report(saved["run"]["evaluations"])  # they may have been lost with the files of an earlier call
        if first >= steps:
            return True
    model = build(recipe, setting, corpus.folder, run.seed)
    conductor = Conductor(run, recipe, corpus, checkpoint, deadline, report)
    options = OmegaConf.to_container(recipe.trainer) | {"max_steps": steps, "callbacks": [conductor]}
    trainer = pl.Trainer(**options)
    model.set_trainer(trainer)
    order = Order(corpus.train.lengths, setting.batch_size or recipe.batch_size, run.seed, recipe.short_first)
    batches = DataLoader(Steps(corpus.train, order, first), batch_size=None)
    trainer.fit(model, batches, ckpt_path=str(checkpoint) if first else None)
    return trainer.global_step >= steps
