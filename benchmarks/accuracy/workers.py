"""Runs side by side: a process each, on as many GPUs as there are, each taking the next run when one is done."""

from __future__ import annotations

import gc
import logging
import multiprocessing
import os
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from queue import Empty

from visible import visible_gpu

SHORTEST = 60  # seconds: no run is begun so shortly before the deadline


def run_all(
    runs: list[str], corpus: Path, overrides: tuple[str, ...], checkpoints: Path, deadline: float, processes: int,
    share: float, report: Callable,
) -> list[str]:  # fmt: skip
    """Train all runs, or as far as time allows.

    Args:
        runs: SETTING:SEED, in the order in which they are to be done; complete ones cost nothing.
        corpus: folder; each process holds the features on its GPU once for all of its runs.
        overrides: KEY=VALUE for the recipe.
        checkpoints: folder.
        deadline: of time.monotonic(), at which every run saves itself.
        processes: side by side, on the GPUs in turn.
        share: of a GPU's memory, at most, for each process: torch keeps what it can get, and processes side by side
            would take it from each other.
        report: called with lists of evaluations, as they come.
    Returns: the runs that are not complete, in their order.
    """
    from torch.cuda import device_count  # asks the driver; CUDA itself is for the processes

    checkpoints.mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("spawn")
    runs = list(dict.fromkeys(runs))
    queue, messages = context.Queue(), context.Queue()
    for run in [*runs, *[None] * processes]:
        queue.put(run)
    workers = []
    gpus = [visible_gpu(index) for index in range(device_count())]  # before the variable says otherwise
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))  # not all cores for each
    for index in range(processes):
        if gpus:
            os.environ["CUDA_VISIBLE_DEVICES"] = gpus[index % len(gpus)]
        arguments = (queue, messages, corpus, overrides, checkpoints, deadline, share)
        workers.append(context.Process(target=_work, args=arguments, daemon=True))
        workers[-1].start()
    incomplete = set(runs)
    while any(worker.is_alive() for worker in workers) or not messages.empty():
        try:
            kind, content = messages.get(timeout=1)
        except Empty:
            continue
        if kind == "evaluations":
            report(content)
        elif kind == "complete":
            incomplete.discard(content)
        else:
            print(content, flush=True)
    for worker in workers:
        worker.join()
        if worker.exitcode:
            print(f"a process ended with exit code {worker.exitcode}, and its run with it", flush=True)
    return [run for run in runs if run in incomplete]


def _work(queue, messages, folder: Path, overrides, checkpoints: Path, deadline: float, share: float) -> None:
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    os.environ.setdefault("NUMBA_CUDA_LOW_OCCUPANCY_WARNINGS", "0")
    import torch
    from model import load_recipe
    from settings import Run
    from training import Corpus, orphaned, train

    recipe = load_recipe(folder.name, overrides)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda":
        torch.cuda.set_per_process_memory_fraction(share)
    corpus = Corpus(folder, device, recipe.model.preprocessor.features)
    while (run := queue.get()) is not None:
        if time.monotonic() > deadline - SHORTEST or orphaned():
            break
        try:
            if train(Run.parse(run), recipe, corpus, checkpoints, deadline, lambda x: messages.put(("evaluations", x))):
                messages.put(("complete", run))
        except Exception:  # the other runs are not to die of it
            messages.put(("failure", f"{run} failed:\n{traceback.format_exc()}"))
        gc.collect()  # a trainer and its model hold each other
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
