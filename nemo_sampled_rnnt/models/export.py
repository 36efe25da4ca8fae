"""A model in memory, written as stock NeMo's."""

from __future__ import annotations

from pathlib import Path

from nemo.core.connectors.save_restore_connector import SaveRestoreConnector
from nemo.utils import logging
from nemo.utils.get_rank import is_global_rank_zero
from omegaconf import OmegaConf

from nemo_sampled_rnnt.stock import CONFIG, pack, refuse_existing, stock_config, stock_weights


class StockConnector(SaveRestoreConnector):
    """NeMo's way to save a model, with config and weights made stock on the way."""

    def __init__(self, hybrid: bool):
        super().__init__()
        self.hybrid = hybrid

    def _save_state_dict_to_disk(self, state_dict, filepath):
        super()._save_state_dict_to_disk(stock_weights(state_dict, self.hybrid), filepath)

    def _make_nemo_file_from_folder(self, filename, source_dir):
        config = Path(source_dir, CONFIG)
        OmegaConf.save(stock_config(OmegaConf.load(config), self.hybrid), config)
        pack(source_dir, Path(filename))


def save_stock(model, path: str | Path, hybrid: bool = False, overwrite: bool = False) -> None:
    """Write a model, ours or a stock one with our joint, as a ``.nemo`` that opens in NeMo without this package.

    Args:
        model: transducer.
        path: ``.nemo`` to write; it appears complete or not at all. Only the first rank writes.
        hybrid: keep the CTC head, as a hybrid model; False: leave it out, as a plain transducer.
        overwrite: replace a file that is there.

    Raises:
        FileExistsError: the file exists.
        ValueError: a hybrid is wanted of a model without a CTC head.
    """
    if not is_global_rank_zero():
        return
    path = Path(path).expanduser().resolve()
    refuse_existing(path, overwrite)
    target = stock_config(model.cfg, hybrid).target
    connector = StockConnector(hybrid)
    connector.model_extracted_dir = model._save_restore_connector.model_extracted_dir  # where its artifacts may lie
    connector.save_to(model, str(path))
    logging.info(f"{path}: the model as {target}, for NeMo without nemo_sampled_rnnt")


class StockExportMixin:
    def save_stock(self, path: str | Path, hybrid: bool = False, overwrite: bool = False) -> None:
        """:func:`save_stock` of this model."""
        save_stock(self, path, hybrid, overwrite)
