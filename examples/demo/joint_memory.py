"""Peak memory of one training step of a joint: its forward, the loss, and the backward into encoder and predictor."""

import torch
from nemo.collections.asr.models import EncDecRNNTBPEModel
from omegaconf import open_dict

from nemo_sampled_rnnt.memory import peak_memory
from nemo_sampled_rnnt.sampling import ctc_posteriors


def stock_model(model, batch_size):
    """NeMo's own transducer with the same parameters, and a whole batch in one sub-batch of its fused joint."""
    cfg = model.cfg.copy()
    with open_dict(cfg):
        cfg.target = "nemo.collections.asr.models.EncDecRNNTBPEModel"
        cfg.joint._target_ = "nemo.collections.asr.modules.RNNTJoint"
        cfg.joint.fused_batch_size = batch_size
        cfg.train_ds = cfg.validation_ds = None
        cfg.joint.pop("sampled_softmax")
        cfg.pop("aux_ctc")
    stock = EncDecRNNTBPEModel(cfg=cfg)
    stock.load_state_dict(model.state_dict(), strict=False)  # all but the CTC head
    return stock.to(model.device)


def step_memory(model, batch):
    """MiB that one step of `model.joint` takes over what encoder and predictor hold already."""
    features, lengths, transcripts, transcript_lengths = batch.to(model.device)
    model.train()
    with torch.no_grad():
        encoded, encoded_lengths = model(processed_signal=features, processed_signal_length=lengths)
        decoded, _, _ = model.decoder(targets=transcripts, target_length=transcript_lengths)
    inputs = {
        "encoder_outputs": encoded.requires_grad_(),
        "decoder_outputs": decoded.requires_grad_(),
        "encoder_lengths": encoded_lengths,
        "transcripts": transcripts,
        "transcript_lengths": transcript_lengths,
        "compute_wer": False,
    }
    if getattr(model.joint, "needs_ctc_posteriors", False):
        log_probs = model.ctc_decoder(encoder_output=encoded)
        inputs["ctc_posteriors"] = ctc_posteriors(log_probs.detach(), encoded_lengths)
    with peak_memory(model.device) as peak:
        loss, *_ = model.joint(**inputs)
        loss.backward()
    model.zero_grad()
    return peak.mib
