"""Distributions: the equations, the floor, what is not finite, and the counts file."""

import math
import re

import pytest
import torch

from nemo_sampled_rnnt.sampling import ctc_posteriors, load_unigram_counts
from nemo_sampled_rnnt.sampling.distributions import FRAME_WEIGHTS, ctc, uniform, unigram


def log_probs(batch=3, n_frames=11, n_columns=8, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    noise = 2 * torch.randn(batch, n_frames, n_columns, dtype=torch.float64, generator=generator)
    return noise.log_softmax(-1).to(dtype)


# ------------------------------------------------------------------------------------------------ uniform and unigram


def test_uniform():
    weights = uniform(7)
    assert weights.dtype == torch.float32 and torch.equal(weights, torch.zeros(7))


@pytest.mark.parametrize("floor", [0.0, 0.01, 0.3, 1.0])
def test_unigram(floor):
    counts = [0, 1, 5, 10, 4]
    weights = unigram(counts, 5, floor)
    expected = (1 - floor) * torch.tensor(counts) / 20 + floor / 5
    assert weights.dtype == torch.float32
    torch.testing.assert_close(weights.exp(), expected)
    assert (weights[0] == -math.inf) == (floor == 0)


def test_unigram_takes_tensors():
    assert torch.equal(unigram(torch.tensor([1, 2, 3]), 3, 0.1), unigram([1.0, 2.0, 3.0], 3, 0.1))


@pytest.mark.parametrize("counts", [[1, 2, 3], [1] * 8, [[1, 2, 3, 4, 5, 6, 7]]])
def test_unigram_counts_of_another_length(counts):
    got = torch.tensor(counts)
    message = f"expected 7 counts, one for each label of the vocabulary, got {got.numel()} of shape {tuple(got.shape)}"
    with pytest.raises(ValueError, match=re.escape(message)):
        unigram(counts, 7, 0.01)


@pytest.mark.parametrize("value", [-2.0, math.nan, math.inf])
def test_unigram_wrong_count(value):
    with pytest.raises(ValueError, match=f"finite counts of at least 0, got {value} for label 3"):
        unigram([1, 2, 3, value, 5], 5, 0.01)


def test_unigram_counts_all_zero():
    with pytest.raises(ValueError, match="all counts are 0"):
        unigram([0, 0, 0], 3, 0.01)


# ---------------------------------------------------------------------------------------------------------------- ctc


@pytest.mark.parametrize("floor", [0.0, 0.01, 0.3])
def test_ctc(floor):
    posteriors = torch.rand(3, 7, generator=torch.Generator().manual_seed(0))
    expected = (1 - floor) * posteriors / posteriors.sum(1, keepdim=True) + floor / 7
    torch.testing.assert_close(ctc(posteriors, floor).exp(), expected)
    torch.testing.assert_close(ctc(0.01 * posteriors, floor).exp(), expected, msg="a high blank changes nothing")


def test_ctc_floor_lifts_what_has_no_mass():
    posteriors = torch.tensor([[0.5, 0.0, 0.5]])
    assert ctc(posteriors, 0.0)[0, 1] == -math.inf
    torch.testing.assert_close(ctc(posteriors, 0.06)[0, 1].exp(), torch.tensor(0.02))


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_ctc_falls_back_to_uniform(wrong):
    posteriors = torch.rand(4, 7, generator=torch.Generator().manual_seed(0))
    healthy = ctc(posteriors, 0.1)
    posteriors[1, 3] = wrong
    posteriors[2] = 0.0
    weights = ctc(posteriors, 0.1)
    torch.testing.assert_close(weights[1:3].exp(), torch.full((2, 7), 1 / 7))
    assert torch.equal(weights[[0, 3]], healthy[[0, 3]]), "the other utterances are not touched"


def test_ctc_takes_low_precision():
    assert ctc(torch.rand(2, 5).bfloat16(), 0.01).dtype == torch.float32


# ----------------------------------------------------------------------------------------------------- ctc_posteriors


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float64, 1e-6), (torch.float32, 1e-6), (torch.bfloat16, 2e-2), (torch.float16, 2e-3)],
)
def test_posteriors_are_the_mean_over_valid_frames(dtype, tolerance):
    frames, lengths = log_probs(), torch.tensor([11, 4, 1])
    posteriors = ctc_posteriors(frames.to(dtype), lengths)
    assert posteriors.shape == (3, 7) and posteriors.dtype == torch.float32
    for b, length in enumerate(lengths):
        expected = frames[b, :length, :7].exp().mean(0).float()
        torch.testing.assert_close(posteriors[b], expected, rtol=tolerance, atol=1e-6)


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float64, 1e-6), (torch.float32, 1e-6), (torch.bfloat16, 2e-2), (torch.float16, 2e-3)],
)
def test_frames_weighted_by_speech_and_by_their_maximum(dtype, tolerance):
    frames, lengths = log_probs(seed=1), torch.tensor([11, 4, 1])
    by_speech, highest = (ctc_posteriors(frames.to(dtype), lengths, weights) for weights in ("nonblank", "max"))
    for b, length in enumerate(lengths):
        p = frames[b, :length].exp()
        speech = 1 - p[:, 7]
        expected = (speech[:, None] * p[:, :7]).sum(0) / speech.sum()
        torch.testing.assert_close(by_speech[b], expected.float(), rtol=tolerance, atol=1e-6)
        torch.testing.assert_close(highest[b], p[:, :7].amax(0).float(), rtol=tolerance, atol=1e-6)
    mean = ctc_posteriors(frames, lengths)
    assert not torch.allclose(by_speech[0], mean[0], rtol=0.05) and not torch.allclose(highest[0], mean[0], rtol=0.05)


