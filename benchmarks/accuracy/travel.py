"""Checkpoints between machines that hand back little: a file in numbered parts, a few at a time, and whole again.

A checkpoint of the Mandarin recipe is 276 MiB (24.1M parameters in float32, and two of AdamW's for each): 18 parts of
16 MiB, six calls there and six back. Nothing is rounded, since a resumed run is to be the same run.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

PART = 16 * 2**20 - 4096  # bytes
A_CALL = 3  # parts: a call takes and gives back 64 MiB, working tree and results included


def send(checkpoint: Path, call: int, out: Path) -> int:
    """Write the parts of one call, counted from 0, to `out`; return how many calls there are.

    Raises:
        ValueError: no such call.
    """
    parts = -(-checkpoint.stat().st_size // PART)
    calls = -(-parts // A_CALL)
    if not 0 <= call < calls:
        raise ValueError(f"{checkpoint} travels in {calls} calls, 0 to {calls - 1}; got {call}")
    out.mkdir(parents=True, exist_ok=True)
    with open(checkpoint, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        for index in range(call * A_CALL, min(parts, (call + 1) * A_CALL)):
            file.seek(index * PART)
            name = f"{checkpoint.name}.{digest[:16]}.{index:03}.{parts:03}"
            (out / name).write_bytes(file.read(PART))
    return calls


def receive(folder: Path, checkpoints: Path) -> list[Path]:
    """Put every file whose parts are all in `folder` together in `checkpoints`; return them.

    Raises:
        ValueError: what comes out is not what was sent.
    """
    groups: dict[tuple[str, str, str], list[Path]] = {}
    for path in sorted(folder.rglob("*.ckpt.*")):
        name, digest, _, parts = path.name.rsplit(".", 3)
        groups.setdefault((name, digest, parts), []).append(path)
    checkpoints.mkdir(parents=True, exist_ok=True)
    received = []
    for (name, digest, parts), paths in groups.items():
        if len(paths) < int(parts):
            continue
        partial = checkpoints / f"{name}.partial"
        with open(partial, "wb") as file:
            for path in paths:
                file.write(path.read_bytes())
        with open(partial, "rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if not found.startswith(digest):
            raise ValueError(f"{name}: its parts in {folder} do not make the file that was sent: send it again")
        received.append(partial.replace(checkpoints / name))
    return received
