"""Bad input is refused before any work, by a ValueError that names the argument, the utterance and the value."""

import os
import re
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from truth import IMPLS, LEAVES, make_problem

from nemo_sampled_rnnt import sampled_rnnt_loss

pytestmark = pytest.mark.parametrize("impl", IMPLS)

B, T, U, H, V = 3, 7, 4, 5, 11


def problem(**options):
    return make_problem(0, B=B, T=T, U=U, H=H, V=V, **options)


def refused(bad, impl, *words, **options):
    with pytest.raises(ValueError) as raised:
        bad.call(sampled_rnnt_loss, impl=impl, **options)
    message = str(raised.value)
    for word in words:
        assert re.search(rf"(?<![\w.]){re.escape(str(word))}(?![\w.]*\w)", message), f"{word!r} is not in: {message}"
    return message


def with_entry(tensor, at, value):
    tensor = tensor.clone()
    tensor[at] = value
    return tensor


@pytest.mark.parametrize("value", [V, V + 30, -1, -40])
@pytest.mark.parametrize("b", [0, 2])
def test_target_outside_the_vocabulary(impl, b, value):
    """V itself is blank; -1 is no padding among the first target_lengths[b]."""
    bad = problem(padded=False)
    refused(replace(bad, targets=with_entry(bad.targets, (b, U - 1), value)), impl, "targets", b, value)


@pytest.mark.parametrize("name, value", [("target_lengths", -1), ("target_lengths", U + 21)])
@pytest.mark.parametrize("b", [0, 2])
def test_target_lengths_outside_the_tensor(impl, b, name, value):
    bad = problem()
    refused(replace(bad, **{name: with_entry(getattr(bad, name), b, value)}), impl, name, b, value)


@pytest.mark.parametrize("value", [0, -3, T + 21])
@pytest.mark.parametrize("b", [0, 2])
def test_encoder_lengths_outside_the_tensor(impl, b, value):
    """Zero frames have no path."""
    bad = problem()
    refused(replace(bad, encoder_lengths=with_entry(bad.encoder_lengths, b, value)), impl, "encoder_lengths", b, value)


def test_lengths_one_beyond_the_tensor(impl):
    bad = problem(padded=False)
    refused(replace(bad, encoder_lengths=with_entry(bad.encoder_lengths, 1, T + 1)), impl, "encoder_lengths", 1, T + 1)
    refused(replace(bad, target_lengths=with_entry(bad.target_lengths, 1, U + 1)), impl, "target_lengths", 1, U + 1)


@pytest.mark.parametrize("value", [V, V + 30, -2, -40])
def test_negative_outside_the_vocabulary(impl, value):
    bad = problem(scope="utterance")
    refused(replace(bad, negatives=with_entry(bad.negatives, (1, 3), value)), impl, "negatives", 1, value)
    bad = problem(scope="batch")
    refused(replace(bad, negatives=with_entry(bad.negatives, 4, value)), impl, "negatives", value)


SHAPES = {
    "encoder without H": ("encoder", lambda x: x[..., 0]),
    "encoder of another batch": ("encoder", lambda x: x[:2]),
    "encoder of another width": ("encoder", lambda x: x[..., :3]),
    "predictor without the state before the first label": ("predictor", lambda x: x[:, 1:]),
    "predictor one too long": ("predictor", lambda x: torch.cat([x, x[:, :1]], 1)),
    "predictor of another batch": ("predictor", lambda x: x[:2]),
    "predictor of another width": ("predictor", lambda x: x[..., :3]),
    "weight of another width": ("weight", lambda x: x[:, :3]),
    "weight of one axis": ("weight", lambda x: x[:, 0]),
    "bias without blank": ("bias", lambda x: x[:-1]),
    "bias of two axes": ("bias", lambda x: x[:, None]),
    "targets of one axis": ("targets", lambda x: x[0]),
    "targets of another batch": ("targets", lambda x: x[:2]),
    "encoder_lengths of another batch": ("encoder_lengths", lambda x: x[:2]),
    "encoder_lengths of two axes": ("encoder_lengths", lambda x: x[:, None]),
    "target_lengths of another batch": ("target_lengths", lambda x: torch.cat([x, x])),
    "negatives of another batch": ("negatives", lambda x: x[:2]),
    "negatives of three axes": ("negatives", lambda x: x[..., None]),
    "negatives of no axis": ("negatives", lambda x: x[0, 0]),
    "negative_log_prob of another size": ("negative_log_prob", lambda x: x[:, :-1]),
    "negative_log_prob of one axis": ("negative_log_prob", lambda x: x[0]),
}


@pytest.mark.parametrize("case", SHAPES)
def test_shapes_that_disagree(impl, case):
    name, change = SHAPES[case]
    bad = problem(scope="utterance", correction=True)
    message = refused(replace(bad, **{name: change(getattr(bad, name))}), impl)
    # Two arguments disagree and either may be the wrong one; the message must name the one that was changed here.
    assert re.search(rf"\b{name}\b", message), message


@pytest.mark.parametrize("name", ["predictor", "weight", "bias", "targets", "encoder_lengths", "target_lengths"])
def test_devices_that_disagree(impl, name):
    bad = problem()
    refused(replace(bad, **{name: getattr(bad, name).to("meta")}), impl, name, "meta")


@pytest.mark.parametrize("name", ["negatives", "negative_log_prob"])
def test_devices_of_the_negatives(impl, name):
    bad = problem(scope="utterance", correction=True)
    refused(replace(bad, **{name: getattr(bad, name).to("meta")}), impl, name, "meta")


