"""The training and validation steps that all our models share: CTC first, then the joint it draws for."""

from __future__ import annotations

from dataclasses import replace

import torch
from nemo.collections.asr.data.audio_to_text_dali import DALIOutputs
from nemo.collections.common.parts.preprocessing.parsers import make_parser
from nemo.core.classes.mixins import AccessMixin
from nemo.utils import logging, model_utils
from omegaconf import DictConfig

from nemo_sampled_rnnt.models.aggregate import AggregateMixin, MultilingualTokenizer
from nemo_sampled_rnnt.models.config import has_tokenizer, prepare_config
from nemo_sampled_rnnt.models.ctc_head import CTCHeadMixin
from nemo_sampled_rnnt.models.export import StockExportMixin
from nemo_sampled_rnnt.models.metering import MeteringMixin
from nemo_sampled_rnnt.models.modes import kept_modes
from nemo_sampled_rnnt.models.restore import RestoreMixin
from nemo_sampled_rnnt.models.unigram import unigram_counts
from nemo_sampled_rnnt.models.vocabulary import VocabularyMixin
from nemo_sampled_rnnt.models.weights import WeightsMixin


class SampledSoftmaxMixin(
    RestoreMixin, WeightsMixin, VocabularyMixin, AggregateMixin, CTCHeadMixin, MeteringMixin, StockExportMixin
):
    """NeMo's steps, with the order of joint and CTC head turned round: the posteriors choose the sample.

        loss = (1 - ctc_loss_weight) rnnt_loss + ctc_loss_weight ctc_loss          (as NeMo's hybrid models)

    Args:
        cfg: config of a stock transducer. Of ours are ``joint.sampled_softmax``, and, in a model that is no hybrid,
            ``aux_ctc`` with the schema of NeMo's hybrids. A stock joint is replaced by ours, with the same parameters.
        trainer: Lightning's trainer.

    Raises:
        ValueError: the sampler is "ctc" but there is no ``aux_ctc`` section; a multi-blank or HAT model.
    """

    def __init__(self, cfg: DictConfig, trainer=None):
        cfg = model_utils.convert_model_config_to_dict_config(cfg)
        cfg = model_utils.maybe_update_config_version(cfg, make_copy=False)
        super().__init__(cfg=prepare_config(cfg, type(self)), trainer=trainer)
        self.setup_ctc_head()

    def training_step(self, batch, batch_nb):
        if AccessMixin.is_access_enabled(self.model_guid):
            AccessMixin.reset_registry(self)
        encoded, encoded_len, transcript, transcript_len = self._encode(batch)
        decoded, _, _ = self.decoder(targets=transcript, target_length=transcript_len)
        trainer = getattr(self, "_trainer", None)
        step, every = (batch_nb, 1) if trainer is None else (trainer.global_step, trainer.log_every_n_steps)
        compute_wer = (step + 1) % every == 0
        # Optimizer steps, not batches: all batches whose gradients are summed up get sets of the same size.
        self.joint.step = 0 if trainer is None else trainer.global_step
        self.joint.measuring = self.measures_now(self.joint.step)

        wanted = self.joint.needs_ctc_posteriors and self.joint.sampled_softmax.ctc_layer is None
        scores = self.score_ctc(encoded, encoded_len, transcript, transcript_len, compute_wer, posteriors=wanted)
        loss, wer, _, _ = self.joint(
            encoder_outputs=encoded,
            decoder_outputs=decoded,
            encoder_lengths=encoded_len,
            transcripts=transcript,
            transcript_lengths=transcript_len,
            compute_wer=compute_wer,
            ctc_posteriors=self._posteriors(scores, transcript, transcript_len),
            training_step=True,
        )
        loss = self.add_auxiliary_losses(loss)
        logs = {
            "learning_rate": self._optimizer.param_groups[0]["lr"],
            "global_step": torch.tensor(self.trainer.global_step, dtype=torch.float32),
        }
        if compute_wer:
            logs["training_batch_wer"] = wer
            logs |= self.joint.training_statistics
        if scores is not None:
            logs["train_rnnt_loss"] = loss
            loss, ctc_logs = self.add_ctc_loss(
                loss, scores, encoded_len, transcript, transcript_len, "train_", compute_wer
            )
            logs |= ctc_logs
        logs["train_loss"] = loss
        if AccessMixin.is_access_enabled(self.model_guid):
            AccessMixin.reset_registry(self)
        self.log_dict(logs)
        self.log_measurement(self.joint.measurement)
        if self._optim_normalize_joint_txu:
            self._optim_normalize_txu = [encoded_len.max(), transcript_len.max()]
        return {"loss": loss}

    def validation_pass(self, batch, batch_idx, dataloader_idx=0):
        """The exact loss, tiled, and WER; of the CTC head too.

        In eval mode, whatever ran before: NeMo's transcribe leaves whole parts, the joint say, in training mode.
        """
        if not any(part.training for part in (self, *self.children())):  # as Lightning leaves it, batch after batch
            return self._validation_pass(batch)
        with kept_modes(self):
            self.eval()
            return self._validation_pass(batch)

    def multi_validation_epoch_end(self, outputs, dataloader_idx: int = 0):
        self.joint.report_left_out()
        return super().multi_validation_epoch_end(with_finite_losses(outputs), dataloader_idx)

    def multi_test_epoch_end(self, outputs, dataloader_idx: int = 0):
        self.joint.report_left_out()
        return super().multi_test_epoch_end(with_finite_losses(outputs), dataloader_idx)

    def _validation_pass(self, batch):
        encoded, encoded_len, transcript, transcript_len = self._encode(batch)
        decoded = None
        if self.compute_eval_loss:
            decoded, _, _ = self.decoder(targets=transcript, target_length=transcript_len)
        loss, wer, numerator, denominator = self.joint(
            encoder_outputs=encoded,
            decoder_outputs=decoded,
            encoder_lengths=encoded_len,
            transcripts=transcript,
            transcript_lengths=transcript_len,
            compute_wer=True,
        )
        logs = {"val_wer_num": numerator, "val_wer_denom": denominator, "val_wer": wer}
        scores = self.score_ctc(encoded, encoded_len, transcript, transcript_len, compute_wer=True)
        if scores is not None:
            if loss is not None:
                logs["val_rnnt_loss"] = loss
                scores = replace(scores, loss=torch.where(loss.isfinite(), scores.loss, torch.nan))  # of nothing, too
            loss, ctc_logs = self.add_ctc_loss(loss, scores, encoded_len, transcript, transcript_len, "val_", True)
            logs |= ctc_logs
        if loss is not None:
            logs["val_loss"] = loss
        if AccessMixin.is_access_enabled(self.model_guid):
            AccessMixin.reset_registry(self)
        self.log("global_step", torch.tensor(self.trainer.global_step, dtype=torch.float32))
        return logs

    def _encode(self, batch):
        if self.has_ctc_head and self.is_interctc_enabled():
            AccessMixin.set_access_enabled(access_enabled=True, guid=self.model_guid)
        signal, signal_len, transcript, transcript_len = batch
        # Silence for what is not finite, since 0 x NaN in the encoder's backward pass would reach its weights; what
        # comes out is NaN again, so that the losses leave the utterance out.
        bad = self.silenced = ~signal.isfinite().flatten(1).all(dim=1)
        signal = signal.masked_fill(bad.view(-1, *[1] * (signal.dim() - 1)), 0)
        if isinstance(batch, DALIOutputs) and batch.has_processed_signal:
            encoded, encoded_len = self.forward(processed_signal=signal, processed_signal_length=signal_len)
        else:
            encoded, encoded_len = self.forward(input_signal=signal, input_signal_length=signal_len)
        return encoded.masked_fill(bad[:, None, None], torch.nan), encoded_len, transcript, transcript_len

    def on_fit_start(self):
        super().on_fit_start()
        config, labels = self.joint.sampled_softmax, len(self.joint.vocabulary)
        if config is not None and not (config.auto or config.scheduled) and config.size(labels) == labels:
            logging.warning(f"n_samples {config.n_samples} is the whole vocabulary of {labels}: training is exact.")
        if self.joint.needs_unigram_counts:
            path = self.joint.sampled_softmax.unigram_counts
            counts = unigram_counts(path, self.cfg.get("train_ds"), self._text_to_ids(), self.joint.vocabulary)
            self.joint.set_unigram_counts(counts)

    def _text_to_ids(self):
        """How NeMo's datasets turn a transcript and its language into labels; None for one that they leave out."""
        if isinstance(getattr(self, "tokenizer", None), MultilingualTokenizer):
            return self.tokenizer.spoken_to_ids
        if has_tokenizer(type(self)):
            return lambda text, lang: self.tokenizer.text_to_ids(text)
        data = self.cfg.get("train_ds") or {}
        parser = make_parser(
            labels=list(self.joint.vocabulary),
            name=data.get("parser", "en"),
            unk_id=data.get("unk_index", -1),
            blank_id=data.get("blank_index", -1),
            do_normalize=data.get("normalize_transcripts", False),
        )
        return lambda text, lang: parser(text)

    def on_save_checkpoint(self, checkpoint):
        super().on_save_checkpoint(checkpoint)
        checkpoint["sampled_softmax_draws"] = self.joint.draws

    def on_load_checkpoint(self, checkpoint):
        """A resumed run draws on instead of starting over."""
        super().on_load_checkpoint(checkpoint)
        self.joint.continue_draws(checkpoint.get("sampled_softmax_draws", 0))

    def export(self, *args, **kwargs):
        """NeMo's export; it would leave all but the CTC head frozen, and joint and predictor unfit for training."""
        log_softmax = self.joint.log_softmax
        try:
            with kept_modes(self):
                return super().export(*args, **kwargs)
        finally:
            self.joint._fuse_loss_wer, self.joint.log_softmax = True, log_softmax
            self.decoder._rnnt_export = False


def with_finite_losses(outputs: list[dict[str, torch.Tensor]]) -> list[dict[str, torch.Tensor]]:
    """Outputs of validation batches, made fit for NeMo's means over batches.

    A batch in which no utterance has a finite loss gets the others' mean, and so has no part in it; where there are no
    others, the mean is NaN.
    """
    names = [name for name in outputs[0] if "loss" in name] if outputs else []
    losses = {name: torch.stack([output[name] for output in outputs]) for name in names}
    losses = {name: x.where(x.isfinite(), x[x.isfinite()].mean()) for name, x in losses.items()}
    return [output | {name: losses[name][i] for name in names} for i, output in enumerate(outputs)]
