"""What models recognise in NeMo alone: in this process the package cannot be imported.

python benchmarks/finetune/transcribe_stock.py MANIFEST OUT.json MODEL.nemo...    writes {name of the file: texts}
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.modules["nemo_sampled_rnnt"] = None  # out of reach

import nemo  # noqa: E402
import torch  # noqa: E402
from nemo.collections.asr.models import ASRModel  # noqa: E402


def transcribe(path: str, manifest: str) -> list[str]:
    model = ASRModel.restore_from(path, map_location="cuda" if torch.cuda.is_available() else "cpu").eval()
    print(f"{path}: {type(model).__module__}.{type(model).__name__}, NeMo {nemo.__version__}", flush=True)
    return [found.text for found in model.transcribe(manifest, batch_size=65, verbose=False)]


if __name__ == "__main__":
    manifest, out, *models = sys.argv[1:]
    found = {Path(path).stem: transcribe(path, manifest) for path in models}
    Path(out).write_text(json.dumps(found, ensure_ascii=False), encoding="utf-8")
