"""What a corpus has that cannot be used: counted, listed in a file, and too much of it stops."""

from collections import Counter
from pathlib import Path

import click

MOST = 0.01  # share of the utterances

allow_skipped = click.option("--allow-skipped", is_flag=True, help=f"Go on with more than {MOST:.0%} skipped.")


class Skips:
    """A file of lines "name, reason, utterances", separated by tabs.

    Args:
        path: the file.
        size: bytes of it that are kept from a run before; the counts go on from them.
    """

    def __init__(self, path: Path, size: int = 0):
        self.path, self.reasons = path, Counter()
        path.touch()
        self.file = path.open("r+", encoding="utf-8")
        self.file.truncate(size)
        for line in self.file:
            _, reason, utterances = line.rstrip("\n").split("\t")
            self.reasons[reason] += int(utterances)

    def add(self, name: str, reason: str, utterances: int = 1) -> None:
        self.file.write(f"{name}\t{reason}\t{utterances}\n")
        self.reasons[reason] += utterances

    def conclude(self, kept: int, allowed: bool) -> str:
        """Close the file and say what was skipped.

        Raises:
            click.ClickException: nothing is left, or more than 1 % was skipped and that is not allowed.
        """
        self.file.close()
        skipped = self.reasons.total()
        if not skipped and kept:
            return f"{kept} utterances, none skipped"
        reasons = ", ".join(f"{reason}: {count}" for reason, count in sorted(self.reasons.items()))
        share = skipped / max(1, kept + skipped)
        found = f"{kept} utterances, {skipped} skipped ({share:.2%}; {reasons}), listed in {self.path}"
        if not kept:
            raise click.ClickException(f"expected utterances, found {found}")
        if share > MOST and not allowed:
            raise click.ClickException(
                f"expected to skip at most {MOST:.0%}, found {found}. Is the corpus complete? --allow-skipped goes on "
                "without them"
            )
        return found
