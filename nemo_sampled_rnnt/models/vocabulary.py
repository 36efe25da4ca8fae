"""A new vocabulary, from nothing or as an extension of the old one."""

from __future__ import annotations

import inspect
import math
import os
from collections import Counter
from contextlib import contextmanager

import torch
from nemo.collections.asr.losses.rnnt import RNNTLoss
from nemo.collections.asr.parts.mixins import ASRBPEMixin
from nemo.core.classes.common import Serialization
from nemo.utils import logging
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict

from nemo_sampled_rnnt.models.config import has_tokenizer

SPECIAL = {"<unk>", "<s>", "</s>", "<pad>", "[UNK]", "[PAD]", "[CLS]", "[SEP]", "[MASK]"}  # whatever the language
NEW_SHARE = 1e-3  # of the probability of the known labels: what all new ones together have at most, before training


class VocabularyMixin:
    """``change_vocabulary`` that keeps the loss, and on request the weights."""

    def change_vocabulary(self, *args, extend: bool = False, **kwargs):
        """NeMo's, which forgets FastEmit and reduction, makes plain RNN-T with a wrong blank of a TDT model, and leaves
        the CTC head of a plain transducer behind.

        Args:
            args, kwargs: as NeMo's: directory and type of a tokenizer, or the list of characters.
            extend: keep the weights of predictor, joint and CTC head, with the rows of embedding and output layers
                where the new vocabulary has their labels. Transcripts stay as they are if it has them all.

        Raises:
            ValueError: characters that are no distinct strings; extend, and the vocabularies have no label in common.
                Nothing is changed.
        """
        call = inspect.signature(super().change_vocabulary).bind(*args, **kwargs).arguments
        if not has_tokenizer(type(self)):
            refuse_wrong_labels(call["new_vocabulary"] or [])
        if extend:
            self._refuse_strange_labels(call)
        old = {part: getattr(self, part) for part in ("decoder", "joint", "ctc_decoder") if hasattr(self, part)}
        with without_null(self.cfg, ("train_ds", "validation_ds", "test_ds")):
            super().change_vocabulary(*args, **kwargs)
        if self.joint is old["joint"]:
            return  # the characters are the same, and NeMo changed nothing
        vocabulary = list(self.joint.vocabulary)
        with open_dict(self.cfg):
            self.cfg.labels = ListConfig(vocabulary)  # from which NeMo restores a model with characters
            if self.has_ctc_head:
                self.cfg.aux_ctc.decoder.num_classes = len(vocabulary)
        self._rebuild_loss()
        self.setup_ctc_head()
        for part, module in old.items():
            getattr(self, part).to(next(module.parameters())).train(module.training)
        if extend:
            self._extend(old)

    def _refuse_strange_labels(self, call: dict) -> None:
        """Look at a new vocabulary, in a call's arguments, before NeMo changes anything; what is none at all is NeMo's
        to refuse."""
        if not has_tokenizer(type(self)):
            labels = call["new_vocabulary"] or []
        else:
            source, kind = call["new_tokenizer_dir"], call["new_tokenizer_type"]
            config = source if isinstance(source, DictConfig) else OmegaConf.create({"dir": source, "type": kind})
            labels = Loader().labels(config) if config is source or os.path.isdir(source) else []
        if labels and not set(self.joint.vocabulary) & set(labels) - SPECIAL:
            raise ValueError(
                f"the old vocabulary ({len(self.joint.vocabulary)} labels, such as {list(self.joint.vocabulary)[-3:]}) "
                f"and the new one ({len(labels)}, such as {list(labels)[-3:]}) have no label in common, so there is "
                "nothing to extend: call change_vocabulary without extend"
            )

    def _rebuild_loss(self) -> None:
        name, options = self.extract_rnnt_loss_cfg(self.cfg.get("loss"))
        self.loss = RNNTLoss(
            num_classes=self.joint.num_classes_with_blank - 1 - self.joint.num_extra_outputs,
            loss_name=name,
            loss_kwargs=options,
            reduction=self.cfg.get("rnnt_reduction", "mean_batch"),
        )
        self.joint.set_loss(self.loss)

    @torch.no_grad()
    def _extend(self, old: dict[str, torch.nn.Module]) -> None:
        """Carry the weights of the old modules over; says which labels are lost."""
        before, after = list(old["joint"].vocabulary), list(self.joint.vocabulary)
        pairs = same_labels(before, after)
        logging.info(f"Vocabulary of {len(before)} labels extended to {len(after)}, {len(pairs)} of them known.")
        if len(pairs) < len(before):
            lost = sorted(set(range(len(before))) - {i for i, _ in pairs})
            logging.warning(
                f"{len(lost)} of the {len(before)} old labels are not in the new vocabulary; speech that was "
                f"transcribed with them no longer will be: {[before[i] for i in lost]}"
            )
        for part, module in old.items():
            layers, new_layers = vocabulary_layers(part, module), vocabulary_layers(part, getattr(self, part))
            rest = {
                name: tensor
                for name, tensor in module.state_dict().items()
                if not name.startswith(tuple(f"{layer}." for layer in layers))
            }
            getattr(self, part).load_state_dict(rest, strict=False)
            for name, layer in layers.items():
                if part != "decoder":
                    start_below(layer, new_layers[name], [i for i, _ in pairs], len(after) - len(pairs))
                copy_rows(layer, new_layers[name], pairs, (len(before), len(after)))


