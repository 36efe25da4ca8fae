"""TDT models: trained from NeMo's keys, taken from stock files and given back, with another vocabulary."""

import pytest
import stock_nemo
import torch
from families import BPE, FAMILIES, HYBRID, assert_same_weights, with_ctc_that_speaks
from listening import fingerprints
from nemo.collections.asr.models import ASRModel
from omegaconf import OmegaConf
from tiny import CHARACTERS, extend_tokenizer, fit, talkative, texts

from nemo_sampled_rnnt import sampled_rnnt_loss
from nemo_sampled_rnnt.models.config import has_tokenizer

DURATIONS = [0, 1, 2, 4]
TDT = {  # the keys of NeMo's own TDT configs
    "model_defaults": {"tdt_durations": DURATIONS, "num_tdt_durations": 4},
    "joint": {"num_extra_outputs": "${model_defaults.num_tdt_durations}"},
    "decoding": {
        "strategy": "greedy_batch", "model_type": "tdt", "durations": "${model_defaults.tdt_durations}",
        "greedy": {"max_symbols": 4},
    },
    "loss": {
        "loss_name": "tdt",
        "tdt_kwargs": {
            "fastemit_lambda": 0.03, "clamp": -1.0, "durations": "${model_defaults.tdt_durations}",
            "sigma": 0.02, "omega": 0.1,
        },
    },
}  # fmt: skip
every_family = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)


def that_speaks(model):
    """Weights with which a model says something; blank stands before the durations."""
    talkative(model)
    with torch.no_grad():
        bias = model.joint.joint_net[-1].bias.zero_()
        bias[len(model.joint.vocabulary)] = 3.0
    return with_ctc_that_speaks(model)


def build(family, tokenizer, speech=None, **options):
    return family.build(tokenizer, speech, more=TDT, **options)


def build_stock(family, tokenizer, speech):
    torch.manual_seed(1)
    return that_speaks(family.stock(family.stock_config(tokenizer, speech, more=TDT)))


def said(model, wav_files):
    """Labels, greedily and by beam search, and of pieces the times of words.

    Not text, nor times of characters: NeMo drops the last D characters of a TDT model's vocabulary when it makes them.
    """
    before, heard = model.cfg.decoding.copy(), {}
    for name, strategy in {
        "greedy": {"strategy": "greedy", "greedy": {"max_symbols": 4}},
        "greedy_batch": {"strategy": "greedy_batch", "greedy": {"max_symbols": 4}},
        "maes": {"strategy": "maes", "beam": {"beam_size": 2, "maes_num_steps": 2, "maes_expansion_beta": 1}},
    }.items():
        strategy = {"model_type": "tdt", "durations": DURATIONS, **strategy}
        model.change_decoding_strategy(OmegaConf.create(strategy), verbose=False)
        hypotheses = model.transcribe(wav_files, return_hypotheses=True, verbose=False)
        hypotheses = hypotheses[0] if isinstance(hypotheses, tuple) else hypotheses
        labels = model.joint.vocabulary
        heard[name] = [tuple(labels[int(i)] for i in h.y_sequence if i < len(labels)) for h in hypotheses]
    model.change_decoding_strategy(before, verbose=False)
    if has_tokenizer(type(model)):
        hypotheses = model.transcribe(wav_files, timestamps=True, verbose=False)
        heard["times"] = [[(x["start_offset"], x["end_offset"]) for x in h.timestamp["word"]] for h in hypotheses]
        model.change_decoding_strategy(before, verbose=False)
    return heard


@every_family
def test_trains(family, tokenizer, speech):
    model = build(family, tokenizer, speech)
    settings = model.joint._settings
    assert (settings.durations, settings.sigma, settings.omega) == (tuple(DURATIONS), 0.02, 0.1)
    assert settings.fastemit_lambda == 0.03
    before = model.joint.joint_net[-1].weight.clone()
    metrics = fit(model, 3).callback_metrics
    assert all(value.isfinite() for value in metrics.values())
    assert {"val_loss", "val_wer", "training_batch_wer", "train_ctc_loss"} <= set(metrics)
    changed = (model.joint.joint_net[-1].weight != before).any(dim=1)
    assert changed[-5:].all(), "blank and durations learn at every step"


