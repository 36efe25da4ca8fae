"""Independent float64 truths of `sampled_rnnt_loss`, written from its contract and from nothing of its code.

Three ways to the same number, none sharing the lattice with another: every path enumerated (plain Python), the alpha
recursion with autograd (PyTorch, any dtype), and the gradient's closed formula (with FastEmit and clamp).
"""

import itertools
import math
from dataclasses import dataclass, fields, replace

import torch

LEAVES = ("encoder", "predictor", "weight", "bias")
IMPLS = ("reference", "cpu")  # those that run without a GPU
SCOPES = (None, "batch", "utterance")  # None: the exact loss
ACTIVATIONS = ("relu", "tanh", "sigmoid")
REDUCTIONS = (None, "mean", "sum", "mean_batch", "mean_volume")
# Each option off its default, for comparisons of one implementation with another.
OPTIONS = {
    "defaults": {},
    "tanh": {"activation": "tanh"},
    "sigmoid": {"activation": "sigmoid"},
    "fastemit": {"fastemit_lambda": 0.4},
    "clamp": {"clamp": 0.03},
    "dropout": {"dropout": 0.3},
    "sum": {"reduction": "sum"},
    "vector": {"reduction": None},
    "vector, dropout": {"reduction": None, "dropout": 0.2},
    "all at once": {
        "activation": "tanh",
        "fastemit_lambda": 0.01,
        "clamp": 0.2,
        "dropout": 0.1,
        "reduction": "mean_volume",
    },
}
GARBAGE = (10**9, -7)  # ids no vocabulary has, for where nothing may be read


@dataclass
class Problem:
    """The tensors of one call."""

    encoder: torch.Tensor  # (B, T, H)
    predictor: torch.Tensor  # (B, U+1, H)
    weight: torch.Tensor  # (V+1, H)
    bias: torch.Tensor  # (V+1,)
    targets: torch.Tensor  # (B, U)
    encoder_lengths: torch.Tensor  # (B,)
    target_lengths: torch.Tensor  # (B,)
    negatives: torch.Tensor | None = None  # (N,) or (B, N)
    negative_log_prob: torch.Tensor | None = None  # the same shape

    @property
    def blank(self):
        return self.weight.shape[0] - 1

    def map(self, change):
        return Problem(**{f.name: None if (x := getattr(self, f.name)) is None else change(x) for f in fields(self)})

    def to(self, where):
        """Another device, or another dtype of the four differentiable tensors."""
        if isinstance(where, torch.dtype):
            return replace(self, **{name: getattr(self, name).to(where) for name in LEAVES})
        return self.map(lambda x: x.to(where))

    def strided(self):
        """The same numbers in views that are not contiguous, or that start at an odd element of their storage."""

        def view(x):
            if x.dim() > 1:
                return x.transpose(0, -1).contiguous().transpose(0, -1)
            return torch.cat([x[:1], x])[1:]

        return self.map(view)

    def misaligned(self):
        """The same numbers, contiguous, one element behind the start of their storage: no wide load fits."""
        return self.map(lambda x: torch.cat([x.flatten()[:1], x.flatten()])[1:].view(x.shape))

    def leaves(self, frozen=()):
        """The four differentiable tensors made leaves that ask for gradients, but for the frozen ones."""
        new = {name: getattr(self, name).detach().requires_grad_(name not in frozen) for name in LEAVES}
        return replace(self, **new)

    def call(self, loss, **options):
        positional = [getattr(self, f.name) for f in fields(self)[:7]]
        if self.negatives is not None:
            options = {"negatives": self.negatives, **options}
        if self.negative_log_prob is not None:
            options = {"negative_log_prob": self.negative_log_prob, **options}
        return loss(*positional, **options)

    def keep(self, utterances):
        """The batch of these utterances only."""
        per_utterance = ["encoder", "predictor", "targets", "encoder_lengths", "target_lengths"]
        if self.negatives is not None and self.negatives.dim() == 2:
            per_utterance += ["negatives"] + ["negative_log_prob"] * (self.negative_log_prob is not None)
        return replace(self, **{name: getattr(self, name)[utterances] for name in per_utterance})

    def labels(self, b):
        return self.targets[b, : int(self.target_lengths[b])].tolist()

    def candidates(self, b):
        """{id: log q} of utterance b in the contract's words: sets, first probability, labels and blank uncorrected."""
        if self.negatives is None:
            return {k: 0.0 for k in range(self.blank + 1)}
        batch_scope = self.negatives.dim() == 1
        whose = range(len(self.targets)) if batch_scope else [b]
        ids, log_prob = self.negatives, self.negative_log_prob
        if not batch_scope:
            ids, log_prob = ids[b], None if log_prob is None else log_prob[b]
        log_q = {self.blank: 0.0} | {label: 0.0 for who in whose for label in self.labels(who)}
        for i, k in enumerate(ids.tolist()):
            if k != -1 and k not in log_q:
                log_q[k] = 0.0 if log_prob is None else float(log_prob[i])
        return log_q


