"""A corpus as features: computed once into a folder, and kept whole on the GPU while training.

The folder holds for each set NAME.f16, the features of all utterances one after another, and NAME.json, a line for each
utterance; a SentencePiece tokenizer; and how often each label comes in the training text.
"""

from __future__ import annotations

import json
import time
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import sentencepiece
import torch
from features import Features
from nemo.collections.asr.modules import AudioToMelSpectrogramPreprocessor
from spoken import TRAIN, Spoken

COUNTS = "unigram_counts.txt"
SECOND = 16000  # samples of which a block's length is a multiple: shapes recur
STEP = 64  # frames of which a batch's length is a multiple: cuDNN looks for kernels at each new shape, for milliseconds


def build(folder: Path, blocks: Iterable[Spoken], tokenizer: dict, preprocessor: dict, device: str) -> float:
    """Fill the folder; the features are computed block by block while the next ones are spoken.

    Args:
        folder: made, and overwritten.
        blocks: the utterances of all sets.
        tokenizer: options of SentencePiece's trainer, which reads the training transcripts.
        preprocessor: arguments of NeMo's preprocessor, without dither: features are a function of the speech.
        device: for the features.
    Returns: seconds in which it waited for speech.
    """
    folder.mkdir(parents=True, exist_ok=True)
    preprocessor = AudioToMelSpectrogramPreprocessor(
        **{name: value for name, value in preprocessor.items() if name != "_target_"}
    ).to(device)
    lines, files = defaultdict(list), {}
    waited, ready = 0.0, time.perf_counter()
    for block in blocks:
        waited += time.perf_counter() - ready
        features, lengths = _features(preprocessor, block.speech, device)
        if block.set_name not in files:
            files[block.set_name] = open(folder / f"{block.set_name}.f16", "wb")
        for text, speaker, matrix, length in zip(block.texts, block.speakers, features, lengths, strict=True):
            matrix[:length].tofile(files[block.set_name])
            lines[block.set_name].append({"frames": int(length), "speaker": speaker, "text": text})
        ready = time.perf_counter()
    for name, file in files.items():
        file.close()
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines[name])
        (folder / f"{name}.json").write_text(text, encoding="utf-8")
    _train_tokenizer(folder, [line["text"] for line in lines[TRAIN]], tokenizer)
    return waited


@torch.no_grad()
def _features(preprocessor, speech: list[np.ndarray], device: str) -> tuple[np.ndarray, np.ndarray]:
    """(B, T, D) float16, and (B,) frames."""
    lengths = [len(samples) for samples in speech]
    longest = -(-max(lengths) // SECOND) * SECOND
    padded = np.zeros((len(speech), longest), np.int16)  # by NumPy: torch's threads wait for cores that speak
    for row, samples in zip(padded, speech, strict=True):
        row[: len(samples)] = samples
    signal = torch.from_numpy(padded).to(device).float() / 2**15
    features, lengths = preprocessor(input_signal=signal, length=torch.tensor(lengths, device=device))
    return features.transpose(1, 2).half().cpu().numpy(), lengths.cpu().numpy()


def _train_tokenizer(folder: Path, texts: list[str], options: dict) -> None:
    """In the layout that NeMo reads, and the counts of its labels."""
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts), model_prefix=str(folder / "tokenizer"), character_coverage=1.0, bos_id=-1,
        eos_id=-1, normalization_rule_name="identity", minloglevel=2, **options,
    )  # fmt: skip
    processor = sentencepiece.SentencePieceProcessor(str(folder / "tokenizer.model"))
    pieces = [processor.id_to_piece(label) for label in range(processor.get_piece_size())]
    (folder / "vocab.txt").write_text("\n".join(pieces[1:]), encoding="utf-8")
    counts = Counter(label for labels in processor.encode(texts) for label in labels)
    (folder / COUNTS).write_text("".join(f"{counts[label]}\n" for label in range(len(pieces))))


class Utterances:
    """One set of a corpus, on a device.

    Args:
        folder: that `build` has filled.
        name: of the set.
        device: for the features; 94 hours take 5 GB.
        bins: D, of the features.
    Attributes:
        texts: transcripts.
        lengths: (N,) int64, frames.
        bytes: that the features take.
    """

    def __init__(self, folder: Path, name: str, device: str, bins: int):
        lines = [json.loads(line) for line in (folder / f"{name}.json").read_text(encoding="utf-8").splitlines()]
        self.texts = [line["text"] for line in lines]
        self.speakers = [line["speaker"] for line in lines]
        self.lengths = np.array([line["frames"] for line in lines])
        tokenizer = sentencepiece.SentencePieceProcessor(str(folder / "tokenizer.model"))
        self.labels = [torch.tensor(labels) for labels in tokenizer.encode(self.texts)]
        self._starts = torch.from_numpy(np.cumsum(self.lengths) - self.lengths).to(device)
        self._features = torch.from_numpy(np.fromfile(folder / f"{name}.f16", np.float16)).view(-1, bins).to(device)
        self.bytes = self._features.nbytes

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def device(self) -> torch.device:
        """Of the features."""
        return self._features.device

    def batch(self, indices: np.ndarray) -> Features:
        """The utterances as a batch that NeMo's models take in place of audio; padding is 0."""
        device = self.device
        lengths = torch.from_numpy(self.lengths[indices]).to(device)
        frames = torch.arange(-(-int(self.lengths[indices].max()) // STEP) * STEP, device=device)
        padding = frames >= lengths[:, None]
        rows = (self._starts[torch.from_numpy(indices).to(device), None] + frames).masked_fill_(padding, 0)
        features = self._features[rows].float().masked_fill_(padding[..., None], 0).transpose(1, 2)
        labels = [self.labels[i] for i in indices]
        transcripts = torch.nn.utils.rnn.pad_sequence(labels, batch_first=True).to(device)
        return Features(features, lengths, transcripts, torch.tensor([len(x) for x in labels]).to(device))