def test_validation_loss_is_the_functions(tokenizer, speech):
    """Exact, without dropout and omega."""
    model = build(BPE, tokenizer, speech).eval()
    encoded, lengths = torch.randn(2, 16, 7, generator=torch.Generator().manual_seed(0)), torch.tensor([7, 5])
    spoken, labels = torch.tensor([[1, 5, 9], [7, 1, 0]]), torch.tensor([3, 2])
    decoded, _, _ = model.decoder(targets=spoken, target_length=labels)
    got, *_ = model.joint(
        encoder_outputs=encoded, decoder_outputs=decoded, encoder_lengths=lengths, transcripts=spoken,
        transcript_lengths=labels,
    )  # fmt: skip
    output = model.joint.joint_net[-1]
    assert len(output.weight) == len(model.joint.vocabulary) + 1 + 4
    want = sampled_rnnt_loss(
        model.joint.project_encoder(encoded.transpose(1, 2)), model.joint.project_prednet(decoded.transpose(1, 2)),
        output.weight, output.bias, spoken, lengths, labels, durations=DURATIONS, sigma=0.02, fastemit_lambda=0.03,
        impl="reference",
    )  # fmt: skip
    torch.testing.assert_close(got, want)


@every_family
def test_stock_file_in(family, tokenizer, speech, wav_files, tmp_path):
    stock = build_stock(family, tokenizer, speech)
    heard = said(stock, wav_files)
    assert all(any(x) for x in heard.values()) and len(set(heard["greedy"])) > 3
    stock.save_to(str(tmp_path / "stock.nemo"))
    model = family.ours.restore_from(str(tmp_path / "stock.nemo"))
    assert type(model) is family.ours and type(model.joint).__name__ == "SampledRNNTJoint"
    assert_same_weights(model, stock)
    assert said(model, wav_files) == heard
    assert fit(model.train(), 1).callback_metrics["train_loss"].isfinite()


def test_stock_weights_by_name(tokenizer, speech, tmp_path):
    """NeMo's init_from_nemo_model; weights of plain RNN-T have no rows for the durations."""
    build_stock(BPE, tokenizer, speech).save_to(str(tmp_path / "tdt.nemo"))
    BPE.build_stock(tokenizer, speech).save_to(str(tmp_path / "rnnt.nemo"))
    model = build(BPE, tokenizer, speech)
    model.maybe_init_from_pretrained_checkpoint(OmegaConf.create({"init_from_nemo_model": str(tmp_path / "tdt.nemo")}))
    assert torch.equal(model.joint.joint_net[-1].bias, that_speaks(model).joint.joint_net[-1].bias)
    V = len(model.joint.vocabulary)
    with pytest.raises(ValueError, match=f"have {V + 1} outputs .* model has {V + 5}, for {V} labels, .* 4 durations"):
        model.maybe_init_from_pretrained_checkpoint(
            OmegaConf.create({"init_from_nemo_model": str(tmp_path / "rnnt.nemo")})
        )


@pytest.fixture(scope="module")
def exported(tokenizer, speech, wav_files, tmp_path_factory):
    """Models of ours as stock files, and what they say."""
    folder, heard = tmp_path_factory.mktemp("exported"), {}
    for family, hybrid in ((BPE, False), (HYBRID, True)):
        model = build(family, tokenizer, speech)
        fit(model, 1)
        that_speaks(model)
        name = family.stock.__name__
        model.save_stock(folder / f"{name}.nemo", hybrid=hybrid)
        heard[name] = texts(model.transcribe(wav_files, verbose=False)), fingerprints(model)
    return folder, heard