def test_a_frame_of_silence_counts_less_when_weighted():
    """Nine frames of blank with a trace of label 0, one of label 1: the mean hardly sees label 1's lead."""
    p = torch.full((1, 10, 3), 0.0)
    p[0, :9] = torch.tensor([0.09, 0.01, 0.9])
    p[0, 9] = torch.tensor([0.05, 0.85, 0.1])
    ratio = {}
    for weights in FRAME_WEIGHTS:
        label_0, label_1 = ctc_posteriors(p.log(), torch.tensor([10]), weights)[0]
        ratio[weights] = (label_1 / label_0).item()
    assert ratio["mean"] < 1.1 and ratio["nonblank"] > 5 and ratio["max"] > 9


@pytest.mark.parametrize("weights", FRAME_WEIGHTS)
def test_all_blank_has_no_mass(weights):
    frames = torch.full((1, 5, 4), -math.inf)
    frames[..., -1] = 0
    assert torch.equal(ctc_posteriors(frames, torch.tensor([5]), weights), torch.zeros(1, 3))


def test_unknown_frame_weights():
    with pytest.raises(ValueError, match="expected frame_weights 'mean', 'nonblank', 'max', got 'median'"):
        ctc_posteriors(log_probs(), torch.tensor([3, 4, 5]), "median")


@pytest.mark.parametrize("weights", FRAME_WEIGHTS)
@pytest.mark.parametrize("padding", [math.nan, math.inf, -math.inf, 3e38])
def test_posteriors_ignore_frames_beyond_lengths(padding, weights):
    frames, lengths = log_probs(dtype=torch.float32), torch.tensor([11, 4, 1])
    clean = ctc_posteriors(frames, lengths, weights)
    for b, length in enumerate(lengths):
        frames[b, length:] = padding
    before = frames.clone()
    assert torch.equal(ctc_posteriors(frames, lengths, weights), clean)
    assert torch.equal(frames.nan_to_num(7.0), before.nan_to_num(7.0)), "the input is left as it was"


@pytest.mark.parametrize("weights", FRAME_WEIGHTS)
def test_posteriors_keep_to_their_utterance(weights):
    frames = log_probs(dtype=torch.float32)
    clean = ctc_posteriors(frames, torch.tensor([11, 4, 5]), weights)
    frames[1, 2] = math.nan
    posteriors = ctc_posteriors(frames, torch.tensor([11, 4, 5]), weights)
    assert posteriors[1].isnan().all()
    assert torch.equal(posteriors[[0, 2]], clean[[0, 2]])


