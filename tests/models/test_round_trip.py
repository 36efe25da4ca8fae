"""Checkpoints, export and decoding: as NeMo's own transducer, both ways."""

import numpy as np
import pytest
import soundfile
import torch
from listening import STRATEGIES
from nemo.collections.asr.models import ASRModel, EncDecHybridRNNTCTCBPEModel, EncDecRNNTBPEModel
from omegaconf import OmegaConf, open_dict
from tiny import fit, make_config, stock_joint, talkative, texts

from nemo_sampled_rnnt.models import EncDecSampledRNNTBPEModel
from nemo_sampled_rnnt.modules import SampledRNNTJoint


@pytest.fixture(scope="module")
def ours(tokenizer, speech):
    """Trained a little, then made to say something."""
    torch.manual_seed(0)
    model = EncDecSampledRNNTBPEModel(make_config(tokenizer, speech))
    fit(model, 2)
    return talkative(model)


@pytest.fixture(scope="module")
def stock(ours, tokenizer, speech):
    """NeMo's model with the same weights: strict, but for the CTC head."""
    model = EncDecRNNTBPEModel(stock_joint(make_config(tokenizer, speech)))
    state = {name: tensor for name, tensor in ours.state_dict().items() if not name.startswith("ctc_")}
    assert set(ours.state_dict()) - set(state) == {f"ctc_decoder.decoder_layers.0.{x}" for x in ("weight", "bias")}
    model.load_state_dict(state, strict=True)
    return model.eval()


@pytest.fixture(scope="module")
def spoken(ours, wav_files):
    said = transcripts(ours, wav_files)
    assert all(said) and len(set(said)) == len(said) and len(set("".join(said))) > 4, "they tell models apart"
    return said


def transcripts(model, wav_files, **options):
    return texts(model.transcribe(wav_files, verbose=False, **options))


