"""The auxiliary CTC head: built, named and scored as NeMo's hybrid models do, so that checkpoints interchange."""

from __future__ import annotations

from dataclasses import replace

import torch
from nemo.collections.asr.losses.ctc import CTCLoss
from nemo.collections.asr.metrics.wer import WER
from nemo.collections.asr.parts.mixins import InterCTCMixin
from nemo.collections.asr.parts.submodules.ctc_decoding import (
    CTCBPEDecoding,
    CTCBPEDecodingConfig,
    CTCDecoding,
    CTCDecodingConfig,
)
from nemo.core.classes.mixins import AccessMixin
from nemo.utils import logging
from omegaconf import OmegaConf, open_dict

from nemo_sampled_rnnt.models.config import has_tokenizer, is_hybrid
from nemo_sampled_rnnt.models.ctc_scores import (
    LARGE,
    CTCScores,
    decodes_labels,
    log_probs,
    scores_in_tiles,
    scores_of_log_probs,
    why_no_tiles,
)
from nemo_sampled_rnnt.models.inter_ctc import InnerHead


class CTCHeadMixin(InterCTCMixin):
    """Attributes ctc_decoder, ctc_loss, ctc_decoding, ctc_wer, ctc_loss_weight, from the section ``aux_ctc``."""

    @property
    def has_ctc_head(self) -> bool:
        return self.cfg.get("aux_ctc") is not None

    def setup_ctc_head(self) -> None:
        """Build the head if the config has one and NeMo has not; its labels are the transducer's, blank last."""
        if not self.has_ctc_head:
            return
        if not is_hybrid(type(self)):
            self._build_ctc_head()
        self._check_ctc_layer()
        if not 0 <= self.ctc_loss_weight <= 1:
            raise ValueError(f"aux_ctc.ctc_loss_weight must lie in [0, 1], got {self.ctc_loss_weight}")
        choice = self.cfg.aux_ctc.get("memory_efficient", "auto")
        if choice not in (True, False, "auto"):
            raise ValueError(f"aux_ctc.memory_efficient must be true, false or auto, got {choice!r}")
        if self.ctc_loss_weight == 0 and self.joint.needs_ctc_posteriors:
            logging.warning("aux_ctc.ctc_loss_weight is 0: the CTC head that chooses the negatives will not learn.")

    def _build_ctc_head(self) -> None:
        aux = self.cfg.aux_ctc
        vocabulary = list(self.joint.vocabulary)
        with_pieces = has_tokenizer(type(self))
        with open_dict(aux):
            if not aux.decoder.get("feat_in"):
                aux.decoder.feat_in = self.encoder._feat_out
            aux.decoder.vocabulary = self.cfg.joint.vocabulary  # copied, which is half the work of a list made anew
            if aux.decoder.get("num_classes", -1) < 1:
                aux.decoder.num_classes = len(vocabulary)
            if aux.get("decoding") is None:
                aux.decoding = OmegaConf.structured(CTCBPEDecodingConfig if with_pieces else CTCDecodingConfig)
        self.cur_decoder = "rnnt"
        self.ctc_loss_weight = aux.get("ctc_loss_weight", 0.5)
        self.ctc_decoder = self.from_config_dict(aux.decoder)
        self.ctc_loss = CTCLoss(
            num_classes=self.ctc_decoder.num_classes_with_blank - 1,
            zero_infinity=True,
            reduction=aux.get("ctc_reduction", "mean_batch"),
        )
        if with_pieces:
            self.ctc_decoding = CTCBPEDecoding(aux.decoding, tokenizer=self.tokenizer)
        else:
            self.ctc_decoding = CTCDecoding(aux.decoding, vocabulary=vocabulary)
        self.ctc_wer = WER(
            decoding=self.ctc_decoding,
            use_cer=aux.get("use_cer", False),
            dist_sync_on_step=True,
            log_prediction=self.cfg.get("log_prediction", False),
        )
        self.setup_interctc(decoder_name="ctc_decoder", loss_name="ctc_loss", wer_name="ctc_wer")

    def ctc_log_probs(self, encoded: torch.Tensor) -> torch.Tensor | None:
        """(B, T, V+1) log-probs of the head from encoder outputs (B, D, T), or None without a head."""
        return log_probs(self.ctc_decoder, encoded) if self.has_ctc_head else None

    def score_ctc(
        self, encoded, encoded_len, transcript, transcript_len, compute_wer: bool, posteriors: bool = False
    ) -> CTCScores | None:
        """The head's scores of encoder outputs (B, D, T); None without a head.

        With ``aux_ctc.memory_efficient: true``, or ``auto`` and a large vocabulary, without the tensor [B, T, V]. Only
        a decoding strategy that needs all log-probs still gets them, on batches whose WER is logged.
        """
        if not self.has_ctc_head:
            return None
        batch = encoded, encoded_len, transcript, transcript_len
        config, reduction = self.joint.sampled_softmax, self.ctc_loss.config_reduction
        frame_weights = config.frame_weights if posteriors else None
        if not self.scores_in_tiles(encoded):
            return scores_of_log_probs(log_probs(self.ctc_decoder, encoded), *batch, reduction, frame_weights)
        labels = decodes_labels(self.ctc_decoding)
        scores = scores_in_tiles(
            self.ctc_decoder, *batch, reduction, frame_weights, best=compute_wer and labels,
            workspace_mib=256 if config is None else config.workspace_mib,
            impl="auto" if config is None else config.impl,
        )  # fmt: skip
        if compute_wer and not labels:
            with torch.no_grad():
                scores = replace(scores, predictions=log_probs(self.ctc_decoder, encoded))
        return scores

    def scores_in_tiles(self, encoded: torch.Tensor) -> bool:
        """Whether log-probs of encoder outputs (B, D, T) are not held."""
        choice, obstacle = self.cfg.aux_ctc.get("memory_efficient", "auto"), why_no_tiles(self.ctc_decoder)
        if choice is True and obstacle is not None:
            raise ValueError(f"aux_ctc.memory_efficient is true, but the CTC head holds [B, T, V]: {obstacle}")
        if choice == "auto":
            frames = encoded.shape[0] * encoded.shape[2]
            return obstacle is None and frames * self.ctc_decoder.num_classes_with_blank * 4 > LARGE
        return choice

    def get_interctc_param(self, param_name):
        """NeMo's, but head, loss and WER of inner layers can do without log-probs."""
        inner = InnerHead(self)
        stand_ins = {"decoder": inner.decoder, "loss": inner.loss, "wer": inner}
        return stand_ins[param_name] if param_name in stand_ins else super().get_interctc_param(param_name)

    def _check_ctc_layer(self) -> None:
        """The sampler may take its posteriors from a layer that InterCTC trains, and from no other."""
        config = self.joint.sampled_softmax
        if config is None or config.ctc_layer is None:
            return
        layers = list((self.cfg.get("interctc") or {}).get("apply_at_layers", ()))
        if config.ctc_layer not in layers or not self.is_interctc_enabled():
            raise ValueError(
                f"joint.sampled_softmax.ctc_layer is {config.ctc_layer}, but interctc.apply_at_layers is {layers}: the "
                "CTC head is trained on these layers only; name one of them, add this one, or set ctc_layer to null"
            )

    @torch.no_grad()
    def _posteriors(self, scores: CTCScores | None, transcript, transcript_len) -> torch.Tensor | None:
        """(B, V) posteriors that the sampler draws from, where it does: of these scores, or of an inner layer's."""
        if not self.joint.needs_ctc_posteriors:
            return None
        layer = self.joint.sampled_softmax.ctc_layer
        if layer is None:
            return scores.posteriors
        inner = self.inner_layer(layer)
        return self.score_ctc(*inner, transcript, transcript_len, compute_wer=False, posteriors=True).posteriors

    def inner_layer(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, D, T) output of an inner layer of the encoder, and (B,) frames, of the last forward."""
        captured = {}
        for registry in AccessMixin.get_module_registry(self.encoder).values():
            captured |= registry
        try:
            (encoded,), (lengths,) = (captured[f"interctc/layer_{name}_{layer}"] for name in ("output", "length"))
        except KeyError:
            raise RuntimeError(
                f"layer {layer} of the encoder left no output for sampled_softmax.ctc_layer: the encoder must be one "
                "that NeMo's InterCTC knows, and the layer one of its own"
            ) from None
        return encoded, lengths

    def add_ctc_loss(
        self, loss, scores: CTCScores, encoded_len, transcript, transcript_len, prefix: str, compute_wer: bool
    ):
        """Mix the CTC loss into the transducer's, and score the head; an utterance that is not finite is left out.

        Then the losses of the section ``interctc``, which NeMo's hybrids put on inner layers of the encoder.

        Returns:
            The mixed loss (None stays None), and what to log.
        """
        logs = {}
        if loss is not None:
            logs[f"{prefix}ctc_loss"] = scores.loss
            loss = (1 - self.ctc_loss_weight) * loss + self.ctc_loss_weight * scores.loss
        if compute_wer:
            self.ctc_wer.update(
                predictions=scores.predictions,
                predictions_lengths=encoded_len,
                targets=transcript,
                targets_lengths=transcript_len,
            )
            wer, numerator, denominator = self.ctc_wer.compute()
            self.ctc_wer.reset()
            if prefix == "train_":
                logs["training_batch_wer_ctc"] = wer
            else:
                logs |= {
                    f"{prefix}wer_num_ctc": numerator,
                    f"{prefix}wer_denom_ctc": denominator,
                    f"{prefix}wer_ctc": wer,
                }
        training = prefix == "train_"
        loss, interctc_logs = self.add_interctc_losses(
            loss, transcript, transcript_len, compute_wer, compute_loss=loss is not None,
            log_wer_num_denom=not training, log_prefix="" if training else prefix,
        )  # fmt: skip
        return loss, logs | interctc_logs

    def multi_validation_epoch_end(self, outputs, dataloader_idx: int = 0):
        return self._add_ctc_metrics(super().multi_validation_epoch_end(outputs, dataloader_idx), outputs, "val_")

    def multi_test_epoch_end(self, outputs, dataloader_idx: int = 0):
        return self._add_ctc_metrics(super().multi_test_epoch_end(outputs, dataloader_idx), outputs, "test_")

    def _add_ctc_metrics(self, metrics, outputs, prefix: str):
        """The head's WER, and the two parts of the loss, over the whole set."""
        if self.has_ctc_head and outputs:
            numerator = torch.stack([x[f"{prefix}wer_num_ctc"] for x in outputs]).sum()
            denominator = torch.stack([x[f"{prefix}wer_denom_ctc"] for x in outputs]).sum()
            metrics["log"][f"{prefix}wer_ctc"] = numerator.float() / denominator
            for part in ("rnnt_loss", "ctc_loss"):
                if f"{prefix}{part}" in outputs[0]:
                    metrics["log"][f"{prefix}{part}"] = torch.stack([x[f"{prefix}{part}"] for x in outputs]).mean()
            self.finalize_interctc_metrics(metrics, outputs, prefix)
        return metrics
