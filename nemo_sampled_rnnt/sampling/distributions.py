"""Where negatives are drawn from: uniform, unigram counts, CTC posteriors; each as log-weights over the labels."""

import os

import torch

FRAME_WEIGHTS = ("mean", "nonblank", "max")


def uniform(vocab_size: int, device: torch.device | str | None = None) -> torch.Tensor:
    """Log-weights of the uniform distribution.

    Args: vocab_size: V; device: where the result lies.
    Returns: (V,) float32 zeros: weights may have any scale.
    Source: standard.
    """
    return torch.zeros(vocab_size, device=device)


def unigram(counts, vocab_size: int, floor: float) -> torch.Tensor:
    """Log-weights in proportion to how often each label comes in the training text.

        log((1 - floor) c_k / sum_j c_j + floor / V)

    Args:
        counts: (V,) numbers, a tensor or a sequence.
        vocab_size: V.
        floor: share of the uniform distribution, in [0, 1].
    Returns: (V,) float32, on the device of `counts`; -inf for a count of 0 with a floor of 0.
    Raises: ValueError: counts of another length, negative, not finite, or all 0.
    Source: standard; the floor is ours.
    """
    counts = torch.as_tensor(counts, dtype=torch.float64)
    if counts.shape != (vocab_size,):
        raise ValueError(
            f"unigram counts: expected {vocab_size} counts, one for each label of the vocabulary, got "
            f"{counts.numel()} of shape {tuple(counts.shape)}; count with the tokenizer that the model uses"
        )
    wrong = ~(counts.isfinite() & (counts >= 0))
    if wrong.any():
        label = int(wrong.int().argmax())
        raise ValueError(f"unigram counts: expected finite counts of at least 0, got {counts[label]} for label {label}")
    if not counts.any():
        raise ValueError("unigram counts: all counts are 0; expected how often each label comes in the training text")
    return _with_floor(counts / counts.sum(), floor).float()


def ctc(posteriors: torch.Tensor, floor: float) -> torch.Tensor:
    """Log-weights in proportion to the CTC posteriors of each utterance.

        log((1 - floor) p_k / sum_j p_j + floor / V),   sums over labels, blank left out

    Args:
        posteriors: (B, V) float, mean posteriors (`ctc_posteriors`); a row need not sum to 1. A row with NaN, infinity
            or no mass at all counts as uniform.
        floor: share of the uniform distribution, in [0, 1].
    Returns: (B, V) float32; -inf for a posterior of 0 with a floor of 0.
    Source: paper (abstract): CTC posteriors as sampling distribution. Normalising, floor and fallback: ours.
    """
    mass = posteriors.float().clamp_min(0)
    total = mass.sum(dim=1, keepdim=True)
    return _with_floor(torch.where(usable(posteriors).unsqueeze(1), mass / total, 1 / mass.shape[1]), floor)


def usable(posteriors: torch.Tensor) -> torch.Tensor:
    """(B,) bool: the posteriors (B, V) of an utterance are finite and have mass; the others count as uniform."""
    total = posteriors.float().clamp_min(0).sum(dim=1)
    return total.isfinite() & (total > 0)


def _with_floor(probabilities: torch.Tensor, floor: float) -> torch.Tensor:
    """Log of (1 - floor) p + floor / V. A probability near 0 would make the corrected sum explode when it is drawn."""
    return torch.log((1 - floor) * probabilities + floor / probabilities.shape[-1])


