"""impl="cuda" of the CTC head in numba's CUDA simulator against PyTorch in float64; run with NUMBA_ENABLE_CUDASIM=1.

A simulated thread costs about 0.1 ms, so problems are tiny. Prints a line for each case, `ok` or `FAILED` first; exits
with the number of failures.
"""

import sys
import time
import traceback
from dataclasses import replace

import torch
from ctc_truth import GARBAGE, LEAVES, assert_near, assert_same, make_problem, plain, results, truth

from nemo_sampled_rnnt.ctc import ctc_loss, engine
from nemo_sampled_rnnt.ctc.batch import survey
from nemo_sampled_rnnt.ctc.cuda.survey import survey as survey_by_kernel
from nemo_sampled_rnnt.loss import tiles

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 6e-2}
F64, F32, F16, BF16 = TOLERANCE

#        name: (dtype, problem, options)
CASES = {
    "float64": (F64, {}, {}),
    "float32": (F32, {}, {}),
    "float16": (F16, {"D": 6}, {}),
    "bfloat16": (BF16, {"D": 8}, {}),
    "odd width in bfloat16": (BF16, {"D": 5}, {"reduction": "mean_volume"}),
    "nonblank": (F32, {}, {"frame_weights": "nonblank"}),
    "max": (F64, {}, {"frame_weights": "max"}),
    "max in bfloat16": (BF16, {"D": 6}, {"frame_weights": "max"}),
    "mean": (F64, {}, {"reduction": "mean"}),
    "sum": (F32, {"V": 37}, {"reduction": "sum"}),
    "many strips": (F32, {"V": 150, "B": 2}, {}),
    "a block a group": (F32, {"V": 271, "B": 2, "T": 6}, {"frame_weights": "nonblank"}),
    "labels beyond a block": (F64, {"B": 2, "T": 19, "U": 9, "V": 12, "labels": [9, 6], "lengths": [19, 17]}, {}),
    "labels beyond a block, float32": (
        F32,
        {"B": 2, "T": 19, "U": 9, "V": 12, "labels": [8, 9], "lengths": [17, 19]},
        {},
    ),
    "one frame": (F64, {"B": 2, "T": 1, "U": 1, "lengths": [1, 1], "labels": [1, 0]}, {"reduction": "sum"}),
    "empty transcripts": (F32, {"B": 2, "U": 0, "labels": [0, 0]}, {"reduction": "sum"}),
}


def run(dtype, sizes, options):
    problem = make_problem(3, **{"B": 3, "T": 9, "U": 3, "D": 5, "V": 11, **sizes}).to(dtype)
    got = results(problem, ctc_loss, upstream=1.3, impl="cuda", **options)
    for name in LEAVES:
        assert got[3][name].dtype == dtype, name
    assert_same(got, truth(problem.to(F64), 1.3, **options), TOLERANCE[dtype])


def run_in_place():
    """A loss may be divided in place."""
    problem = make_problem(3, B=2, T=5, U=2, D=3, V=7)
    problem.encoder.requires_grad_()
    loss = problem.call(ctc_loss, impl="cuda").loss
    loss /= 4
    loss.backward()


def run_tiles():
    """Of 4 frames at most, whatever fits: utterances of 9 and 7 are cut in three and two; and of 16, for 12 and 7.

    Tiles of whole utterances have more rows than frames: the first one's are the second one's, the last one's nobody's.
    """
    problem = make_problem(4, B=3, T=9, U=3, D=3, V=40, lengths=[9, 3, 7], labels=[3, 1, 2])
    plan, planned, least = engine.plan, [], tiles.RECURRING_FROM
    tiles.RECURRING_FROM = 1
    try:
        for frames, sizes in ((4, [(1, 1), (4, 4), (4, 4), (3, 4), (3, 3), (4, 4)]), (16, [(12, 16), (7, 8)])):
            engine.plan = lambda batch, *_, frames=frames: planned.append(plan(batch, 1, frames)) or planned[-1]
            for dtype, weighting in ((F32, "max"), (F64, "nonblank"), (BF16, "mean")):
                got = results(problem.to(dtype), ctc_loss, impl="cuda", frame_weights=weighting)
                want = truth(problem.to(dtype).to(F64), frame_weights=weighting)
                assert_same(got, want, TOLERANCE[dtype])
                assert [(tile.cells, tile.rows) for visit in planned[-1] for tile in visit] == sizes, planned[-1]
    finally:
        engine.plan, tiles.RECURRING_FROM = plan, least