def refuse_wrong_labels(characters) -> None:
    if isinstance(characters, str) or not all(isinstance(label, str) for label in characters):
        raise ValueError(f"the new vocabulary must be a list of strings, got {characters!r}: quote each label")
    twice = [label for label, count in Counter(characters).items() if count > 1]
    if twice:
        raise ValueError(f"the new vocabulary has labels more than once: {twice[:10]}: leave each in once")


@contextmanager
def without_null(config: DictConfig, sections: tuple[str, ...]):
    """Take those that are null out for a while: NeMo writes the characters into each section that is there."""
    null = [section for section in sections if section in config and config[section] is None]
    with open_dict(config):
        for section in null:
            config.pop(section)
    try:
        yield
    finally:
        with open_dict(config):
            for section in null:
                config[section] = None


class Loader(ASRBPEMixin, Serialization):
    """NeMo's way to a tokenizer, for no model."""

    def register_artifact(self, name, path):
        return path

    def labels(self, config: DictConfig) -> list[str]:
        self._setup_tokenizer(config)
        return list(self.tokenizer.tokenizer.get_vocab())


def same_labels(before: list[str], after: list[str]) -> list[tuple[int, int]]:
    """Pairs of ids, in the old and in the new vocabulary, of the labels that both have.

    Of a label that comes several times, as in aggregate tokenizers, the first goes to the first.
    """
    places: dict[str, list[int]] = {}
    for j, label in enumerate(after):
        places.setdefault(label, []).append(j)
    return [(i, places[label].pop(0)) for i, label in enumerate(before) if places.get(label)]


def vocabulary_layers(part: str, module: torch.nn.Module) -> dict[str, torch.nn.Module]:
    """The layers with a row for each label: embeddings of the predictor, output layers of joint and CTC head."""
    if part == "decoder":
        return {name: layer for name, layer in module.named_modules() if isinstance(layer, torch.nn.Embedding)}
    layers = "joint_net" if part == "joint" else "decoder_layers"
    last = len(getattr(module, layers)) - 1
    return {f"{layers}.{last}": getattr(module, layers)[last]}


def copy_rows(old: torch.nn.Module, new: torch.nn.Module, pairs: list[tuple[int, int]], size: tuple[int, int]) -> None:
    """Copy the rows of the known labels, and those behind all labels: blank (in an embedding: padding), durations.

    Args:
        size: of the old and of the new vocabulary.
    """
    pairs = pairs + [(size[0] + i, size[1] + i) for i in range(len(old.weight) - size[0])]
    source, place = zip(*pairs, strict=True)
    for name, tensor in new.named_parameters():
        tensor[list(place)] = old.get_parameter(name)[list(source)]


def start_below(old: torch.nn.Module, new: torch.nn.Module, known: list[int], added: int) -> None:
    """New labels score the mean of the known ones, less delta.

        z_new = mean_k z_k - delta        delta = log(max(1, N / K) / NEW_SHARE),  N new and K known labels

    A mean is below its maximum, so no new label wins an argmax, whatever the hidden vector; and exp is convex, so
    sum_new exp(z) <= N exp(-delta) mean_k exp(z_k) <= NEW_SHARE sum_k exp(z_k): beam scores stay, too, within 1e-3.
    The gradient of a label that is spoken is p - 1, and does not vanish however low its score.

    Source: the mean, Hewitt 2021 (Initializing new word embeddings for pretrained language models); delta: ours.
    """
    new.weight.copy_(old.weight[known].mean(dim=0))
    new.bias.fill_(old.bias[known].mean() - math.log(max(1, added / len(known)) / NEW_SHARE))
