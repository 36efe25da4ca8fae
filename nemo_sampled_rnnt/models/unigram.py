"""How often each label comes in the training text."""

from __future__ import annotations

import json

import torch
from omegaconf import ListConfig
from tqdm import tqdm

from nemo_sampled_rnnt.sampling import load_unigram_counts


def unigram_counts(path: str | None, train_ds, text_to_ids, vocabulary) -> torch.Tensor:
    """(V,) counts, read from ``path`` or counted in the manifests of ``train_ds``.

    Raises:
        ValueError: neither a file nor a readable manifest.
    """
    size = len(vocabulary)
    if path is not None:
        return load_unigram_counts(path, list(vocabulary), size)
    counts = torch.zeros(size, dtype=torch.int64)
    for manifest in manifests(train_ds.get("manifest_filepath")):
        with open(manifest, encoding="utf-8") as lines:
            for line in tqdm(lines, desc=f"unigram counts of {manifest}", unit=" lines", mininterval=5):
                if line.strip():
                    ids = torch.tensor(text_to_ids(json.loads(line)["text"]) or [], dtype=torch.int64)
                    counts += torch.bincount(ids, minlength=size)
    return counts


def manifests(paths) -> list[str]:
    """NeMo's manifest_filepath is a path, paths between commas, or a list."""
    if isinstance(paths, str):
        return [path.strip() for path in paths.split(",")]
    if isinstance(paths, (list, tuple, ListConfig)) and all(isinstance(path, str) for path in paths) and paths:
        return list(paths)
    raise ValueError(
        f"the sampler unigram counts labels in train_ds.manifest_filepath, which is {paths!r}: give one or more JSON "
        "manifests, or a file of counts in joint.sampled_softmax.unigram_counts"
    )
