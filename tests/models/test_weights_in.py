"""Weights of other people's checkpoints: by every way NeMo has, complete, and with what is not said by name."""

import logging as python_logging
import os
import tarfile

import pytest
import torch
from families import BPE, CHARACTER, CHARACTER_HYBRID, FAMILIES, HYBRID, assert_same_weights
from nemo.collections.asr.models import ASRModel, EncDecCTCModelBPE, EncDecHybridRNNTCTCBPEModel
from nemo.core.classes import common
from nemo.core.classes.modelPT import ModelPT
from nemo.utils import logging
from omegaconf import OmegaConf
from tiny import CHARACTERS, fit, make_config, make_tokenizer, texts

from nemo_sampled_rnnt.models import EncDecSampledRNNTBPEModel
from nemo_sampled_rnnt.models.weights import Transfer, summary

HEAD = ["ctc_decoder.decoder_layers.0.weight", "ctc_decoder.decoder_layers.0.bias"]
ADD_HEAD = {"aux_ctc": {"ctc_loss_weight": 0.3, "decoder": make_config("").aux_ctc.decoder}}


@pytest.fixture
def log(caplog):
    """NeMo's log lines, which the other tests switch off."""
    level = logging.getEffectiveLevel()
    logging.setLevel(logging.INFO)
    with caplog.at_level(python_logging.INFO, logger="nemo_logger"):
        yield caplog
    logging.setLevel(level)


@pytest.fixture(scope="module")
def stock(tokenizer, speech):
    """One model a family, with weights that say something."""
    return {name: family.build_stock(tokenizer, speech) for name, family in FAMILIES.items()}


@pytest.fixture(scope="module")
def files(stock, tmp_path_factory):
    folder = tmp_path_factory.mktemp("stock")
    for name, model in stock.items():
        model.save_to(str(folder / f"{name}.nemo"))
    return {name: str(folder / f"{name}.nemo") for name in stock}


def transcripts(model, wav_files):
    return texts(model.eval().transcribe(wav_files, verbose=False))


def model_config(path, **more):
    return OmegaConf.merge(ASRModel.restore_from(path, return_config=True), more)


# restore_from


@pytest.mark.parametrize("ours, name", [(BPE, "EncDecHybridRNNTCTCBPEModel"), (CHARACTER, "EncDecHybridRNNTCTCModel")])
def test_stock_hybrid_as_plain_transducer(ours, name, stock, files, wav_files):
    """With the CTC head and every one of its tensors; without the package asked for, it stays what it is."""
    model = ours.ours.restore_from(files[name])
    assert type(model) is ours.ours and model.has_ctc_head and len(stock[name].state_dict()) > 50
    assert_same_weights(model, stock[name])
    assert transcripts(model, wav_files) == transcripts(stock[name], wav_files)
    assert type(ASRModel.restore_from(files[name])) is FAMILIES[name].stock


@pytest.mark.parametrize("ours, name", [(HYBRID, "EncDecRNNTBPEModel"), (CHARACTER_HYBRID, "EncDecRNNTModel")])
def test_stock_transducer_as_hybrid(ours, name, stock, files, wav_files, log):
    with pytest.raises(RuntimeError, match=r"tensors loaded; 2 new, .*: ctc_decoder\.\* \(2\)\. With strict=False"):
        ours.ours.restore_from(files[name])
    model = ours.ours.restore_from(files[name], strict=False)
    loaded = len(stock[name].state_dict())
    assert f"{loaded} tensors loaded; 2 new, at initial values: ctc_decoder.* (2)" in log.text
    assert set(model.state_dict()) - set(stock[name].state_dict()) == set(HEAD)
    assert transcripts(model, wav_files) == transcripts(stock[name], wav_files)


def test_a_head_for_a_stock_transducer(files, stock, speech):
    """What fine-tuning with sampler ctc begins with."""
    path = files["EncDecRNNTBPEModel"]
    config = model_config(path, joint={"sampled_softmax": {"n_samples": 5}}, **ADD_HEAD)
    model = EncDecSampledRNNTBPEModel.restore_from(path, override_config_path=config, strict=False)
    for name, tensor in stock["EncDecRNNTBPEModel"].state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name
    assert fit(model.train(), 1).callback_metrics["train_ctc_loss"].isfinite()
    assert model.joint.sampler.draws == 1 and model.joint.sampled_softmax.sampler == "ctc"