@pytest.mark.parametrize("weights", FRAME_WEIGHTS)
def test_posteriors_of_no_frames(weights):
    assert torch.equal(ctc_posteriors(log_probs(), torch.tensor([0, 0, 0]), weights), torch.zeros(3, 7))
    assert torch.equal(ctc_posteriors(torch.zeros(2, 0, 8), torch.tensor([0, 0]), weights), torch.zeros(2, 7))


def test_posteriors_take_no_gradient():
    assert not ctc_posteriors(log_probs().requires_grad_(), torch.tensor([3, 4, 5])).requires_grad


def test_posteriors_of_wrong_shape():
    with pytest.raises(ValueError, match=re.escape("(3, 11, 8) and (2,)")):
        ctc_posteriors(log_probs(), torch.tensor([3, 4]))
    with pytest.raises(ValueError, match="expected log_probs"):
        ctc_posteriors(log_probs()[0], torch.tensor([3]))


@pytest.mark.parametrize("weights", FRAME_WEIGHTS)
def test_posteriors_hold_one_utterance_at_a_time(weights):
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        numel = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor) and result.untyped_storage().data_ptr() != source:
                self.numel = max(self.numel, result.untyped_storage().nbytes() // result.element_size())
            return result

    frames = log_probs(5, 13, 32, dtype=torch.float32)
    source = frames.untyped_storage().data_ptr()
    with Largest() as largest:
        ctc_posteriors(frames, torch.tensor([13, 3, 7, 9, 11]), weights)
    assert 0 < largest.numel <= 13 * 32


# ---------------------------------------------------------------------------------------------------- the counts file


PIECES = ["▁a", "b", "\t", "<unk>", "▁"]


def written(tmp_path, text):
    path = tmp_path / "counts.txt"
    path.write_bytes(text.encode("utf-8"))
    return path


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_counts_by_piece(tmp_path, end):
    path = written(tmp_path, end.join(["▁\t4", "▁a\t11", "", "\t\t3", "b\t0", ""]))
    counts = load_unigram_counts(path, PIECES, 5)
    assert counts.dtype == torch.int64 and counts.tolist() == [11, 0, 3, 0, 4]


def test_counts_by_line(tmp_path):
    path = written(tmp_path, "3\n0\n12\n\n")
    assert load_unigram_counts(str(path), None, 3).tolist() == [3, 0, 12]
    assert load_unigram_counts(path, ["a", "b", "c"], 3).tolist() == [3, 0, 12]


@pytest.mark.parametrize(
    ("text", "vocabulary", "vocab_size", "message"),
    [
        ("3\n4\n", None, 5, "expected 5 counts, one a line for each label, got 2"),
        ("", PIECES, 5, "expected 5 counts, one a line for each label, got 0"),
        ("3\nx\n", None, 2, "counts.txt:2: expected an integer count or 'piece<TAB>count', got 'x'"),
        ("3\n4.5\n", None, 2, "got '4.5'"),
        ("3\n-4\n", None, 2, "counts.txt:2: expected a count of at least 0, got -4"),
        ("3\nb\t4\n", PIECES, 2, r"expected an integer count or 'piece<TAB>count', got 'b\t4'"),
        ("b\t3\n4\n", PIECES, 5, "counts.txt:2: expected 'piece<TAB>count' as in the lines before, got '4'"),
        ("b\t-3\n", PIECES, 5, "counts.txt:1: expected a count of at least 0, got -3"),
        ("b\tmany\n", PIECES, 5, "got 'many'"),
        ("b\t3\n", None, 5, "lines need the vocabulary, got None"),
        ("b\t3\n", PIECES, 6, "expected a vocabulary of 6 pieces, got 5"),
        ("c\t3\n", PIECES, 5, "a piece that the vocabulary holds once, got 'c', which it holds 0 times"),
        ("b\t3\n", ["a", "b", "b"], 3, "got 'b', which it holds 2 times"),
        ("b\t3\nb\t4\n", PIECES, 5, "counts.txt:2: piece 'b' comes a second time"),
    ],
)
def test_wrong_counts_file(tmp_path, text, vocabulary, vocab_size, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        load_unigram_counts(written(tmp_path, text), vocabulary, vocab_size)


def test_no_counts_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="unigram_counts: no file .*nowhere.txt.*expected a text file"):
        load_unigram_counts(tmp_path / "nowhere.txt", None, 5)
