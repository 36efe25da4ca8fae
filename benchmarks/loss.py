"""Time and memory of joint and transducer loss, forward and backward: ours, NeMo's, and the matrix products alone.

    python benchmarks/loss.py --device cpu --out benchmarks/results/loss_cpu.csv
    python benchmarks/loss.py --device cuda --workloads v16k_b16 --workspace-mib 256 4096 --out loss.csv

A step starts from encoder and predictor outputs, as NeMo's fused joint does, and ends with the gradients of both and
of all weights; drawing negatives is part of it (``draw_ms`` of it). Every row is measured in a process of its own.
What the numbers count: measure.py; what floor_ms is: floor.py; when a row is "off": check.py.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import results_file
import torch
from environment import environment
from implementations import IMPLEMENTATIONS, Row, importable, preload, rows_of
from row import Prepared
from table import print_results, setting
from visible import visible_gpu
from workloads import DEFAULT, WORKLOADS

COLUMNS = ["workload", "implementation", "negatives", "workspace_mib", "median_ms", "peak_mib", "floor_ms",
           "fresh_ms", "peak_with_gradients_mib", "draw_ms", "fused_batch_size", "loss", "check", "loss_error",
           "gradient_error", "status", "load", "machine", "cores", "torch", "nemo", "numba", "numba_cuda", "python",
           "commit", "dtype", "command"]  # fmt: skip
READY = "ready to measure"  # said by a row's process
ROOT = Path(__file__).resolve().parents[1]
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
            results_file.append(options.out, COLUMNS, result)
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
    parser.add_argument(
        "--rows", nargs="+", metavar="WORKLOAD:IMPLEMENTATION[:MIB]", help="these, instead of each with each"
    )
    parser.add_argument("--workspace-mib", nargs="+", type=int, default=[256], help="of ours: a row for each")
    parser.add_argument("--gpus", type=int, default=1, help="rows measured at a time, one on each GPU of the machine")
    parser.add_argument(
        "--ready", type=int, default=1, help="rows a GPU whose processes load and compile before any is measured"
    )
    parser.add_argument(
        "--flash-rnnt", type=Path, metavar="FOLDER", help="that holds a nemo/ with flash_rnnt, for its rows alone"
    )
    parser.add_argument("--out", type=Path, help="CSV file that results are appended to")
    parser.add_argument("--timeout-s", type=float, default=600, help="a row that takes longer is given up")
    parser.add_argument("--dry-run", action="store_true", help="print the command of each row")
    parser.add_argument("--row", nargs=2, metavar=("WORKLOAD", "IMPLEMENTATION"), help="this row, in this process")
    parser.add_argument("--fused-batch-size", type=int, help="of NeMo's, for --row")
    parser.add_argument("--wait", action="store_true", help="for --row: measure when a line comes on stdin")
    options = parser.parse_args()
    if options.out:
        try:
            results_file.check(options.out, COLUMNS)
        except ValueError as error:
            parser.error(str(error))
    options.dtype = options.dtype or ("bfloat16" if options.device == "cuda" else "float32")
    return options


def plan(options: argparse.Namespace) -> list[Row]:
    asked = options.rows or [
        f"{workload}:{implementation}"
        for workload in options.workloads or DEFAULT[options.device]
        for implementation in options.implementations or IMPLEMENTATIONS
    ]
    rows = []
    for text in asked:
        name, implementation, *mib = text.split(":")
        no_cpu_side = implementation == "flash_rnnt" or implementation == "nemo_full" and WORKLOADS[name].durations
        if no_cpu_side and options.device == "cpu":
            continue
        if importable(implementation, options.flash_rnnt):
            rows += rows_of(implementation, WORKLOADS[name], [int(x) for x in mib] or options.workspace_mib)
        else:
            print(f"{text}: left out, cannot be imported")
    return rows


def measure_in_this_process(options: argparse.Namespace) -> dict:
    row = Row(*options.row, options.workspace_mib[0], options.fused_batch_size)
    preload(row.implementation)
    prepared = Prepared(row, torch.device(options.device), DTYPES[options.dtype])
    if options.wait:
        print(READY, flush=True)
        sys.stdin.readline()
    return prepared.measure()


def command(row: Row, options: argparse.Namespace) -> list[str]:
    """What measures this row alone."""
    words = ["python", "benchmarks/loss.py", "--device", options.device, "--dtype", options.dtype]
    words += ["--row", row.workload, row.implementation]
    for flag, value in (("--workspace-mib", row.workspace_mib), ("--fused-batch-size", row.fused_batch_size)):
        words += [flag, str(value)] if value else []
    return words


def measure_all(rows: list[Row], options: argparse.Namespace) -> Iterator[dict]:
    """The rows' lines: some processes load, compile and check together, then nothing runs but what is measured."""
    together = options.gpus * options.ready
    with ThreadPoolExecutor(together) as pool:
        for begin in range(0, len(rows), together):
            group = [RowProcess(row, options, i % options.gpus) for i, row in enumerate(rows[begin : begin + together])]
            list(pool.map(RowProcess.wait_until_ready, group))
            by_gpu = [[process for process in group if process.gpu == gpu] for gpu in range(options.gpus)]
            for results in pool.map(lambda processes: [process.measure() for process in processes], by_gpu):
                yield from results


class RowProcess:
    """A row in a process of its own, which waits before it measures."""

    def __init__(self, row: Row, options: argparse.Namespace, gpu: int):
        self.row, self.options, self.gpu = row, options, gpu
        self.words = command(row, options)
        environment = os.environ | {"CUDA_VISIBLE_DEVICES": visible_gpu(gpu)}
        if row.implementation == "flash_rnnt" and options.flash_rnnt:
            paths = [str(options.flash_rnnt), os.environ.get("PYTHONPATH", "")]
            environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
        self._errors = tempfile.TemporaryFile("w+")
        self._process = subprocess.Popen(
            [sys.executable, *self.words[1:], "--wait"], cwd=ROOT, env=environment, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors,
        )  # fmt: skip
        self._late = threading.Event()

    def wait_until_ready(self) -> None:
        """Or until it has ended: NeMo prints lines of its own before."""
        with self._limit():
            while (line := self._process.stdout.readline()) and line.strip() != READY:
                pass

    def measure(self) -> dict:
        """The row's line in the results, measured or not."""
        row, load = self.row, os.getloadavg()[0]
        with self._limit():
            said, _ = self._process.communicate("\n")
        measured = self._process.returncode == 0
        return {
            **asdict(row),
            "negatives": WORKLOADS[row.workload].negatives if row.scope else 0,
            "check": "",
            "load": round(load, 1),
            **(json.loads(said.splitlines()[-1]) if measured else {"status": self._failure()}),
            "dtype": self.options.dtype,
            "command": " ".join(self.words),
        }

    @contextmanager
    def _limit(self) -> Iterator[None]:
        def give_up():
            self._late.set()
            self._process.kill()

        timer = threading.Timer(self.options.timeout_s, give_up)
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def _failure(self) -> str:
        if self._late.is_set():
            return f"longer than {self.options.timeout_s:.0f} s"
        self._errors.seek(0)
        errors = self._errors.read().strip()
        print(errors[-3000:], file=sys.stderr)
        last = (errors.splitlines() or ["no message"])[-1]
        return f"failed ({self._process.returncode}): {last[:200]}"


if __name__ == "__main__":
    main()
