"""impl="cuda" in numba's CUDA simulator against the reference in float64; run with NUMBA_ENABLE_CUDASIM=1.

A simulated thread costs about 0.1 ms, so lattices are tiny: cells x H stays under 2,000. Prints a line for each case,
`ok` or `FAILED` first; exits with the number of failures.
"""

import math
import sys
import time
import traceback
from dataclasses import replace

import torch
from truth import GARBAGE, LEAVES, assert_same, gradients_of, make_problem

from nemo_sampled_rnnt import sampled_rnnt_loss
from nemo_sampled_rnnt.loss.candidates import aligned, recurring
from nemo_sampled_rnnt.loss.checks import survey
from nemo_sampled_rnnt.loss.cuda.places import RowSums, places
from nemo_sampled_rnnt.loss.cuda.survey import survey as survey_by_kernel
from nemo_sampled_rnnt.loss.cuda.weight_rows import deliver, gather, pad

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 6e-2}
F64, F32, F16, BF16 = TOLERANCE

#        name: (dtype, problem, options)
CASES = {
    "float64": (F64, {}, {}),
    "float32": (F32, {}, {}),
    "float16": (F16, {"H": 6}, {}),
    "bfloat16": (BF16, {"H": 6}, {}),
    "odd width in bfloat16": (BF16, {"H": 5}, {"activation": "tanh"}),
    "odd width in float16": (F16, {"H": 3}, {"activation": "sigmoid"}),
    "batch scope": (F64, {"scope": "batch"}, {}),
    "utterance scope": (F32, {"scope": "utterance"}, {}),
    "batch scope, corrected": (F32, {"scope": "batch", "correction": True}, {}),
    "utterance scope, corrected": (F64, {"scope": "utterance", "correction": True}, {}),
    "utterance scope, corrected, bfloat16": (BF16, {"scope": "utterance", "correction": True}, {}),
    "tanh": (F64, {}, {"activation": "tanh"}),
    "sigmoid": (F64, {}, {"activation": "sigmoid"}),
    "dropout": (F64, {"scope": "utterance"}, {"dropout": 0.4}),
    "dropout, wider than a warp of octets": (F32, {"H": 70, "T": 3}, {"dropout": 0.4}),
    "dropout, tanh, vector": (F32, {}, {"dropout": 0.4, "activation": "tanh", "reduction": None}),
    "fastemit": (F64, {}, {"fastemit_lambda": 0.6}),
    "clamp": (F64, {"scope": "batch"}, {"clamp": 0.05}),
    "mean": (F64, {}, {"reduction": "mean"}),
    "sum": (F32, {}, {"reduction": "sum"}),
    "mean_volume": (F64, {"scope": "utterance"}, {"reduction": "mean_volume"}),
    "vector": (F64, {"scope": "batch"}, {"reduction": None}),
    "all at once": (
        F32,
        {"scope": "utterance", "correction": True},
        {"dropout": 0.2, "activation": "sigmoid", "fastemit_lambda": 0.1, "clamp": 0.3, "reduction": "mean"},
    ),
    "one frame, one utterance": (F64, {"B": 1, "T": 1, "U": 2, "padded": False}, {}),
    "empty transcripts": (F64, {"B": 2, "T": 3, "U": 0, "padded": False}, {"reduction": "mean_volume"}),
    "one frame, no label": (F32, {"B": 1, "T": 1, "U": 0, "padded": False}, {}),
    # 24 cells of 2 x 3 + 6,001 float64 are 1.1 MiB: the one utterance is cut by rows.
    "cut by rows": (F64, {"B": 1, "T": 12, "U": 1, "V": 6000, "H": 3, "padded": False}, {"workspace_mib": 1}),
}


def run(dtype, sizes, options):
    problem = make_problem(3, **{"B": 2, "T": 4, "U": 2, "H": 5, "V": 9, "N": 5, **sizes}).to(dtype)
    upstream = torch.linspace(0.5, 1.5, len(problem.targets)) if options.get("reduction", "") is None else None
    results = {}
    for impl, where in (("reference", problem.to(torch.float64)), ("cuda", problem)):
        torch.manual_seed(7)
        results[impl] = gradients_of(where, sampled_rnnt_loss, impl=impl, upstream=upstream, **options)
    for name in LEAVES:
        assert results["cuda"][1][name].dtype == dtype, name
    assert_same(results["cuda"], results["reference"], TOLERANCE[dtype])


