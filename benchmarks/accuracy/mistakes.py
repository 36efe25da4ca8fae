"""What a trained model gets wrong: known and new sentences by known and new speakers, and what sounds the same.

Known sentences by new speakers that come out far better than new sentences by known ones say that the model has learned
them by heart. A wrong character with which the sentence sounds the same is a mistake that no ear could avoid: the text
has to tell.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from corpus import Utterances
from evaluation import heard, units
from kaldialign import align
from model import restore
from omegaconf import DictConfig
from settings import Run
from speak import Espeak
from spread import spread

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


@cache
def _espeak() -> Espeak:
    espeak = Espeak()
    espeak.library.espeak_SetVoiceByName(VOICE.encode())
    espeak.library.espeak_TextToPhonemes.restype = ctypes.c_char_p
    return espeak


@cache
def pronounced(sentence: str) -> tuple[bytes, ...]:
    """Phonemes and tones of its clauses by espeak-ng, which spoke the corpus; without the change of third tones."""
    text, clauses = ctypes.c_char_p(sentence.encode()), []
    while text.value:
        clauses.append(_espeak().library.espeak_TextToPhonemes(ctypes.byref(text), 1, 0))  # of UTF-8, in ASCII
    return tuple(clauses)


def mistakes(texts: list[str], hypotheses: list[str], unit: str) -> Mistakes:
    """Align what was heard with what was said, and count.

    Args:
        texts: transcripts.
        hypotheses: of the same utterances.
        unit: `word`, or `character`, which are Mandarin.
    """
    total, wrong, substituted, alike = 0, 0, 0, 0
    for text, hypothesis in zip(texts, hypotheses, strict=True):
        said = units(text, unit)
        total += len(said)
        position = 0
        for right, instead in align(said, units(hypothesis, unit), NOTHING):
            wrong += right != instead
            if right != instead and NOTHING not in (right, instead):
                substituted += 1
                if unit == "character":
                    other = [*said[:position], instead, *said[position + 1 :]]
                    alike += pronounced("".join(other)) == pronounced("".join(said))
            position += right != NOTHING
    return Mistakes(total, wrong, substituted, alike if unit == "character" else None)


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
    model, step = restore(run, recipe, folder, checkpoints, sets[0].device)
    count = min(map(len, sets))
    result = []
    for utterances in sets:
        indices = spread(len(utterances), count)
        hypotheses = heard(model, utterances, recipe.batch_size, indices)
        result.append(mistakes([utterances.texts[i] for i in indices], hypotheses, recipe.unit))
    return step, result
