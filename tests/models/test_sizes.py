"""Sizes that change: by a schedule over optimizer steps, or by a budget on each batch."""

import pytest
import torch
from families import BPE
from nemo.collections.asr.models import EncDecRNNTBPEModel
from omegaconf import OmegaConf
from tiny import fit, make_config, stock_joint

from nemo_sampled_rnnt.models import EncDecSampledRNNTBPEModel

V = 61


def build(tokenizer, speech, seed=0, **sampled):
    sampled = {"sampler": "uniform", "workspace_mib": 1, "seed": 4} | sampled
    torch.manual_seed(seed)
    return BPE.build(tokenizer, speech, sampled_softmax=sampled)


def logged(model, steps, name="train_candidates", **options):
    """The value logged at each step."""
    seen, log = [], model.log_dict

    def watch(logs, **more):
        seen.extend(float(logs[key]) for key in logs if key == name)
        log(logs, **more)

    model.log_dict = watch
    fit(model, steps, **options)
    del model.log_dict
    return seen


def drawn(candidates):
    """Which size of {0: 5, 2: 20, 4: 40} it is, by the labels that come on top: at most 15, and blank."""
    return [max((size for size in (0, 5, 20, 40) if size < x), default=0) if x < V + 1 else "all" for x in candidates]


SCHEDULE = {"n_samples": {0: 5, 2: 20, 4: 40}, "full_after": 5}


def test_schedule(tokenizer, speech):
    model = build(tokenizer, speech, **SCHEDULE)
    assert drawn(logged(model, 7)) == [5, 5, 20, 20, 40, "all", "all"]
    assert model.joint.draws == 5, "exact training draws nothing"


def test_schedule_counts_optimizer_steps(tokenizer, speech):
    """Batches whose gradients are summed up have sets of one size."""
    model = build(tokenizer, speech, **SCHEDULE)
    sizes = drawn(logged(model, 6, accumulate_grad_batches=2, log_every_n_steps=1))
    assert sizes == [size for size in (5, 5, 20, 20, 40, "all") for _ in range(2)]


@pytest.mark.parametrize("accumulated", [1, 2])
@pytest.mark.parametrize("stop", [2, 4])  # at the end of an epoch, where the data goes on as it would have
def test_schedule_survives_a_resumption(stop, accumulated, tokenizer, speech, tmp_path):
    """Sizes and parameters are those of a run without a stop."""
    options = {"accumulate_grad_batches": accumulated}
    straight = build(tokenizer, speech, **SCHEDULE)
    sizes = drawn(logged(straight, 6, **options))
    first = build(tokenizer, speech, **SCHEDULE)
    fit(first, stop, **options).save_checkpoint(tmp_path / "stopped.ckpt")
    second = build(tokenizer, speech, seed=1, **SCHEDULE)
    assert drawn(logged(second, 6, ckpt_path=tmp_path / "stopped.ckpt", **options)) == sizes[stop * accumulated :]
    for (name, expected), got in zip(straight.state_dict().items(), second.state_dict().values(), strict=True):
        torch.testing.assert_close(got, expected, msg=lambda m, name=name: f"{name}: {m}")


