"""Models with NeMo's aggregate tokenizers, a vocabulary a language."""

import json

import pytest
import torch
from families import BPE, HYBRID, with_ctc_that_speaks
from omegaconf import OmegaConf
from tiny import fit, make_tokenizer, talkative

FAMILIES = pytest.mark.parametrize("family", [BPE, HYBRID], ids=["BPE", "HYBRID"])


@pytest.fixture(scope="module")
def build(tokenizer, speech, tmp_path_factory):
    """Models of two languages, 61 and 43 pieces, the utterances in them by turns."""
    folder = tmp_path_factory.mktemp("languages")
    other = make_tokenizer(folder / "other", pieces=43)
    entries = [json.loads(line) for line in speech.read_text().splitlines()]
    lines = [json.dumps(entry | {"lang": ("en", "xx")[i % 2]}) for i, entry in enumerate(entries)]
    (folder / "train_manifest.json").write_text("\n".join(lines))
    tokenizers = {"en": {"dir": str(tokenizer), "type": "bpe"}, "xx": {"dir": str(other), "type": "bpe"}}

    def build(family, **sampled):
        config = family.config(tokenizer, folder / "train_manifest.json", sampled_softmax={"n_samples": 7} | sampled)
        config.tokenizer = OmegaConf.create({"type": "agg", "langs": tokenizers})
        torch.manual_seed(0)
        return with_ctc_that_speaks(talkative(family.ours(config))).train()

    return build


@FAMILIES
@pytest.mark.parametrize("sampler", ["ctc", "unigram"])
def test_trains(sampler, family, build):
    """With the CTC head's WER, for which stock NeMo stops: its CTC decoding names no language."""
    model = build(family, sampler=sampler)
    metrics = fit(model, 2).callback_metrics
    assert len(model.joint.vocabulary) == 61 + 43 == model.ctc_decoder.num_classes_with_blank - 1
    assert all(metrics[name].isfinite() for name in ("train_loss", "val_loss", "val_wer_ctc", "training_batch_wer_ctc"))


@FAMILIES
def test_the_ctc_heads_text_is_the_transducers(family, build, tmp_path):
    model = build(family)
    ids = [5, 9, 61 + 7, 61 + 12, 20]
    said = model.decoding.decode_ids_to_str(ids)
    assert len(said) > 3 and model.ctc_decoding.decode_ids_to_str(ids) == said == model.tokenizer.ids_to_text(ids)
    model.save_to(str(tmp_path / "model.nemo"))
    restored = family.ours.restore_from(str(tmp_path / "model.nemo"))
    assert restored.ctc_decoding.decode_ids_to_str(ids) == said


def test_unigram_counts_go_by_language(build, tmp_path):
    model = build(BPE, sampler="unigram")
    path = tmp_path / "counted_manifest.json"
    entries = [
        {"text": "the cat", "lang": "en"},
        {"text": "birds sang", "lang": "xx"},
        {"text": [{"str": "open", "lang": "xx"}, {"str": "water", "lang": "en"}]},
    ]
    path.write_text("\n".join(map(json.dumps, entries)))
    model.cfg.train_ds.manifest_filepath = str(path)
    model.on_fit_start()
    en, xx = (model.tokenizer.tokenizers_dict[lang].text_to_ids for lang in ("en", "xx"))
    ids = en("the cat") + en("water") + [61 + i for i in xx("birds sang") + xx("open")]
    assert torch.equal(model.joint._unigram_counts, torch.bincount(torch.tensor(ids), minlength=61 + 43))
    path.write_text(json.dumps({"text": "the cat", "lang": "fr"}))
    with pytest.raises(ValueError, match="language of each text, one of en, xx, but 'the cat' has lang 'fr'"):
        model.on_fit_start()
