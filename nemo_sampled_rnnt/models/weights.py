"""Weights of other checkpoints: carried over by name, and what was not is listed."""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch
from lightning.pytorch.utilities import rank_zero_only
from nemo.core.connectors.save_restore_connector import SaveRestoreConnector
from nemo.utils import logging
from omegaconf import DictConfig, OmegaConf

from nemo_sampled_rnnt.stock import CONFIG, WEIGHTS, unpack

INIT = {"init_from_nemo_model": "path", "init_from_pretrained_model": "name", "init_from_ptl_ckpt": "path"}
OF_THE_VOCABULARY = ("decoder.", "joint.", "ctc_decoder.")
ANOTHER_VOCABULARY = (
    "restore the model with the tokenizer of the weights and call change_vocabulary (extend=True carries the rows of "
    "known pieces over), or leave these parts out: exclude: [decoder, joint, ctc_decoder]"
)


@dataclass(frozen=True)
class Transfer:
    """Which tensors came from a source.

    Attributes:
        loaded: those that did.
        new: at their initial values, since the source has nothing of their part (say, of ctc_decoder).
        missing: at their initial values, although the source has other tensors of their part.
        skipped: tensors of the source without a place in the model, or left out by include and exclude.
    """

    loaded: list[str]
    new: list[str]
    missing: list[str]
    skipped: list[str]

    @classmethod
    def compare(cls, model: list[str], source: list[str], loaded: set[str]) -> Transfer:
        """Args: names in the model, names in the source, and those of both that were loaded."""
        parts = {name.split(".")[0] for name in source}
        absent = [name for name in model if name not in loaded]
        return cls(
            loaded=[name for name in model if name in loaded],
            new=[name for name in absent if name.split(".")[0] not in parts],
            missing=[name for name in absent if name.split(".")[0] in parts],
            skipped=[name for name in source if name not in loaded],
        )

    @property
    def complete(self) -> bool:
        return not (self.new or self.missing or self.skipped)

    def __str__(self) -> str:
        model = self.loaded + self.new + self.missing
        lines = [f"{len(self.loaded)} tensors loaded"]
        for kind, names, everything in (
            ("new, at initial values", self.new, model),
            ("missing, at initial values", self.missing, model),
            ("skipped", self.skipped, self.loaded + self.skipped),
        ):
            if names:
                lines.append(f"{len(names)} {kind}: {', '.join(summary(names, everything))}")
        return "; ".join(lines)


def summary(names: list[str], everything: list[str]) -> list[str]:
    """The names, those that make up a whole module as its name and their number: ``joint.enc.* (2)``."""

    def prefixes(name):
        parts = name.split(".")
        return [".".join(parts[:end]) for end in range(1, len(parts))]

    total = Counter(prefix for name in everything for prefix in prefixes(name))
    here = Counter(prefix for name in names for prefix in prefixes(name))
    short = {}
    for name in names:
        whole = next((x for x in prefixes(name) if here[x] == total[x] > 1), None)
        short[name if whole is None else f"{whole}.* ({here[whole]})"] = None
    return list(short)


