"""Every family of transducers that NeMo trains with this loss: steps, files, cache-aware streaming, adapters."""

import json

import pytest
import torch
from families import BPE, CHARACTER, CHARACTER_HYBRID, FAMILIES, HYBRID, assert_same_weights, with_ctc_that_speaks
from nemo.collections.asr.models import ASRModel
from nemo.collections.asr.parts.utils.streaming_utils import CacheAwareStreamingAudioBuffer
from nemo.collections.common.parts.adapter_modules import LinearAdapterConfig
from omegaconf import OmegaConf
from tiny import CHARACTERS, ENCODER, fit, talkative, texts

from nemo_sampled_rnnt.modules import SampledRNNTJoint
from nemo_sampled_rnnt.sampling import load_unigram_counts

GENTLE = {"optim": {"name": "sgd", "lr": 1e-4}}  # Adam would make the sign of a rounding error a step
every_family = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)


def transcripts(model, wav_files, **options):
    return texts(model.transcribe(wav_files, verbose=False, **options))


@every_family
@pytest.mark.parametrize("sampler", ["ctc", "unigram"])
def test_trains(sampler, family, tokenizer, speech):
    model = family.build(tokenizer, speech, more={"joint": {"sampled_softmax": {"sampler": sampler}}})
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    metrics = fit(model, 2).callback_metrics
    assert model.joint.sampler.draws == 2
    for name, parameter in model.named_parameters():
        assert not torch.equal(parameter, before[name]) or "linear_k.bias" in name, f"{name} was not trained"
    for part in ("train", "val"):
        mixed = 0.7 * metrics[f"{part}_rnnt_loss"] + 0.3 * metrics[f"{part}_ctc_loss"]
        torch.testing.assert_close(metrics[f"{part}_loss"], mixed)
    wers = {"training_batch_wer", "training_batch_wer_ctc", "val_wer", "val_wer_ctc"}
    assert wers | {"train_candidates", "train_candidate_share"} <= set(metrics)
    assert 7 < metrics["train_candidates"] < len(model.joint.vocabulary)


