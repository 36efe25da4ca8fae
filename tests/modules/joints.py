"""A joint, stock or ours, with the predictor, loss, decoding and WER that a NeMo model gives it."""

from dataclasses import dataclass

import torch
from nemo.collections.asr.losses.rnnt import RNNTLoss
from nemo.collections.asr.metrics.wer import WER
from nemo.collections.asr.modules import RNNTDecoder, RNNTJoint
from nemo.collections.asr.parts.submodules.rnnt_decoding import RNNTDecoding
from omegaconf import OmegaConf
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

VOCABULARY = list("abcdefghijklmnopqrstuvw") + ["xx", "yy", "zz"]  # V = 26, blank is 26
ENCODED, PREDICTED, HIDDEN = 7, 9, 11
STOCK = "nemo.collections.asr.modules.RNNTJoint"
OURS = "nemo_sampled_rnnt.modules.SampledRNNTJoint"


def make_joint(target: str, vocabulary=VOCABULARY, activation="relu", dropout=0.0, **keys) -> RNNTJoint:
    """From a config, as NeMo's models make it. Weights depend on sizes alone."""
    torch.manual_seed(len(vocabulary))
    config = {
        "_target_": target,
        "jointnet": {
            "encoder_hidden": ENCODED, "pred_hidden": PREDICTED, "joint_hidden": HIDDEN,
            "activation": activation, "dropout": dropout,
        },
        "num_classes": len(vocabulary),
        "vocabulary": list(vocabulary),
    }  # fmt: skip
    if target == STOCK:
        config |= {"fuse_loss_wer": True, "fused_batch_size": 8}
    return RNNTJoint.from_config_dict(OmegaConf.create(config | keys))


def equip(joint, loss_name="warprnnt_numba", reduction="mean_batch", **loss_kwargs):
    """Loss, decoding and WER, handed over in the order in which NeMo's model does."""
    classes = joint.num_classes_with_blank - 1
    torch.manual_seed(1)
    decoder = RNNTDecoder(
        prednet={"pred_hidden": PREDICTED, "pred_rnn_layers": 1}, vocab_size=classes, blank_as_pad=True
    )
    loss = RNNTLoss(num_classes=classes, loss_name=loss_name, reduction=reduction, loss_kwargs=loss_kwargs)
    config = OmegaConf.create({"strategy": "greedy_batch", "greedy": {"max_symbols": 3}})
    decoding = RNNTDecoding(decoding_cfg=config, decoder=decoder, joint=joint, vocabulary=joint.vocabulary)
    joint.set_loss(loss)
    joint.set_wer(WER(decoding=decoding, batch_dim_index=0, log_prediction=False, dist_sync_on_step=True))
    return joint


def pair(loss_name="warprnnt_numba", reduction="mean_batch", loss_kwargs=None, ours=None, **joint_keys):
    """The stock joint and ours, with equal weights and the same loss."""
    stock = equip(make_joint(STOCK, **joint_keys), loss_name, reduction, **(loss_kwargs or {}))
    sampled = equip(make_joint(OURS, **joint_keys, **(ours or {})), loss_name, reduction, **(loss_kwargs or {}))
    sampled.load_state_dict(stock.state_dict(), strict=True)
    return stock, sampled


@dataclass
class Batch:
    encoder_outputs: torch.Tensor  # (B, D, T)
    decoder_outputs: torch.Tensor  # (B, D, U+1)
    encoder_lengths: torch.Tensor
    transcripts: torch.Tensor
    transcript_lengths: torch.Tensor

    def call(self, joint, **more):
        return joint(**(vars(self) | more))


def make_batch(lengths=(5, 8, 6), labels=(3, 1, 4), vocabulary=VOCABULARY, seed=0, frames=None, padded_labels=None):
    """Random inputs that ask for gradients; ``frames`` and ``padded_labels``: sizes beyond every length."""
    random = torch.Generator().manual_seed(seed)
    size, frames, width = len(lengths), frames or max(lengths), padded_labels or max(labels)
    return Batch(
        torch.randn(size, ENCODED, frames, generator=random).requires_grad_(),
        torch.randn(size, PREDICTED, width + 1, generator=random).requires_grad_(),
        torch.tensor(lengths),
        torch.randint(len(vocabulary), (size, width), generator=random),
        torch.tensor(labels),
    )


def gradients(joint, batch: Batch, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    """Of the parameters and of both inputs."""
    inputs = {**dict(joint.named_parameters()), "encoder": batch.encoder_outputs, "predictor": batch.decoder_outputs}
    inputs = {name: tensor for name, tensor in inputs.items() if not name.startswith("_wer")}
    return dict(zip(inputs, torch.autograd.grad(loss, list(inputs.values())), strict=True))


class LargestTensor(TorchDispatchMode):
    """Number of elements of the largest storage that any operation within the block returned."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self.elements = max(self.elements, leaf.untyped_storage().nbytes() // leaf.element_size())
        return result
