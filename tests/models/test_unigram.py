"""Where the sampler "unigram" gets its counts from, and what it says where there are none."""

import json

import pytest
import torch
from families import BPE, CHARACTER
from omegaconf import OmegaConf

UNIGRAM = {"joint": {"sampled_softmax": {"sampler": "unigram"}}}


def counted(model) -> dict[str, int]:
    model.on_fit_start()
    counts = zip(model.joint.vocabulary, model.joint._unigram_counts.tolist(), strict=True)
    return {label: count for label, count in counts if count}


def reading(tokenizer, speech, **train_ds):
    """A model of characters, its train_ds changed after it was built: NeMo has read the data by then."""
    model = CHARACTER.build(tokenizer, speech, more=UNIGRAM)
    model.cfg.train_ds = OmegaConf.create({"labels": model.cfg.labels} | train_ds)
    return model


@pytest.mark.parametrize("family", [BPE, CHARACTER], ids=["BPE", "CHARACTER"])
def test_a_file_of_counts_needs_no_manifest(family, tokenizer, speech, tmp_path):
    """The data may come from the trainer alone."""
    model = family.build(tokenizer, speech)
    (tmp_path / "counts.txt").write_text("\n".join(str(2 + i % 3) for i in range(len(model.joint.vocabulary))))
    model = family.build(tokenizer, more=UNIGRAM)
    assert "train_ds" not in model.cfg
    with pytest.raises(ValueError, match="train_ds, which the model's config lacks: write .*unigram_counts"):
        model.on_fit_start()
    more = {"joint": {"sampled_softmax": {"sampler": "unigram", "unigram_counts": str(tmp_path / "counts.txt")}}}
    model = family.build(tokenizer, more=more)
    model.on_fit_start()
    assert torch.equal(model.joint._unigram_counts, 2 + torch.arange(len(model.joint.vocabulary)) % 3)


@pytest.mark.parametrize(
    "entry, more",
    [
        ({"text": "cat"}, {}),
        ({"text_filepath": "said.txt"}, {}),
        ({"normalized_text": "cat"}, {}),
        ({"text": "dog", "spoken": "cat"}, {"use_lhotse": True, "text_field": "spoken"}),
    ],
    ids=["text", "text_filepath", "normalized_text", "text_field"],
)
def test_text_is_found_where_nemo_finds_it(entry, more, tokenizer, speech, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "said.txt").write_text("cat\n")
    (tmp_path / "train_manifest.json").write_text(json.dumps(entry) + "\n\n")
    model = reading(tokenizer, speech, manifest_filepath="train_manifest.json, train_manifest.json", **more)
    assert counted(model) == {"c": 2, "a": 2, "t": 2}


@pytest.mark.parametrize(
    "train_ds, message",
    [
        (
            {"input_cfg": [{"type": "nemo", "manifest_filepath": "a.json"}]},
            "not in train_ds.input_cfg: write how often",
        ),
        ({"cuts_path": "cuts.jsonl", "use_lhotse": True}, "not in train_ds.cuts_path"),
        ({"manifest_filepath": "nowhere.json"}, r"which is \['nowhere.json'\]: expected the paths"),
        ({"manifest_filepath": [["a.json"], ["b.json"]]}, "expected the paths of one or more JSON manifests"),
        ({"manifest_filepath": "silent.json"}, "no label in silent.json, whose last entry has the keys audio_filepath"),
    ],
    ids=["input_cfg", "cuts", "no file", "buckets", "no text"],
)
def test_what_it_cannot_count(train_ds, message, tokenizer, speech, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "silent.json").write_text(json.dumps({"audio_filepath": "a.wav"}))
    with pytest.raises(ValueError, match=message) as error:
        reading(tokenizer, speech, **train_ds).on_fit_start()
    assert "name it in joint.sampled_softmax.unigram_counts; or choose another sampler" in str(error.value)
