"""Write the characters of a manifest to a file, one a line, for `labels_filepath` of a recipe.

    python examples/recipes/characters.py work/train.json work/characters.txt

The most frequent comes first. A character of which the training text has none stays unknown to the model: when it
comes in a transcript to be scored, it counts as an error.
"""

import json
from collections import Counter
from pathlib import Path

import click


@click.command()
@click.argument("manifest", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("out", type=click.Path(dir_okay=False, path_type=Path))
def main(manifest, out):
    """Write the characters of MANIFEST to OUT."""
    counts = Counter()
    with manifest.open(encoding="utf-8") as lines:
        for line in lines:
            counts.update(json.loads(line)["text"])
    if not counts:
        raise click.ClickException(f"expected text in {manifest}, found none")
    characters = sorted(counts, key=lambda character: (-counts[character], character))
    out.write_text("".join(f"{character}\n" for character in characters), encoding="utf-8")
    click.echo(f"{out}: {len(characters)} characters, with blank V + 1 = {len(characters) + 1}")


if __name__ == "__main__":
    main()