def test_exact_from_the_first_step_is_exact_training(tokenizer, speech):
    sampled, exact = build(tokenizer, speech, n_samples=5, full_after=0), build(tokenizer, speech, n_samples=V)
    losses = [logged(model, 3, "train_rnnt_loss") for model in (sampled, exact)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    assert logged(build(tokenizer, speech, n_samples=5), 1, "train_rnnt_loss")[0] < losses[0][0] - 1


def test_schedule_in_a_model_that_counts_no_steps(tokenizer, speech):
    """NeMo's own class with our joint."""
    config = stock_joint(make_config(tokenizer, speech))
    config.joint._target_ = "nemo_sampled_rnnt.modules.SampledRNNTJoint"
    config.joint.sampled_softmax = OmegaConf.create({"sampler": "uniform", **SCHEDULE})
    with pytest.raises(ValueError, match="has a schedule .*does not know the step: use a model class of this package"):
        fit(EncDecRNNTBPEModel(config), 1)


@pytest.mark.parametrize("bad, message", [
    ({"n_samples": {0: 20, 2: 5}}, "goes backwards from 0: 20 to 2: 5"),
    ({"n_samples": {0: 5, 4: 20}, "full_after": 3}, "full_after: the schedule goes backwards"),
])  # fmt: skip
def test_schedule_that_goes_backwards(bad, message, tokenizer, speech):
    with pytest.raises(Exception, match=message):
        build(tokenizer, speech, **bad)


def step(joint, **more):
    """A training batch of 24 and 6 frames with 9 and 2 labels."""
    random = torch.Generator().manual_seed(0)
    return joint(
        encoder_outputs=torch.randn(2, 16, 24, generator=random),
        decoder_outputs=torch.randn(2, 12, 10, generator=random),
        encoder_lengths=torch.tensor([24, 6]),
        transcripts=torch.arange(20).view(2, 10)[:, :9],
        transcript_lengths=torch.tensor([9, 2]),
        compute_wer=True,
        **more,
    )


@pytest.mark.parametrize("scope", ["utterance", "batch"])
def test_budget(scope, tokenizer, speech):
    cells = 24 * 10, 6 * 3
    model = build(tokenizer, speech, n_samples="auto", max_logits=6000, scope=scope).train()
    assert step(model.joint)[0].isfinite()
    chosen = {name: float(value) for name, value in model.joint.training_statistics.items()}
    least, mean, most = (chosen[f"train_candidates{x}"] for x in ("_min", "", "_max"))
    if scope == "utterance":
        assert least < most and mean == (least + most) / 2
        assert 6000 - sum(cells) <= cells[0] * least + cells[1] * most <= 6000, "the long one has the fewer"
    else:
        assert least == mean == most and 6000 - sum(cells) <= sum(cells) * mean <= 6000


def test_budget_too_small_for_the_positives_of_an_utterance(tokenizer, speech):
    """24 x 10 cells with blank, 9 labels and 2 negatives: 2,880 logits; with the other utterance 2,970."""
    joint = build(tokenizer, speech, n_samples="auto", max_logits=2969).train().joint
    with pytest.raises(
        ValueError, match="max_logits is 2,969, but .* 2,970 logits .* 2,880, are of utterance 0 with 24"
    ):
        step(joint)
    joint = build(tokenizer, speech, n_samples="auto", max_logits=2970).train().joint
    assert step(joint)[0].isfinite()
    assert step(joint.eval())[0].isfinite(), "the exact loss has no budget"


def test_budget_is_of_no_concern_to_exact_training(tokenizer, speech):
    joint = build(tokenizer, speech, n_samples="auto", max_logits=2970, full_after=1).train().joint
    joint.step = 1
    assert step(joint)[0].isfinite()
    assert joint.training_statistics["train_candidates"] == V + 1


def test_training_under_a_budget(tokenizer, speech):
    model = EncDecSampledRNNTBPEModel(
        make_config(
            tokenizer, speech,
            sampled_softmax={"n_samples": "auto", "max_logits": 10_000, "sampler": "ctc", "correction": True},
        )
    )  # fmt: skip
    metrics = fit(model, 3).callback_metrics
    assert {"train_candidates_min", "train_candidates_max"} <= set(metrics)
    assert all(value.isfinite() for value in metrics.values())


@pytest.mark.parametrize("sampled", [SCHEDULE, {"n_samples": "auto", "max_logits": 9000}], ids=["schedule", "budget"])
def test_a_model_file_keeps_them(sampled, tokenizer, speech, tmp_path):
    model = build(tokenizer, speech, **sampled)
    model.save_to(str(tmp_path / "model.nemo"))
    restored = EncDecSampledRNNTBPEModel.restore_from(str(tmp_path / "model.nemo"), map_location="cpu")
    assert restored.joint.sampled_softmax == model.joint.sampled_softmax
    assert fit(restored, 1, limit_val_batches=0).callback_metrics["train_loss"].isfinite()


def test_schedule_on_the_command_line():
    """Hydra's grammar, over a config that has a count."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    from nemo_sampled_rnnt.sampling import SampledSoftmax

    (override,) = OverridesParser.create().parse_overrides(["n_samples={0:5,20_000:9}"])
    config = OmegaConf.merge({"n_samples": 512}, {"n_samples": override.value()})
    assert SampledSoftmax.from_config(config).n_samples == {0: 5, 20_000: 9}
