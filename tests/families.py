"""The four families of transducers, ours and NeMo's, as tiny models of the same sizes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from nemo.collections.asr import models as stock_models
from omegaconf import OmegaConf
from tiny import CHARACTERS, characters, make_config, stock_joint, talkative

from nemo_sampled_rnnt import models


@dataclass(frozen=True)
class Family:
    ours: type
    stock: type
    pieces: bool
    hybrid: bool

    def config(self, tokenizer, speech=None, aux_ctc=True, more=None, **joint):
        """Of our model; ``more`` is merged in."""
        config = make_config(tokenizer, speech, aux_ctc=aux_ctc, **joint)
        return OmegaConf.merge(config if self.pieces else characters(config), more or {})

    def stock_config(self, tokenizer, speech=None, more=None, hybrid=None, **joint):
        config = self.config(tokenizer, speech, more=more)
        stock = stock_joint(config, **joint)
        if self.hybrid if hybrid is None else hybrid:
            stock.aux_ctc = config.aux_ctc
            if not self.pieces:
                stock.aux_ctc.decoder.vocabulary = CHARACTERS
        return stock

    def build(self, *args, **kwargs):
        torch.manual_seed(0)
        return self.ours(self.config(*args, **kwargs))

    def build_stock(self, *args, **kwargs):
        """With weights that make it say something."""
        torch.manual_seed(1)
        return with_ctc_that_speaks(talkative(self.stock(self.stock_config(*args, **kwargs))))


def family(name: str) -> Family:
    return Family(
        getattr(models, name.replace("EncDec", "EncDecSampled")), getattr(stock_models, name), "BPE" in name,
        "Hybrid" in name,
    )  # fmt: skip


FAMILIES = {
    name: family(name)
    for name in (
        "EncDecRNNTModel", "EncDecRNNTBPEModel", "EncDecHybridRNNTCTCModel", "EncDecHybridRNNTCTCBPEModel",
    )
}  # fmt: skip
BPE, CHARACTER = FAMILIES["EncDecRNNTBPEModel"], FAMILIES["EncDecRNNTModel"]
HYBRID, CHARACTER_HYBRID = FAMILIES["EncDecHybridRNNTCTCBPEModel"], FAMILIES["EncDecHybridRNNTCTCModel"]


@torch.no_grad()
def with_ctc_that_speaks(model):
    if hasattr(model, "ctc_decoder"):
        model.ctc_decoder.decoder_layers[-1].weight.normal_(std=0.5, generator=torch.Generator().manual_seed(2))
    return model


def assert_same_weights(one, other):
    """Also in the order of their names."""
    assert list(one.state_dict()) == list(other.state_dict())
    for (name, tensor), twin in zip(one.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(tensor, twin), name
