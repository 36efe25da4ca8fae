"""The command ``nemo-sampled-rnnt``."""

from __future__ import annotations

from pathlib import Path

import click

from nemo_sampled_rnnt.stock import export_stock


@click.group()
def main():
    """Sampled-softmax transducers for NVIDIA NeMo."""


@main.command()
@click.argument("source", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("destination", type=click.Path(dir_okay=False, path_type=Path))
@click.option(
    "--as",
    "kind",
    type=click.Choice(["rnnt", "hybrid"]),
    default="rnnt",
    show_default=True,
    help="A transducer, or a hybrid with the CTC head.",
)
@click.option("--overwrite", is_flag=True, help="Replace DESTINATION where it exists.")
def export(source: Path, destination: Path, kind: str, overwrite: bool):
    """Write the model in SOURCE as a DESTINATION that opens in NeMo without this package."""
    try:
        exported = export_stock(source, destination, kind == "hybrid", overwrite)
    except (ValueError, OSError) as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"{source}: {exported.source}")
    click.echo(f"{destination}: {exported.target}, {len(exported.written)} tensors")
    if exported.left_out:
        click.echo(f"left out, {len(exported.left_out)} tensors of the CTC head: {', '.join(exported.left_out)}")


if __name__ == "__main__":
    main()
