"""What our models change in a config before NeMo reads it."""

from __future__ import annotations

from nemo.collections.asr.models import EncDecHybridRNNTCTCBPEModel, EncDecHybridRNNTCTCModel, EncDecRNNTBPEModel
from omegaconf import DictConfig, OmegaConf, open_dict

from nemo_sampled_rnnt.modules.nemo_loss import MULTI_BLANK
from nemo_sampled_rnnt.sampling import SampledSoftmax

JOINT = "nemo_sampled_rnnt.modules.SampledRNNTJoint"
STOCK_JOINTS = tuple(
    f"nemo.collections.asr.modules.{path}{name}" for path in ("", "rnnt.") for name in ("RNNTJoint", "SampledRNNTJoint")
)
AUX_CTC = {  # the head of NeMo's hybrid configs
    "ctc_loss_weight": 0.3,
    "use_cer": False,
    "ctc_reduction": "mean_batch",
    "decoder": {
        "_target_": "nemo.collections.asr.modules.ConvASRDecoder",
        "feat_in": None,
        "num_classes": -1,
        "vocabulary": [],
    },
    "decoding": {"strategy": "greedy"},
}


def has_tokenizer(model_class: type) -> bool:
    """Its labels are pieces of a tokenizer; else they are the characters of ``labels``."""
    return issubclass(model_class, (EncDecRNNTBPEModel, EncDecHybridRNNTCTCBPEModel))


def is_hybrid(model_class: type) -> bool:
    """NeMo itself builds the CTC head."""
    return issubclass(model_class, EncDecHybridRNNTCTCModel)


def prepare_config(cfg: DictConfig, model_class: type) -> DictConfig:
    """Our joint in place of a stock one, our class as the target of the checkpoint, a CTC head for a hybrid.

    Raises:
        ValueError: the sampler is "ctc" and there is no ``aux_ctc`` section; joint or loss are of another kind, or do
            not fit each other.
    """
    joint = cfg.joint.get("_target_", "")
    _refuse_other_kinds(cfg, model_class, joint)
    with open_dict(cfg):
        # NeMo writes the target only where there is none: a config copied from a stock model would save as one.
        cfg.target = f"nemo_sampled_rnnt.models.{model_class.__name__}"
        if not model_class.__module__.startswith("nemo_sampled_rnnt."):
            cfg.target = f"{model_class.__module__}.{model_class.__qualname__}"
        if joint in STOCK_JOINTS:
            cfg.joint._target_ = JOINT
        if is_hybrid(model_class) and cfg.get("aux_ctc") is None:  # the config of a plain transducer
            cfg.aux_ctc = OmegaConf.create(AUX_CTC)
        if is_hybrid(model_class) and not has_tokenizer(model_class):
            cfg.aux_ctc.decoder.vocabulary = cfg.labels
    sampled = cfg.joint.get("sampled_softmax")
    if sampled is not None and SampledSoftmax.from_config(sampled).sampler == "ctc" and cfg.get("aux_ctc") is None:
        raise ValueError(
            "joint.sampled_softmax.sampler is ctc, but the model has no CTC head: add an aux_ctc section (as in "
            "configs/conformer_transducer_bpe_sampled.yaml), or set the sampler to uniform or unigram"
        )
    return cfg


def _refuse_other_kinds(cfg: DictConfig, model_class: type, joint: str) -> None:
    loss, extra = cfg.get("loss") or {}, cfg.joint.get("num_extra_outputs") or 0
    name = loss.get("loss_name", "default")
    durations = (loss.get(f"{name}_kwargs") or {}).get("durations") if name.startswith("tdt") else None
    if joint.startswith("nemo.") and joint not in STOCK_JOINTS:
        reason = "HAT has a joint of its own"
    elif name.startswith("multiblank"):
        reason = MULTI_BLANK
    elif name.startswith("tdt") and not durations:
        reason = f"it has no durations: set loss.{name}_kwargs.durations and what configs/tdt.yaml sets with it"
    elif extra != len(durations or ()):
        reason = (
            f"the loss has {len(durations or ())} durations: a TDT model has loss.loss_name tdt, and "
            "joint.num_extra_outputs is the number of loss.tdt_kwargs.durations"
        )
    else:
        return
    raise ValueError(
        f"{model_class.__name__} trains RNN-T and TDT with NeMo's RNNTJoint or ours, but this model has "
        f"{joint.rsplit('.', 1)[-1]} with {extra} extra outputs and the loss {name} ({reason}): correct that, or train "
        "it with NeMo's own class"
    )