def run_frozen():
    problem = make_problem(4, B=2, T=3, U=2, H=5, V=7, N=4, scope="utterance")
    want = gradients_of(problem, sampled_rnnt_loss, impl="reference")
    for asking in (*LEAVES, None):
        frozen = set(LEAVES) - {asking}
        if asking is None:
            loss = problem.call(sampled_rnnt_loss, impl="cuda")
            gradients = dict.fromkeys(LEAVES)
        else:
            loss, gradients = gradients_of(problem, sampled_rnnt_loss, frozen, impl="cuda")
        assert all(gradients[name] is None for name in frozen)
        asked = {name: gradient for name, gradient in gradients.items() if gradient is not None}
        assert_same((loss, asked), want, 1e-10)


def run_layouts():
    for scope in (None, "utterance"):
        problem = make_problem(7, B=2, T=3, U=2, H=6, V=7, N=4, scope=scope, fill=0.0).to(BF16)
        want = gradients_of(problem, sampled_rnnt_loss, impl="cuda")
        for other in (problem.strided(), problem.misaligned()):
            assert_same(gradients_of(other, sampled_rnnt_loss, impl="cuda"), want, 1e-6)


def run_lengths_that_lie_apart():
    """Columns of one tensor, whose elements are not neighbours; and a loss that is then divided in place."""
    problem = make_problem(8, B=3, T=4, U=3, H=5, V=7)
    both = torch.stack([problem.encoder_lengths, problem.target_lengths], dim=1)
    apart = replace(problem, encoder_lengths=both[:, 0], target_lengths=both[:, 1])
    for reduction in ("mean", "mean_volume"):
        want = gradients_of(problem, sampled_rnnt_loss, impl="reference", reduction=reduction)
        assert_same(gradients_of(apart, sampled_rnnt_loss, impl="cuda", reduction=reduction), want, 1e-10)
    loss = problem.leaves().call(sampled_rnnt_loss, impl="cuda")
    loss /= 4
    loss.backward()


def run_nonfinite():
    problem = make_problem(5, B=3, T=3, U=2, H=5, V=7)
    bad = replace(problem, encoder=problem.encoder.clone())
    bad.encoder[1, 0] = float("nan")
    loss, gradients = gradients_of(bad, sampled_rnnt_loss, impl="cuda")
    want = gradients_of(problem.keep([0, 2]), sampled_rnnt_loss, impl="reference")
    for name in ("encoder", "predictor"):
        assert (gradients[name][1] == 0).all()
        gradients[name] = gradients[name][[0, 2]]
    assert_same((loss, gradients), want, 1e-10)


def run_beyond_the_cells():
    """Products take more rows than a tile has cells: what lies there gets nowhere."""
    problem = make_problem(3, B=2, T=4, U=2)
    cells = int((problem.encoder_lengths * (problem.target_lengths + 1)).sum())
    assert recurring(cells) > cells
    new_empty = torch.Tensor.new_empty

    def poisoned(*arguments, **options):
        tensor = new_empty(*arguments, **options)
        return tensor.fill_(math.nan) if tensor.is_floating_point() else tensor

    torch.Tensor.new_empty = poisoned
    try:
        run(F64, {}, {})
        run(F32, {"scope": "batch"}, {"clamp": 0.05, "reduction": None})
        run(BF16, {"scope": "batch", "H": 6}, {})
    finally:
        torch.Tensor.new_empty = new_empty


