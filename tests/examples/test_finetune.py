"""The fine-tuning script: NeMo's own models in, ours trained, NeMo's own out."""

import importlib.util
import json

import pytest
import torch
from families import BPE, CHARACTER, FAMILIES, HYBRID
from nemo.collections.asr.models import EncDecCTCModelBPE
from nemo.core.classes import common
from omegaconf import OmegaConf
from scripts import ON_CPU, ROOT, run
from tiny import fit, make_tokenizer

from nemo_sampled_rnnt.modules import SampledRNNTJoint

SCRIPT = ROOT / "examples" / "speech_to_text_finetune.py"
CONFIG = ROOT / "configs" / "speech_to_text_finetune_sampled.yaml"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("speech_to_text_finetune", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def larger_tokenizer(tmp_path_factory):
    return make_tokenizer(tmp_path_factory.mktemp("larger"), pieces=73)


@pytest.fixture(scope="module")
def stock_files(tokenizer, speech, tmp_path_factory):
    """A file of each family, by name."""
    folder = tmp_path_factory.mktemp("stock")
    more = {"optim": {"name": "sgd", "momentum": 0.9, "lr": 1.0}, "loss": {"warprnnt_numba_kwargs": {"clamp": 0.7}}}
    for name, family in FAMILIES.items():
        family.build_stock(tokenizer, speech, more=more).save_to(str(folder / f"{name}.nemo"))
    return {name: folder / f"{name}.nemo" for name in FAMILIES}


def config(*overrides, **given):
    """What Hydra hands to the script's main."""
    config = OmegaConf.merge(OmegaConf.load(CONFIG), OmegaConf.from_dotlist(list(overrides)), given)
    OmegaConf.resolve(config)
    return config


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family(name, script, stock_files, speech):
    """Comes as ours, with its own weights, what the config changes, and what it leaves."""
    path = str(stock_files[name])
    model = script.restore(config("model.joint.sampled_softmax.n_samples=7", init_from_nemo_model=path))
    family = FAMILIES[name]
    assert type(model) is family.ours and type(model.joint) is SampledRNNTJoint
    state, stock = model.state_dict(), family.stock.restore_from(path).state_dict()
    new = set(state) - set(stock)
    assert new == (set() if family.hybrid else {f"ctc_decoder.decoder_layers.0.{x}" for x in ("weight", "bias")})
    assert all(torch.equal(state[tensor], stock[tensor]) for tensor in stock)
    assert model.joint.sampled_softmax.n_samples == 7 and model.ctc_loss_weight == 0.3
    assert model.cfg.loss.warprnnt_numba_kwargs.clamp == 0.7, "the model's own"
    assert model.cfg.optim.name == "adamw" and "momentum" not in model.cfg.optim, "replaced, not mixed"
    assert model.spec_augmentation is not None, "where NeMo's script leaves the model without"
    model.cfg.optim.sched.warmup_steps = 1
    model.cfg.train_ds.manifest_filepath = str(speech)
    fit(model.train(), 1)
    assert model.joint.sampler.draws == 1


def test_a_section_can_be_switched_off(script, stock_files):
    path = str(stock_files["EncDecRNNTBPEModel"])
    model = script.restore(config("model.aux_ctc=null", "model.joint.sampled_softmax=null", init_from_nemo_model=path))
    assert not model.has_ctc_head and model.joint.sampled_softmax is None


def test_null_is_none(script, stock_files, tokenizer, speech, tmp_path):
    """Also where the model has what is not wanted; but a hybrid cannot be without its head."""
    path = str(tmp_path / "with_head.nemo")
    BPE.build(tokenizer, speech).save_to(path)
    model = script.restore(
        config("model.aux_ctc=null", "model.joint.sampled_softmax.sampler=uniform", "model.spec_augment=null",
               init_from_nemo_model=path)
    )  # fmt: skip
    assert not model.has_ctc_head and model.spec_augmentation is None
    path = str(stock_files["EncDecHybridRNNTCTCBPEModel"])
    with pytest.raises(ValueError, match="is a hybrid, which keeps its CTC head"):
        script.restore(config("model.aux_ctc=null", init_from_nemo_model=path))


def test_sampling_is_replaced(script, tokenizer, speech, tmp_path):
    """Not mixed with what the model was trained with before."""
    path = str(tmp_path / "before.nemo")
    before = {"n_samples": "auto", "max_logits": 10**6, "full_after": 30}
    BPE.build(tokenizer, speech, sampled_softmax=before).save_to(path)
    sampled = script.restore(config(init_from_nemo_model=path)).joint.sampled_softmax
    assert (sampled.n_samples, sampled.max_logits, sampled.full_after) == (0.1, None, None)


def test_our_own_file(script, tokenizer, speech, tmp_path):
    """A second round of fine-tuning keeps the head."""
    first = BPE.build(tokenizer, speech)
    path = str(tmp_path / "first.nemo")
    first.save_to(path)
    model = script.restore(config("model.aux_ctc.ctc_loss_weight=0.2", init_from_nemo_model=path))
    assert type(model) is BPE.ours and model.ctc_loss_weight == 0.2
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in first.state_dict().items())


