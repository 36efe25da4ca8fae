"""Our model files as NeMo's own, for people who do not have this package. Needs no NeMo itself."""

from __future__ import annotations

import os
import tarfile
import tempfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf

CONFIG, WEIGHTS = "model_config.yaml", "model_weights.ckpt"
CTC_HEAD = "ctc_decoder."
JOINT = "nemo.collections.asr.modules.RNNTJoint"
FUSED_BATCH_SIZE = 4  # of NeMo's configs; the stock joint wants one where joint and loss are fused
TARGETS = {  # (has a tokenizer, hybrid): the class, as NeMo writes it
    (True, False): "nemo.collections.asr.models.rnnt_bpe_models.EncDecRNNTBPEModel",
    (True, True): "nemo.collections.asr.models.hybrid_rnnt_ctc_bpe_models.EncDecHybridRNNTCTCBPEModel",
    (False, False): "nemo.collections.asr.models.rnnt_models.EncDecRNNTModel",
    (False, True): "nemo.collections.asr.models.hybrid_rnnt_ctc_models.EncDecHybridRNNTCTCModel",
}

TRANSDUCERS = [target.rsplit(".", 1)[1] for target in TARGETS.values()]


@dataclass(frozen=True)
class Exported:
    """What an export read and wrote: the two targets, the names of the tensors written and of those left out."""

    source: str
    target: str
    written: list[str]
    left_out: list[str]


def export_stock(
    source: str | Path, destination: str | Path, hybrid: bool = False, overwrite: bool = False
) -> Exported:
    """Write a model file of ours as one of stock NeMo; weights stay on disk, and are copied one tensor at a time.

    Args:
        source: ``.nemo`` of a transducer, ours or stock.
        destination: ``.nemo`` to write; it appears complete or not at all.
        hybrid: keep the CTC head, as a hybrid model; False: leave it out, as a plain transducer.
        overwrite: replace a file that is there.

    Raises:
        FileExistsError, IsADirectoryError: the destination exists.
        ValueError: the source is no complete ``.nemo``, or no transducer, or has no CTC head for a hybrid, or is the
            destination.
    """
    source, destination = Path(source), Path(destination)
    refuse_existing(destination, overwrite)
    if destination.exists() and destination.samefile(source):
        raise ValueError(f"{destination} is the model itself, of which the stock one lacks parts: give another name")
    config = read_config(source)
    stock = stock_config(config, hybrid)
    # Next to the destination: where /tmp is kept in memory, unpacking there would be a second copy.
    with tempfile.TemporaryDirectory(dir=make_parent(destination), prefix=f".{destination.name}.") as folder:
        unpack(source, folder)
        OmegaConf.save(stock, Path(folder, CONFIG))
        weights = torch.load(Path(folder, WEIGHTS), map_location="cpu", weights_only=True, mmap=True)
        kept = stock_weights(weights, hybrid)
        if hybrid and not any(name.startswith(CTC_HEAD) for name in kept):
            raise ValueError(
                f"{source} has an aux_ctc section but no weights of a CTC head, as a model has that NeMo's own class "
                "trained with a config of ours: export it as rnnt"
            )
        if len(kept) < len(weights):
            torch.save(kept, Path(folder, "kept"))
            os.replace(Path(folder, "kept"), Path(folder, WEIGHTS))
        pack(folder, destination)
    return Exported(config.get("target"), stock.target, list(kept), [name for name in weights if name not in kept])


def stock_config(config: DictConfig, hybrid: bool = False) -> DictConfig:
    """The config of the same model in stock NeMo: stock class, stock joint, no key of ours.

    Raises:
        ValueError: no transducer, or no CTC head for a hybrid.
    """
    target = config.get("target", "")
    foreign = target.startswith("nemo.") and target.rsplit(".", 1)[1] not in TRANSDUCERS
    if foreign or config.get("joint") is None:
        raise ValueError(f"only transducers can be exported, ours or {', '.join(TRANSDUCERS)}, but this is {target!r}")
    if hybrid and config.get("aux_ctc") is None:
        raise ValueError(
            "the model has no CTC head (no aux_ctc in its config), which a hybrid model needs: export it as rnnt"
        )
    config = OmegaConf.create(OmegaConf.to_container(config))  # a copy that may be changed, unlike parts of a model's
    config.target = TARGETS[config.get("tokenizer") is not None, hybrid]
    if hybrid:
        config.aux_ctc.pop("memory_efficient", None)
    else:
        config.pop("aux_ctc", None)
    joint = config.joint
    if joint.get("_target_", "").startswith("nemo_sampled_rnnt."):
        joint._target_ = JOINT
        joint.pop("sampled_softmax", None)
        joint.pop("n_samples", None)
        if joint.get("fused_batch_size") is None:
            joint.fused_batch_size = FUSED_BATCH_SIZE
    return config


def stock_weights(weights: dict[str, torch.Tensor], hybrid: bool = False) -> dict[str, torch.Tensor]:
    """The tensors that the stock model has: all of them, but for the CTC head of a plain transducer."""
    return {name: tensor for name, tensor in weights.items() if hybrid or not name.startswith(CTC_HEAD)}


def refuse_existing(destination: Path, overwrite: bool) -> None:
    if destination.is_dir():
        raise IsADirectoryError(f"{destination} is a folder: give the name of a file")
    if destination.exists() and not overwrite:
        raise FileExistsError(
            f"{destination} exists: give another name, or ask to overwrite it (overwrite=True, or --overwrite)"
        )


def make_parent(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.parent


def read_config(source: Path) -> DictConfig:
    """The model's config; raises ValueError for what is no ``.nemo``."""
    with tempfile.TemporaryDirectory() as folder:
        unpack(source, folder, [CONFIG])
        return OmegaConf.load(Path(folder, CONFIG))


def unpack(source: Path, folder: str, names: list[str] | None = None) -> None:
    """Extract a ``.nemo``, or some of its members; raises ValueError where it or they are not there in full."""
    try:
        with tarfile.open(source) as archive:
            members = [x for x in archive if names is None or os.path.normpath(x.name) in names]
            archive.extractall(folder, members, filter="data")
    except (tarfile.TarError, EOFError, zlib.error) as error:
        hint = "copy or save it again"
        if Path(source).suffix == ".ckpt":
            hint = "this is a checkpoint of Lightning's, take the .nemo beside it"
        raise ValueError(f"{source} is no .nemo file, or not all of one: {hint}") from error
    for name in names or (CONFIG, WEIGHTS):
        if not Path(folder, name).is_file():
            raise ValueError(f"{source} holds no {name}, so it is no .nemo file, or not all of one")


def pack(folder: str | Path, destination: Path) -> None:
    """Make a ``.nemo`` of a folder, under another name until it is complete."""
    with tempfile.TemporaryDirectory(dir=make_parent(destination), prefix=f".{destination.name}.") as staging:
        with tarfile.open(Path(staging, destination.name), "w") as archive:
            archive.add(folder, arcname=".")
        os.replace(Path(staging, destination.name), destination)
