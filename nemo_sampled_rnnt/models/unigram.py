"""How often each label comes in the training text."""

from __future__ import annotations

import json
import os
from collections.abc import Callable

import torch
from omegaconf import ListConfig
from tqdm import tqdm

from nemo_sampled_rnnt.sampling import load_unigram_counts

INSTEAD = (
    "write how often each label comes into a file, a line 'piece<TAB>count' or one count a line in the order of label "
    "ids, and name it in joint.sampled_softmax.unigram_counts; or choose another sampler"
)
LHOTSE = ("input_cfg", "cuts_path", "shar_path")


def unigram_counts(path: str | None, train_ds, text_to_ids: Callable, vocabulary) -> torch.Tensor:
    """(V,) counts, read from ``path`` or counted in the manifests of ``train_ds``.

    Args:
        path: file of counts, or None.
        train_ds: of the model's config; not looked at if there is a path.
        text_to_ids: from a text, and its language or None, to label ids; or None for a text that is left out.
        vocabulary: the labels.

    Raises:
        ValueError: neither a file nor a manifest that can be read, or no text in it.
    """
    size = len(vocabulary)
    if path is not None:
        return load_unigram_counts(path, list(vocabulary), size)
    counts, entry = torch.zeros(size, dtype=torch.int64), {}
    for manifest in manifests(train_ds):
        with open(manifest, encoding="utf-8") as lines:
            for line in tqdm(lines, desc=f"unigram counts of {manifest}", unit=" lines", mininterval=5):
                if line.strip():
                    entry = json.loads(line)
                    text, lang = text_of(entry, train_ds), entry.get(train_ds.get("lang_field", "lang"))
                    ids = torch.tensor(text_to_ids(text, lang) or [] if text else [], dtype=torch.int64)
                    counts += torch.bincount(ids, minlength=size)
    if not counts.any():
        raise ValueError(
            f"the sampler unigram found no label in {', '.join(manifests(train_ds))}, whose last entry has the keys "
            f"{', '.join(entry) or '(none)'}: expected text; or {INSTEAD}"
        )
    return counts


def text_of(entry: dict, train_ds) -> str | list:
    """The transcript of a manifest's entry, where NeMo's datasets look for it; "" if there is none."""
    text = entry.get(train_ds.get("text_field", "text") if train_ds.get("use_lhotse") else "text")
    if text is None and "text_filepath" in entry:
        with open(entry["text_filepath"], encoding="utf-8") as file:
            text = file.read().replace("\n", "")
    return entry.get("normalized_text", "") if text is None else text


def manifests(train_ds) -> list[str]:
    """NeMo's manifest_filepath is a path, paths between commas, or a list."""
    if train_ds is None:
        raise ValueError(f"the sampler unigram counts labels in train_ds, which the model's config lacks: {INSTEAD}")
    for key in LHOTSE:
        if train_ds.get(key) is not None:
            raise ValueError(f"the sampler unigram counts labels in manifests, not in train_ds.{key}: {INSTEAD}")
    paths = train_ds.get("manifest_filepath")
    if isinstance(paths, str):
        paths = [path.strip() for path in paths.split(",")]
    if isinstance(paths, (list, tuple, ListConfig)) and paths and all(isinstance(path, str) for path in paths):
        paths = [os.path.expanduser(path) for path in paths]
        if all(map(os.path.isfile, paths)):
            return paths
    raise ValueError(
        f"the sampler unigram counts labels in train_ds.manifest_filepath, which is {paths!r}: expected the paths of "
        f"one or more JSON manifests; or {INSTEAD}"
    )
