"""What a model says, by every way of decoding; also run where this package is not."""

from __future__ import annotations

import hashlib

from omegaconf import OmegaConf
from tiny import texts

STRATEGIES = {  # not "beam", which searches on until blank wins: with weights like these perhaps for ever
    "greedy": {"strategy": "greedy", "greedy": {"max_symbols": 4}},
    "greedy_batch": {"strategy": "greedy_batch", "greedy": {"max_symbols": 4}},
    "tsd": {"strategy": "tsd", "beam": {"beam_size": 2, "tsd_max_sym_exp": 3}},
    "maes": {"strategy": "maes", "beam": {"beam_size": 2, "maes_num_steps": 2, "maes_expansion_beta": 1}},
}


def listen(model, wav_files: list[str]) -> dict:
    """Transcripts by each strategy, and the words with their times; the model's own strategy is put back."""
    before = model.cfg.decoding.copy()
    heard = {"own": texts(model.transcribe(wav_files, verbose=False))}
    for name, strategy in STRATEGIES.items():
        model.change_decoding_strategy(OmegaConf.create(strategy), verbose=False)
        heard[name] = texts(model.transcribe(wav_files, verbose=False))
    model.change_decoding_strategy(before, verbose=False)
    hypotheses = model.transcribe(wav_files, timestamps=True, verbose=False)
    heard["words"] = [
        [[word["word"], word["start_offset"], word["end_offset"]] for word in hypothesis.timestamp["word"]]
        for hypothesis in hypotheses
    ]
    model.change_decoding_strategy(before, verbose=False)
    return heard


def fingerprints(model) -> dict[str, str]:
    """Of every tensor in the state dict."""
    return {
        name: hashlib.sha256(tensor.cpu().numpy().tobytes() + str(tuple(tensor.shape)).encode()).hexdigest()
        for name, tensor in model.state_dict().items()
    }
