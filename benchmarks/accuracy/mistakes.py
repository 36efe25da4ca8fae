"""What a trained model gets wrong: in sentences that it was trained on and in new ones, and what sounds the same.

Errors on training sentences that are far fewer than on held-out ones say that the model has learned them by heart. A
wrong character that is pronounced like the right one is a mistake that no ear could avoid: the text has to tell.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from corpus import Utterances
from evaluation import heard, units
from kaldialign import align
from model import build
from omegaconf import DictConfig
from settings import SETTINGS, Run
from speak import Espeak

VOICE = "cmn"
NOTHING = ""  # of an alignment: an insertion or a deletion


@dataclass(frozen=True)
class Mistakes:
    """Counts of units in some utterances.

    Attributes:
        said: all that were said.
        wrong: insertions, deletions and substitutions.
        substituted: substitutions among them.
        homophones: substitutions among these by what is pronounced alike; None where units are words.
    """

    said: int
    wrong: int
    substituted: int
    homophones: int | None


class Pronunciation(Espeak):
    """Of single characters by espeak-ng, which spoke the corpus; it needs no context."""

    def __init__(self):
        super().__init__()
        self.library.espeak_SetVoiceByName(VOICE.encode())
        self.library.espeak_TextToPhonemes.restype = ctypes.c_char_p
        self._known: dict[str, bytes] = {}

    def __call__(self, character: str) -> bytes:
        """Phonemes and tone."""
        if character not in self._known:
            text = ctypes.c_char_p(character.encode())
            self._known[character] = self.library.espeak_TextToPhonemes(ctypes.byref(text), 1, 0)  # UTF-8, ASCII
        return self._known[character]


def mistakes(texts: list[str], hypotheses: list[str], unit: str) -> Mistakes:
    """Align what was heard with what was said, and count.

    Args:
        texts: transcripts.
        hypotheses: of the same utterances.
        unit: `word`, or `character`, which are Mandarin.
    """
    pronounced = Pronunciation() if unit == "character" else None
    pairs = [
        pair
        for text, hypothesis in zip(texts, hypotheses, strict=True)
        for pair in align(units(text, unit), units(hypothesis, unit), NOTHING)
    ]
    wrong = [(said, instead) for said, instead in pairs if said != instead]
    substituted = [(said, instead) for said, instead in wrong if NOTHING not in (said, instead)]
    alike = None if pronounced is None else sum(pronounced(said) == pronounced(other) for said, other in substituted)
    return Mistakes(sum(said != NOTHING for said, _ in pairs), len(wrong), len(substituted), alike)


def of_run(run: Run, recipe: DictConfig, folder: Path, sets: list[Utterances], checkpoints: Path) -> list[Mistakes]:
    """Those of a run's checkpoint on sets of about equal size: as many utterances of each as of the smallest.

    Args:
        run: setting and seed.
        recipe: that of the corpus.
        folder: of the corpus.
        sets: on the device where the model is to decode; of a larger one, utterances at equal distances are taken.
        checkpoints: folder; the file of the run is SETTING_SEED.ckpt.
    """
    checkpoint = torch.load(checkpoints / run.checkpoint, map_location="cpu", weights_only=False, mmap=True)
    model = build(recipe, SETTINGS[run.setting], folder, run.seed)
    model.load_state_dict(checkpoint["state_dict"])
    model.to(sets[0].device).eval()
    count = min(map(len, sets))
    result = []
    for utterances in sets:
        indices = np.linspace(0, len(utterances) - 1, count).astype(int)
        hypotheses = heard(model, utterances, recipe.batch_size, indices)
        result.append(mistakes([utterances.texts[i] for i in indices], hypotheses, recipe.unit))
    return result
