"""Facts about NeMo that decided the design: if one of them changes, or our answer to it, a test here fails."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from nemo.collections.asr.models import ASRModel, EncDecRNNTBPEModel
from nemo.core.classes import common
from omegaconf import OmegaConf, open_dict
from tiny import fit, make_config, stock_joint

import nemo_sampled_rnnt
from nemo_sampled_rnnt.models import EncDecSampledRNNTBPEModel
from nemo_sampled_rnnt.modules import SampledRNNTJoint

JOINT = "nemo_sampled_rnnt.modules.SampledRNNTJoint"
OURS = "nemo_sampled_rnnt.models.EncDecSampledRNNTBPEModel"


# 1. A `_target_` must start with a prefix on NeMo's list.

PROCESS = f"""
import sys
from pathlib import Path
if "package first" in sys.argv:
    import nemo_sampled_rnnt
    assert "nemo" not in sys.modules, "importing the package must not cost NeMo's 5 seconds"
from nemo.collections.asr.models import EncDecRNNTBPEModel
from nemo.core.classes import common
from tiny import make_config
config = make_config(Path(sys.argv[1]), aux_ctc=False, n_samples=5, sampled_softmax=None)
if "package last" in sys.argv:
    try:
        EncDecRNNTBPEModel(config.copy())
    except ValueError as error:  # UnsafeTargetError in NeMo 3
        assert "{JOINT}" in str(error), error
    else:
        raise AssertionError("built without the package: NeMo has no allow-list any more?")
    assert "nemo_sampled_rnnt" not in sys.modules
    import nemo_sampled_rnnt
import nemo_sampled_rnnt._targets
nemo_sampled_rnnt._targets.allow_when_nemo_is_imported()  # a second time
assert common.ALLOWED_TARGET_PREFIXES.count("nemo_sampled_rnnt.") == 1, common.ALLOWED_TARGET_PREFIXES
joint = EncDecRNNTBPEModel(config).joint
assert type(joint).__module__ == "nemo_sampled_rnnt.modules.joint", type(joint)
assert joint.sampled_softmax.sampler == "uniform" and joint.sampled_softmax.n_samples == 5
print("all well")
"""


@pytest.mark.parametrize("order", ["package first", "package last"])
def test_target_is_allowed(order, tokenizer):
    tests, package = Path(__file__).parents[1], Path(nemo_sampled_rnnt.__file__).parents[1]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (package, tests)))}
    command = [sys.executable, "-c", PROCESS, str(tokenizer), order]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.stdout.endswith("all well\n"), done.stdout + done.stderr


# 2. ASRModel.from_pretrained asks subclasses first.

PRETRAINED = "stt_en_conformer_transducer_small"  # one of NVIDIA's names


@pytest.fixture(scope="module")
def published(tokenizer, tmp_path_factory):
    """What NVIDIA's server would send."""
    path = tmp_path_factory.mktemp("published") / "small.nemo"
    model = EncDecRNNTBPEModel(stock_joint(make_config(tokenizer)))
    model.save_to(str(path))
    return path


def test_from_pretrained_is_not_hijacked(published, monkeypatch):
    monkeypatch.setattr(common, "maybe_download_from_cloud", lambda **_: str(published))
    assert PRETRAINED in [info.pretrained_model_name for info in EncDecRNNTBPEModel.list_available_models()]
    for info in ASRModel.list_available_models():
        assert not issubclass(info.class_, EncDecSampledRNNTBPEModel), info
    assert type(ASRModel.from_pretrained(PRETRAINED)) is EncDecRNNTBPEModel
    assert type(EncDecRNNTBPEModel.from_pretrained(PRETRAINED)) is EncDecRNNTBPEModel


