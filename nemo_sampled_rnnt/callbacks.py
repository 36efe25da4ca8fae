"""Lightning callbacks."""

from __future__ import annotations

from pathlib import Path

from lightning.pytorch import Callback
from nemo.core.classes.common import Serialization

from nemo_sampled_rnnt.models.export import save_stock
from nemo_sampled_rnnt.stock import make_parent, refuse_existing, stock_config


class ExportStock(Callback, Serialization):  # NeMo 3 builds nothing else from YAML
    """Write a stock ``.nemo`` when training has ended, of the weights that NeMo's own last ``.nemo`` gets.

    In YAML: ``trainer.callbacks: [{_target_: nemo_sampled_rnnt.callbacks.ExportStock, path: stock.nemo}]``.

    Args:
        path: ``.nemo`` to write.
        hybrid: keep the CTC head, as a hybrid model.
        overwrite: replace a file that is there.

    Raises:
        OSError, ValueError: as the export would at the end, but before training starts.
    """

    def __init__(self, path: str, hybrid: bool = False, overwrite: bool = False):
        self.path, self.hybrid, self.overwrite = path, hybrid, overwrite

    def on_fit_start(self, trainer, pl_module):
        path = Path(self.path).expanduser()
        refuse_existing(path, self.overwrite)
        stock_config(pl_module.cfg, self.hybrid)
        make_parent(path)

    def on_fit_end(self, trainer, pl_module):  # with save_best_model NeMo has put the best weights back
        save_stock(pl_module, self.path, self.hybrid, self.overwrite)
