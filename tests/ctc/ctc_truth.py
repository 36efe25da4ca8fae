"""The float64 truth of `ctc_loss`: PyTorch's own CTC loss on all log-probs, and an enumeration of all alignments."""

import itertools
from dataclasses import dataclass, fields, replace

import torch

from nemo_sampled_rnnt.sampling import ctc_posteriors

LEAVES = ("encoder", "weight", "bias")
GARBAGE = (10**9, -7)  # ids no vocabulary has, for where nothing may be read


@dataclass
class Problem:
    """The tensors of one call."""

    encoder: torch.Tensor  # (B, T, D)
    weight: torch.Tensor  # (V+1, D)
    bias: torch.Tensor  # (V+1,)
    targets: torch.Tensor  # (B, U)
    encoder_lengths: torch.Tensor  # (B,)
    target_lengths: torch.Tensor  # (B,)

    def map(self, change):
        return Problem(**{f.name: change(getattr(self, f.name)) for f in fields(self)})

    def to(self, where):
        """Another device, or another dtype of the three differentiable tensors."""
        if isinstance(where, torch.dtype):
            return replace(self, **{name: getattr(self, name).to(where) for name in LEAVES})
        return self.map(lambda x: x.to(where))

    def keep(self, utterances):
        """The problem of some of the utterances."""
        rows = {name: getattr(self, name)[utterances] for name in ("encoder", "targets", "encoder_lengths")}
        return replace(self, **rows, target_lengths=self.target_lengths[utterances])

    def call(self, function, **options):
        return function(*(getattr(self, f.name) for f in fields(self)), **options)


def make_problem(seed=0, B=4, T=13, U=5, D=7, V=11, fill=float("nan"), scale=0.7, lengths=None, labels=None):
    """Lengths differ and the longest fills the tensor; beyond them stand ``fill`` and ids of no label.

    Labels are of a small range, so that some follow themselves.
    """
    random = torch.Generator().manual_seed(seed)

    def normal(*size):
        return torch.randn(*size, generator=random, dtype=torch.float64) * scale

    if lengths is None:
        lengths = torch.randint((T + 1) // 2, T + 1, (B,), generator=random)
        lengths[B // 2] = T
    if labels is None:
        labels = torch.randint(0, U + 1, (B,), generator=random)
        labels[B // 2] = U
        labels = torch.minimum(labels, (lengths + 1) // 2)
    lengths, labels = torch.as_tensor(lengths), torch.as_tensor(labels)
    encoder, targets = normal(B, T, D), torch.randint(0, max(2, V // 3), (B, U), generator=random)
    encoder[torch.arange(T) >= lengths[:, None]] = fill
    targets[torch.arange(U) >= labels[:, None]] = GARBAGE[seed % 2]
    return Problem(encoder, normal(V + 1, D), normal(V + 1), targets, lengths, labels)


def plain(problem: Problem, frame_weights="mean", **_):
    """Losses (B,) with inf where there is no alignment, and posteriors, written without thinking of memory."""
    T, U = problem.encoder.shape[1], problem.targets.shape[1]
    valid = torch.arange(T, device=problem.encoder.device) < problem.encoder_lengths[:, None]
    encoder = problem.encoder.masked_fill(~valid[..., None], 0)
    log_probs = torch.nn.functional.linear(encoder, problem.weight.to(encoder.dtype), problem.bias.to(encoder.dtype))
    log_probs = log_probs.to(torch.promote_types(encoder.dtype, torch.float32)).log_softmax(dim=-1)
    labelled = torch.arange(U, device=valid.device) < problem.target_lengths[:, None]
    targets = torch.nn.functional.pad(problem.targets.masked_fill(~labelled, 0), (0, 1))
    losses = torch.nn.functional.ctc_loss(
        log_probs.transpose(0, 1), targets, problem.encoder_lengths, problem.target_lengths,
        blank=len(problem.weight) - 1, reduction="none",
    )  # fmt: skip
    posteriors = ctc_posteriors(log_probs, problem.encoder_lengths, frame_weights)
    return losses, posteriors, log_probs


def reduced(losses, target_lengths, reduction="mean_batch"):
    """As NeMo's CTCLoss with PyTorch's "mean" and "sum", every utterance counted."""
    if reduction == "mean_batch":
        return losses.mean()
    if reduction == "mean_volume":
        return losses.sum() / target_lengths.sum()
    if reduction == "mean":
        return (losses / target_lengths.clamp(min=1)).mean()
    return losses.sum()


def truth(problem: Problem, upstream=1.0, frame_weights="mean", reduction="mean_batch"):
    """(loss, losses, posteriors, gradients by name), in float64 unless the problem's dtype is another."""
    leaves = replace(problem, **{name: getattr(problem, name).detach().clone().requires_grad_() for name in LEAVES})
    losses, posteriors, _ = plain(leaves, frame_weights)
    loss = reduced(losses, problem.target_lengths, reduction)
    gradients = torch.autograd.grad(loss * upstream, [getattr(leaves, name) for name in LEAVES])
    return loss.detach(), losses.detach(), posteriors, dict(zip(LEAVES, gradients, strict=True))


def results(problem: Problem, function, upstream=1.0, frozen=(), **options):
    """The same of ours."""
    leaves = replace(
        problem,
        **{name: getattr(problem, name).detach().clone().requires_grad_(name not in frozen) for name in LEAVES},
    )
    out = leaves.call(function, **{"frame_weights": "mean"} | options)
    if len(set(frozen)) < len(LEAVES):
        (out.loss * upstream).backward()
    return out.loss.detach(), out.losses, out.posteriors, {name: getattr(leaves, name).grad for name in LEAVES}


def relative_error(got, want):
    return ((got.cpu().double() - want.cpu().double()).abs().max() / want.double().abs().max().clamp(min=1e-30)).item()


def assert_near(name, got, want, tolerance):
    assert got.shape == want.shape, f"{name}: shape {tuple(got.shape)} instead of {tuple(want.shape)}"
    got, want = got.cpu().double(), want.cpu().double()
    difference = (got - want).abs().nan_to_num(nan=torch.inf)
    difference[(got == want) | (got.isnan() & want.isnan())] = 0
    worst = int(difference.argmax()) if difference.numel() else 0
    bound = tolerance * max(1e-30, want.nan_to_num(posinf=0).abs().max().item()) if want.numel() else 0
    assert difference.max() <= bound, (
        f"{name}: element {tuple(map(int, torch.unravel_index(torch.tensor(worst), want.shape)))} is "
        f"{got.flatten()[worst]} instead of {want.flatten()[worst]}, off by {difference.max() / bound:.1f} bounds"
    )


def assert_same(got, want, tolerance):
    for name, mine, theirs in zip(("loss", "losses", "posteriors"), got, want, strict=False):
        # ctc_posteriors works in float32
        assert_near(name, mine, theirs, max(tolerance, 1e-6) if name == "posteriors" else tolerance)
    for name in LEAVES:
        if got[3][name] is not None:
            assert_near(f"gradient of {name}", got[3][name], want[3][name], tolerance)


def enumerated(log_probs, labels) -> float:
    """P(labels) as the sum over every string of T symbols that collapses to them; log_probs (T, V+1), blank last."""
    total, blank = 0.0, log_probs.shape[1] - 1
    for path in itertools.product(range(blank + 1), repeat=len(log_probs)):
        collapsed = [k for k, _ in itertools.groupby(path) if k != blank]
        if collapsed == list(labels):
            total += log_probs[torch.arange(len(path)), list(path)].sum().exp().item()
    return total
