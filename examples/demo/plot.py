"""Draw the loss curves of both trainings."""

import matplotlib

matplotlib.use("Agg")  # no display
import matplotlib.pyplot as plt
import numpy as np

COLOURS = {"sampled": "tab:blue", "exact": "tab:orange"}
WINDOW = 10  # steps of the moving average


def losses(curves, path):
    """Training and validation loss of every model in `curves` ({name: Curves}) as a PNG at `path`."""
    figure, (training, validation) = plt.subplots(1, 2, figsize=(11, 4), sharex=True)
    for name, curve in curves.items():
        steps, loss = np.array(curve.training).T
        smooth = np.convolve(loss, np.ones(WINDOW) / WINDOW, mode="valid")
        training.plot(steps, loss, color=COLOURS[name], alpha=0.2)
        training.plot(steps[WINDOW - 1 :], smooth, color=COLOURS[name], label=name)
        validation.plot(*np.array(curve.validation).T, "o-", color=COLOURS[name], label=name)
    training.set(title="training: each model's own loss", ylabel="transducer loss (nats an utterance)", yscale="log")
    validation.set(title="validation: the exact loss of both", yscale="log")
    for axes in (training, validation):
        axes.set_xlabel("step after the CTC warm-up")
        axes.grid(alpha=0.3)
        axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)
