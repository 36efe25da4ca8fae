"""Time and memory of the CTC head with its loss and posteriors, forward and backward, on a GPU.

    python benchmarks/ctc_head.py --out benchmarks/results/sampling_h200.csv

ours: nemo_sampled_rnnt.ctc.ctc_loss. nemo: NeMo's ConvASRDecoder, torch's ctc_loss and ctc_posteriors. products: the
three matrix products alone, over the frames that are there, in one CUDA graph; floor_ms of all. A step starts from the
encoder's bfloat16 outputs, under autocast, and ends with the gradients of those, of weight and bias. Every row is
measured in a process of its own. peak_mib: torch's allocator, over the inputs and weights and beside the gradients;
printed "over": less the float32 accumulator (weights in bfloat16) or the bfloat16 copy of the weights (in float32).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import torch
from environment import environment
from floor import Products, graphed
from measure import median_ms
from sampling_results import append

from nemo_sampled_rnnt.ctc import ctc_loss
from nemo_sampled_rnnt.memory import peak_memory
from nemo_sampled_rnnt.sampling import ctc_posteriors

IMPLEMENTATIONS = ("products", "ours", "nemo")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
MIB = 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocabularies", nargs="+", type=int, default=[1024, 16384, 131072], metavar="V")
    parser.add_argument("--implementations", nargs="+", choices=IMPLEMENTATIONS, default=IMPLEMENTATIONS)
    parser.add_argument("--weights", nargs="+", choices=DTYPES, default=list(DTYPES), help="dtype of the parameters")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--frames", type=int, default=200)
    parser.add_argument("--labels", type=int, default=40)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--varied", action="store_true", help="lengths from half to full, instead of full")
    parser.add_argument("--workspace-mib", type=int, default=256)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", type=Path, help="CSV file that results are appended to")
    parser.add_argument("--row", action="store_true", help="measure the first of all in this process")
    options = parser.parse_args()
    if options.row:
        print(json.dumps(measure(options)))
        return
    where = environment(options.device)
    print("setting", "implementation", "median_ms", "floors", "peak_mib", "over_mib", "loss", sep="\t")
    for vocabulary in options.vocabularies:
        for weights in options.weights:
            for implementation in options.implementations:
                words = command(options, vocabulary, weights, implementation)
                row = run(words) | {"what": "CTC head", "implementation": implementation}
                row["setting"] = setting(options, vocabulary, weights)
                row["command"] = " ".join(["python", *words])
                shown = ("setting", "implementation", "median_ms", "floors", "peak_mib", "over_mib", "loss")
                print(*(row.get(name, "-") for name in shown), row.get("status", ""), sep="\t", flush=True)
                if options.out and "median_ms" in row:
                    append(options.out, row | where)


def command(options, vocabulary: int, weights: str, implementation: str) -> list[str]:
    words = ["benchmarks/ctc_head.py", "--row", "--vocabularies", vocabulary, "--weights", weights]
    words += ["--implementations", implementation, "--workspace-mib", options.workspace_mib]
    for name in ("batch", "frames", "labels", "width", "device"):
        words += [f"--{name}", getattr(options, name)]
    return [str(word) for word in words] + ["--varied"] * options.varied


def setting(options, vocabulary: int, weights: str) -> str:
    sizes = f"V={vocabulary} B={options.batch} T={options.frames} U={options.labels} D={options.width}"
    return f"{sizes} {'varied' if options.varied else 'full'} lengths, {weights} weights"


def run(words: list[str]) -> dict:
    """A row, or why there is none."""
    root = Path(__file__).parents[1]
    process = subprocess.run([sys.executable, *words], cwd=root, capture_output=True, text=True)
    if process.returncode == 0:
        return json.loads(process.stdout.splitlines()[-1])
    last = (process.stderr.strip().splitlines() or ["no message"])[-1]
    return {"status": "out of memory" if "OutOfMemory" in last else f"failed: {last[:200]}"}


def measure(options) -> dict:
    vocabulary, device = options.vocabularies[0], torch.device(options.device)
    random = torch.Generator().manual_seed(0)
    frames = torch.full((options.batch,), options.frames)
    labels = torch.full((options.batch,), options.labels)
    if options.varied:
        share = 0.5 + 0.5 * torch.rand(options.batch, generator=random)
        frames, labels = (share * frames).long(), (share * labels).long()
    floor = Products([(int(frames.sum()), -(-(vocabulary + 1) // 8) * 8)], options.width, device, torch.bfloat16)
    floor_ms = median_ms(graphed(floor) if device.type == "cuda" else floor, device)
    del floor
    if options.implementations[0] == "products":
        return {"median_ms": round(floor_ms, 4), "floor_ms": round(floor_ms, 4), "floors": 1.0}
    if device.type == "cuda":
        torch.cuda.empty_cache()

    head = Head(vocabulary, options, device)
    encoder = torch.randn(options.batch, options.frames, options.width, generator=random).to(device, torch.bfloat16)
    encoder.requires_grad_()
    targets = torch.randint(vocabulary, (options.batch, options.labels), generator=random).to(device)
    batch = encoder, targets, frames.to(device), labels.to(device)
    leaves = [encoder, *head.decoder.parameters()]

    def step():
        for leaf in leaves:
            leaf.grad = None
        with torch.autocast(device.type, torch.bfloat16):
            loss, _ = head(*batch)
        loss.backward()
        return loss.detach()

    took, loss = median_ms(step, device), step().item()
    for leaf in leaves:
        leaf.grad = None
    with peak_memory(device) as peak:
        step()
    beside = (peak.bytes - sum(leaf.grad.nbytes for leaf in leaves)) / MIB
    weight = leaves[1]
    must = weight.numel() * (4 if weight.dtype == torch.bfloat16 else 2) / MIB
    return {
        "median_ms": round(took, 4),
        "floor_ms": round(floor_ms, 4),
        "floors": round(took / floor_ms, 2),
        "peak_mib": round(beside, 1),
        "over_mib": round(beside - must, 1),
        "loss": loss,
    }


class Head:
    """NeMo's head, scored by NeMo or by us: loss and posteriors."""

    def __init__(self, vocabulary: int, options, device: torch.device):
        from nemo.collections.asr.modules import ConvASRDecoder

        torch.manual_seed(0)
        self.decoder = ConvASRDecoder(options.width, vocabulary, vocabulary=[""] * vocabulary)
        self.decoder = self.decoder.to(device, DTYPES[options.weights[0]])
        self.ours, self.workspace_mib = options.implementations[0] == "ours", options.workspace_mib
        self.vocabulary = vocabulary

    def __call__(self, encoder, targets, frames, labels):
        if self.ours:
            layer = self.decoder.decoder_layers[0]
            out = ctc_loss(
                encoder, layer.weight, layer.bias, targets, frames, labels, frame_weights="mean",
                workspace_mib=self.workspace_mib,
            )  # fmt: skip
            return out.loss, out.posteriors
        log_probs = self.decoder(encoder_output=encoder.transpose(1, 2))
        losses = torch.nn.functional.ctc_loss(
            log_probs.transpose(0, 1), targets, frames, labels, blank=self.vocabulary, reduction="none",
            zero_infinity=True,
        )  # fmt: skip
        return losses.mean(), ctc_posteriors(log_probs.detach(), frames)


if __name__ == "__main__":
    main()