@pytest.mark.parametrize("python", stock_nemo.PYTHONS)
def test_stock_file_out(python, exported, tmp_path):
    """Opened without this package: the stock class and joint, the same tensors."""
    folder, heard = exported
    found = stock_nemo.examine(python, folder, tmp_path)
    assert set(found) == set(heard)
    for name, (_, tensors) in heard.items():
        assert found[name]["class"] == name and found[name]["joint"].endswith("rnnt.RNNTJoint")
        assert found[name]["config"]["loss"]["loss_name"] == "tdt"
        assert found[name]["tensors"].items() <= tensors.items()
        assert len(tensors) - len(found[name]["tensors"]) == (0 if "Hybrid" in name else 2)  # the CTC head


def test_stock_file_out_says_the_same(exported, wav_files):
    folder, heard = exported
    for name, (transcripts, _) in heard.items():
        model = ASRModel.restore_from(str(folder / f"{name}.nemo"))
        assert type(model).__name__ == name and any(transcripts)
        assert texts(model.transcribe(wav_files, verbose=False)) == transcripts


# --- another vocabulary -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def change(tokenizer, tmp_path_factory):
    added = [chr(0x4E00 + i) for i in range(97)]
    extended = extend_tokenizer(tmp_path_factory.mktemp("extended") / "more", tokenizer, added)

    def change(model, family, **options):
        if family.pieces:
            return model.change_vocabulary(str(extended), "bpe", **options)
        return model.change_vocabulary([*added, *reversed(CHARACTERS)], **options)

    return change


@every_family
def test_change_vocabulary_keeps_the_durations(family, change, tokenizer, speech):
    model = build(family, tokenizer, speech)
    change(model, family)
    labels = len(model.joint.vocabulary)
    assert model.loss._loss.blank == labels and list(model.loss._loss.durations) == DURATIONS
    assert model.joint._settings.durations == tuple(DURATIONS) and model.joint._settings.omega == 0.1
    assert model.joint.num_extra_outputs == 4 and len(model.joint.joint_net[-1].weight) == labels + 5
    assert list(model.decoding.durations) == DURATIONS and model.decoding.blank_id == labels
    model.setup_training_data(model.cfg.train_ds)
    assert fit(model.train(), 1, limit_val_batches=0).callback_metrics["train_loss"].isfinite()


@every_family
def test_extended_says_what_it_said(family, change, tokenizer, speech, wav_files, tmp_path):
    model = that_speaks(build(family, tokenizer, speech))
    heard, labels = said(model, wav_files), list(model.joint.vocabulary)
    before = {name: x.clone() for name, x in model.joint.joint_net[-1].named_parameters()}
    change(model, family, extend=True)
    place = [model.joint.vocabulary.index(label) for label in labels] + [-5, -4, -3, -2, -1]
    for name, parameter in model.joint.joint_net[-1].named_parameters():
        assert torch.equal(parameter[place], before[name]), name
    assert said(model, wav_files) == heard
    model.save_to(str(tmp_path / "extended.nemo"))
    restored = ASRModel.restore_from(str(tmp_path / "extended.nemo"))
    assert type(restored) is family.ours and said(restored, wav_files) == heard


# --- what is refused --------------------------------------------------------------------------------------------------


def test_multi_blank_is_refused_by_name(tokenizer):
    more = {
        "joint": {"num_extra_outputs": 2},
        "loss": {"loss_name": "multiblank_rnnt", "multiblank_rnnt_kwargs": {"big_blank_durations": [2, 4]}},
    }
    with pytest.raises(ValueError, match="multiblank_rnnt .*big blanks are classes of the label softmax.* own class"):
        BPE.build(tokenizer, more=more)


@pytest.mark.parametrize("extra", [0, 3, 5])
def test_outputs_that_do_not_fit(extra, tokenizer):
    more = OmegaConf.merge(TDT, {"joint": {"num_extra_outputs": extra}})
    with pytest.raises(ValueError, match=rf"with {extra} extra outputs and the loss tdt \(the loss has 4 durations"):
        BPE.build(tokenizer, more=more)


def test_loss_without_durations(tokenizer):
    with pytest.raises(ValueError, match=r"the loss tdt \(it has no durations: set loss.tdt_kwargs.durations"):
        BPE.build(tokenizer, more={"loss": {"loss_name": "tdt"}})
