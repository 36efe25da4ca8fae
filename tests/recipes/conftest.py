"""The scripts of the recipes and their miniature corpora can be imported."""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / folder) for folder in ("tests/recipes", "examples/recipes", "examples")]