def test_our_own_classes_open_each_other(tokenizer, speech, tmp_path):
    hybrid = HYBRID.build(tokenizer, speech)
    hybrid.save_to(str(tmp_path / "hybrid.nemo"))
    plain = EncDecSampledRNNTBPEModel.restore_from(str(tmp_path / "hybrid.nemo"))
    assert type(plain) is EncDecSampledRNNTBPEModel
    assert_same_weights(plain, hybrid)
    plain.save_to(str(tmp_path / "plain.nemo"))
    assert_same_weights(HYBRID.ours.restore_from(str(tmp_path / "plain.nemo")), hybrid)


def test_users_subclass_comes_back_as_itself(tokenizer, speech, tmp_path, monkeypatch):
    monkeypatch.setattr(common, "ALLOWED_TARGET_PREFIXES", [*common.ALLOWED_TARGET_PREFIXES, __name__])
    model = Subclass(BPE.config(tokenizer, speech))
    model.save_to(str(tmp_path / "subclass.nemo"))
    assert type(EncDecSampledRNNTBPEModel.restore_from(str(tmp_path / "subclass.nemo"))) is Subclass


class Subclass(EncDecSampledRNNTBPEModel):
    pass


# init_from_*


def model_without_weights(family, tokenizer, speech, **more):
    torch.manual_seed(5)
    return family.ours(family.config(tokenizer, speech, **more))


@pytest.mark.parametrize("name", ["EncDecRNNTBPEModel", "EncDecHybridRNNTCTCBPEModel"])
@pytest.mark.parametrize("way", ["init_from_nemo_model", "init_from_pretrained_model", "init_from_ptl_ckpt", "in code"])
def test_ways(way, name, tokenizer, speech, stock, files, tmp_path, log, monkeypatch):
    model = model_without_weights(BPE, tokenizer, speech)
    head = [model.get_parameter(parameter).clone() for parameter in HEAD]
    if way == "in code":
        model.load_state_dict(stock[name].state_dict(), strict=False)
    else:
        value = files[name]
        if way == "init_from_pretrained_model":
            value = "stt_en_fastconformer_hybrid_large_pc" if "Hybrid" in name else "stt_en_conformer_transducer_small"
            monkeypatch.setattr(common, "maybe_download_from_cloud", lambda **_: files[name])
        if way == "init_from_ptl_ckpt":
            value = str(tmp_path / "stock.ckpt")
            fit(stock[name], 0).save_checkpoint(value)
        model.maybe_init_from_pretrained_checkpoint(OmegaConf.create({way: value}))
    for parameter, tensor in stock[name].state_dict().items():
        assert torch.equal(model.state_dict()[parameter], tensor), parameter
    if "Hybrid" in name:
        assert_same_weights(model, stock[name])
        assert f"{len(model.state_dict())} tensors loaded\n" in log.text
    else:
        assert all(torch.equal(model.get_parameter(x), initial) for x, initial in zip(HEAD, head, strict=True))
        assert "tensors loaded; 2 new, at initial values: ctc_decoder.* (2)\n" in log.text


def test_hybrid_into_a_model_without_a_head(tokenizer, speech, files, stock, log):
    model = model_without_weights(BPE, tokenizer, speech, aux_ctc=False)
    path = files["EncDecHybridRNNTCTCBPEModel"]
    model.maybe_init_from_pretrained_checkpoint(OmegaConf.create({"init_from_nemo_model": path}))
    assert "tensors loaded; 2 skipped: ctc_decoder.* (2)" in log.text
    assert torch.equal(model.joint.enc.weight, stock["EncDecHybridRNNTCTCBPEModel"].joint.enc.weight)