def run_weight_rows():
    """Rows into a candidate set and gradients out of the sums, as indexing does it."""
    generator = torch.Generator().manual_seed(0)
    V, H, N = 10, 16, 7
    weight = torch.randn(V + 1, H, generator=generator)
    bias = torch.randn(V + 1, generator=generator)
    ids = torch.randperm(V + 1, generator=generator)[:N]
    sets, log_qs = torch.stack([ids, ids.flip(0)]), -torch.rand(2, N, generator=generator)
    for of_weight, of_rows in ((F32, BF16), (F16, F16), (F64, F64)):
        for width in (N, 5):  # the whole sets, and the front of each, whose rows lie apart
            chosen, log_q = sets[:, :width], log_qs[:, :width]
            rows = torch.empty(2, width, H, dtype=of_rows)
            offsets = torch.empty(2, width, dtype=F64 if of_rows == F64 else F32)
            gather(chosen, log_q, weight.to(of_weight), bias.to(of_weight), rows, offsets)
            assert torch.equal(rows, weight[chosen].to(of_weight).to(of_rows))
            assert torch.equal(offsets, bias.to(of_weight).to(offsets.dtype)[chosen] - log_q)
    for of_weight, of_rows, scored in ((F32, BF16, V + 1), (BF16, None, V + 1), (F16, F16, V - 2), (F64, F64, V + 1)):
        of_offsets = F64 if of_weight == F64 else F32
        rows = None if of_rows is None else torch.full((16, H), math.nan, dtype=of_rows)
        offsets = torch.full((1, 16), math.nan, dtype=of_offsets)
        pad(weight.to(of_weight), bias.to(of_weight), scored, rows, offsets)
        assert rows is None or torch.equal(rows[: V + 1], weight.to(of_weight).to(of_rows))
        assert rows is None or not rows[V + 1 :].any()
        assert torch.equal(offsets[0, :scored], bias.to(of_weight).to(of_offsets)[:scored])
        assert offsets[0, scored:].isneginf().all()
    for dtypes in ((BF16, BF16, F32, F32), (F16, F32, F16, None), (None, BF16, None, F32), (BF16, None, F32, None)):
        has_weight = dtypes[2] is not None
        encoder, predictor = (
            None if of is None else torch.randn(2, n, H, generator=generator)
            for of, n in zip(dtypes, (5, 3), strict=False)
        )
        sums = torch.randn(N + 1, (H if has_weight else 0) + 8, generator=generator)
        upstream, divisor = torch.tensor(3.0), torch.tensor(4.0)
        places = ids.clone()
        places[2] = -1  # a spare row
        for row_ids, count in ((None, N), (places, N)):
            got = deliver(encoder, predictor, sums, has_weight, row_ids, count, V + 1, upstream, divisor, dtypes)
            whole = torch.zeros(V + 1, sums.shape[1])
            kept = torch.arange(N) if row_ids is None else row_ids
            whole[kept[kept >= 0]] = sums[:N][kept >= 0]
            want = (encoder, predictor, whole[:, :H], whole[:, -8])
            for gradient, true, dtype in zip(got, want, dtypes, strict=True):
                assert (gradient is None) == (dtype is None)
                assert gradient is None or torch.equal(gradient, (true * 0.75).to(dtype))


def run_survey():
    """The kernel finds what the torch operations find: the same sets, in another order."""
    generator = torch.Generator().manual_seed(0)
    for scope, corrected, longest, durations in (
        ("batch", True, 4, 0),
        ("batch", True, 4, 3),
        ("utterance", True, 3, 0),
        ("utterance", True, 3, 5),
        ("utterance", False, 0, 2),
        (None, False, 5, 0),
        (None, False, 5, 3),
    ):
        B, V, N = 3, 11, 9
        labels = torch.randint(0, longest + 1, (B,), generator=generator)
        frames = torch.randint(1, 9, (B,), generator=generator)
        targets = torch.randint(0, V, (B, longest), generator=generator)
        targets[torch.arange(longest) >= labels[:, None]] = GARBAGE[0]
        negatives = log_prob = None
        if scope is not None:
            negatives = torch.randint(-1, V, (N,) if scope == "batch" else (B, N), generator=generator)
            # What comes twice has one probability, so that it does not matter which of the two counts.
            log_prob = -torch.arange(1.0, V + 2)[negatives] if corrected else None
        inputs = (frames, labels, targets, negatives, log_prob, V, durations)
        (numbers, candidates, table), (want, expected, _) = survey_by_kernel(*inputs), survey(*inputs)
        sets = 0 if scope is None else len(expected.ids)
        for position, value, rows in ((2 * B, 3 * B, B), (4 * B + sets, 4 * B + 2 * sets, sets)):
            for row in range(rows):
                want[value + row] = -1 if want[position + row] == -1 else want[value + row]  # torch's: any
        assert numbers == want, (numbers, want)
        assert table[:, :2].tolist() == torch.stack([frames, labels], 1).tolist()
        assert (candidates.durations, candidates.blank) == (expected.durations, expected.blank)
        if scope is None:
            continue
        first = torch.arange(V, V + 1 + durations)  # blank, durations
        assert (candidates.ids[:, : 1 + durations] == first).all() and (expected.ids[:, : 1 + durations] == first).all()
        for group in range(len(expected.ids)):
            count = int(expected.count[group])
            got, true = (
                dict(zip(x.ids[group, :count].tolist(), x.log_q[group, :count].tolist(), strict=True))
                for x in (candidates, expected)
            )
            assert got == true and candidates.log_q[group, count:].isposinf().all()
        for b in range(B):
            members = candidates.ids[b if scope == "utterance" else 0]
            assert members[candidates.target[b, : labels[b]]].tolist() == targets[b, : labels[b]].tolist()