def make_problem(
    seed, B=3, T=7, U=4, H=5, V=11, N=6, scope=None, correction=False, padded=True, scale=1.0, fill=math.nan
):
    """Random float64 inputs; `scope` is None (exact), "batch" or "utterance".

    Padded: utterance lengths differ, the tensors are one frame and one label wider than the longest utterance, and what
    lies beyond the lengths is NaN (or `fill`) in encoder and predictor and garbage ids in targets. Negatives hold a
    padding id whose probability is NaN, one id twice with two probabilities, and a label with a probability that is not
    to be used.
    """
    g = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64) * scale

    def integers(low, high, *shape):
        return torch.randint(low, high, shape, generator=g)

    frames, labels = torch.full((B,), T), torch.full((B,), U)
    if padded and B > 1:
        frames = torch.cat([integers(max(1, T // 2), T + 1, B - 1), torch.tensor([T])])
        labels = torch.cat([torch.tensor([U]), integers(0 if U < 2 else 1, U + 1, B - 1)])
    slack = int(padded)
    encoder, predictor = normal(B, T + slack, H), normal(B, U + slack + 1, H)
    targets = integers(0, V, B, U + slack)
    if padded:
        for b in range(B):
            encoder[b, frames[b] :], predictor[b, labels[b] + 1 :] = fill, fill
            for i, u in enumerate(range(int(labels[b]), U + slack)):
                targets[b, u] = GARBAGE[i % 2]
    problem = Problem(encoder, predictor, normal(V + 1, H), normal(V + 1), targets, frames, labels)
    if scope is not None:
        rows = []
        for b in range(B if scope == "utterance" else 1):
            row = torch.randperm(V, generator=g)[:N]
            row[N // 2] = -1
            row[-1] = row[0]
            own = problem.labels(b)
            row[1] = own[0] if own else row[1]
            rows.append(row)
        problem.negatives = torch.stack(rows) if scope == "utterance" else rows[0]
        if correction:
            log_prob = -3 * torch.rand(problem.negatives.shape, generator=g)
            log_prob[problem.negatives == -1] = math.nan
            problem.negative_log_prob = log_prob
    return problem


# --- every path -------------------------------------------------------------------------------------------------------


def enumerate_paths(problem, activation="relu"):
    """[-log sum over paths of prod p(arc)] of each utterance, in plain Python floats: no lattice, no recursion.

    A path is T blanks and U labels in any order that ends with a blank.
    """
    act = {"relu": lambda x: max(x, 0.0), "tanh": math.tanh, "sigmoid": lambda x: 1 / (1 + math.exp(-x))}[activation]
    weight, bias = problem.weight.tolist(), problem.bias.tolist()
    losses = []
    for b in range(len(problem.targets)):
        labels, log_q = problem.labels(b), problem.candidates(b)
        frames = int(problem.encoder_lengths[b])
        encoder, predictor = problem.encoder[b].tolist(), problem.predictor[b].tolist()

        def log_p(t, u, k, encoder=encoder, predictor=predictor, log_q=log_q):
            hidden = [act(f + g) for f, g in zip(encoder[t], predictor[u], strict=True)]
            z = {j: sum(map(lambda a, w: a * w, hidden, weight[j])) + bias[j] for j in log_q}
            return z[k] - math.log(math.fsum(math.exp(z[j] - log_q[j]) for j in log_q))

        cells = list(itertools.product(range(frames), range(len(labels) + 1)))
        blank = {(t, u): log_p(t, u, problem.blank) for t, u in cells}
        label = {(t, u): log_p(t, u, labels[u]) for t, u in cells if u < len(labels)}
        total = 0.0
        arcs = frames - 1 + len(labels)
        for where in itertools.combinations(range(arcs), len(labels)):
            t, u, score = 0, 0, 0.0
            for i in range(arcs):
                if i in where:
                    score, u = score + label[t, u], u + 1
                else:
                    score, t = score + blank[t, u], t + 1
            total += math.exp(score + blank[frames - 1, len(labels)])
        losses.append(-math.log(total))
    return losses


# --- the recursion, with autograd -------------------------------------------------------------------------------------


def _hidden(problem, b, activation, mask=None):
    frames, states = int(problem.encoder_lengths[b]), int(problem.target_lengths[b]) + 1
    pre = problem.encoder[b, :frames, None] + problem.predictor[b, None, :states].to(problem.encoder.dtype)
    hidden = getattr(torch, activation)(pre)
    return pre, hidden if mask is None else hidden * mask


def _logits(problem, hidden, log_q):
    rows, compute = torch.tensor(sorted(log_q)), problem.encoder.dtype
    return torch.nn.functional.linear(hidden, problem.weight[rows].to(compute), problem.bias[rows].to(compute))


def dense_loss(problem, activation="relu", masks=None):
    """(B,) losses by the alpha recursion, with autograd; `masks[b]` (T, U+1, H) scales the hidden (dropout).

    Float64 for the truth. In another dtype it is what plain PyTorch does: hidden and logits in the encoder's dtype,
    log-sum-exp and lattice in float32.
    """
    compute = problem.encoder.dtype
    wide = torch.float64 if compute == torch.float64 else torch.float32
    count = len(problem.targets)
    hiddens = [_hidden(problem, b, activation, None if masks is None else masks[b])[1] for b in range(count)]
    log_qs = [problem.candidates(b) for b in range(count)]
    shared = None
    if all(log_q == log_qs[0] for log_q in log_qs):  # one matrix product, as plain PyTorch would have it
        sizes = [hidden.shape[0] * hidden.shape[1] for hidden in hiddens]
        shared = _logits(problem, torch.cat([hidden.flatten(0, 1) for hidden in hiddens]), log_qs[0]).split(sizes)
    losses = []
    for b, (hidden, log_q) in enumerate(zip(hiddens, log_qs, strict=True)):
        place = {k: i for i, k in enumerate(sorted(log_q))}
        z = shared[b].unflatten(0, hidden.shape[:2]) if shared else _logits(problem, hidden, log_q)
        z = z.to(wide)
        lse = torch.logsumexp(z - torch.tensor([log_q[k] for k in place], dtype=wide), -1)
        frames, labels = hidden.shape[0], problem.labels(b)
        blank = [list(row.unbind()) for row in z[..., place[problem.blank]] - lse]
        label = [list((z[:, u, place[y]] - lse[:, u]).unbind()) for u, y in enumerate(labels)]  # [u][t]
        alpha = {(0, 0): z.new_zeros(())}
        for t, u in itertools.product(range(frames), range(len(labels) + 1)):
            into = [alpha[t - 1, u] + blank[t - 1][u]] if t else []
            into += [alpha[t, u - 1] + label[u - 1][t]] if u else []
            if into:
                alpha[t, u] = into[0] if len(into) == 1 else torch.logaddexp(*into)
        losses.append(-(alpha[frames - 1, len(labels)] + blank[-1][-1]))
    return torch.stack(losses)


# --- the gradient's formula -------------------------------------------------------------------------------------------


def formula(problem, upstream, activation="relu", fastemit_lambda=0.0, clamp=-1.0, masks=None):
    """(B,) reported losses and {name: gradient} of sum_b upstream[b] loss[b], in float64, with no autograd.

    dz_k = p~(k) (occ + lambda gamma_label) - [k=blank] gamma_blank - [k=y] (1 + lambda) gamma_label, then bounded by
    the clamp, then weighted by upstream[b], then chained by hand to weight, bias and hidden.
    """
    problem = problem.map(lambda x: x.double() if x.is_floating_point() else x)
    slope = {
        "relu": lambda x: (x > 0).double(),
        "tanh": lambda x: 1 - torch.tanh(x) ** 2,
        "sigmoid": lambda x: torch.sigmoid(x) * (1 - torch.sigmoid(x)),
    }[activation]
    gradients = {name: torch.zeros_like(getattr(problem, name)) for name in LEAVES}
    losses = []
    for b in range(len(problem.targets)):
        log_q, labels = problem.candidates(b), problem.labels(b)
        ids = list(log_q)
        weight = problem.weight[ids]
        mask = torch.ones(()) if masks is None else masks[b]
        pre, hidden = _hidden(problem, b, activation, mask)
        T, states = pre.shape[:2]
        z = hidden @ weight.T + problem.bias[ids]
        corrected = z - torch.tensor([log_q[k] for k in ids], dtype=torch.float64)
        lse = corrected.logsumexp(-1)
        blank = (z[..., ids.index(problem.blank)] - lse).tolist()
        label = [[(z[t, u, ids.index(y)] - lse[t, u]).item() for u, y in enumerate(labels)] for t in range(T)]

        def add(x, y):
            top = max(x, y)
            return top if top == -math.inf else top + math.log(math.exp(x - top) + math.exp(y - top))

        alpha = [[-math.inf] * states for _ in range(T)]
        beta = [[-math.inf] * (states + 1) for _ in range(T + 1)]
        for t, u in itertools.product(range(T), range(states)):
            from_left = alpha[t - 1][u] + blank[t - 1][u] if t else -math.inf
            from_below = alpha[t][u - 1] + label[t][u - 1] if u else -math.inf
            alpha[t][u] = 0.0 if t == u == 0 else add(from_left, from_below)
        beta[T][states - 1] = 0.0  # past the last blank; every other cell outside the lattice has no way out
        for t, u in itertools.product(reversed(range(T)), reversed(range(states))):
            by_label = beta[t][u + 1] + label[t][u] if u + 1 < states else -math.inf
            beta[t][u] = add(beta[t + 1][u] + blank[t][u], by_label)
        log_total = beta[0][0]
        losses.append(-(1 + fastemit_lambda) * log_total)

        p = (corrected - lse[..., None]).exp()
        dz = torch.zeros_like(z)
        for t, u in itertools.product(range(T), range(states)):
            gamma_blank = math.exp(alpha[t][u] + blank[t][u] + beta[t + 1][u] - log_total)
            gamma_label = 0.0
            if u + 1 < states:
                gamma_label = math.exp(alpha[t][u] + label[t][u] + beta[t][u + 1] - log_total)
            occupation = math.exp(alpha[t][u] + beta[t][u] - log_total)
            dz[t, u] = p[t, u] * (occupation + fastemit_lambda * gamma_label)
            dz[t, u, ids.index(problem.blank)] -= gamma_blank
            if u + 1 < states:
                dz[t, u, ids.index(labels[u])] -= (1 + fastemit_lambda) * gamma_label
        if clamp > 0:
            dz = dz.clamp(-clamp, clamp)
        dz = dz * float(upstream[b])
        dpre = (dz @ weight) * mask * slope(pre)
        gradients["weight"][ids] += torch.einsum("tuk,tuh->kh", dz, hidden)
        gradients["bias"][ids] += dz.sum((0, 1))
        gradients["encoder"][b, :T] = dpre.sum(1)
        gradients["predictor"][b, :states] = dpre.sum(0)
    return torch.tensor(losses, dtype=torch.float64), gradients


# --- reductions, running, comparing -----------------------------------------------------------------------------------


def reduction_weights(target_lengths, reduction):
    """(B,) weight of each loss in the reduced one, by NeMo's definitions with denominators of at least 1."""
    lengths = target_lengths.double().cpu()
    ones, count = torch.ones_like(lengths), len(lengths)
    return {
        None: ones,
        "sum": ones,
        "mean_batch": ones / count,
        "mean": 1 / lengths.clamp(min=1) / count,
        "mean_volume": ones / lengths.sum().clamp(min=1),
    }[reduction]


def gradients_of(problem, loss, frozen=(), upstream=None, **options):
    """(detached loss, {name: gradient}) of one call; `upstream` is what arrives at the loss (ones unless given)."""
    problem = problem.leaves(frozen)
    value = problem.call(loss, **options)
    value.backward(torch.ones_like(value) if upstream is None else upstream.to(value))
    return value.detach(), {name: getattr(problem, name).grad for name in LEAVES}


def worst(got, want):
    """The largest error as a share of the largest true value, and a sentence that names the element it is at."""
    got, want = got.detach().double().cpu(), want.detach().double().cpu()
    assert got.shape == want.shape, f"shape {tuple(got.shape)}, expected {tuple(want.shape)}"
    if not got.numel():
        return 0.0, "empty"
    error = (got - want).abs()
    at = int(torch.where(error.isnan(), math.inf, error).argmax())
    where = tuple(int(i) for i in torch.unravel_index(torch.tensor(at), got.shape)) if got.dim() else ()
    share = float(error.flatten()[at]) / max(float(want.abs().max()), 1e-3)
    return share, f"worst at {where}: {float(got.flatten()[at])!r}, expected {float(want.flatten()[at])!r}"


def relative_error(got, want):
    """||got - want|| / ||want||, the measure low precision is judged by: no single element's luck decides."""
    got, want = got.detach().double().cpu(), want.detach().double().cpu()
    return float((got - want).norm() / want.norm())


def assert_near(what, got, want, tolerance):
    share, sentence = worst(got, want)
    assert share <= tolerance, f"{what}: error {share:.2e} of the largest value, allowed {tolerance:.0e}; {sentence}"


def assert_same(got, want, tolerance):
    """Both (loss, gradients) pairs agree."""
    assert_near("loss", got[0], want[0], tolerance)
    for name, gradient in got[1].items():
        assert_near(f"gradient of {name}", gradient, want[1][name], tolerance)