def test_parts_of_several_models(tokenizer, speech, files, stock, tmp_path, log):
    model = model_without_weights(BPE, tokenizer, speech)
    initial = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    plain, hybrid = stock["EncDecRNNTBPEModel"], HYBRID.build_stock(tokenizer, speech)
    with torch.no_grad():
        hybrid.decoder.prediction["dec_rnn"].lstm.weight_hh_l0.add_(1)
    hybrid.save_to(str(tmp_path / "hybrid.nemo"))
    sources = {
        "encoder": {"path": files["EncDecRNNTBPEModel"], "include": ["encoder", "preprocessor"]},
        "predictor": {"path": str(tmp_path / "hybrid.nemo"), "include": ["decoder."], "exclude": ["embed", "ctc"]},
    }
    model.maybe_init_from_pretrained_checkpoint(OmegaConf.create({"init_from_nemo_model": sources}))
    for name, tensor in model.state_dict().items():
        source = initial
        if name.startswith(("encoder.", "preprocessor.")):
            source = plain.state_dict()
        elif name.startswith("decoder.") and "embed" not in name:
            source = hybrid.state_dict()
        assert torch.equal(tensor, source[name]), name
    text = log.text.replace("\n", " ")
    assert "9 missing, at initial values: decoder.prediction.embed.weight, joint.* (6), ctc_decoder.* (2);" in text
    assert "9 skipped: decoder.prediction.embed.weight, joint.* (6), ctc_decoder.* (2)" in text


def test_encoder_of_a_ctc_model(tokenizer, speech, tmp_path, log):
    """Such a file is no transducer, but NeMo's recipes take the encoder of one."""
    ctc = ctc_model(tokenizer, speech)
    ctc.save_to(str(tmp_path / "ctc.nemo"))
    model = model_without_weights(BPE, tokenizer, speech)
    model.maybe_init_from_pretrained_checkpoint(OmegaConf.create({"init_from_nemo_model": str(tmp_path / "ctc.nemo")}))
    for name, tensor in ctc.encoder.state_dict().items():
        assert torch.equal(model.encoder.state_dict()[name], tensor), name
    assert "new, at initial values: joint.* (6), ctc_decoder.* (2)" in log.text
    assert "missing, at initial values: decoder.* (5)" in log.text
    assert "2 skipped: decoder.* (2)" in log.text


def test_nothing_to_do(tokenizer, speech):
    model = model_without_weights(BPE, tokenizer, speech)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.maybe_init_from_pretrained_checkpoint(OmegaConf.create({"init_from_nemo_model": None, "model": {}}))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


# Joint dropout renames the output layer.


@pytest.mark.parametrize("theirs, ours", [(0.0, 0.3), (0.3, 0.0)])
@pytest.mark.parametrize("way", ["restore_from", "init_from_nemo_model", "init_from_ptl_ckpt", "load_state_dict"])
def test_another_joint_dropout(way, theirs, ours, tokenizer, speech, wav_files, tmp_path, log):
    stock = HYBRID.build_stock(tokenizer, speech, more={"joint": {"jointnet": {"dropout": theirs}}})
    here, there = ("joint.joint_net.2", "joint.joint_net.1") if ours else ("joint.joint_net.1", "joint.joint_net.2")
    assert f"{there}.weight" in stock.state_dict()
    path = str(tmp_path / "stock.nemo")
    stock.save_to(path)
    dropout = {"joint": {"jointnet": {"dropout": ours}}}
    if way == "restore_from":
        config = OmegaConf.merge(EncDecSampledRNNTBPEModel.restore_from(path, return_config=True), dropout)
        model = EncDecSampledRNNTBPEModel.restore_from(path, override_config_path=config)
    else:
        model = model_without_weights(BPE, tokenizer, speech, more=dropout)
    if way == "load_state_dict":
        model.load_state_dict(stock.state_dict())  # strict
    if way == "init_from_ptl_ckpt":
        path = str(tmp_path / "stock.ckpt")
        fit(stock, 0).save_checkpoint(path)
    if way.startswith("init_from"):
        model.maybe_init_from_pretrained_checkpoint(OmegaConf.create({way: path}))
        assert "new" not in log.text and "skipped" not in log.text and "missing" not in log.text
    assert f"The output layer of the joint, {there}, is {here} here" in log.text
    assert torch.equal(model.get_parameter(f"{here}.weight"), stock.get_parameter(f"{there}.weight"))
    assert torch.equal(model.get_parameter(f"{here}.bias"), stock.get_parameter(f"{there}.bias"))
    assert transcripts(model, wav_files) == transcripts(stock, wav_files)


