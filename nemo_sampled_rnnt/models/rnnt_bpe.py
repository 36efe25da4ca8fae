"""Conformer-Transducers with subword tokens."""

from __future__ import annotations

from nemo.collections.asr.models import EncDecRNNTBPEModel
from nemo.utils import model_utils
from omegaconf import DictConfig

from nemo_sampled_rnnt.models.config import prepare_config
from nemo_sampled_rnnt.models.sampled import SampledSoftmaxMixin


class EncDecSampledRNNTBPEModel(SampledSoftmaxMixin, EncDecRNNTBPEModel):
    """NeMo's subword transducer, trained with a sampled softmax and an optional auxiliary CTC head.

    Args:
        cfg: config of a stock EncDecRNNTBPEModel. Of ours are ``joint.sampled_softmax``, and ``aux_ctc`` with the
            schema of NeMo's hybrid models. A stock joint is replaced by ours, with the same parameters.
        trainer: Lightning's trainer.

    Raises:
        ValueError: the sampler is "ctc" but there is no ``aux_ctc`` section.
    """

    def __init__(self, cfg: DictConfig, trainer=None):
        cfg = model_utils.convert_model_config_to_dict_config(cfg)
        cfg = model_utils.maybe_update_config_version(cfg)
        super().__init__(cfg=prepare_config(cfg, type(self)), trainer=trainer)
        self.setup_ctc_head()

    @classmethod
    def list_available_models(cls) -> list:
        """None of its own: ASRModel.from_pretrained looks through subclasses and must not find NVIDIA's names here."""
        return []

    @classmethod
    def _get_ngc_pretrained_model_info(cls, model_name: str, refresh_cache: bool = False):
        """NVIDIA's checkpoints, loaded as this class."""
        _, path = EncDecRNNTBPEModel._get_ngc_pretrained_model_info(model_name, refresh_cache=refresh_cache)
        return cls, path
