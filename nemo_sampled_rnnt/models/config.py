"""What our models change in a config before NeMo reads it."""

from __future__ import annotations

from omegaconf import DictConfig, open_dict

JOINT = "nemo_sampled_rnnt.modules.SampledRNNTJoint"
STOCK_JOINTS = tuple(
    f"nemo.collections.asr.modules.{path}{name}"
    for path in ("", "rnnt.")
    for name in ("RNNTJoint", "SampledRNNTJoint")
)


def prepare_config(cfg: DictConfig, model_class: type) -> DictConfig:
    """Our joint in place of a stock one, and our class as the target of the checkpoint.

    Raises:
        ValueError: the sampler is "ctc" and there is no ``aux_ctc`` section.
    """
    with open_dict(cfg):
        # NeMo writes the target only where there is none: a config copied from a stock model would save as one.
        cfg.target = f"nemo_sampled_rnnt.models.{model_class.__name__}"
        if not model_class.__module__.startswith("nemo_sampled_rnnt."):
            cfg.target = f"{model_class.__module__}.{model_class.__qualname__}"
        if cfg.joint.get("_target_") in STOCK_JOINTS:
            cfg.joint._target_ = JOINT
    sampled = cfg.joint.get("sampled_softmax")
    if sampled is not None and sampled.get("sampler", "ctc") == "ctc" and cfg.get("aux_ctc") is None:
        raise ValueError(
            "joint.sampled_softmax.sampler is ctc, but the model has no CTC head: add an aux_ctc section (as in "
            "configs/conformer_transducer_bpe_sampled.yaml), or set the sampler to uniform or unigram"
        )
    return cfg
