"""Run a script that knows nothing of this package, with our classes allowed as ``_target_`` in its config.

    python -m nemo_sampled_rnnt.run NEMO/examples/asr/asr_transducer/speech_to_text_rnnt_bpe.py --config-name=...

``torchrun -m nemo_sampled_rnnt.run SCRIPT ...`` works the same.
"""

from __future__ import annotations

import os
import sys

import nemo_sampled_rnnt  # noqa: F401 - its import is what allows our targets

SCRIPT = "NEMO_SAMPLED_RNNT_SCRIPT"


def find_script() -> str:
    """The script to run, which takes our place in ``sys``; processes that it starts find it in the environment."""
    # Lightning starts the other ranks as `python -m nemo_sampled_rnnt.run`, with all arguments but the script. Their
    # first one may be another Python file.
    is_other_rank = SCRIPT in os.environ and os.environ.get("LOCAL_RANK", "0") != "0"
    if not is_other_rank and len(sys.argv) > 1 and sys.argv[1].endswith(".py"):
        os.environ[SCRIPT] = os.path.abspath(sys.argv.pop(1))
    if SCRIPT not in os.environ:
        sys.exit("expected a Python script: python -m nemo_sampled_rnnt.run SCRIPT.py [ITS ARGUMENTS]")
    script = sys.argv[0] = os.environ[SCRIPT]
    sys.path[0] = os.path.dirname(script)
    return script


def execute(script: str, namespace: dict) -> None:
    if not os.path.isfile(script):
        sys.exit(f"there is no script {script}")
    with open(script, "rb") as source:
        code = compile(source.read(), script, "exec", dont_inherit=True)
    namespace |= {"__file__": script, "__doc__": None}
    exec(code, namespace)


# In this module's own namespace, not by runpy: __spec__ has to stay, for it is how Lightning and multiprocessing know
# `-m`. A spawned process, a worker of a data loader say, runs this module again as __mp_main__, to find what the script
# defines.
if __name__ == "__main__":
    execute(find_script(), globals())
elif __name__ == "__mp_main__":
    execute(os.environ[SCRIPT], globals())
