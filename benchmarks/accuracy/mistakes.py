"""What a trained model gets wrong: known and new sentences by known and new speakers, and what sounds the same.

Known sentences by new speakers that come out far better than new sentences by known ones say that the model has learned
them by heart. A wrong character with which the sentence sounds the same is a mistake that no ear could avoid: the text
has to tell.
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
        homophones: substitutions among these with which the sentence is pronounced alike; None where units are words.
    """

    said: int
    wrong: int
    substituted: int
    homophones: int | None


class Pronunciation(Espeak):
    """Of sentences by espeak-ng, which spoke the corpus: phonemes and tones, without the change of third tones."""

    def __init__(self):
        super().__init__()
        self.library.espeak_SetVoiceByName(VOICE.encode())
        self.library.espeak_TextToPhonemes.restype = ctypes.c_char_p

    def __call__(self, sentence: str) -> list[bytes]:
        """Its clauses."""
        text, clauses = ctypes.c_char_p(sentence.encode()), []
        while text.value:
            clauses.append(self.library.espeak_TextToPhonemes(ctypes.byref(text), 1, 0))  # of UTF-8, in ASCII
        return clauses


def mistakes(texts: list[str], hypotheses: list[str], unit: str) -> Mistakes:
    """Align what was heard with what was said, and count.

    Args:
        texts: transcripts.
        hypotheses: of the same utterances.
        unit: `word`, or `character`, which are Mandarin.
    """
    pronounced = Pronunciation() if unit == "character" else None
    total, wrong, substituted, alike = 0, 0, 0, 0
    for text, hypothesis in zip(texts, hypotheses, strict=True):
        said = units(text, unit)
        total += len(said)
        position = 0
        for right, instead in align(said, units(hypothesis, unit), NOTHING):
            wrong += right != instead
            if right != instead and NOTHING not in (right, instead):
                substituted += 1
                if pronounced is not None:
                    other = [*said[:position], instead, *said[position + 1 :]]
                    alike += pronounced("".join(other)) == pronounced("".join(said))
            position += right != NOTHING
    return Mistakes(total, wrong, substituted, None if pronounced is None else alike)


def of_run(
    run: Run, recipe: DictConfig, folder: Path, sets: list[Utterances], checkpoints: Path
) -> tuple[int, list[Mistakes]]:
    """Those of a run's checkpoint on sets, as many utterances of each as of the smallest.

    Args:
        run: setting and seed.
        recipe: that of the corpus.
        folder: of the corpus.
        sets: on the device where the model is to decode; of a larger one, utterances at equal distances are taken.
        checkpoints: folder; the file of the run is SETTING_SEED.ckpt.
    Returns: the checkpoint's step, and the mistakes on each set.
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
    return checkpoint["global_step"], result