class WeightsMixin:
    """``load_state_dict`` and NeMo's ``init_from_*``, by name, with nothing lost in silence."""

    def load_state_dict(self, state_dict, strict: bool = True, assign: bool = False):
        """PyTorch's; not strict, it logs what is new, missing or skipped.

        Raises:
            ValueError: the weights are of a vocabulary of another size.
            RuntimeError: strict, and names differ; another shape.
        """
        weights = self._under_our_names(state_dict)
        keys = self._load(weights, assign)
        transfer = Transfer.compare(list(self.state_dict()), list(weights), set(weights) - set(keys.unexpected_keys))
        if strict and not transfer.complete:
            raise RuntimeError(
                f"the weights do not fit {type(self).__name__}: {transfer}. With strict=False these differences are "
                "accepted"
            )
        if not strict:
            log(transfer, type(self).__name__)
        return keys

    @rank_zero_only
    def maybe_init_from_pretrained_checkpoint(self, cfg: DictConfig, map_location: str = "cpu") -> None:
        """NeMo's, with the same keys, but the weights are read from the file without building its model.

        Args:
            cfg: holds none or one of ``init_from_nemo_model``, ``init_from_pretrained_model``, ``init_from_ptl_ckpt``:
                a path or name, or several with ``include`` and ``exclude``, as NeMo describes.
            map_location: where the weights are read to.

        Raises:
            ValueError: several keys, or a wrong value; no complete file; weights of another vocabulary, or that have
                nothing in common with the model.
        """
        given = [key for key in INIT if cfg.get(key) is not None]
        if len(given) > 1:
            raise ValueError(f"only one of {', '.join(INIT)} can be given, got {' and '.join(given)}")
        if not given:
            return
        kind, value = given[0], cfg[given[0]]
        if not isinstance(value, (str, dict, DictConfig)):
            raise ValueError(f"{kind} must be a string or a mapping, got {value}")
        sources = {kind: {INIT[kind]: value}} if isinstance(value, str) else value
        loaded, offered = set(), []
        for source in sources.values():
            name = source[INIT[kind]]
            weights, config = self._read(kind, name, map_location)
            weights = self._under_our_names(weights)
            offered += weights
            include, exclude = source.get("include", [""]), source.get("exclude", [])
            chosen = {
                key: tensor
                for key, tensor in weights.items()
                if any(part in key for part in include) and not any(part in key for part in exclude)
            }
            if config is not None and any(key.startswith(OF_THE_VOCABULARY) for key in chosen):
                check_vocabulary(config, self.joint.vocabulary, name)
            loaded |= set(chosen) - set(self._load(chosen).unexpected_keys)
            if not loaded:
                found = ", ".join(summary(list(weights), list(weights)))
                raise ValueError(f"{kind}: {name} has no tensor that {type(self).__name__} knows; it has {found}")
        log(Transfer.compare(list(self.state_dict()), list(dict.fromkeys(offered)), loaded), f"{kind}: {value}")

    def _load(self, weights, assign: bool = False):
        """Load what has a place; raises ValueError for weights of another vocabulary."""
        name = f"{self._output_layer}.bias"
        if name in weights and len(weights[name]) != self.joint.num_classes_with_blank:
            theirs, ours, extra = len(weights[name]), self.joint.num_classes_with_blank, self.joint.num_extra_outputs
            if extra:
                raise ValueError(
                    f"the weights have {theirs} outputs of the joint, but the model has {ours}, for "
                    f"{ours - 1 - extra} labels, blank and {extra} durations: {ANOTHER_VOCABULARY}"
                )
            raise ValueError(
                f"the weights are of {theirs - 1} labels and blank, but the model has {ours - 1}: {ANOTHER_VOCABULARY}"
            )
        return super().load_state_dict(weights, strict=False, assign=assign)

    @property
    def _output_layer(self) -> str:
        return f"joint.joint_net.{len(self.joint.joint_net) - 1}"

    def _under_our_names(self, weights):
        """The joint's output layer is joint_net.1, or joint_net.2 behind dropout."""
        ours = self._output_layer
        theirs = "joint.joint_net.1" if ours.endswith("2") else "joint.joint_net.2"
        if f"{theirs}.weight" not in weights:
            return weights
        logging.info(f"The output layer of the joint, {theirs}, is {ours} here, where the joint dropout differs.")
        return {
            name.replace(theirs, ours) if name.startswith(f"{theirs}.") else name: tensor
            for name, tensor in weights.items()
        }

    def _read(self, kind: str, source: str, map_location):
        """The state dict of a source of ``init_from_*``, and its model's config where the source holds one."""
        if kind == "init_from_pretrained_model":
            source = self.from_pretrained(source, return_model_file=True)
        source = Path(source).expanduser()
        if kind == "init_from_ptl_ckpt":  # holds more than weights, pickled: read as Lightning does to resume
            return torch.load(source, map_location=map_location, weights_only=False)["state_dict"], None
        if source.is_dir():
            return read_folder(source, map_location)
        with tempfile.TemporaryDirectory() as folder:
            unpack(source, folder, [CONFIG, WEIGHTS])
            return read_folder(Path(folder), map_location)


def read_folder(folder: Path, map_location):
    """State dict and config of an unpacked ``.nemo``."""
    weights = SaveRestoreConnector._load_state_dict_from_disk(os.path.join(folder, WEIGHTS), map_location)
    return weights, OmegaConf.load(folder / CONFIG)


def check_vocabulary(config: DictConfig, vocabulary, source: str) -> None:
    """Raise ValueError where the config of a file has as many labels, but not the same; the number, shapes tell."""

    def plain(labels):  # NeMo once wrote ##s for s, and the for \u2581the
        return [label.replace("##", "").replace("\u2581", "") for label in labels]

    theirs, ours = plain((config.get("joint") or {}).get("vocabulary") or []), plain(vocabulary)
    if len(theirs) == len(ours) and theirs != ours:
        place = next(i for i, (a, b) in enumerate(zip(theirs, ours, strict=True)) if a != b)
        raise ValueError(
            f"the weights of {source} are of another vocabulary: label {place} is {theirs[place]!r} there and "
            f"{ours[place]!r} in the model: {ANOTHER_VOCABULARY}"
        )


def log(transfer: Transfer, what: str) -> None:
    (logging.info if transfer.complete else logging.warning)(f"Weights, {what}: {transfer}")