# What does not fit.


def ctc_model(tokenizer, speech):
    config = make_config(tokenizer, speech)
    config = {name: config[name] for name in ("preprocessor", "encoder", "tokenizer", "train_ds", "sample_rate")}
    config = OmegaConf.create(config | dict(make_config(tokenizer).aux_ctc))
    config.decoder.feat_in = 16
    return EncDecCTCModelBPE(config)


def test_no_nemo_file(tmp_path):
    (tmp_path / "notes.nemo").write_text("these are notes\n" * 100)
    (tmp_path / "empty.nemo").touch()
    with tarfile.open(tmp_path / "other.nemo", "w") as archive:
        archive.add(tmp_path / "notes.nemo")
    for name in ("notes", "empty", "other"):
        with pytest.raises(ValueError, match=rf"{name}\.nemo .*no \.nemo file, or not all of one"):
            EncDecSampledRNNTBPEModel.restore_from(str(tmp_path / f"{name}.nemo"))
    with pytest.raises(FileNotFoundError, match="nowhere.nemo"):
        EncDecSampledRNNTBPEModel.restore_from(str(tmp_path / "nowhere.nemo"))


@pytest.mark.parametrize("part", [0.02, 0.5, 0.95])
def test_truncated_file(part, files, tokenizer, speech, tmp_path):
    path = tmp_path / "truncated.nemo"
    with open(files["EncDecRNNTBPEModel"], "rb") as file:
        path.write_bytes(file.read(int(part * os.path.getsize(file.name))))
    with pytest.raises(ValueError, match=r"truncated\.nemo .*no \.nemo file, or not all of one"):
        EncDecSampledRNNTBPEModel.restore_from(str(path))
    with pytest.raises(ValueError, match=r"truncated\.nemo .*no \.nemo file, or not all of one"):
        model = model_without_weights(BPE, tokenizer, speech)
        model.maybe_init_from_pretrained_checkpoint(OmegaConf.create({"init_from_nemo_model": str(path)}))


def test_no_transducer(tokenizer, speech, tmp_path):
    ctc_model(tokenizer, speech).save_to(str(tmp_path / "ctc.nemo"))
    with pytest.raises(ValueError, match="this is a EncDecCTCModelBPE: open it with ASRModel.restore_from"):
        EncDecSampledRNNTBPEModel.restore_from(str(tmp_path / "ctc.nemo"))
    assert not ModelPT._is_model_being_restored(), "the next model gets its data"
    assert type(ASRModel.restore_from(str(tmp_path / "ctc.nemo"))) is EncDecCTCModelBPE


@pytest.mark.parametrize(
    "ours, name", [(BPE, "EncDecRNNTModel"), (HYBRID, "EncDecHybridRNNTCTCModel"), (CHARACTER, "EncDecRNNTBPEModel")]
)
def test_other_labels(ours, name, files):
    right = f"this is a {name}: open it with {name.replace('EncDec', 'EncDecSampled')}"
    with pytest.raises(ValueError, match=f"{ours.ours.__name__} has .* for labels, but {right}"):
        ours.ours.restore_from(files[name])


def take(way, family, path, model=None, config=None):
    """Weights of the file at ``path``, for a model or a config with another vocabulary."""
    if way == "restore_from":
        return family.ours.restore_from(path, override_config_path=config)
    if way == "load_state_dict":
        return model.load_state_dict(family.stock.restore_from(path).state_dict(), strict=False)
    return model.maybe_init_from_pretrained_checkpoint(OmegaConf.create({way: path}))


@pytest.mark.parametrize("way", ["restore_from", "init_from_nemo_model", "load_state_dict"])
def test_tokenizer_of_another_size(way, files, tokenizer, speech, tmp_path):
    other = make_tokenizer(tmp_path / "tokenizer", pieces=47)
    path = files["EncDecRNNTBPEModel"]
    config = model_config(path)
    config.tokenizer = {"dir": str(other), "type": "bpe"}
    model = model_without_weights(BPE, other, speech)
    with pytest.raises(ValueError, match="of 61 labels and blank, but the model has 47: .*change_vocabulary.*exclude"):
        take(way, BPE, path, model, config)


