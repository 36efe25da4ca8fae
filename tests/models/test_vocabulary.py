"""A new vocabulary: the loss stays what it was; extended, the model says what it said."""

import math

import pytest
import torch
from families import BPE, CHARACTER, CHARACTER_HYBRID, FAMILIES, HYBRID, with_ctc_that_speaks
from nemo.collections.asr.models import ASRModel
from omegaconf import OmegaConf
from sentencepiece import SentencePieceTrainer
from tiny import CHARACTERS, extend_tokenizer, fit, make_tokenizer, talkative, texts

from nemo_sampled_rnnt.models import vocabulary as module
from nemo_sampled_rnnt.models.vocabulary import NEW_SHARE, same_labels

CHINESE = [chr(0x4E00 + i) for i in range(3000)]
FEW = CHINESE[:97]  # where the number does not matter: NeMo's configs are slow with many
every_family = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
FAST_EMIT = {"loss": {"warprnnt_numba_kwargs": {"fastemit_lambda": 0.03}}, "rnnt_reduction": "mean_volume"}


@pytest.fixture(scope="module")
def change(tokenizer, tmp_path_factory):
    """Change a model's vocabulary to the one it has and ``added``, in another order."""
    folder = tmp_path_factory.mktemp("extended")

    def change(model, family, added=FEW, **options):
        if family.pieces:
            extended = extend_tokenizer(folder / str(len(added)), tokenizer, added)
            return model.change_vocabulary(str(extended), "bpe", **options)
        return model.change_vocabulary([*added, *reversed(CHARACTERS)], **options)

    return change


def speaking(family, tokenizer, speech, **more):
    return with_ctc_that_speaks(talkative(family.build(tokenizer, speech, **more)))


STRATEGIES = {
    "greedy": {"strategy": "greedy", "greedy": {"max_symbols": 4}},
    "greedy_batch": {"strategy": "greedy_batch", "greedy": {"max_symbols": 4}},
    "maes": {"strategy": "maes", "beam": {"beam_size": 2, "maes_num_steps": 2, "maes_expansion_beta": 1}},
}


def everything_said(model, family, wav_files):
    """By greedy and beam search of the transducer, and greedily by the CTC head; with times of words."""
    said, wav_files = {}, wav_files[:3]
    for name, strategy in STRATEGIES.items():
        model.change_decoding_strategy(OmegaConf.create(strategy), verbose=False)
        said[name] = texts(model.transcribe(wav_files, verbose=False))
    model.change_decoding_strategy(OmegaConf.create(STRATEGIES["greedy_batch"]), verbose=False)
    hypotheses = model.transcribe(wav_files, timestamps=True, verbose=False)
    said["times"] = [[(x["start_offset"], x["end_offset"]) for x in h.timestamp["word"]] for h in hypotheses]
    if family.hybrid:
        model.change_decoding_strategy(decoder_type="ctc", verbose=False)
        said["ctc"] = texts(model.transcribe(wav_files, verbose=False))
        model.change_decoding_strategy(decoder_type="rnnt", verbose=False)
    return said


@every_family
def test_says_what_it_said_with_3000_more_labels(family, change, tokenizer, speech, wav_files):
    model = speaking(family, tokenizer, speech)
    said = everything_said(model, family, wav_files)
    assert all(any(texts_) for texts_ in said.values()) and len(set(said["greedy"])) == 3
    before = len(model.joint.vocabulary)
    change(model, family, CHINESE, extend=True)
    assert len(model.joint.vocabulary) == before + 3000
    for vocabulary in (model.joint.vocabulary, model.ctc_decoder.vocabulary, model.cfg.labels):
        assert vocabulary[0] == CHINESE[0] and len(vocabulary) == before + 3000
    assert everything_said(model, family, wav_files) == said


def test_says_something_else_with_rows_at_random(change, tokenizer, speech, wav_files, monkeypatch):
    """Of the same scale as the old ones: so what the model says does hang on the new rows."""
    monkeypatch.setattr(module, "start_below", lambda old, new, known, added: new.weight.normal_(std=old.weight.std()))
    model = speaking(HYBRID, tokenizer, speech)
    said = everything_said(model, HYBRID, wav_files)
    change(model, HYBRID, extend=True)
    now = everything_said(model, HYBRID, wav_files)
    assert all(now[way] != said[way] for way in ("greedy", "greedy_batch", "maes", "ctc"))


@every_family
def test_rows_follow_their_labels(family, change, tokenizer, speech):
    model = speaking(family, tokenizer, speech)
    before, labels = {name: x.clone() for name, x in model.state_dict().items()}, list(model.joint.vocabulary)
    change(model, family, extend=True)
    after, new_labels = model.state_dict(), list(model.joint.vocabulary)
    place = [new_labels.index(label) for label in labels]
    assert place != list(range(len(labels)))
    rows = {"decoder.prediction.embed.weight"} | {
        f"{layer}.{x}" for layer in ("joint.joint_net.1", "ctc_decoder.decoder_layers.0") for x in ("weight", "bias")
    }
    for name, old in before.items():
        if name in rows:
            assert torch.equal(after[name][[*place, -1]], old), name
        else:
            assert torch.equal(after[name], old), name