def test_a_published_model(script, stock_files, monkeypatch):
    path = str(stock_files["EncDecHybridRNNTCTCBPEModel"])
    monkeypatch.setattr(common, "maybe_download_from_cloud", lambda **_: path)
    model = script.restore(config(init_from_pretrained_model="stt_en_fastconformer_hybrid_large_pc"))
    assert type(model) is HYBRID.ours
    expected = HYBRID.stock.restore_from(path).state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())


def test_bad_input(script, stock_files, tokenizer, tmp_path, monkeypatch):
    path = str(stock_files["EncDecRNNTModel"])
    for given in ({}, {"init_from_nemo_model": path, "init_from_pretrained_model": "x"}):
        with pytest.raises(ValueError, match="give either init_from_nemo_model .* or init_from_pretrained_model"):
            script.restore(config(**given))
    stored = OmegaConf.create({"target": "nemo.collections.asr.models.ctc_bpe_models.EncDecCTCModelBPE"})
    monkeypatch.setattr(script, "read_config", lambda _: stored)
    with pytest.raises(ValueError, match=f"is a .*{EncDecCTCModelBPE.__name__}, which cannot be sampled"):
        script.restore(config(init_from_nemo_model=path))


def test_no_model_file(script, tmp_path):
    """The message names it."""
    (tmp_path / "broken.nemo").write_text("not a tar")
    with pytest.raises(ValueError, match="broken.nemo is no .nemo file"):
        script.restore(config(init_from_nemo_model=str(tmp_path / "broken.nemo")))


def test_another_sample_rate(script, stock_files):
    """Is refused, in the model's section or in that of its data; null is the model's."""
    path = str(stock_files["EncDecRNNTBPEModel"])
    for wrong in ("model", "model.validation_ds"):
        asked = config(f"{wrong}.sample_rate=8000", init_from_nemo_model=path)
        with pytest.raises(ValueError, match=f"{wrong}.sample_rate is 8000, but .* takes 16000 samples a second"):
            script.restore(asked)
    asked = config("model.sample_rate=null", "model.test_ds=null", init_from_nemo_model=path)
    script.restore(asked)
    assert {asked.model[name].sample_rate for name in ("train_ds", "validation_ds")} == {asked.model.sample_rate, 16000}


# Another vocabulary.


@pytest.mark.parametrize(
    "name, overrides, message",
    [
        ("EncDecRNNTBPEModel", ["tokenizer.dir=x", "tokenizer.extend=true"], "dir and extend came: add update_t"),
        ("EncDecRNNTBPEModel", ["tokenizer.dir=x"], "only dir came: add update_tokenizer,"),
        ("EncDecRNNTBPEModel", ["tokenizer.extend=true"], "only extend came: add update_tokenizer and dir,"),
        ("EncDecRNNTBPEModel", ["tokenizer.update_tokenizer=true"], "only update_tokenizer came: add dir,"),
        ("EncDecRNNTModel", ["char_labels.labels=[a]"], "only labels came: add update_labels,"),
        ("EncDecRNNTModel", ["char_labels.update_labels=true"], "only update_labels came: add labels,"),
        ("EncDecRNNTModel", ["tokenizer.update_tokenizer=true"], "model with characters: use model.char_labels"),
        ("EncDecHybridRNNTCTCBPEModel", ["char_labels.labels=[a]"], "model with a tokenizer: use model.tokenizer"),
    ],
)  # fmt: skip
def test_vocabulary_asked_for_in_part(name, overrides, message, script, stock_files):
    """Is refused before the model is loaded."""
    asked = config(*(f"model.{override}" for override in overrides), init_from_nemo_model=str(stock_files[name]))
    with pytest.raises(ValueError, match=message):
        script.restore(asked)


def test_no_vocabulary_sections(script, stock_files):
    asked = config(
        "model.tokenizer=null", "model.char_labels=null", init_from_nemo_model=str(stock_files["EncDecRNNTModel"])
    )
    model = script.restore(asked)
    before = model.joint
    script.change_vocabulary(model, asked)
    assert model.joint is before


