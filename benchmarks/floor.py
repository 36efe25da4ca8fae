"""The floor: the three matrix products of joint and loss alone, over the packed batch.

    logits = hidden weight'      d weight = d logits' hidden      d hidden = d logits weight

No cell of padding, no pass over memory between the products, columns rounded up to a multiple of 8 (tensor cores
want that), and on a GPU one CUDA graph, so that the host takes no part. Nobody who holds whole logits runs faster.
"""

from __future__ import annotations

import torch
from implementations import Row
from workloads import Batch, Workload


def make_floor(row: Row, workload: Workload, batch: Batch):
    """The step to time: over all of the vocabulary, or over as many candidates as the row's scope has."""
    frames, labels = batch.encoder_lengths, batch.target_lengths
    cells = frames * (labels + 1)
    rows, always = workload.vocabulary + 1 + len(workload.durations), 1 + len(workload.durations)
    if row.scope is None:
        sizes = [(int(cells.sum()), rows)]
    else:
        kept = torch.arange(workload.labels, device=labels.device) < labels[:, None]
        if row.scope == "batch":
            sizes = [(int(cells.sum()), always + len(batch.targets[kept].unique()) + workload.negatives)]
        else:
            own = [always + len(y[k].unique()) + workload.negatives for y, k in zip(batch.targets, kept, strict=True)]
            sizes = list(zip(cells.tolist(), own, strict=True))
    sizes = [(cells, -(-min(columns, rows) // 8) * 8) for cells, columns in sizes]
    products = Products(sizes, workload.hidden, batch.encoder.device, batch.encoder.dtype)
    return graphed(products) if batch.encoder.is_cuda else products


class Products:
    """Three products for each (cells, candidates), in chunks of cells whose logits fit in memory.

    Chunks are large (8 GiB or a quarter of what is free), so that re-reading weights for each costs little.
    """

    def __init__(self, sizes: list[tuple[int, int]], hidden: int, device: torch.device, dtype: torch.dtype):
        free = torch.cuda.mem_get_info(device)[0] // 4 if device.type == "cuda" else 2**30
        at_once = min(2**33, free) // dtype.itemsize
        self.chunks = [
            (min(at_once // columns, rows - first), columns)
            for rows, columns in sizes
            for first in range(0, rows, at_once // columns)
        ]
        rows, columns = (max(column) for column in zip(*self.chunks, strict=True))

        def empty(*shape):
            return torch.empty(shape, device=device, dtype=dtype)

        self.hidden, self.weight = empty(rows, hidden).normal_(), empty(columns, hidden).normal_()
        self.hidden_gradient, self.weight_gradient = empty(rows, hidden), empty(columns, hidden)
        self.logits = empty(max(rows * columns for rows, columns in self.chunks))

    def __call__(self) -> None:
        for rows, columns in self.chunks:
            hidden, weight = self.hidden[:rows], self.weight[:columns]
            logits = self.logits[: rows * columns].view(rows, columns)  # also stand for their gradient
            torch.mm(hidden, weight.T, out=logits)
            torch.mm(logits.T, hidden, out=self.weight_gradient[:columns])
            torch.mm(logits, weight, out=self.hidden_gradient[:rows])


def graphed(step):
    """The same work in one launch."""
    step()  # cuBLAS makes its handles outside the capture
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()

    def replay(step=step):  # the graph works on the buffers that `step` owns
        graph.replay()

    return replay