@torch.no_grad()
def ctc_posteriors(log_probs: torch.Tensor, lengths: torch.Tensor, frame_weights: str = "mean") -> torch.Tensor:
    """One posterior for each label, joined from those of the valid frames of an utterance.

        mean         1 / T_b  sum_t p[t, k]
        nonblank     sum_t w_t p[t, k] / sum_t w_t,   w_t = 1 - p[t, blank]
        max          max_t p[t, k]                                              t < T_b,  k < V

    Args:
        log_probs: (B, T, V + 1) float, log-softmax of the CTC head, blank last; frames from T_b on may hold anything.
        lengths: (B,) int, T_b in frames, on the device of `log_probs`.
        frame_weights: "mean", "nonblank" or "max".
    Returns: (B, V) float32, no gradient; 0 where T_b is 0. A row of "mean" sums to 1 less the mean posterior of blank.
    Raises: ValueError: shapes that do not fit, or another way of joining.
    Exact. One utterance at a time, so that beside `log_probs` only (T, V) floats are held; never waits for a GPU.
    Source: ours (the paper's abstract names the CTC distributions, not how frames are joined).
    """
    if log_probs.dim() != 3 or lengths.shape != log_probs.shape[:1]:
        raise ValueError(
            "ctc_posteriors: expected log_probs (B, T, V + 1) and lengths (B,), got shapes "
            f"{tuple(log_probs.shape)} and {tuple(lengths.shape)}"
        )
    if frame_weights not in FRAME_WEIGHTS:
        raise ValueError(
            f"ctc_posteriors: expected frame_weights {', '.join(map(repr, FRAME_WEIGHTS))}, got {frame_weights!r}"
        )
    batch, n_frames, n_columns = log_probs.shape
    beyond = torch.arange(n_frames, device=log_probs.device) >= lengths.unsqueeze(1)
    posteriors = torch.zeros((batch, n_columns - 1), dtype=torch.float32, device=log_probs.device)
    for b in range(batch if n_frames else 0):
        # filled, not multiplied by 0: 0 * NaN is NaN
        frames = log_probs[b].masked_fill(beyond[b].unsqueeze(1), -torch.inf).float().exp_()
        labels, blank = frames[:, :-1], frames[:, -1]
        if frame_weights == "max":
            posteriors[b] = labels.amax(dim=0)
        elif frame_weights == "nonblank":
            weights = torch.where(beyond[b], 0, 1 - blank)
            posteriors[b] = (weights @ labels) / weights.sum().clamp_min(torch.finfo(weights.dtype).tiny)
        else:
            posteriors[b] = labels.sum(dim=0)
    if frame_weights == "mean":
        posteriors /= lengths.clamp(1, max(1, n_frames)).unsqueeze(1)
    return posteriors


def load_unigram_counts(path: str | os.PathLike, vocabulary, vocab_size: int) -> torch.Tensor:
    """Read how often each label comes in the training text.

    Two formats: "piece<TAB>count" lines in any order, pieces left out counting 0; or one integer count a line, in the
    order of label ids. Blank lines are skipped.

    Args:
        path: the text file, UTF-8.
        vocabulary: the pieces in the order of their ids, needed for the first format; or None.
        vocab_size: V.
    Returns: (V,) int64.
    Raises:
        FileNotFoundError: no such file.
        ValueError: a line of neither format or of the other one, a negative count, a piece that the vocabulary lacks or
            holds twice, a piece that comes twice, or another number of counts than V.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(
            f"unigram_counts: no file {os.fspath(path)!r}; expected a text file, 'piece<TAB>count' or one count a line"
        )
    with open(path, encoding="utf-8") as file:
        lines = [(f"{os.fspath(path)}:{i}", line.rstrip("\n")) for i, line in enumerate(file, 1) if line.strip()]
    with_pieces = bool(lines) and "\t" in lines[0][1]
    if not with_pieces:
        counts = [_count(text, place) for place, text in lines]
        if len(counts) != vocab_size:
            raise ValueError(
                f"{os.fspath(path)}: expected {vocab_size} counts, one a line for each label, got {len(counts)}; "
                "count with the tokenizer that the model uses"
            )
        return torch.tensor(counts, dtype=torch.int64)

    ids = _ids_by_piece(vocabulary, vocab_size, path)
    counts = {}
    for place, line in lines:
        piece, tab, text = line.rpartition("\t")
        if not tab:
            raise ValueError(f"{place}: expected 'piece<TAB>count' as in the lines before, got {line!r}")
        if len(ids.get(piece, ())) != 1:
            raise ValueError(
                f"{place}: expected a piece that the vocabulary holds once, got {piece!r}, which it holds "
                f"{len(ids.get(piece, ()))} times; count with the model's tokenizer, or write one count a line"
            )
        if piece in counts:
            raise ValueError(f"{place}: piece {piece!r} comes a second time; expected one line for each piece")
        counts[piece] = _count(text, place)
    result = torch.zeros(vocab_size, dtype=torch.int64)
    for piece, count in counts.items():
        result[ids[piece][0]] = count
    return result


def _count(text: str, place: str) -> int:
    try:
        count = int(text)
    except ValueError:
        raise ValueError(f"{place}: expected an integer count or 'piece<TAB>count', got {text!r}") from None
    if count < 0:
        raise ValueError(f"{place}: expected a count of at least 0, got {count}")
    return count


def _ids_by_piece(vocabulary, vocab_size: int, path) -> dict[str, list[int]]:
    if vocabulary is None:
        raise ValueError(
            f"{os.fspath(path)}: 'piece<TAB>count' lines need the vocabulary, got None; give the pieces in the "
            "order of their ids, or write one integer count a line"
        )
    ids = {}
    for label, piece in enumerate(vocabulary):
        ids.setdefault(piece, []).append(label)
    if (size := len(vocabulary)) != vocab_size:
        raise ValueError(f"{os.fspath(path)}: expected a vocabulary of {vocab_size} pieces, got {size}")
    return ids
