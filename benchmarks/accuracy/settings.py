"""The settings that are compared, which differ in the joint's sampled softmax and in what is said here, and runs."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Setting:
    """One line of the tables.

    Attributes:
        stages: (share of the steps, joint.sampled_softmax): from that share of the training on; None is exact.
        stock: NeMo's own hybrid model and joint.
        batch_size: utterances a step; None: the recipe's.
        length: of the training, in the recipe's steps; for comparisons in equal time.
        dropout: of encoder, predictor and joint; None: the recipe's.
        equal_time: whether its GPU minutes are compared: give each run of it a GPU of its own.
    """

    stages: tuple[tuple[float, dict | None], ...] = ((0.0, None),)
    stock: bool = False
    batch_size: int | None = None
    length: float = 1.0
    dropout: float | None = None
    equal_time: bool = False

    def stage(self, step: int, steps: int) -> dict | None:
        """joint.sampled_softmax at one of so many steps."""
        return [sampled for share, sampled in self.stages if step >= share * steps][-1]


def sampled(n_samples: float, sampler: str = "ctc", scope: str = "utterance", correction: bool = False, **more) -> dict:
    return {"n_samples": n_samples, "sampler": sampler, "scope": scope, "correction": correction, **more}


def always(sampled_softmax: dict, **more) -> Setting:
    return Setting(((0.0, sampled_softmax),), **more)


SETTINGS = {
    "exact": Setting(),
    "uniform_5": always(sampled(0.05, "uniform")),
    "uniform_10": always(sampled(0.10, "uniform")),
    "unigram_5": always(sampled(0.05, "unigram")),
    "unigram_5_corrected": always(sampled(0.05, "unigram", correction=True)),
    "unigram_10": always(sampled(0.10, "unigram")),
    "unigram_10_corrected": always(sampled(0.10, "unigram", correction=True)),
    "ctc_5": always(sampled(0.05)),
    "ctc_10": always(sampled(0.10)),
    "ctc_10_batch": always(sampled(0.10, scope="batch")),
    "ctc_5_corrected": always(sampled(0.05, correction=True)),
    "ctc_10_corrected": always(sampled(0.10, correction=True)),
    "ctc_10_corrected_batch": always(sampled(0.10, scope="batch", correction=True)),
    "ctc_5_mixed": always(sampled(0.05, floor=0.5)),
    "ctc_5_then_exact": Setting(((0.0, sampled(0.05)), (0.8, None))),
    "ctc_5_corrected_then_exact": Setting(((0.0, sampled(0.05, correction=True)), (0.8, None))),
    "stock": Setting(stock=True, equal_time=True),
    "exact_larger": Setting(batch_size=320, length=1.25, equal_time=True),
    "stock_dropout": Setting(stock=True, dropout=0.1, equal_time=True),
    "ctc_10_corrected_larger": always(sampled(0.10, correction=True), batch_size=320, length=1.25, equal_time=True),
    "ctc_10_corrected_larger_dropout": always(
        sampled(0.10, correction=True), batch_size=448, length=0.95, dropout=0.1, equal_time=True
    ),
}


@dataclass(frozen=True)
class Run:
    """A line of the tables before averaging; written SETTING:SEED."""

    setting: str
    seed: int

    @property
    def checkpoint(self) -> str:
        """Name of its file."""
        return f"{self.setting}_{self.seed}.ckpt"

    @classmethod
    def parse(cls, text: str) -> Run:
        setting, _, seed = text.partition(":")
        if setting not in SETTINGS or not seed.isdigit():
            raise ValueError(
                f"expected SETTING:SEED such as ctc_10:0, of the settings {', '.join(SETTINGS)}; got {text!r}"
            )
        return cls(setting, int(seed))