def test_from_pretrained_of_our_class(published, monkeypatch):
    asked = []
    monkeypatch.setattr(common, "maybe_download_from_cloud", lambda **call: asked.append(call) or str(published))
    assert EncDecSampledRNNTBPEModel.list_available_models() == []
    model = EncDecSampledRNNTBPEModel.from_pretrained(PRETRAINED, refresh_cache=True)
    assert type(model) is EncDecSampledRNNTBPEModel
    assert type(model.joint) is SampledRNNTJoint
    assert asked[0]["filename"] == PRETRAINED + ".nemo" and asked[0]["refresh_cache"]
    stock = EncDecRNNTBPEModel.restore_from(str(published)).state_dict()
    assert list(stock) == list(model.state_dict())
    assert all(torch.equal(stock[name], tensor) for name, tensor in model.state_dict().items())
    with pytest.raises(FileNotFoundError, match="was not found"):
        EncDecSampledRNNTBPEModel.from_pretrained("no_such_model")


# 3. NeMo brings the full joint back by three ways.


@pytest.fixture
def no_full_joint(monkeypatch):
    """Fails where anything but a decoder's single step goes through NeMo's joint."""

    class FullJointBuilt(Exception):
        pass

    def watched(self, f, g, original=SampledRNNTJoint.joint_after_projection):
        if f.shape[1] > 1 and g.shape[1] > 1 and torch.is_grad_enabled():
            raise FullJointBuilt(f"{tuple(f.shape)} x {tuple(g.shape)}")
        return original(self, f, g)

    monkeypatch.setattr(SampledRNNTJoint, "joint_after_projection", watched)


def models_with_our_joint(config):
    uniform = OmegaConf.to_container(config.joint.sampled_softmax) | {"sampler": "uniform"}
    stock = config.copy()
    stock.pop("aux_ctc")
    stock.joint.sampled_softmax = uniform
    return {"our model": lambda: EncDecSampledRNNTBPEModel(config), "NeMo's": lambda: EncDecRNNTBPEModel(stock)}


@pytest.mark.parametrize("which", ["our model", "NeMo's"])
@pytest.mark.parametrize("way", ["joint.fuse_loss_wer", "decoding.fused_batch_size", "change_decoding_strategy"])
def test_full_joint_does_not_come_back(way, which, tokenizer, speech, no_full_joint):
    config = make_config(tokenizer, speech)
    if way == "joint.fuse_loss_wer":
        config.joint.fuse_loss_wer = False
        config.joint.pop("fused_batch_size")
    if way == "decoding.fused_batch_size":
        config.decoding.fused_batch_size = -1
    model = models_with_our_joint(config)[which]()
    if way == "change_decoding_strategy":
        model.change_decoding_strategy(OmegaConf.create({"strategy": "greedy_batch", "fused_batch_size": -1}))
    metrics = fit(model, 2).callback_metrics
    assert model.joint.sampler.draws == 2, "training sampled"
    assert metrics["val_loss"].isfinite() and metrics["train_loss"].isfinite()


def exported(model, folder):
    """After an export, with the frozen parameters unfrozen: still in eval mode, where Lightning leaves it."""
    pytest.importorskip("onnx")
    model.export(str(folder / "model.onnx"))
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    return model


@pytest.mark.filterwarnings("ignore")  # of torch's exporter
@pytest.mark.parametrize("mode", [True, False])
def test_our_model_trains_after_export(mode, tokenizer, speech, no_full_joint, tmp_path):
    model = exported(EncDecSampledRNNTBPEModel(make_config(tokenizer, speech)), tmp_path).train(mode)
    metrics = fit(model, 2).callback_metrics
    assert model.joint.draws == 2, "a training step is sampled, also where the model was left in eval mode"
    assert model.joint.log_softmax is None
    assert metrics["val_loss"].isfinite() and metrics["train_loss"].isfinite()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "mode",
    [
        True,
        False,
    ],
)
def test_nemos_model_does_not_train_unnoticed_after_export(mode, tokenizer, speech, no_full_joint, tmp_path):
    """Its predictor stays an exported one, so that a loss is refused for its shape in any case."""
    build = models_with_our_joint(make_config(tokenizer, speech))["NeMo's"]
    model = exported(build(), tmp_path).train(mode)
    with pytest.raises((ValueError, RuntimeError), match="predictor must have shape|full joint"):
        fit(model, 1)