@pytest.mark.parametrize("way", ["restore_from", "init_from_nemo_model"])
def test_vocabulary_of_the_same_size(way, files, tokenizer, speech):
    """Which no shape gives away."""
    path = files["EncDecRNNTModel"]
    config = model_config(path)
    config.labels = [*CHARACTERS[:5], "q", *CHARACTERS[6:]]
    torch.manual_seed(5)
    model = CHARACTER.ours(config)
    with pytest.raises(ValueError, match=f"label 5 is '{CHARACTERS[5]}' there and 'q' in the model: .*exclude"):
        take(way, CHARACTER, path, model, config)
    if way == "init_from_nemo_model":  # as the message says
        parts = {"all": {"path": path, "exclude": ["decoder", "joint", "ctc_decoder"]}}
        take(way, CHARACTER, parts, model)


def test_two_sources(tokenizer, speech, files):
    model = model_without_weights(BPE, tokenizer, speech)
    config = {"init_from_nemo_model": files["EncDecRNNTBPEModel"], "init_from_ptl_ckpt": "a.ckpt"}
    with pytest.raises(ValueError, match="got init_from_nemo_model and init_from_ptl_ckpt"):
        model.maybe_init_from_pretrained_checkpoint(OmegaConf.create(config))


def test_nothing_fits(tokenizer, speech, tmp_path):
    path = str(tmp_path / "other.ckpt")
    torch.save({"state_dict": {"net.a": torch.ones(2), "net.b": torch.ones(3)}}, path)
    model = model_without_weights(BPE, tokenizer, speech)
    expected = r"other.ckpt has no tensor that EncDecSampledRNNTBPEModel knows; it has net.\* \(2\)"
    with pytest.raises(ValueError, match=expected):
        model.maybe_init_from_pretrained_checkpoint(OmegaConf.create({"init_from_ptl_ckpt": path}))
    with pytest.raises(ValueError, match="init_from_ptl_ckpt must be a string or a mapping, got .*other.ckpt"):
        model.maybe_init_from_pretrained_checkpoint(OmegaConf.create({"init_from_ptl_ckpt": [path]}))


def test_strict_names_what_differs(tokenizer, stock):
    model = BPE.build(tokenizer)
    weights = stock["EncDecHybridRNNTCTCBPEModel"].state_dict()
    weights["encoder.extra"] = weights.pop("joint.enc.bias")
    with pytest.raises(RuntimeError, match="1 missing, at initial values: joint.enc.bias; 1 skipped: encoder.extra"):
        model.load_state_dict(weights)
    keys = model.load_state_dict(weights, strict=False)
    assert (keys.missing_keys, keys.unexpected_keys) == (["joint.enc.bias"], ["encoder.extra"])


def test_summary():
    everything = ["a.b.x", "a.b.y", "a.c", "d.x", "d.y", "e"]
    assert summary(["a.b.x", "a.b.y", "d.x", "e"], everything) == ["a.b.* (2)", "d.x", "e"]
    assert str(Transfer(["e"], [], [], [])) == "1 tensors loaded"


def test_pretrained_names_of_hybrids(files, monkeypatch):
    """NVIDIA's names for one class open as another of ours."""
    name = "stt_en_fastconformer_hybrid_large_pc"
    monkeypatch.setattr(common, "maybe_download_from_cloud", lambda **_: files["EncDecHybridRNNTCTCBPEModel"])
    assert type(ASRModel.from_pretrained(name)) is EncDecHybridRNNTCTCBPEModel
    assert type(EncDecHybridRNNTCTCBPEModel.from_pretrained(name)) is EncDecHybridRNNTCTCBPEModel
    assert type(EncDecSampledRNNTBPEModel.from_pretrained(name)) is EncDecSampledRNNTBPEModel
    for family in FAMILIES.values():
        assert family.ours.list_available_models() == []
    listed = {info.class_ for info in ASRModel.list_available_models()}
    assert not listed & {family.ours for family in FAMILIES.values()}
