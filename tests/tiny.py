"""A transducer small enough for a test: its tokenizer, config and speech are made on the spot."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import sentencepiece
import soundfile
from omegaconf import OmegaConf

WORDS = "the cat sat on a mat while seven green birds sang over open water and nobody heard them at all".split()
ENCODER = {
    "_target_": "nemo.collections.asr.modules.ConformerEncoder",
    "feat_in": 16,
    "feat_out": -1,
    "n_layers": 1,
    "d_model": 16,
    "subsampling": "striding",
    "subsampling_factor": 4,
    "subsampling_conv_channels": 8,
    "ff_expansion_factor": 2,
    "self_attention_model": "rel_pos",
    "n_heads": 2,
    "conv_kernel_size": 5,
    "dropout": 0.0,
    "dropout_pre_encoder": 0.0,
    "dropout_emb": 0.0,
    "dropout_att": 0.0,
}


def make_tokenizer(folder: Path, pieces: int = 61) -> Path:
    """A SentencePiece model of ``pieces`` pieces, in the layout NeMo reads."""
    folder.mkdir(parents=True, exist_ok=True)
    text = folder / "text.txt"
    random = np.random.default_rng(0)
    text.write_text("\n".join(" ".join(random.choice(WORDS, 6)) for _ in range(200)))
    sentencepiece.SentencePieceTrainer.train(
        input=str(text), model_prefix=str(folder / "tokenizer"), vocab_size=pieces, model_type="bpe",
        hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    tokens = [line.split("\t")[0] for line in (folder / "tokenizer.vocab").read_text().splitlines()]
    (folder / "vocab.txt").write_text("\n".join(tokens[1:]))
    return folder


def make_speech(folder: Path, utterances: int = 6, name: str = "train") -> Path:
    """A manifest of noise of different lengths, with sentences of different lengths."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(len(name) + utterances)
    lines = []
    for i in range(utterances):
        seconds = 0.6 + 0.13 * i
        path = folder / f"{name}_{i}.wav"
        soundfile.write(path, 0.1 * random.standard_normal(int(16000 * seconds)).astype(np.float32), 16000)
        text = " ".join(random.choice(WORDS, 1 + i % 3))
        lines.append(json.dumps({"audio_filepath": str(path), "duration": round(seconds, 3), "text": text}))
    manifest = folder / f"{name}_manifest.json"
    manifest.write_text("\n".join(lines) + "\n")
    return manifest


def make_config(tokenizer: Path, manifest: Path | None = None, sampled_softmax="default", aux_ctc=True, **joint):
    """A model config; ``joint`` adds to or replaces keys of the joint."""
    if sampled_softmax == "default":
        sampled_softmax = {"n_samples": 7, "sampler": "ctc" if aux_ctc else "uniform", "workspace_mib": 1}
    data = {"manifest_filepath": str(manifest), "sample_rate": 16000}
    data |= {"batch_size": 3, "shuffle": False, "num_workers": 0}
    config = {
        "sample_rate": 16000,
        "compute_eval_loss": True,
        "log_prediction": False,
        "model_defaults": {"enc_hidden": 16, "pred_hidden": 12, "joint_hidden": 20},
        "tokenizer": {"dir": str(tokenizer), "type": "bpe"},
        "preprocessor": {
            "_target_": "nemo.collections.asr.modules.AudioToMelSpectrogramPreprocessor",
            "sample_rate": 16000, "normalize": "per_feature", "window_size": 0.025, "window_stride": 0.01,
            "features": 16, "n_fft": 512, "dither": 0.0, "pad_to": 0,
        },
        "encoder": dict(ENCODER),
        "decoder": {
            "_target_": "nemo.collections.asr.modules.RNNTDecoder",
            "normalization_mode": None, "random_state_sampling": False, "blank_as_pad": True,
            "prednet": {"pred_hidden": 12, "pred_rnn_layers": 1, "t_max": None, "dropout": 0.0},
        },
        "joint": {
            "_target_": "nemo_sampled_rnnt.modules.SampledRNNTJoint",
            "log_softmax": None, "preserve_memory": False, "fuse_loss_wer": True, "fused_batch_size": 4,
            "jointnet": {"joint_hidden": 20, "activation": "relu", "dropout": 0.0},
            "sampled_softmax": sampled_softmax,
        } | joint,
        "decoding": {"strategy": "greedy_batch", "greedy": {"max_symbols": 5}},
        "loss": {"loss_name": "default", "warprnnt_numba_kwargs": {"fastemit_lambda": 0.0, "clamp": -1.0}},
        "optim": {"name": "adamw", "lr": 1e-2},
    }  # fmt: skip
    if aux_ctc:
        config["aux_ctc"] = {
            "ctc_loss_weight": 0.3, "use_cer": False, "ctc_reduction": "mean_batch",
            "decoder": {
                "_target_": "nemo.collections.asr.modules.ConvASRDecoder",
                "feat_in": None, "num_classes": -1, "vocabulary": [],
            },
            "decoding": {"strategy": "greedy"},
        }  # fmt: skip
    if manifest is not None:
        config |= {"train_ds": dict(data), "validation_ds": dict(data)}
    return OmegaConf.create(config)