def test_another_tokenizer(script, stock_files, larger_tokenizer):
    asked = config(
        "model.tokenizer.update_tokenizer=true", f"model.tokenizer.dir={larger_tokenizer}",
        init_from_nemo_model=str(stock_files["EncDecRNNTBPEModel"]),
    )  # fmt: skip
    model = script.restore(asked)
    old = model.joint.joint_net[-1].weight.clone()
    script.change_vocabulary(model, asked)
    assert len(model.joint.vocabulary) == 73 and model.joint.joint_net[-1].weight.shape == (74, 20)
    assert not any(torch.equal(row, other) for row in model.joint.joint_net[-1].weight for other in old)


def test_the_same_tokenizer_again(script, stock_files, tokenizer):
    """As many pieces: the weights stay, as in NeMo's script."""
    asked = config(
        "model.tokenizer.update_tokenizer=true", f"model.tokenizer.dir={tokenizer}",
        init_from_nemo_model=str(stock_files["EncDecHybridRNNTCTCBPEModel"]),
    )  # fmt: skip
    model = script.restore(asked)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    script.change_vocabulary(model, asked)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_more_characters(script, stock_files):
    path = str(stock_files["EncDecRNNTModel"])
    labels = ["x", *CHARACTER.stock.restore_from(path).joint.vocabulary, "z"]
    asked = config(init_from_nemo_model=path)
    asked.model.char_labels = {"update_labels": True, "labels": labels, "extend": True}
    model = script.restore(asked)
    old = model.joint.joint_net[-1].weight.clone()
    script.change_vocabulary(model, asked)
    assert list(model.joint.vocabulary) == labels
    torch.testing.assert_close(model.joint.joint_net[-1].weight[1 : len(labels) - 1], old[:-1], rtol=0, atol=0)


# As a user starts it.


def test_from_the_command_line(stock_files, larger_tokenizer, speech, tmp_path):
    """A larger vocabulary, a new head, two steps, a test, and a file for people without this package."""
    callback = f"{{_target_:nemo_sampled_rnnt.callbacks.ExportStock,path:{tmp_path / 'stock.nemo'},hybrid:true}}"
    output = run(
        SCRIPT, f"init_from_nemo_model={stock_files['EncDecRNNTBPEModel']}", *ON_CPU,
        f"model.train_ds.manifest_filepath={speech}", f"model.validation_ds.manifest_filepath={speech}",
        f"model.test_ds.manifest_filepath={speech}", "model.test_ds.num_workers=0", "model.optim.sched.warmup_steps=1",
        "model.tokenizer.update_tokenizer=true", f"model.tokenizer.dir={larger_tokenizer}",
        "model.tokenizer.extend=true", f"exp_manager.exp_dir={tmp_path}", f"+trainer.callbacks=[{callback}]",
    )  # fmt: skip
    assert "test_wer" in output and "ctc_decoder" in output
    (saved,) = tmp_path.rglob("Speech_To_Text_Finetuning.nemo")
    ours, exported = BPE.ours.restore_from(str(saved)), HYBRID.stock.restore_from(str(tmp_path / "stock.nemo"))
    assert len(ours.joint.vocabulary) == len(exported.joint.vocabulary) == 73
    assert set(ours.state_dict()) == set(exported.state_dict())
    lines = [json.loads(line) for line in speech.read_text().splitlines()]
    exported.transcribe([lines[0]["audio_filepath"]], verbose=False)


def test_a_tdt_model(script, tokenizer, speech, tmp_path):
    """Durations, loss and decoding are the file's."""
    durations = [0, 1, 2]
    more = {
        "joint": {"num_extra_outputs": 3},
        "decoding": {"model_type": "tdt", "durations": durations},
        "loss": {"loss_name": "tdt", "tdt_kwargs": {"durations": durations, "sigma": 0.02, "omega": 0.1}},
    }
    BPE.build_stock(tokenizer, speech, more=more).save_to(str(tmp_path / "tdt.nemo"))
    asked = config("model.joint.sampled_softmax.n_samples=7", init_from_nemo_model=str(tmp_path / "tdt.nemo"))
    model = script.restore(asked)
    assert type(model) is BPE.ours and model.has_ctc_head
    assert list(model.loss._loss.durations) == durations and model.joint.num_extra_outputs == 3
    model.setup_training_data({**model.cfg.train_ds, "manifest_filepath": str(speech), "batch_size": 2})
    assert fit(model, 1, limit_val_batches=0).callback_metrics["train_loss"].isfinite()