@pytest.mark.parametrize(
    "option, value, allowed",
    [
        ("reduction", "average", ["mean", "sum", "mean_batch", "mean_volume"]),
        ("activation", "gelu", ["relu", "tanh", "sigmoid"]),
        ("workspace_mib", 0, []),
        ("workspace_mib", -5, []),
        ("dropout", 1.5, []),
        ("dropout", -0.1, []),
    ],
)
def test_unknown_or_impossible_options(impl, option, value, allowed):
    """The message lists what is allowed."""
    refused(problem(), impl, option, value, *allowed, **{option: value})


@pytest.mark.parametrize(
    "option, value",
    [
        ("dropout", "0.1"),
        ("fastemit_lambda", "1e-3"),  # what YAML 1.1 makes of 1e-3
        ("clamp", None),
        ("workspace_mib", None),
        ("workspace_mib", float("nan")),
        ("sigma", "0.05"),
        ("omega", [0.1]),
        ("durations", 4),
        ("durations", (0, 1.5)),
    ],
)
def test_options_that_are_no_numbers(impl, option, value):
    refused(problem(), impl, option, value, **{option: value})


@pytest.mark.parametrize(
    "name, dtype",
    [
        ("encoder", torch.float8_e4m3fn),
        ("predictor", torch.int64),
        ("weight", torch.complex64),
        ("bias", torch.bool),
        ("targets", torch.float32),
        ("encoder_lengths", torch.uint16),
        ("target_lengths", torch.float64),
        ("negatives", torch.bool),
        ("negative_log_prob", torch.int64),
    ],
)
def test_dtypes(impl, name, dtype):
    """The message lists what is allowed."""
    bad = problem(scope="utterance", correction=True, fill=0.0)
    wanted = "float32, float64" if name in (*LEAVES, "negative_log_prob") else "int64, int32"
    message = refused(replace(bad, **{name: getattr(bad, name).nan_to_num().to(dtype)}), impl, name, dtype)
    assert wanted in message


@pytest.mark.parametrize("dtype", [torch.int32, torch.int16, torch.uint8, torch.int8])
def test_smaller_integers_will_do(impl, dtype):
    good = problem(scope="utterance", padded=False)
    names = ("targets", "encoder_lengths", "target_lengths", "negatives")
    names = names[: 4 if dtype.is_signed else 3]  # padding of negatives is -1
    other = replace(good, **{name: getattr(good, name).to(dtype) for name in names})
    assert torch.equal(other.call(sampled_rnnt_loss, impl=impl), good.call(sampled_rnnt_loss, impl=impl))


@pytest.mark.parametrize("value", [None, [[1, 2]], 3])
@pytest.mark.parametrize("name", [*LEAVES, "targets", "encoder_lengths", "negatives", "negative_log_prob"])
def test_what_is_no_tensor(impl, name, value):
    if value is None and name.startswith("negative"):
        return
    bad = problem(scope="utterance", correction=True)
    refused(replace(bad, **{name: value}), impl, name, "tensor", type(value).__name__)


def test_nothing_in_the_batch(impl):
    bad = problem()
    refused(bad.map(lambda x: x[: 0 if len(x) == B else None]), impl, "encoder", "B")
    refused(replace(bad, encoder=bad.encoder[:, :0]), impl, "encoder", "T")


def test_weight_without_the_durations(impl):
    """Its shape fits a smaller vocabulary: the message says how the rows were counted."""
    bad = problem(padded=False)
    bad = replace(bad, targets=torch.full_like(bad.targets, V - 1))
    refused(bad, impl, "targets", V - 1, "durations", 12, 3, durations=(0, 1, 2))


def test_unknown_impl(impl):
    refused(problem(), impl + "s", "impl", impl + "s", "auto", "reference", "cpu", "cuda")


def test_log_prob_without_negatives(impl):
    bad = replace(problem(), negative_log_prob=torch.zeros(4))
    refused(bad, impl, "negative_log_prob", "negatives")


@pytest.mark.parametrize("value", [float("nan"), float("-inf"), 0.5])
def test_log_probs_that_are_none(impl, value):
    """-inf would say that a negative which is there could not be drawn."""
    good = problem(scope="utterance", correction=True)
    at = (1, int((good.negatives[1] >= 0).nonzero()[0]))
    bad = replace(good, negative_log_prob=with_entry(good.negative_log_prob, at, value))
    refused(bad, impl, "negative_log_prob", "finite", 1)


def test_what_is_beyond_the_lengths_is_not_looked_at(impl):
    good = problem(scope="utterance", correction=True)
    assert torch.isnan(good.encoder).any() and (good.targets == 10**9).any()
    assert torch.isfinite(good.call(sampled_rnnt_loss, impl=impl, reduction=None)).all()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_without_cuda(impl):
    """In a process of its own, with the simulator off: the error says what to install, whatever impl ran before."""
    code = (
        "from truth import make_problem; from nemo_sampled_rnnt import sampled_rnnt_loss\n"
        f"make_problem(0).call(sampled_rnnt_loss, impl={impl!r})\n"
        "try: make_problem(0).call(sampled_rnnt_loss, impl='cuda')\n"
        "except (RuntimeError, ImportError, ValueError) as error: print(error)\n"
        "else: raise SystemExit('it ran')\n"
    )
    here = os.path.dirname(os.path.abspath(__file__))
    root = os.path.dirname(os.path.dirname(here))
    environment = {k: v for k, v in os.environ.items() if k != "NUMBA_ENABLE_CUDASIM"}
    environment["PYTHONPATH"] = os.pathsep.join([here, root, environment.get("PYTHONPATH", "")])
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"numba-cuda|cu12|cu13", done.stdout), done.stdout
    assert "CUDA" in done.stdout