def stock_joint(config, **joint):
    """The same config for a stock NeMo model."""
    config = OmegaConf.create(OmegaConf.to_container(config))
    config.joint.pop("sampled_softmax")
    config.joint.update({"_target_": "nemo.collections.asr.modules.RNNTJoint", **joint})
    config.pop("aux_ctc", None)
    config.pop("target", None)
    return config


def fit(model, steps: int, **more):
    """Train on the CPU for so many steps, everything logged at every step; returns the trainer."""
    import lightning.pytorch as pl

    checkpoint = more.pop("ckpt_path", None)
    options = {
        "accelerator": "cpu", "devices": 1, "logger": False, "enable_checkpointing": False, "log_every_n_steps": 1,
        "num_sanity_val_steps": 0, "enable_model_summary": False, "enable_progress_bar": False,
    }  # fmt: skip
    trainer = pl.Trainer(max_steps=steps, **(options | more))
    model.set_trainer(trainer)
    if model._train_dl is None:  # a restored model has no data until asked
        model.setup_training_data(model.cfg.train_ds)
        model.setup_multiple_validation_data(model.cfg.validation_ds)
    trainer.fit(model, ckpt_path=checkpoint)
    return trainer


def talkative(model):
    """An untrained model says nothing: weights that make transcripts which hang on the audio and on what was said."""
    import torch

    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        model.joint.enc.weight.normal_(std=1, generator=random)
        model.joint.pred.weight.normal_(std=8, generator=random)
        model.joint.joint_net[-1].weight.normal_(std=0.3, generator=random)
        model.decoder.prediction["embed"].weight.normal_(generator=random)
        model.joint.joint_net[-1].bias.zero_()[-1] = 5.0  # blank
    return model.eval()


def texts(hypotheses) -> list[str]:
    """Of what ``transcribe`` returned, in any of NeMo's forms."""
    if isinstance(hypotheses, tuple):
        hypotheses = hypotheses[0]
    return [x if isinstance(x, str) else (x[0] if isinstance(x, list) else x).text for x in hypotheses]


CHARACTERS = [" ", *"abcdeghilmnoprstuvwy"]  # of WORDS


def characters(config, labels=CHARACTERS):
    """The same config for a model whose labels are characters."""
    config = OmegaConf.create(OmegaConf.to_container(config))
    config.pop("tokenizer")
    config.labels = list(labels)
    for name in ("train_ds", "validation_ds"):
        if name in config:
            config[name].labels = list(labels)
    return config


def extend_tokenizer(folder: Path, old: Path, pieces: list[str]) -> Path:
    """The SentencePiece model of ``old`` with more pieces before its own, so that no old id stays.

    A model is a protobuf message, of which field 1 are the pieces: a string, and a float as the score.
    """

    def field(number: int, content: bytes) -> bytes:
        assert len(content) < 128, "a longer length would take two bytes"
        return bytes([number << 3 | 2, len(content)]) + content

    score = bytes([2 << 3 | 5]) + np.float32(-100).tobytes()
    added = b"".join(field(1, field(1, piece.encode()) + score) for piece in pieces)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.model").write_bytes(added + (old / "tokenizer.model").read_bytes())
    (folder / "tokenizer.vocab").write_text("".join(f"{piece}\t-100\n" for piece in pieces))
    (folder / "vocab.txt").write_text("\n".join(pieces))
    return folder
