"""NeMo's RNN-T joint, trained with a sampled softmax in bounded memory."""

from __future__ import annotations

from typing import Any

import torch
from nemo.collections.asr.modules.rnnt import RNNTJoint
from nemo.core.classes import typecheck
from nemo.core.neural_types import NeuralType, ProbsType
from nemo.utils import logging, logging_mode

from nemo_sampled_rnnt.joint_memory import JointMemory, joint_memory
from nemo_sampled_rnnt.loss.finite import FiniteWatch
from nemo_sampled_rnnt.loss.function import transducer_loss
from nemo_sampled_rnnt.loss.problem import Options, Problem
from nemo_sampled_rnnt.meter import Meter
from nemo_sampled_rnnt.modules.nemo_loss import LossSettings, loss_settings
from nemo_sampled_rnnt.sampling import Frames, Negatives, NegativeSampler, SampledSoftmax

EXACT_IN_EVAL = (
    "SampledRNNTJoint is in eval mode, so its loss is the exact one, with gradients too. If it was frozen and this is "
    "training, use a model class of nemo_sampled_rnnt, which samples all the same, or call joint.train() (its "
    "parameters stay frozen)."
)


class SampledRNNTJoint(RNNTJoint):
    """RNN-T joint whose training loss scores blank, the labels and a sample of the vocabulary.

    In training the loss is the sampled one; in validation it is exact. Either way joint and loss are computed
    together, tile by tile, and the tensor [B, T, U, V] is not built. Decoding, export and every parameter are
    those of :class:`RNNTJoint`, so checkpoints interchange.

    Args:
        jointnet, num_classes, and the others: as in :class:`RNNTJoint`. ``fuse_loss_wer`` is always on and
            ``fused_batch_size`` has no effect: the tiles of the loss follow ``sampled_softmax.workspace_mib``.
            ``num_extra_outputs`` are the durations of a TDT model, which are always all computed.
        sampled_softmax: mapping with the keys of :class:`nemo_sampled_rnnt.sampling.SampledSoftmax`, such as
            ``{n_samples: 512, sampler: ctc}``. None: the exact loss in training too, tiled.
        n_samples: as in NeMo's own SampledRNNTJoint: so many uniform negatives. Not together with sampled_softmax.

    Raises:
        ValueError: a key or value of ``sampled_softmax`` is unknown; the model's loss cannot be sampled.

    Source: sampled softmax for RNN-T, CTC posteriors as its distribution: paper (abstract) arXiv 2203.16868.
    """

    def __init__(
        self,
        jointnet: dict[str, Any],
        num_classes: int,
        num_extra_outputs: int = 0,
        vocabulary: list | None = None,
        log_softmax: bool | None = None,
        preserve_memory: bool = False,
        fuse_loss_wer: bool = True,
        fused_batch_size: int | None = None,
        experimental_fuse_loss_wer: Any = None,
        masking_prob: float = -1.0,
        n_samples: int | None = None,
        sampled_softmax: Any = None,
    ):
        if n_samples is not None and sampled_softmax is not None:
            raise ValueError(
                f"n_samples ({n_samples}) stands beside sampled_softmax: write sampled_softmax.n_samples instead"
            )
        super().__init__(
            jointnet=jointnet,
            num_classes=num_classes,
            num_extra_outputs=num_extra_outputs,
            vocabulary=vocabulary,
            log_softmax=log_softmax,
            preserve_memory=preserve_memory,
            fuse_loss_wer=True,
            fused_batch_size=fused_batch_size or 1,
            masking_prob=masking_prob,
        )
        if n_samples is not None:
            sampled_softmax = {"n_samples": n_samples, "sampler": "uniform"}
        self.sampled_softmax = None if sampled_softmax is None else SampledSoftmax.from_config(sampled_softmax)
        self._settings: LossSettings | None = None
        self._sampler: NegativeSampler | None = None
        self._unigram_counts: torch.Tensor | None = None
        self._training_watch = FiniteWatch(agree=_any_rank)
        self._eval_watch = FiniteWatch(agree=torch.zeros_like)  # a validation goes on, whatever a batch holds
        self._first_draw = 0
        self.step: int | None = None  # optimizer steps so far, which the model sets at each batch; of the schedule
        self.measuring = False  # the model asks for a measurement of this batch
        self.measurement: dict[str, float] = {}
        self._meter: Meter | None = None
        self.training_statistics: dict[str, torch.Tensor | float] = {}  # of the last batch, where WER was asked for

    @property
    def input_types(self):
        """NeMo's ports, (B, V) CTC posteriors, and whether this is training."""
        ours = {
            "ctc_posteriors": NeuralType(("B", "D"), ProbsType(), optional=True),
            "training_step": NeuralType(optional=True),
        }
        return super().input_types | ours

    @property
    def disabled_deployment_input_names(self):
        return super().disabled_deployment_input_names | {"keep_hypotheses", "ctc_posteriors", "training_step"}

    @property
    def needs_ctc_posteriors(self) -> bool:
        """The sampler draws from the posteriors of a CTC head, now."""
        return self.samples_now and self.sampled_softmax.sampler == "ctc"

    @property
    def samples_now(self) -> bool:
        """Training is sampled, and its schedule has not come to exact training."""
        return self.sampled_softmax is not None and not self.sampled_softmax.exact_at(self.step or 0)

    @property
    def needs_unigram_counts(self) -> bool:
        return self.sampled_softmax is not None and self.sampled_softmax.sampler == "unigram"

    @typecheck()
    def forward(
        self,
        encoder_outputs: torch.Tensor,
        decoder_outputs: torch.Tensor | None,
        encoder_lengths: torch.Tensor | None = None,
        transcripts: torch.Tensor | None = None,
        transcript_lengths: torch.Tensor | None = None,
        compute_wer: bool = False,
        keep_hypotheses: bool = False,
        ctc_posteriors: torch.Tensor | None = None,
        training_step: bool | None = None,
    ):
        """Loss and WER of a batch, as NeMo's fused joint; the logits of the full joint while exporting.

        Args:
            encoder_outputs: (B, D, T) float.
            decoder_outputs: (B, D, U+1) float, or None: no loss is wanted.
            encoder_lengths: (B,) int, frames.
            transcripts: (B, U) int, label ids.
            transcript_lengths: (B,) int, labels.
            compute_wer: decode the batch and score it.
            keep_hypotheses: keep what was decoded for :meth:`get_hypotheses`.
            ctc_posteriors: (B, V) float, mean posterior of each label; needed by the sampler "ctc" in training.
            training_step: train, so sample, also where this module is frozen in eval mode (which leaves out dropout and
                masking only); None: the mode says.

        Returns:
            loss (None without decoder_outputs; NaN in validation where no utterance has a finite one), WER, its
            numerator and denominator (None without compute_wer).

        Raises:
            RuntimeError: asked for the full joint while training.
        """
        if not self._fuse_loss_wer:
            return self._full_joint(encoder_outputs, decoder_outputs)
        if encoder_lengths is None or transcripts is None or transcript_lengths is None:
            raise RuntimeError(
                "SampledRNNTJoint computes the loss and needs encoder_lengths, transcripts and transcript_lengths; "
                "for the logits of given projections call joint_after_projection"
            )
        if training_step is None:
            training_step = self.training
            if not training_step and torch.is_grad_enabled() and decoder_outputs is not None and self.samples_now:
                logging.warning(EXACT_IN_EVAL, mode=logging_mode.ONCE)
        loss = None
        if decoder_outputs is not None:
            loss = self._transducer_loss(
                encoder_outputs.transpose(1, 2),
                decoder_outputs.transpose(1, 2),
                encoder_lengths,
                transcripts,
                transcript_lengths,
                ctc_posteriors,
                compute_wer,
                training_step,
            )
        wer = (None, None, None)
        if compute_wer:
            wer = self._word_error_rate(
                encoder_outputs, encoder_lengths, transcripts, transcript_lengths, keep_hypotheses, training_step
            )
        return (loss, *wer)

    def _full_joint(self, encoder_outputs, decoder_outputs):
        """The logits (B, T, U+1, V+1), for export only."""
        if torch.is_grad_enabled():
            raise RuntimeError(
                "the full joint [B, T, U, V] was asked for with gradients, which SampledRNNTJoint never builds: call "
                "joint.train() after an export, or pass transcripts and lengths to the fused joint"
            )
        return self.joint(encoder_outputs.transpose(1, 2), decoder_outputs.transpose(1, 2))

    def _transducer_loss(
        self, encoder, decoder, encoder_lengths, transcripts, transcript_lengths, posteriors, logged, training_step
    ):
        """Sampled in training, exact in validation."""
        settings, config = self._loss_settings(), self.sampled_softmax
        self._refuse_what_is_not_computed()
        predictor = self.project_prednet(decoder)
        negatives = Negatives(None, None)
        if self.training and self.masking_prob > 0:  # HAINAN: the predictor is masked at random label positions
            kept = torch.rand(*predictor.shape[:2], 1, device=predictor.device) > self.masking_prob
            predictor = predictor * kept
        if training_step:
            negatives = self._draw(encoder.shape[1], encoder_lengths, transcripts, transcript_lengths, posteriors)
        output = self.joint_net[-1]
        projected = self._project_finite(encoder)
        loss, costs, problem = transducer_loss(
            projected,
            predictor,
            output.weight,
            output.bias,
            transcripts,
            encoder_lengths,
            transcript_lengths,
            negatives.ids,
            negatives.log_prob if config is not None and config.corrects else None,
            Options(
                activation=self.activation.lower(),
                dropout=self._dropout() if self.training else 0.0,
                fastemit_lambda=settings.fastemit_lambda,
                clamp=settings.clamp,
                reduction=self.loss.reduction,
                workspace_mib=256 if config is None else config.workspace_mib,
                impl="auto" if config is None else config.impl,
                durations=settings.durations,
                sigma=settings.sigma,
                omega=settings.omega if training_step else 0.0,
                max_logits=config.max_logits if negatives.ids is not None else None,
            ),
        )
        self.training_statistics = self._statistics(problem, projected) if logged and training_step else {}
        if training_step:
            self.measurement = {}
            if self.measuring and negatives.ids is not None:
                lengths = encoder_lengths, transcript_lengths
                self.measurement = self._measure(projected, predictor, transcripts, *lengths, negatives, posteriors)
        if training_step and torch.is_grad_enabled():
            self._training_watch.submit(costs)
            return loss
        self._eval_watch.submit(costs)
        return torch.where(costs.isfinite().any(), loss, torch.nan)

    def _draw(self, longest, encoder_lengths, transcripts, transcript_lengths, posteriors) -> Negatives:
        """The negatives of a training batch; none where training is exact."""
        config = self.sampled_softmax
        if config is not None and config.scheduled and self.step is None:
            raise ValueError(
                f"sampled_softmax has a schedule (n_samples {config.n_samples}, full_after {config.full_after}), but "
                "the joint does not know the step: use a model class of this package, or set joint.step at each batch"
            )
        if not self.samples_now:
            return Negatives(None, None)
        frames = Frames(encoder_lengths, longest) if config.auto else None
        inclusion = config.corrects or self.measuring
        return self.sampler(transcripts, transcript_lengths, posteriors, frames, self.step or 0, inclusion)

    def _measure(self, encoder, predictor, targets, encoder_lengths, target_lengths, negatives, posteriors):
        """What the sample does to one utterance of the batch, for loggers; rows beyond blank have no part in it."""
        if self._meter is None or self._meter.sampler is not self.sampler:
            self._meter = Meter(self.sampler)
        output, rows = self.joint_net[-1], self._vocab_size + 1
        turn = (self.step or 0) // max(1, self.sampled_softmax.meter_every)
        return self._meter(
            encoder.detach(), predictor.detach(), output.weight[:rows], output.bias[:rows], targets, encoder_lengths,
            target_lengths, negatives, posteriors, self.activation.lower(), turn,
        )  # fmt: skip

    def _statistics(self, problem: Problem, projected: torch.Tensor):
        """What training logs: candidates in a set, their share of the vocabulary, and the memory of all this."""
        counts, config = torch.tensor(problem.candidate_count, dtype=torch.float32), self.sampled_softmax
        candidates = counts.mean()
        statistics = {
            "train_candidates": candidates,
            "train_candidate_share": candidates / (self._vocab_size + 1),
            "train_joint_memory_mib": self._memory(problem, projected).total / 2**20,
        }
        if config is not None and config.auto:
            statistics |= {"train_candidates_min": counts.min(), "train_candidates_max": counts.max()}
        if self._sampler is not None and self._sampler.uniform_instead is not None:
            statistics["train_drawn_uniformly"] = self._sampler.uniform_instead.float()
        return statistics

    def _memory(self, problem: Problem, projected: torch.Tensor) -> JointMemory:
        """By arithmetic: torch keeps one peak for all who read it, and measuring would start it anew."""
        options, sampled = problem.options, problem.candidates.ids is not None
        return joint_memory(
            problem.lattice,
            self._vocab_size,
            projected.shape[2],
            self.encoder_hidden,
            scope="utterance" if problem.per_utterance else "batch",
            workspace_mib=options.workspace_mib,
            itemsize=projected.element_size(),
            durations=len(options.durations or ()),
            candidates=max(problem.candidate_count) if sampled else None,
        )

    def _project_finite(self, encoder: torch.Tensor) -> torch.Tensor:
        """Frames that are not finite stay so, but not through the projection: its gradient would be 0 x NaN."""
        finite = encoder.isfinite().all(dim=2, keepdim=True)
        return self.project_encoder(torch.where(finite, encoder, 0)).masked_fill(~finite, torch.nan)

    @property
    def draws(self) -> int:
        """Batches of negatives drawn so far."""
        return self._first_draw if self._sampler is None else self._sampler.draws

    @property
    def sampler(self) -> NegativeSampler:
        """Made at the first draw, when the rank is known."""
        if self._sampler is None:
            self._sampler = NegativeSampler(self.sampled_softmax, self._vocab_size, _rank(), self._unigram_counts)
            self._sampler.draws = self._first_draw
        return self._sampler

    def continue_draws(self, draws: int) -> None:
        """So many draws are behind us: a resumed run draws on instead of starting over."""
        self._first_draw, self._sampler = draws, None

    def set_unigram_counts(self, counts: torch.Tensor) -> None:
        """(V,) how often each label comes in the training text, for the sampler "unigram"."""
        self._unigram_counts, self._sampler = counts, None

    def _word_error_rate(
        self, encoder_outputs, encoder_lengths, transcripts, transcript_lengths, keep_hypotheses, training_step
    ):
        """WER of the batch. While training no rank waits for another, since ranks may hold different batches."""
        synced = self.wer._to_sync
        if training_step:
            self.wer._to_sync = False
        try:
            self.wer.update(
                predictions=encoder_outputs.detach(),
                predictions_lengths=encoder_lengths,
                targets=transcripts.detach(),
                targets_lengths=transcript_lengths,
            )
            self.hypotheses = self.wer.get_hypotheses() if keep_hypotheses else None
            return self.wer.compute()
        finally:
            self.wer.reset()
            self.wer._to_sync = synced

    def report_left_out(self) -> None:
        """Say what a validation left out, its last batch too, which a GPU would report at the next validation."""
        self._eval_watch.poll()

    def set_loss(self, loss):
        """Take reduction, FastEmit, clamp and TDT's settings from the loss NeMo built; refuse one of another kind."""
        self._settings = loss_settings(loss)
        super().set_loss(loss)

    def set_fuse_loss_wer(self, fuse_loss_wer, loss=None, metric=None):
        """NeMo switches fusing off for ``decoding.fused_batch_size: -1``; here it would bring the full joint back."""
        if not fuse_loss_wer:
            logging.info("SampledRNNTJoint keeps joint, loss and WER fused; decoding.fused_batch_size has no effect.")
            return
        if loss is not None:
            self.set_loss(loss)
        self._wer = metric if metric is not None else self._wer

    def train(self, mode: bool = True):
        """An export leaves NeMo's joint unfused for good; going back to training mends it."""
        if mode:
            self._fuse_loss_wer = True
        return super().train(mode)

    def _loss_settings(self) -> LossSettings:
        if self._settings is None or self._wer is None:
            raise ValueError("SampledRNNTJoint has no loss or WER yet: call set_loss() and set_wer() as NeMo does")
        durations = self._settings.durations or ()
        # Not in set_loss: NeMo's change_vocabulary sets a plain loss, which our models then replace.
        if len(durations) != self.num_extra_outputs:
            raise ValueError(
                f"num_extra_outputs is {self.num_extra_outputs}, but the model's loss has {len(durations)} durations "
                f"{list(durations)}: a TDT model has loss.loss_name tdt and an output for each of "
                "loss.tdt_kwargs.durations, any other none"
            )
        return self._settings

    def _dropout(self) -> float:
        return next((layer.p for layer in self.joint_net if isinstance(layer, torch.nn.Dropout)), 0.0)

    def _refuse_what_is_not_computed(self) -> None:
        if self.is_adapter_available() and self.get_enabled_adapters():
            raise NotImplementedError(
                f"adapters on the joint ({', '.join(self.get_enabled_adapters())}) act on every lattice cell, which "
                "SampledRNNTJoint does not hold: put the adapters on the encoder, or disable them"
            )
        if self.log_softmax and self.temperature != 1.0:
            raise NotImplementedError(
                f"temperature {self.temperature} with log_softmax true would scale the training scores: set "
                "decoding.temperature to 1.0 or joint.log_softmax to null"
            )


def _rank() -> int:
    return torch.distributed.get_rank() if _distributed() else 0


def _distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def _any_rank(flag: torch.Tensor) -> torch.Tensor:
    """True on all ranks if it is on one; every rank asks once a training step."""
    if not _distributed():
        return flag
    flag = flag.to(torch.int32)
    torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MAX)
    return flag.bool()
