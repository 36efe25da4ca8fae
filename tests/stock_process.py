"""Opens model files in a process without this package, and writes what stock NeMo finds in them.

python stock_process.py FOLDER OUT WAV...    reads FOLDER/*.nemo, writes OUT/found.json
"""

import json
import sys
from pathlib import Path

sys.modules["nemo_sampled_rnnt"] = None  # out of reach, should it be installed here

import nemo  # noqa: E402
from listening import fingerprints, listen  # noqa: E402
from nemo.collections.asr.models import ASRModel  # noqa: E402
from omegaconf import OmegaConf  # noqa: E402


def examine(path: Path, out: Path, wav_files: list[str]) -> dict:
    model = ASRModel.restore_from(str(path), map_location="cpu").eval()
    found = {
        "class": type(model).__name__,
        "joint": f"{type(model.joint).__module__}.{type(model.joint).__name__}",
        "config": OmegaConf.to_container(model.cfg),
        "tensors": fingerprints(model),
    }
    if wav_files:
        found["heard"] = listen(model, wav_files)
        model.export(str(out / f"{path.stem}.onnx"))
        found["onnx"] = sorted(part.name.replace(f"-{path.stem}.onnx", "") for part in out.glob(f"*-{path.stem}.onnx"))
    return found


if __name__ == "__main__":
    folder, out, *wav_files = sys.argv[1:]
    found = {path.stem: examine(path, Path(out), wav_files) for path in sorted(Path(folder).glob("*.nemo"))}
    Path(out, "found.json").write_text(json.dumps({"nemo": nemo.__version__, "models": found}))