# 4. NeMo writes `target` only where there is none.


def test_target_is_ours(tokenizer, tmp_path):
    copied = make_config(tokenizer)
    copied.joint._target_ = "nemo.collections.asr.modules.RNNTJoint"
    with open_dict(copied):
        copied.target = "nemo.collections.asr.models.rnnt_bpe_models.EncDecRNNTBPEModel"
    model = EncDecSampledRNNTBPEModel(copied)
    assert model.cfg.target == OURS
    assert model.cfg.joint._target_ == JOINT
    model.save_to(str(tmp_path / "model.nemo"))
    saved = ASRModel.restore_from(str(tmp_path / "model.nemo"), return_config=True)
    assert saved.target == OURS
    assert saved.joint._target_ == JOINT
    assert type(ASRModel.restore_from(str(tmp_path / "model.nemo"))) is EncDecSampledRNNTBPEModel


@pytest.mark.parametrize("path", ["RNNTJoint", "rnnt.RNNTJoint", "SampledRNNTJoint", "rnnt.SampledRNNTJoint"])
def test_stock_joints_are_replaced(path, tokenizer):
    config = stock_joint(make_config(tokenizer))
    config.joint._target_ = f"nemo.collections.asr.modules.{path}"
    if "Sampled" in path:
        config.joint.n_samples = 9
    joint = EncDecSampledRNNTBPEModel(config).joint
    assert type(joint) is SampledRNNTJoint
    assert (joint.sampled_softmax is not None) == ("Sampled" in path)


# 5. `loss.loss_name` takes only NeMo's names; what the loss should be comes from the loss that NeMo built.


def exact_loss(model, seed=0):
    """Of a batch of random encoder outputs."""
    random = torch.Generator().manual_seed(seed)
    encoded = torch.randn(2, 16, 7, generator=random)
    transcripts = torch.randint(60, (2, 5), generator=random)
    lengths = torch.tensor([5, 3])
    decoded, _, _ = model.decoder(targets=transcripts, target_length=lengths)
    return model.joint.eval()(
        encoder_outputs=encoded,
        decoder_outputs=decoded,
        encoder_lengths=torch.tensor([7, 6]),
        transcripts=transcripts,
        transcript_lengths=lengths,
    )[0]


def test_loss_settings_are_those_of_nemos_loss(tokenizer):
    plain = EncDecSampledRNNTBPEModel(make_config(tokenizer)).eval()
    config = make_config(tokenizer)
    config.loss = {"loss_name": "default", "warprnnt_numba_kwargs": {"fastemit_lambda": 0.25, "clamp": 0.01}}
    config.rnnt_reduction = "sum"
    model = EncDecSampledRNNTBPEModel(config).eval()
    model.load_state_dict(plain.state_dict())
    torch.testing.assert_close(exact_loss(model), 1.25 * 2 * exact_loss(plain))

    def largest(model):
        return torch.autograd.grad(exact_loss(model), model.joint.joint_net[-1].bias)[0].abs().max()

    assert largest(model) < largest(plain), "the clamp bounds the gradient, although it sums twice as much"
    model.change_decoding_strategy(model.cfg.decoding)
    torch.testing.assert_close(exact_loss(model), 1.25 * 2 * exact_loss(plain))


@pytest.mark.parametrize("name", [None, "default", "warprnnt_numba", "pytorch"])
def test_loss_names(name, tokenizer):
    config = make_config(tokenizer)
    config.pop("loss")
    if name is not None:
        config.loss = {"loss_name": name}
    reference = EncDecRNNTBPEModel(stock_joint(config))
    model = EncDecSampledRNNTBPEModel(config)
    model.load_state_dict(reference.state_dict(), strict=False)
    torch.testing.assert_close(exact_loss(model.eval()), exact_loss(reference.eval()), atol=1e-4, rtol=1e-5)