def run_frozen():
    problem = make_problem(5, B=2, T=7, U=2, D=5, V=9)
    want = truth(problem)
    for asking in (*LEAVES, None):
        frozen = set(LEAVES) - {asking}
        got = results(problem, ctc_loss, impl="cuda", frozen=frozen)
        assert all(got[3][name] is None for name in frozen)
        assert_same(got, want, 1e-10)
    with torch.no_grad():
        assert_near("loss", problem.call(ctc_loss, impl="cuda").loss, want[0], 1e-10)


def run_left_out():
    """An utterance that is not finite, and one that is too short for its labels."""
    problem = make_problem(6, B=4, T=9, U=5, D=5, V=9, lengths=[9, 9, 8, 7], labels=[3, 2, 5, 1])
    problem.targets[2] = 4
    bad = replace(problem, encoder=problem.encoder.clone())
    bad.encoder[1, 4, 2] = float("inf")
    for zero_infinity, counted in ((True, 3), (False, 2)):
        got = results(bad, ctc_loss, impl="cuda", zero_infinity=zero_infinity)
        want = truth(problem.keep([0, 3]), reduction="sum")
        assert got[1][1].isnan() and got[1][2] == (0 if zero_infinity else float("inf"))
        assert_near("loss", got[0], want[0] / counted, 1e-10)
        assert (got[3]["encoder"][1:3] == 0).all()
        assert_near("encoder", got[3]["encoder"][[0, 3]], want[3]["encoder"] / counted, 1e-10)
        for name in ("weight", "bias"):
            assert_near(name, got[3][name], want[3][name] / counted, 1e-10)
        zeroed = replace(bad, encoder=bad.encoder.nan_to_num(nan=0))
        zeroed.encoder[1, 4] = 0
        assert_near("posteriors", got[2], plain(zeroed)[1], 1e-6)


def run_best():
    for V in (11, 270):
        problem = make_problem(7, B=2, T=6, U=2, D=5, V=V)
        out = problem.call(ctc_loss, impl="cuda", best=True)
        beyond = torch.arange(6) >= problem.encoder_lengths[:, None]
        assert torch.equal(out.best, plain(problem)[2].argmax(dim=-1).masked_fill(beyond, V))


def run_survey():
    """The kernel finds what the torch operations find."""
    random = torch.Generator().manual_seed(0)
    for U in (0, 1, 9):
        B, V = 3, 6
        frames = torch.randint(1, 9, (B,), generator=random)
        labels = torch.randint(0, U + 1, (B,), generator=random)
        targets = torch.randint(0, V, (B, U), generator=random)
        if U > 1:
            labels[1], targets[1, 2], targets[1, 4] = U, V, -2
        targets[torch.arange(U) >= labels[:, None]] = GARBAGE[0]
        (numbers, *sets, table), (want, *expected, _) = (
            find(frames, labels, targets, V) for find in (survey_by_kernel, survey)
        )
        for b in range(B):
            want[3 * B + b] = -1 if want[2 * B + b] == -1 else want[3 * B + b]  # torch's: any
        assert numbers == want, (numbers, want)
        assert (
            table[:, :3].tolist() == [[int(frames[b]), int(labels[b]), int(frames[:b].sum())] for b in range(B)]
            and (table[:, 3] == 1).all()
        )
        for b in range(B):
            n = int(labels[b])
            for mine, theirs in zip(sets, expected, strict=True):
                assert mine[b, :n].tolist() == theirs[b, :n].tolist()


def run_layouts():
    problem = make_problem(8, B=2, T=7, U=2, D=8, V=9, fill=0.0).to(BF16)
    want = results(problem, ctc_loss, impl="cuda")
    strided = problem.map(lambda x: x.transpose(0, -1).contiguous().transpose(0, -1))
    misaligned = problem.map(lambda x: torch.cat([x.flatten()[:1], x.flatten()])[1:].view(x.shape))
    for other in (strided, misaligned):
        assert_same(results(other, ctc_loss, impl="cuda"), want, 1e-6)


def main():
    jobs = {name: (run, case) for name, case in CASES.items()}
    others = {
        "tiles": run_tiles,
        "in place": run_in_place,
        "frozen": run_frozen,
        "left out": run_left_out,
        "best": run_best,
        "survey": run_survey,
        "layouts": run_layouts,
    }
    jobs |= {name: (job, ()) for name, job in others.items()}
    chosen = sys.argv[1:] or list(jobs)
    failures = 0
    for name in chosen:
        job, case = jobs[name]
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