def test_no_hidden_vector_makes_a_new_label_win(change, tokenizer, speech):
    """Also not one that no encoder gives; and together the new labels take no more than their share."""
    model = speaking(HYBRID, tokenizer, speech)
    labels = list(model.joint.vocabulary)
    change(model, HYBRID, extend=True)
    is_old = torch.zeros(len(labels) + len(FEW) + 1, dtype=torch.bool)
    is_old[[model.joint.vocabulary.index(label) for label in labels]] = True
    random = torch.Generator().manual_seed(0)
    for layer in (model.joint.joint_net[-1], model.ctc_decoder.decoder_layers[-1]):
        weight = layer.weight.reshape(len(layer.weight), -1)
        for scale in (0, 0.1, 3, 1000):
            hidden = scale * torch.randn(100, weight.shape[1], generator=random)
            scores = (hidden @ weight.T + layer.bias).double()[:, :-1]
            assert (scores[:, ~is_old[:-1]].amax(1) < scores[:, is_old[:-1]].amax(1)).all()
            share = (scores[:, ~is_old[:-1]].logsumexp(1) - scores[:, is_old[:-1]].logsumexp(1)).exp()
            assert (share < NEW_SHARE * 1.001).all()


def test_new_labels_are_learnt(change, tokenizer, speech, wav_files):
    """They start low, but rise as fast as any label that is spoken."""
    model = speaking(BPE, tokenizer, speech)
    change(model, BPE, extend=True)
    with torch.no_grad():  # padding, with which decoding begins; it is 0 in a model that was not made talkative
        model.decoder.prediction["embed"].weight[-1] = 0
    spoken = torch.tensor([[1, 5, 9], [7, 1, 96]])  # Chinese
    encoded = torch.randn(2, 16, 9, generator=torch.Generator().manual_seed(0))
    lengths = torch.tensor([9, 7]), torch.tensor([3, 3])
    optimizer = torch.optim.Adam([*model.joint.parameters(), *model.decoder.parameters()], lr=0.03)

    def loss():
        decoded, _, _ = model.decoder(targets=spoken, target_length=lengths[1])
        return model.joint(
            encoder_outputs=encoded, decoder_outputs=decoded, encoder_lengths=lengths[0], transcripts=spoken,
            transcript_lengths=lengths[1],
        )[0]  # fmt: skip

    first = loss().item()
    for _ in range(100):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    assert first > 3 * -math.log(NEW_SHARE), "no label is free"
    assert loss().item() < 0.05
    heard = model.decoding.rnnt_decoder_predictions_tensor(encoded, lengths[0], return_hypotheses=True)
    assert [x.y_sequence.tolist() for x in heard] == spoken.tolist()


@every_family
def test_extended_model_trains_and_is_saved(family, change, tokenizer, speech, wav_files, tmp_path):
    model = speaking(family, tokenizer, speech, more=FAST_EMIT)
    change(model, family, extend=True)
    model.setup_training_data(model.cfg.train_ds)
    metrics = fit(model.train(), 1, limit_val_batches=0).callback_metrics
    assert metrics["train_loss"].isfinite() and metrics["train_ctc_loss"].isfinite()
    said = texts(model.eval().transcribe(wav_files[:2], verbose=False))
    model.save_to(str(tmp_path / "extended.nemo"))
    restored = ASRModel.restore_from(str(tmp_path / "extended.nemo"))
    assert type(restored) is family.ours
    assert restored.loss._loss.fastemit_lambda == 0.03 and restored.loss.reduction == "mean_volume"
    assert texts(restored.transcribe(wav_files[:2], verbose=False)) == said


@every_family
@pytest.mark.parametrize("extend", [False, True])
def test_keeps_the_loss_and_the_head_fits(extend, family, change, tokenizer, speech):
    model = family.build(tokenizer, speech, more=FAST_EMIT)
    head, sampled = model.ctc_decoder, model.joint.sampled_softmax
    model.eval()
    change(model, family, extend=extend)
    labels = len(model.joint.vocabulary)
    assert model.loss._loss.fastemit_lambda == 0.03 and model.loss.reduction == "mean_volume"
    assert model.loss._loss.blank == labels and model.joint.loss is model.loss
    assert model.joint.sampled_softmax == sampled
    assert model.ctc_decoder is not head and model.ctc_decoder.num_classes_with_blank == labels + 1
    assert model.ctc_loss._blank == labels
    assert not model.joint.training and not model.decoder.training and not model.ctc_decoder.training


