"""Time and memory of joint and transducer loss, forward and backward: ours, NeMo's, and the matrix products alone.

    python benchmarks/loss.py --device cpu --out benchmarks/results/loss_cpu.csv
    python benchmarks/loss.py --device cuda --workloads v16k_b16 --workspace-mib 256 4096 --out loss.csv

A step starts from encoder and predictor outputs, as NeMo's fused joint does, and ends with the gradients of both and
of all weights; drawing negatives is part of it (``draw_ms`` of it). Every row is measured in a process of its own.
What the numbers count: measure.py; what floor_ms is: floor.py; when a row is "off": check.py.
"""

from __future__ import annotations

import argparse
import csv
import fcntl
import json
import os
import queue
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import torch
from environment import environment
from implementations import IMPLEMENTATIONS, Row, importable, preload, rows_of
from row import measure_row
from table import print_results, setting
from workloads import DEFAULT, WORKLOADS

COLUMNS = ["workload", "implementation", "negatives", "workspace_mib", "median_ms", "peak_mib", "floor_ms",
           "peak_with_gradients_mib", "draw_ms", "fused_batch_size", "loss", "check", "loss_error", "gradient_error",
           "status", "load", "machine", "cores", "torch", "nemo", "numba", "numba_cuda", "python", "commit", "dtype",
           "command"]  # fmt: skip
LOCK = "BENCHMARK_LOCK"  # environment variable of a row's process: the file that whoever uses the GPU holds
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def main() -> None:
    options = parse()
    if options.row:
        print(json.dumps(measure_in_this_process(options)))
        return
    rows = plan(options)
    if options.dry_run:
        print(*(" ".join(command(row, options)) for row in rows), sep="\n")
        return
    where = environment(options.device)
    results = []
    for result in measure_all(rows, options):
        result |= where
        name = f"{result['workload']} {result['implementation']} {setting(result)}".strip()
        print(f"{name}: {result.get('median_ms', '-')} ms, {result['status']}", flush=True)
        results.append(result)
        if options.out:
            append(options.out, result)
    print()
    print_results(results)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=list(DEFAULT), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=list(DTYPES), help="default: bfloat16 on CUDA, float32 on the CPU")
    parser.add_argument("--workloads", nargs="+", choices=list(WORKLOADS), metavar="NAME", help=", ".join(WORKLOADS))
    parser.add_argument(
        "--implementations", nargs="+", choices=IMPLEMENTATIONS, metavar="NAME", help=", ".join(IMPLEMENTATIONS)
    )
    parser.add_argument("--workspace-mib", nargs="+", type=int, default=[256], help="of ours: a row for each")
    parser.add_argument("--gpus", type=int, default=1, help="rows measured at a time, one on each GPU of the machine")
    parser.add_argument("--ready", type=int, default=0, help="rows a GPU whose processes start, and wait for it")
    parser.add_argument("--out", type=Path, help="CSV file that results are appended to")
    parser.add_argument("--timeout-s", type=float, default=600, help="a row that takes longer is given up")
    parser.add_argument("--dry-run", action="store_true", help="print the command of each row")
    parser.add_argument("--row", nargs=2, metavar=("WORKLOAD", "IMPLEMENTATION"), help="this row, in this process")
    parser.add_argument("--fused-batch-size", type=int, help="of NeMo's, for --row")
    options = parser.parse_args()
    options.dtype = options.dtype or ("bfloat16" if options.device == "cuda" else "float32")
    return options


def plan(options: argparse.Namespace) -> list[Row]:
    rows = []
    for name in options.workloads or DEFAULT[options.device]:
        for implementation in options.implementations or IMPLEMENTATIONS:
            no_cpu_side = implementation == "flash_rnnt" or implementation == "nemo_full" and WORKLOADS[name].durations
            if no_cpu_side and options.device == "cpu":
                continue
            if importable(implementation):
                rows += rows_of(implementation, WORKLOADS[name], options.workspace_mib)
            else:
                print(f"{name} {implementation}: left out, cannot be imported")
    return rows


def measure_in_this_process(options: argparse.Namespace) -> dict:
    row = Row(*options.row, options.workspace_mib[0], options.fused_batch_size)
    preload(row.implementation)
    with alone(os.environ.get(LOCK)):
        return measure_row(row, torch.device(options.device), DTYPES[options.dtype])


@contextmanager
def alone(lock: str | None) -> Iterator[None]:
    """Wait until no other process holds the file; one that ends lets go of it."""
    if not lock:
        yield
        return
    with open(lock, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def command(row: Row, options: argparse.Namespace) -> list[str]:
    """What measures this row alone."""
    words = ["python", "benchmarks/loss.py", "--device", options.device, "--dtype", options.dtype]
    words += ["--row", row.workload, row.implementation]
    for flag, value in (("--workspace-mib", row.workspace_mib), ("--fused-batch-size", row.fused_batch_size)):
        words += [flag, str(value)] if value else []
    return words


def measure_all(rows: list[Row], options: argparse.Namespace) -> Iterator[dict]:
    """The rows' lines, each as soon as it is there."""
    free = queue.SimpleQueue()
    processes = options.gpus * (1 + options.ready)
    for number in range(processes):
        free.put(number % options.gpus)

    def measure(row: Row) -> dict:
        gpu = free.get()
        try:
            return measure_in_a_process(row, options, gpu)
        finally:
            free.put(gpu)

    with ThreadPoolExecutor(processes) as pool:
        for future in as_completed([pool.submit(measure, row) for row in rows]):
            yield future.result()


def measure_in_a_process(row: Row, options: argparse.Namespace, gpu: int) -> dict:
    """The row's line in the results, measured or not."""
    words = command(row, options)
    return {
        **asdict(row),
        "negatives": WORKLOADS[row.workload].negatives if row.scope else 0,
        "check": "",
        "load": round(os.getloadavg()[0], 1),
        **_run([sys.executable, *words[1:]], options.timeout_s, gpu),
        "dtype": options.dtype,
        "command": " ".join(words),
    }


def _run(words: list[str], timeout: float, gpu: int) -> dict:
    root = Path(__file__).parents[1]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    device = visible[gpu] if gpu < len(visible) and visible[gpu] else str(gpu)
    environment = os.environ | {
        "CUDA_VISIBLE_DEVICES": device,
        LOCK: str(Path(tempfile.gettempdir()) / f"benchmark_of_gpu_{device}.lock"),  # one for all that measure here
    }
    try:
        process = subprocess.run(words, cwd=root, env=environment, capture_output=True, text=True, timeout=timeout)
    except subprocess.TimeoutExpired:
        return {"status": f"longer than {timeout:.0f} s"}
    if process.returncode == 0:
        return json.loads(process.stdout.splitlines()[-1])
    print(process.stderr[-3000:], file=sys.stderr)
    last = (process.stderr.strip().splitlines() or ["no message"])[-1]
    return {"status": f"failed ({process.returncode}): {last[:200]}"}


def append(path: Path, result: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    new = not path.exists()
    with open(path, "a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, restval="")
        if new:
            writer.writeheader()
        writer.writerow(result)


if __name__ == "__main__":
    main()