@pytest.mark.parametrize("family", [HYBRID, CHARACTER_HYBRID])
@pytest.mark.parametrize("interctc", [None, {"loss_weights": [0.4], "apply_at_layers": [0]}], ids=["", "interctc"])
def test_exact_steps_are_the_stock_hybrids(interctc, family, tokenizer, speech):
    """Training and validation without sampling: the same losses and error rates from the same weights."""
    more = {"interctc": interctc, "encoder": {"n_layers": 2}} if interctc else {}
    more |= GENTLE
    stock = family.build_stock(tokenizer, speech, more=more).train()
    ours = family.build(tokenizer, speech, sampled_softmax=None, more=more)
    ours.load_state_dict(stock.state_dict())
    results = [fit(model, 2).callback_metrics for model in (ours, stock)]
    own = {"train_candidates", "train_candidate_share"}
    assert set(results[0]) - own >= set(results[1])
    assert any("inter_ctc" in name for name in results[1]) == bool(interctc)
    for name, expected in results[1].items():
        torch.testing.assert_close(results[0][name], expected, rtol=2e-4, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


def test_interctc_of_a_plain_transducer(tokenizer, speech):
    more = {"interctc": {"loss_weights": [0.4], "apply_at_layers": [0]}, "encoder": {"n_layers": 2}}
    metrics = fit(BPE.build(tokenizer, speech, more=more), 2).callback_metrics
    assert {"inter_ctc_loss_l0", "val_inter_ctc_loss_l0", "val_inter_wer_l0", "val_final_loss"} <= set(metrics)


def test_character_step_without_a_head_is_the_stock_one(tokenizer, speech):
    stock = CHARACTER.build_stock(tokenizer, speech, more=GENTLE).train()
    ours = CHARACTER.build(tokenizer, speech, aux_ctc=False, sampled_softmax=None, more=GENTLE)
    ours.load_state_dict(stock.state_dict())
    results = [fit(model, 2).callback_metrics for model in (ours, stock)]
    for name, expected in results[1].items():
        torch.testing.assert_close(results[0][name], expected, rtol=2e-4, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


@every_family
def test_files(family, tokenizer, speech, wav_files, tmp_path):
    """Ours opens as ours by any class; the stock one as stock by ASRModel, and as ours by our class."""
    stock = family.build_stock(tokenizer, speech)
    said = transcripts(stock, wav_files)
    assert all(said) and len(set(said)) == len(said)
    stock.save_to(str(tmp_path / "stock.nemo"))
    assert type(ASRModel.restore_from(str(tmp_path / "stock.nemo"))) is family.stock
    assert type(family.stock.restore_from(str(tmp_path / "stock.nemo"))) is family.stock
    ours = family.ours.restore_from(str(tmp_path / "stock.nemo"))
    assert type(ours) is family.ours and type(ours.joint) is SampledRNNTJoint
    assert_same_weights(ours, stock)
    assert transcripts(ours, wav_files) == said
    ours.save_to(str(tmp_path / "ours.nemo"))
    for by in (ASRModel, family.stock, family.ours):
        restored = by.restore_from(str(tmp_path / "ours.nemo"))
        assert type(restored) is family.ours
        assert_same_weights(restored, stock)
        assert transcripts(restored, wav_files) == said


def test_hybrids_transcribe_by_ctc(tokenizer, speech, wav_files):
    for family in (HYBRID, CHARACTER_HYBRID):
        stock = family.build_stock(tokenizer, speech)
        ours = family.build(tokenizer, speech).eval()
        ours.load_state_dict(stock.state_dict())
        for model in (stock, ours):
            model.change_decoding_strategy(decoder_type="ctc", verbose=False)
        said = transcripts(stock, wav_files)
        assert any(said)
        assert transcripts(ours, wav_files) == said


def test_unigram_counts_of_characters(tokenizer, speech, tmp_path):
    """Counted as NeMo's datasets parse the text: what is no label is left out."""
    manifest = tmp_path / "counted_manifest.json"
    line = speech.read_text().splitlines()[0]
    text = json.loads(line)["text"]
    manifest.write_text(line.replace(text, "The cat, sat") + "\n")
    model = CHARACTER.build(tokenizer, speech, more={"joint": {"sampled_softmax": {"sampler": "unigram"}}})
    model.cfg.train_ds.manifest_filepath = str(manifest)
    model.on_fit_start()
    counts = dict(zip(CHARACTERS, model.joint._unigram_counts.tolist(), strict=True))
    assert {label: count for label, count in counts.items() if count} == {
        "t": 2, "h": 1, "e": 1, " ": 2, "c": 1, "a": 2, "s": 1,
    }  # fmt: skip
    (tmp_path / "counts.txt").write_text("\n".join(map(str, counts.values())))
    loaded = load_unigram_counts(tmp_path / "counts.txt", CHARACTERS, len(CHARACTERS))
    assert torch.equal(loaded, model.joint._unigram_counts)


# Cache-aware streaming: convolutions look back only, attention by chunks.

CACHE_AWARE = dict(
    ENCODER,
    n_layers=2,
    subsampling="dw_striding",
    causal_downsampling=True,
    att_context_size=[8, 1],
    att_context_style="chunked_limited",
    conv_context_size="causal",
    conv_norm_type="layer_norm",
)


def stream(model, path):
    """Chunk by chunk, as NeMo's script for cache-aware streaming."""
    buffer = CacheAwareStreamingAudioBuffer(model=model)
    buffer.append_audio_file(path, stream_id=-1)
    caches = model.encoder.get_initial_cache_state(batch_size=1)
    hypotheses, chunks = None, 0
    for chunk, lengths in buffer:
        with torch.inference_mode():
            _, _, *caches, hypotheses = model.conformer_stream_step(
                processed_signal=chunk,
                processed_signal_length=lengths,
                cache_last_channel=caches[0],
                cache_last_time=caches[1],
                cache_last_channel_len=caches[2],
                keep_all_outputs=buffer.is_buffer_empty(),
                previous_hypotheses=hypotheses,
                drop_extra_pre_encoded=model.encoder.streaming_cfg.drop_extra_pre_encoded if chunks else 0,
            )
        chunks += 1
    assert chunks > 3
    return hypotheses[0].text


@pytest.mark.parametrize("family", [BPE, HYBRID])
def test_cache_aware_streaming(family, tokenizer, speech, wav_files):
    more = {"encoder": CACHE_AWARE, "preprocessor": {"normalize": "NA"}}
    model = family.build(tokenizer, speech, more=more)
    assert fit(model, 1).callback_metrics["train_loss"].isfinite()
    model = with_ctc_that_speaks(talkative(model))
    said = stream(model, wav_files[-1])
    assert said == transcripts(model, wav_files[-1:])[0] and len(said) > 3, "as of the whole file"
    stock = family.stock(family.stock_config(tokenizer, more=more))
    stock.load_state_dict(model.state_dict(), strict=family.hybrid)
    assert stream(stock.eval(), wav_files[-1]) == said


@every_family
def test_adapter_step(family, tokenizer, speech, wav_files, tmp_path):
    """An adapter alone learns; it is saved, and switched off it leaves the model as it was."""
    encoder = "nemo.collections.asr.modules.conformer_encoder.ConformerEncoderAdapter"
    model = talkative(family.build(tokenizer, speech, more={"encoder": {"_target_": encoder}}))
    said = transcripts(model, wav_files)
    model.add_adapter("accent", LinearAdapterConfig(in_features=16, dim=3))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.freeze()
    model.train()
    model.set_enabled_adapters(enabled=False)
    model.set_enabled_adapters("accent", enabled=True)
    model.unfreeze_enabled_adapters()
    fit(model, 2)
    assert model.joint.sampler.draws == 2
    changed = [name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])]
    assert changed and all("adapter_layer.accent" in name for name in changed)

    model.eval().save_to(str(tmp_path / "adapted.nemo"))
    restored = ASRModel.restore_from(str(tmp_path / "adapted.nemo"))
    assert_same_weights(restored, model)
    restored.set_enabled_adapters(enabled=False)
    assert transcripts(restored, wav_files) == said


@pytest.mark.parametrize(
    "path, extra", [("hybrid_autoregressive_transducer.HATJoint", 0), ("RNNTJoint", 3), ("SampledRNNTJoint", 3)]
)
def test_a_joint_that_cannot_be_sampled(path, extra, tokenizer):
    joint = path.split(".")[-1]
    expected = f"this model has {joint} with {extra} extra outputs and the loss default .* NeMo's own class"
    with pytest.raises(ValueError, match=expected):
        BPE.build(tokenizer, _target_=f"nemo.collections.asr.modules.{path}", num_extra_outputs=extra)


def test_hybrid_makes_a_head_where_the_config_has_none(tokenizer, speech):
    for family in (HYBRID, CHARACTER_HYBRID):
        config = family.stock_config(tokenizer, speech, hybrid=False)
        config.joint.sampled_softmax = OmegaConf.create({"n_samples": 5, "sampler": "ctc"})
        model = family.ours(config)
        assert model.ctc_decoder.num_classes_with_blank == model.joint.num_classes_with_blank
        assert fit(model, 1).callback_metrics["train_ctc_loss"].isfinite()