def assert_same_weights(one, other):
    assert list(one.state_dict()) == list(other.state_dict())
    for (name, tensor), twin in zip(one.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(tensor, twin), name


def test_stock_model_takes_our_weights(stock, spoken, wav_files):
    assert transcripts(stock, wav_files) == spoken


@pytest.mark.parametrize("by", [EncDecSampledRNNTBPEModel, EncDecRNNTBPEModel, ASRModel])
def test_our_file(by, ours, spoken, wav_files, tmp_path):
    ours.save_to(str(tmp_path / "ours.nemo"))
    restored = by.restore_from(str(tmp_path / "ours.nemo"))
    assert type(restored) is EncDecSampledRNNTBPEModel
    assert type(restored.joint) is SampledRNNTJoint
    assert restored.joint.sampled_softmax == ours.joint.sampled_softmax
    assert_same_weights(restored, ours)
    assert transcripts(restored, wav_files) == spoken


def test_our_file_goes_on_training(ours, tmp_path):
    ours.save_to(str(tmp_path / "ours.nemo"))
    restored = EncDecSampledRNNTBPEModel.restore_from(str(tmp_path / "ours.nemo"))
    metrics = fit(restored.train(), 2).callback_metrics
    assert restored.joint.sampler.draws == 2
    assert metrics["train_loss"].isfinite() and metrics["val_loss"].isfinite()


def test_stock_file_as_our_class(stock, spoken, wav_files, tmp_path):
    stock.save_to(str(tmp_path / "stock.nemo"))
    restored = EncDecSampledRNNTBPEModel.restore_from(str(tmp_path / "stock.nemo"))
    assert type(restored) is EncDecSampledRNNTBPEModel
    assert restored.cfg.target == "nemo_sampled_rnnt.models.EncDecSampledRNNTBPEModel"
    assert_same_weights(restored, stock)
    assert transcripts(restored, wav_files) == spoken
    assert type(ASRModel.restore_from(str(tmp_path / "stock.nemo"))) is EncDecRNNTBPEModel


def test_stock_file_fine_tuned_by_sampling(stock, tmp_path):
    """The sampled softmax is a line of the config: nothing in the weights depends on it."""
    stock.save_to(str(tmp_path / "stock.nemo"))
    config = EncDecSampledRNNTBPEModel.restore_from(str(tmp_path / "stock.nemo"), return_config=True)
    with open_dict(config):
        config.joint.sampled_softmax = {"n_samples": 5, "sampler": "uniform"}
    model = EncDecSampledRNNTBPEModel.restore_from(str(tmp_path / "stock.nemo"), override_config_path=config)
    fit(model.train(), 1)
    assert model.joint.sampler.draws == 1


def test_state_dict_without_a_head_is_the_stock_models(tokenizer):
    config = make_config(tokenizer, aux_ctc=False)
    ours = EncDecSampledRNNTBPEModel(config).state_dict()
    assert list(ours) == list(EncDecRNNTBPEModel(stock_joint(config)).state_dict())


def test_state_dict_with_a_head_is_the_hybrid_models(tokenizer, speech, ours, spoken, wav_files):
    config = make_config(tokenizer, speech)
    with open_dict(config):
        aux_ctc = config.aux_ctc.copy()
        config = stock_joint(config)
        config.aux_ctc = aux_ctc
        config.aux_ctc.decoder.feat_in = 16
    hybrid = EncDecHybridRNNTCTCBPEModel(config)
    hybrid.load_state_dict(ours.state_dict(), strict=True)
    assert transcripts(hybrid.eval(), wav_files) == spoken


# Decoding is NeMo's.


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_decoding_strategies(strategy, ours, stock, wav_files):
    before = ours.cfg.decoding.copy()
    results = []
    for model in (ours, stock):
        model.change_decoding_strategy(OmegaConf.create(STRATEGIES[strategy]), verbose=False)
        results.append(transcripts(model, wav_files[:3]))
        model.change_decoding_strategy(before, verbose=False)
    assert results[0] == results[1]
    assert any(results[0])


def test_timestamps(ours, stock, wav_files):
    before = ours.cfg.decoding.copy()
    results = []
    for model in (ours, stock):
        results.append(model.transcribe(wav_files[:3], timestamps=True, verbose=False))
        model.change_decoding_strategy(before, verbose=False)
    for got, expected in zip(*results, strict=True):
        assert got.text == expected.text
        assert got.timestamp["word"] == expected.timestamp["word"]
        assert got.timestamp["word"] and "start" in got.timestamp["word"][0]


def test_streaming_of_partial_hypotheses(ours, stock, wav_files):
    """Chunk by chunk, each going on from the hypotheses of the one before."""
    audio = [torch.from_numpy(soundfile.read(path, dtype="float32")[0]) for path in wav_files[:3]]
    lengths = torch.tensor([len(x) for x in audio])
    signal = torch.nn.utils.rnn.pad_sequence(audio, batch_first=True)
    results = []
    for model in (ours, stock):
        with torch.no_grad():
            encoded, encoded_lengths = model(input_signal=signal, input_signal_length=lengths)
            partial, steps = None, []
            for start in range(0, encoded.shape[2], 5):
                chunk = encoded[:, :, start : start + 5]
                partial = model.decoding.rnnt_decoder_predictions_tensor(
                    chunk,
                    (encoded_lengths - start).clamp(0, chunk.shape[2]),
                    return_hypotheses=True,
                    partial_hypotheses=partial,
                )
                steps.append([x.y_sequence.tolist() for x in partial])
        results.append(steps)
    assert results[0] == results[1]
    lengths = [len(step[2]) for step in results[0]]
    assert lengths == sorted(lengths) and lengths[-1] > lengths[0] > 0


def test_transcribe_takes_partial_hypotheses(ours, stock, wav_files):
    results = []
    for model in (ours, stock):
        first = model.transcribe(wav_files[:2], return_hypotheses=True, verbose=False)
        first = first[0] if isinstance(first, tuple) else first
        second = model.transcribe(wav_files[:2], return_hypotheses=True, partial_hypothesis=first, verbose=False)
        results.append(texts(second))
    assert results[0] == results[1]


# Export is NeMo's.


@pytest.mark.filterwarnings("ignore")  # of torch's exporter
def test_onnx(tokenizer, speech, wav_files, tmp_path):
    onnx = pytest.importorskip("onnx")
    from onnx.reference import ReferenceEvaluator

    torch.manual_seed(0)
    model = talkative(EncDecSampledRNNTBPEModel(make_config(tokenizer, speech)))
    before = transcripts(model, wav_files)
    model.export(str(tmp_path / "model.onnx"))
    assert model.joint.fuse_loss_wer and model.joint.log_softmax is None
    for part in ("encoder", "decoder_joint"):
        onnx.checker.check_model(str(tmp_path / f"{part}-model.onnx"))
    exported = ReferenceEvaluator(str(tmp_path / "decoder_joint-model.onnx"))
    assert exported.input_names[:3] == ["encoder_outputs", "targets", "target_length"], "as from a stock model"
    random = np.random.default_rng(0)
    encoded = random.standard_normal((1, 16, 6), dtype=np.float32)
    targets = random.integers(0, 60, (1, 1)).astype(np.int32)
    states = [np.zeros((1, 1, 12), dtype=np.float32)] * 2
    feeds = dict(zip(exported.input_names, [encoded, targets, np.array([1], dtype=np.int32), *states], strict=True))
    (logits,) = exported.run(exported.output_names[:1], feeds)
    with torch.no_grad():
        predicted, _ = model.decoder.predict(torch.from_numpy(targets).long(), None, add_sos=False)
        expected = model.joint.joint(torch.from_numpy(encoded).transpose(1, 2), predicted)
    np.testing.assert_allclose(log_softmax(logits), expected.numpy(), atol=1e-4)
    assert transcripts(model, wav_files) == before, "and the model can be used as before"


def log_softmax(logits):
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
