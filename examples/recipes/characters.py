"""Write the characters of a manifest to a file, one a line, for `labels_filepath` of a recipe.

    python examples/recipes/characters.py work/train.json work/characters.txt

The most frequent comes first. A character of which the training text has none stays unknown to the model: when it
comes in a transcript to be scored, it counts as an error. Control characters and separators of lines and paragraphs
are left out.
"""

import json
import unicodedata
from collections import Counter
from pathlib import Path

import click


def is_label(character: str) -> bool:
    """Whether it is more than a control character or a line end."""
    return unicodedata.category(character) not in ("Cc", "Cs", "Zl", "Zp")


def read_labels(path: Path) -> list[str]:
    """The lines of a file that this script wrote; line ends are those of the file, not all that Unicode knows."""
    labels = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    first = {}
    for number, label in enumerate(labels, 1):
        if not label:
            raise ValueError(f"{path}, line {number}: expected a character, found an empty line: remove it")
        if label in first:
            raise ValueError(
                f"{path}, line {number}: expected another character on each line, found {label!r} of line "
                f"{first[label]} again: remove one of the two"
            )
        first[label] = number
    return labels


def read_text(line: str) -> str | None:
    """Of an entry of a manifest; None if it has none."""
    try:
        text = json.loads(line)["text"]
    except (json.JSONDecodeError, KeyError, TypeError):
        return None
    return text if isinstance(text, str) else None


@click.command()
@click.argument("manifest", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("out", type=click.Path(dir_okay=False, path_type=Path))
def main(manifest, out):
    """Write the characters of MANIFEST to OUT."""
    counts = Counter()
    with manifest.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            text = read_text(line)
            if text is None:
                raise click.ClickException(
                    f'{manifest}, line {number}: expected a JSON object with "text", found {line.strip()[:80]!r}'
                )
            counts.update(text)
    left_out = sorted(character for character in counts if not is_label(character))
    characters = sorted(filter(is_label, counts), key=lambda character: (-counts[character], character))
    if not characters:
        raise click.ClickException(f"expected text in {manifest}, found none")
    out.write_text("".join(f"{character}\n" for character in characters), encoding="utf-8")
    click.echo(f"{out}: {len(characters)} characters, with blank V + 1 = {len(characters) + 1}")
    if left_out:
        click.echo(f"left out: {', '.join(f'U+{ord(character):04X}' for character in left_out)}")


if __name__ == "__main__":
    main()