def run_row_sums():
    """Places and sums of the rows of sets, as torch's indexing has them; for a whole batch and for some of its sets."""
    generator = torch.Generator().manual_seed(1)
    for durations, V, B in ((0, 200, 6), (3, 200, 5), (0, 11, 5)):  # fewer candidates than labels, and more
        N, longest = 5, 4
        labels, frames = torch.randint(0, longest + 1, (B,), generator=generator), torch.full((B,), 3)
        few = torch.randperm(V, generator=generator)[:9]  # so that sets have some in common
        targets = few[torch.randint(9, (B, longest), generator=generator)]
        negatives = few[torch.rand(B, 9, generator=generator).argsort(dim=1)[:, :N]]
        _, candidates, _ = survey_by_kernel(frames, labels, targets, negatives, None, V, durations)
        S = aligned(int(candidates.count.max()))
        candidates = replace(candidates, ids=candidates.ids[:, :S], log_q=candidates.log_q[:, :S])
        there = torch.arange(S) < candidates.count[:, None]
        place, rows = candidates.ids, V + 1 + durations
        if candidates.ids.numel() < rows:
            place, row_ids = places(candidates)
            rows = candidates.ids.numel()
            assert torch.equal(row_ids[place][there], candidates.ids[there]), "a place is its row's"
            used = row_ids[row_ids >= 0]
            assert sorted(used.tolist()) == candidates.ids[there].unique().tolist(), "each row has one"
            assert (place[~there] == 0).all()
        total = torch.randn(rows, 16, generator=generator)
        for first, last in ((0, B), (1, 4), (2, 3)):
            product = torch.randn(last - first, S, 16, generator=generator).to(BF16)
            want = total.clone()
            for b in range(first, last):
                want.index_add_(0, place[b][there[b]], product[b - first][there[b]].float())
            RowSums(candidates, place, total).add(product, first, last)
            assert torch.equal(total, want), "in the order of the sets"


def run_bad_input():
    problem = make_problem(6)
    bad = replace(problem, targets=problem.targets.clone())
    bad.targets[0, 0] = GARBAGE[0]
    try:
        bad.call(sampled_rnnt_loss, impl="cuda")
    except ValueError as error:
        assert "targets" in str(error) and str(GARBAGE[0]) in str(error)
    else:
        raise AssertionError("no ValueError")


def main():
    jobs = {name: (run, case) for name, case in CASES.items()}
    others = {
        "frozen": run_frozen,
        "layouts": run_layouts,
        "lengths that lie apart": run_lengths_that_lie_apart,
        "non-finite": run_nonfinite,
        "beyond the cells": run_beyond_the_cells,
        "survey": run_survey,
        "rows of the weight": run_weight_rows,
        "sums of rows": run_row_sums,
        "bad input": run_bad_input,
    }
    jobs |= {name: (job, ()) for name, job in others.items()}
    failures = 0
    for name, (job, case) in jobs.items():
        try:
            start = time.perf_counter()
            job(*case)
            print("ok", name, f"({time.perf_counter() - start:.1f} s)", flush=True)
        except Exception:
            failures += 1
            print("FAILED", name, flush=True)
            traceback.print_exc()
    return failures


if __name__ == "__main__":
    sys.exit(main())