def test_shrinking_says_what_is_lost(tokenizer, speech, caplog):
    from nemo.utils import logging

    model = speaking(CHARACTER, tokenizer, speech)
    old = model.joint.joint_net[-1].weight[[CHARACTERS.index("a"), -1]].clone()
    level = logging.getEffectiveLevel()
    logging.setLevel(logging.WARNING)
    model.change_vocabulary(["b", "a", "z"], extend=True)
    logging.setLevel(level)
    assert f"{len(CHARACTERS) - 2} of the {len(CHARACTERS)} old labels are not in the new" in caplog.text
    assert "'c', 'd', 'e'" in caplog.text
    assert torch.equal(model.joint.joint_net[-1].weight[[1, 3]], old)


@every_family
def test_nothing_in_common(family, tokenizer, speech, tmp_path):
    """Refused before anything is changed; <unk>, which every tokenizer has, does not count."""
    model = family.build(tokenizer, speech)
    parts, config = dict(model.named_modules()), OmegaConf.to_yaml(model.cfg)
    artifacts = getattr(model, "artifacts", {}).copy()
    new = [["1", "2", "3"]]
    if family.pieces:
        text, model_prefix = tmp_path / "text.txt", tmp_path / "tokenizer"
        text.write_text("\n".join(["123231312"] * 20))
        SentencePieceTrainer.train(
            input=str(text), model_prefix=str(model_prefix), vocab_size=6, model_type="char", minloglevel=2,
            add_dummy_prefix=False,
        )  # fmt: skip
        (tmp_path / "vocab.txt").write_text("1\n2\n3")
        new = [str(tmp_path), "bpe"]
    with pytest.raises(ValueError, match="no label in common.*: call change_vocabulary without extend"):
        model.change_vocabulary(*new, extend=True)
    assert dict(model.named_modules()) == parts and OmegaConf.to_yaml(model.cfg) == config
    assert getattr(model, "artifacts", {}) == artifacts
    if family.pieces:
        assert model.tokenizer.vocab_size == len(model.joint.vocabulary)


def test_same_characters_change_nothing(tokenizer, speech):
    for family in (CHARACTER, CHARACTER_HYBRID):
        model = family.build(tokenizer, speech)
        joint, head = model.joint, model.ctc_decoder
        model.change_vocabulary(model.joint.vocabulary, extend=True)
        assert model.joint is joint and model.ctc_decoder is head


@pytest.mark.parametrize("extend", [False, True])
def test_sections_without_data(extend, change, tokenizer, speech):
    """NeMo writes the characters into each section, and does not bear one that is null."""
    model = CHARACTER.build(tokenizer, speech, more={"test_ds": None})
    assert "test_ds" in model.cfg and model.cfg.test_ds is None
    change(model, CHARACTER, extend=extend)
    assert len(model.joint.vocabulary) == len(CHARACTERS) + len(FEW) == len(model.cfg.labels)
    assert model.cfg.test_ds is None and list(model.cfg.train_ds.labels) == list(model.cfg.labels)


@pytest.mark.parametrize("labels, message", [
    ("abc", "must be a list of strings, got 'abc'"), (["a", 1], "must be a list of strings"),
    (["a", "b", "a"], r"more than once: \['a'\]"),
])  # fmt: skip
def test_characters_that_are_no_labels(labels, message, tokenizer, speech):
    model = CHARACTER.build(tokenizer, speech)
    joint = model.joint
    for extend in (False, True):
        with pytest.raises(ValueError, match=message):
            model.change_vocabulary(labels, extend=extend)
    assert model.joint is joint


def test_aggregate_tokenizer(tokenizer, speech, tmp_path):
    """NeMo's own way to a second language; pieces that both have come twice."""
    other = make_tokenizer(tmp_path / "other", pieces=43)
    model = speaking(HYBRID, tokenizer, speech)
    encoded = torch.randn(3, 16, 17, generator=torch.Generator().manual_seed(3))
    lengths = torch.tensor([17, 13, 5])

    def heard():  # as pieces, since a text leaves open which language's they are
        transducer = model.decoding.rnnt_decoder_predictions_tensor(encoded, lengths, return_hypotheses=True)
        frames = model.ctc_decoder(encoder_output=encoded).argmax(dim=-1)
        labels = [*model.joint.vocabulary, "blank"]
        return [[labels[i] for i in ids] for ids in (*(x.y_sequence.tolist() for x in transducer), *frames.tolist())]

    said = heard()
    assert all(len(set(pieces)) > 2 for pieces in said)
    tokenizers = {"en": {"dir": str(tokenizer), "type": "bpe"}, "xx": {"dir": str(other), "type": "bpe"}}
    model.change_vocabulary(OmegaConf.create({"type": "agg", "langs": tokenizers}), "agg", extend=True)
    assert len(model.joint.vocabulary) == 61 + 43 > len(set(model.joint.vocabulary))
    assert heard() == said


def test_same_labels():
    assert same_labels(["a", "b", "a", "c"], ["c", "a", "x", "a", "a"]) == [(0, 1), (2, 3), (3, 0)]
