"""Which files our models open, and as which class."""

from __future__ import annotations

import tempfile
from pathlib import Path

from nemo.collections.asr.models import ASRModel
from omegaconf import DictConfig

from nemo_sampled_rnnt.models.config import has_tokenizer
from nemo_sampled_rnnt.models.weights import check_vocabulary
from nemo_sampled_rnnt.stock import CONFIG, TRANSDUCERS, read_config, unpack


class RestoreMixin:
    """Model files of every transducer, stock or ours, hybrid or not, come back as the class that is asked."""

    @classmethod
    def restore_from(cls, restore_path: str, override_config_path=None, *args, **kwargs):
        """NeMo's, of ``.nemo`` files of transducers with the same kind of labels.

        Raises:
            ValueError: no complete ``.nemo``, another kind of model, or weights of another vocabulary.
        """
        path = Path(restore_path).expanduser()
        if path.is_file():  # else a folder, or an address that NeMo knows
            with tempfile.TemporaryDirectory() as folder:
                unpack(path, folder, [CONFIG])
        try:
            model = super().restore_from(restore_path, override_config_path, *args, **kwargs)
            if path.is_file() and override_config_path is not None and isinstance(model, cls):
                check_vocabulary(read_config(path), model.joint.vocabulary, restore_path)
        except Exception:
            cls._set_model_restore_state(is_being_restored=False)  # NeMo leaves it on: the next model had no data
            raise
        return model

    @classmethod
    def from_config_dict(cls, config: DictConfig, trainer=None):
        """NeMo builds the class that the config names, unless that is a base of ours: a hybrid is not."""
        target = None if "_target_" in config else config.get("target")
        if target is None or not target.startswith(("nemo.", "nemo_sampled_rnnt.")):
            return super().from_config_dict(config, trainer=trainer)
        found = target.rsplit(".", 1)[1]
        stock = found.replace("EncDecSampled", "EncDec")
        if stock not in TRANSDUCERS:
            raise ValueError(
                f"{cls.__name__} opens transducers ({', '.join(sorted(TRANSDUCERS))}, or trained by us), but this is a "
                f"{found}: open it with ASRModel.restore_from; its encoder comes over by init_from_nemo_model"
            )
        if ("BPE" in stock) != has_tokenizer(cls):
            raise ValueError(
                f"{cls.__name__} has {'pieces of a tokenizer' if has_tokenizer(cls) else 'characters'} for labels, "
                f"but this is a {found}: open it with {stock.replace('EncDec', 'EncDecSampled')}"
            )
        return construct(cls, config, trainer)

    @classmethod
    def list_available_models(cls) -> list:
        """None of its own: ASRModel.from_pretrained looks through subclasses and must not find NVIDIA's names here."""
        return []

    @classmethod
    def _get_ngc_pretrained_model_info(cls, model_name: str, refresh_cache: bool = False):
        """NVIDIA's checkpoints, loaded as this class."""
        return cls, ASRModel._get_ngc_pretrained_model_info(model_name, refresh_cache=refresh_cache)[1]


def construct(model_class: type, config: DictConfig, trainer):
    """Apart from the class method: Lightning takes a caller's frame with ``super`` in it for a constructor's."""
    return model_class(cfg=config, trainer=trainer)
