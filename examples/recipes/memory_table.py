"""Print the table of the joint's memory that stands in a recipe's README, from its configs. Run from the repository.

    python examples/recipes/memory_table.py aishell

The batch is one of the last bucket, which needs the most: utterances whose durations are spread evenly from the last of
`train_ds.bucket_duration_bins` to `train_ds.max_duration`, as many as fit in `train_ds.batch_duration` seconds when
each is padded to the longest, which is how Lhotse counts.
"""

from pathlib import Path

import click
from hydra import compose, initialize_config_dir

from nemo_sampled_rnnt.joint_memory import JointMemory, full_softmax_memory, joint_memory
from nemo_sampled_rnnt.loss.lattice import Lattice
from nemo_sampled_rnnt.sampling.sizes import size_of

RECIPES = Path(__file__).parent
CARDS = ("24gb", "48gb", "80gb")
SIZES = ("small", "medium", "large")
# V without blank, and labels in a second of the longest utterances
CORPORA = {"librispeech": (5000, 4.0), "aishell": (4231, 3.0), "csj": (3000, 7.0)}


def longest_batch(config, labels_per_second: float) -> Lattice:
    """Frames and labels of a batch of the last bucket."""
    data, encoder = config.model.train_ds, config.model.encoder
    frames_per_second = 1 / config.model.preprocessor.window_stride / encoder.subsampling_factor
    shortest, longest = data.bucket_duration_bins[-1], data.max_duration
    utterances = int(data.batch_duration / longest)
    seconds = [longest - i * (longest - shortest) / (utterances - 1) for i in range(utterances)]
    return Lattice([int(frames_per_second * s) for s in seconds], [int(labels_per_second * s) for s in seconds])


def memory(config, lattice: Lattice, vocabulary: int, sampled: bool) -> JointMemory:
    """Of joint and loss with the sizes of a config, in a step of this batch; exact unless sampled."""
    softmax, negatives = config.model.joint.sampled_softmax, None
    if sampled:
        negatives = size_of(softmax.n_samples, vocabulary)
    return joint_memory(
        lattice, vocabulary, config.model.model_defaults.joint_hidden, config.model.encoder.d_model, negatives,
        scope=softmax.scope, workspace_mib=softmax.workspace_mib,
    )  # fmt: skip


def gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"


def table(corpus: str) -> str:
    """In Markdown."""
    vocabulary, labels_per_second = CORPORA[corpus]
    lines = [
        "| GPU | size | longest batch | full softmax, at least | ours, exact | ours, sampled |",
        "|---|---|---|---|---|---|",
    ]
    with initialize_config_dir(str(RECIPES.resolve() / corpus), version_base=None):
        for card in CARDS:
            for size in SIZES:
                config = compose(size, [f"card={card}"])
                lattice = longest_batch(config, labels_per_second)
                batch = f"{lattice.utterances} up to {lattice.frames[0]} frames, {lattice.labels[0]} labels"
                cells = [
                    card.replace("gb", " GB"),
                    size,
                    batch,
                    gib(full_softmax_memory(lattice, vocabulary)),
                    gib(memory(config, lattice, vocabulary, sampled=False).total),
                    gib(memory(config, lattice, vocabulary, sampled=True).total),
                ]
                lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


@click.command()
@click.argument("corpus", type=click.Choice(list(CORPORA)))
def main(corpus):
    """Print the table of CORPUS."""
    click.echo(table(corpus))


if __name__ == "__main__":
    main()
