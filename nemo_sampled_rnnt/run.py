"""Run a script that knows nothing of this package, with our classes allowed as ``_target_`` in its config.

    python -m nemo_sampled_rnnt.run NEMO/examples/asr/asr_transducer/speech_to_text_rnnt_bpe.py --config-name=...

``torchrun -m nemo_sampled_rnnt.run SCRIPT ...`` works the same.
"""

from __future__ import annotations

import os
import sys

import nemo_sampled_rnnt  # noqa: F401 - its import is what allows our targets

SCRIPT = "NEMO_SAMPLED_RNNT_SCRIPT"


def main() -> None:
    # Lightning starts the other ranks as `python -m nemo_sampled_rnnt.run`, with all arguments but the script.
    if len(sys.argv) > 1 and sys.argv[1].endswith(".py"):
        os.environ[SCRIPT] = os.path.abspath(sys.argv.pop(1))
    if SCRIPT not in os.environ:
        sys.exit("expected a Python script: python -m nemo_sampled_rnnt.run SCRIPT.py [ITS ARGUMENTS]")
    script = sys.argv[0] = os.environ[SCRIPT]
    sys.path[0] = os.path.dirname(script)
    with open(script, "rb") as source:
        code = compile(source.read(), script, "exec", dont_inherit=True)
    # In this module's own namespace, not by runpy: __spec__ has to stay, for it is how Lightning knows `-m`.
    main_module = sys.modules["__main__"].__dict__
    main_module["__file__"] = script
    exec(code, main_module)


if __name__ == "__main__":
    main()
