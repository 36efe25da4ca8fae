"""Out: a model of ours as a file of stock NeMo's, opened in processes that do not have this package."""

import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import stock_nemo
import torch
from click.testing import CliRunner
from families import BPE, FAMILIES, HYBRID
from listening import fingerprints, listen
from omegaconf import OmegaConf
from tiny import fit, talkative

from nemo_sampled_rnnt import cli
from nemo_sampled_rnnt.callbacks import ExportStock
from nemo_sampled_rnnt.models.export import save_stock
from nemo_sampled_rnnt.stock import CONFIG, WEIGHTS, export_stock, pack, unpack

COMMAND = Path(sys.executable).with_name("nemo-sampled-rnnt")
HEAD = {"ctc_decoder.decoder_layers.0.weight", "ctc_decoder.decoder_layers.0.bias"}


def without_head(tokenizer, speech):
    """And without a fused_batch_size, which ours does not need."""
    return BPE.build(tokenizer, speech, aux_ctc=False, fused_batch_size=None)


def stock_with_our_joint(tokenizer, speech):
    """As an unmodified script of NeMo's trains it."""
    config = BPE.config(tokenizer, speech, aux_ctc=False, sampled_softmax=None, n_samples=7)
    return BPE.stock(config)


MODELS = {name: family.build for name, family in FAMILIES.items()}
MODELS |= {make.__name__: make for make in (without_head, stock_with_our_joint)}
BPE_NAME = "EncDecRNNTBPEModel"
CLASSES = {  # of a model exported as a plain transducer, and as a hybrid
    name: {"rnnt": rnnt, "hybrid": rnnt.replace("RNNT", "HybridRNNTCTC")}
    for name, rnnt in ((name, name.replace("HybridRNNTCTC", "RNNT")) for name in FAMILIES)
}
CLASSES |= {name: {"rnnt": BPE_NAME} for name in ("without_head", "stock_with_our_joint")}


@pytest.fixture(scope="module")
def models(tokenizer, speech):
    """Trained a little, then made to say something."""
    models = {}
    for name, make in MODELS.items():
        torch.manual_seed(0)
        models[name] = make(tokenizer, speech)
        fit(models[name], 2)
        talkative(models[name])
    return models


@pytest.fixture(scope="module")
def heard(models, wav_files):
    heard = {name: listen(model, wav_files) for name, model in models.items()}
    for name, said in heard.items():
        own = said["own"]
        assert all(own) and len(set(own)) == len(own) and len(set("".join(own))) > 4, f"{name}: they tell models apart"
    return heard


@pytest.fixture(scope="module")
def exported(models, heard, tmp_path_factory):
    """Every model as both kinds, after decoding has filled the config with all keys of this NeMo."""
    folder = tmp_path_factory.mktemp("exported")
    for name, model in models.items():
        for kind in CLASSES[name]:
            save_stock(model, folder / f"{name}-{kind}.nemo", hybrid=kind == "hybrid")
    return folder


@pytest.fixture(scope="module", params=stock_nemo.PYTHONS)
def found(request, exported, wav_files, tmp_path_factory):
    return stock_nemo.examine(request.param, exported, tmp_path_factory.mktemp("found"), wav_files)


@pytest.mark.parametrize("name, kind", [(name, kind) for name, kinds in CLASSES.items() for kind in kinds])
def test_opens_in_stock_nemo(name, kind, models, found, heard):
    seen = found[f"{name}-{kind}"]
    assert seen["class"] == CLASSES[name][kind]
    assert seen["joint"] == "nemo.collections.asr.modules.rnnt.RNNTJoint"
    assert not {"sampled_softmax", "n_samples"} & set(seen["config"]["joint"])
    assert "nemo_sampled_rnnt" not in str(seen["config"])
    assert seen["heard"] == heard[name]
    assert seen["onnx"] == ["decoder_joint", "encoder"]
    ours = fingerprints(models[name])
    left_out = HEAD & set(ours) if kind == "rnnt" else set()
    assert seen["tensors"] == {tensor: ours[tensor] for tensor in ours if tensor not in left_out}


# The command line works on files.


@pytest.fixture(scope="module")
def ours(models, exported, tmp_path_factory):
    path = tmp_path_factory.mktemp("ours") / "ours.nemo"
    models[BPE_NAME].save_to(str(path))
    return path


def contents(path, folder):
    """Config, names of members, weights; without the number that NeMo draws for a tokenizer at every save."""
    folder.mkdir()
    unpack(path, folder)
    config = re.sub("nemo:[0-9a-f]{32}_", "", (folder / CONFIG).read_text())
    names = sorted(re.sub("^[0-9a-f]{32}_", "", x.name) for x in folder.iterdir())
    return config, names, torch.load(folder / WEIGHTS)


def assert_same_file(one, other, tmp_path):
    config, names, weights = contents(one, tmp_path / "one")
    config2, names2, weights2 = contents(other, tmp_path / "other")
    assert config == config2 and names == names2
    assert list(weights) == list(weights2)
    assert all(torch.equal(tensor, weights2[name]) for name, tensor in weights.items())


def run(*arguments):
    return CliRunner().invoke(cli.main, ["export", *map(str, arguments)])


@pytest.mark.parametrize("kind", ["rnnt", "hybrid"])
def test_command_line_writes_what_the_model_writes(kind, ours, exported, tmp_path):
    result = run(ours, tmp_path / "new" / "out.nemo", "--as", kind)
    assert result.exit_code == 0, result.output
    assert "nemo_sampled_rnnt.models.EncDecSampledRNNTBPEModel" in result.output
    assert ("61 tensors" if kind == "hybrid" else "59 tensors") in result.output
    assert all((name in result.output) == (kind == "rnnt") for name in HEAD)
    assert os.listdir(tmp_path / "new") == ["out.nemo"]
    assert_same_file(tmp_path / "new" / "out.nemo", exported / f"{BPE_NAME}-{kind}.nemo", tmp_path)


def test_the_command_imports_no_nemo():
    code = "import sys, nemo_sampled_rnnt.cli; assert not {'nemo', 'lightning'} & set(sys.modules)"
    environment = os.environ | {"PYTHONPATH": str(Path(cli.__file__).parents[1])}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, timeout=100)


@pytest.mark.skipif(not COMMAND.exists(), reason="the package is not installed here")
def test_the_command_is_installed():
    help = subprocess.run([COMMAND, "export", "--help"], capture_output=True, text=True, timeout=100)
    assert help.returncode == 0 and "--as [rnnt|hybrid]" in help.stdout


def test_stock_files_pass_through(exported, tmp_path):
    export_stock(exported / f"{BPE_NAME}-hybrid.nemo", tmp_path / "out.nemo")
    assert_same_file(tmp_path / "out.nemo", exported / f"{BPE_NAME}-rnnt.nemo", tmp_path)


def test_compressed_files(ours, exported, tmp_path):
    """As NeMo wrote them before 1.7."""
    (tmp_path / "unpacked").mkdir()
    unpack(ours, tmp_path / "unpacked")
    with tarfile.open(tmp_path / "in.nemo", "w:gz") as archive:
        archive.add(tmp_path / "unpacked", arcname=".")
    export_stock(tmp_path / "in.nemo", tmp_path / "out.nemo")
    assert_same_file(tmp_path / "out.nemo", exported / f"{BPE_NAME}-rnnt.nemo", tmp_path)


def test_nothing_is_overwritten_unless_asked(models, ours, tmp_path):
    out = tmp_path / "out.nemo"
    out.write_text("dear to someone")
    result = run(ours, out)
    assert result.exit_code == 1 and f"{out} exists" in result.output and "overwrite" in result.output
    with pytest.raises(FileExistsError, match="out.nemo exists"):
        models[BPE_NAME].save_stock(out)
    with pytest.raises(FileExistsError, match="out.nemo exists"):
        fit(models[BPE_NAME], 1, callbacks=[ExportStock(str(out))])
    assert out.read_text() == "dear to someone"
    assert run(ours, out, "--overwrite").exit_code == 0
    assert tarfile.is_tarfile(out)
    models[BPE_NAME].save_stock(out, overwrite=True)


def not_an_archive(ours):
    return b"no archive at all" * 100


def empty(ours):
    return b""


def cut_in_the_weights(ours):
    return ours.read_bytes()[: ours.stat().st_size // 2]


def cut_after_the_config(ours):
    with tarfile.open(ours) as archive:
        weights = next(x for x in archive if x.name.endswith(WEIGHTS))
        return ours.read_bytes()[: weights.offset]


@pytest.mark.parametrize("damage", [not_an_archive, empty, cut_in_the_weights, cut_after_the_config])
def test_damaged_files(damage, ours, tmp_path):
    (tmp_path / "in.nemo").write_bytes(damage(ours))
    result = run(tmp_path / "in.nemo", tmp_path / "out.nemo")
    assert result.exit_code == 1
    assert "in.nemo" in result.output and "no .nemo file, or not all of one" in result.output
    assert os.listdir(tmp_path) == ["in.nemo"], "and leaves nothing behind"


@pytest.mark.parametrize("target", ["ctc_bpe_models.EncDecCTCModelBPE", "aed_multitask_models.EncDecMultiTaskModel"])
def test_other_models(target, tmp_path):
    (tmp_path / "in").mkdir()
    OmegaConf.save({"target": f"nemo.collections.asr.models.{target}", "decoder": {}}, tmp_path / "in" / CONFIG)
    torch.save({}, tmp_path / "in" / WEIGHTS)
    with tarfile.open(tmp_path / "in.nemo", "w") as archive:
        archive.add(tmp_path / "in", arcname=".")
    result = run(tmp_path / "in.nemo", tmp_path / "out.nemo")
    assert result.exit_code == 1 and target in result.output and "only transducers" in result.output
    assert not (tmp_path / "out.nemo").exists()


def test_hybrid_without_a_head(models, tmp_path):
    for call in (
        lambda: models["without_head"].save_stock(tmp_path / "out.nemo", hybrid=True),
        lambda: fit(models["without_head"], 1, callbacks=[ExportStock(str(tmp_path / "out.nemo"), hybrid=True)]),
    ):
        with pytest.raises(ValueError, match="the model has no CTC head"):
            call()
    assert not os.listdir(tmp_path)


def test_hybrid_whose_head_has_no_weights(models, tmp_path):
    """NeMo's own class keeps a config's aux_ctc, and has no head."""
    models["without_head"].save_to(str(tmp_path / "in.nemo"))
    (tmp_path / "in").mkdir()
    unpack(tmp_path / "in.nemo", tmp_path / "in")
    config = OmegaConf.load(tmp_path / "in" / CONFIG)
    OmegaConf.save(OmegaConf.merge(config, {"aux_ctc": models[BPE_NAME].cfg.aux_ctc}), tmp_path / "in" / CONFIG)
    pack(tmp_path / "in", tmp_path / "with_aux_ctc.nemo")
    before = set(os.listdir(tmp_path))
    with pytest.raises(ValueError, match="no weights of a CTC head.*export it as rnnt"):
        export_stock(tmp_path / "with_aux_ctc.nemo", tmp_path / "out.nemo", hybrid=True)
    assert set(os.listdir(tmp_path)) == before
    assert not export_stock(tmp_path / "with_aux_ctc.nemo", tmp_path / "out.nemo").left_out


def test_the_model_itself_is_not_replaced(ours, tmp_path):
    (tmp_path / "in.nemo").write_bytes(ours.read_bytes())
    result = run(tmp_path / "in.nemo", tmp_path / ".." / tmp_path.name / "in.nemo", "--overwrite")
    assert result.exit_code == 1 and "is the model itself" in result.output
    assert (tmp_path / "in.nemo").read_bytes() == ours.read_bytes()


def test_a_lightning_checkpoint(tmp_path):
    torch.save({"state_dict": {}}, tmp_path / "last.ckpt")
    result = run(tmp_path / "last.ckpt", tmp_path / "out.nemo")
    assert result.exit_code == 1 and "take the .nemo beside it" in result.output


def test_a_failed_export_leaves_nothing_behind(models, ours, tmp_path, monkeypatch):
    def disk_full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tarfile.TarFile, "add", disk_full)
    assert "No space left" in run(ours, tmp_path / "out.nemo").output
    with pytest.raises(OSError, match="No space left"):
        models[BPE_NAME].save_stock(tmp_path / "out.nemo")
    assert not os.listdir(tmp_path)


# The callback.


def test_callback_finds_an_unusable_path_before_training(models, tmp_path):
    (tmp_path / "file").write_text("")
    for path, error in ((tmp_path, IsADirectoryError), (tmp_path / "file" / "out.nemo", OSError)):
        step = models[BPE_NAME].trainer.global_step
        with pytest.raises(error):
            fit(models[BPE_NAME], 1, callbacks=[ExportStock(str(path), overwrite=True)])
        assert models[BPE_NAME].trainer.global_step in (0, step)


def test_callback(tokenizer, speech, tmp_path):
    model = BPE.build(tokenizer, speech)
    path = tmp_path / "callback" / "stock.nemo"
    fit(model, 2, callbacks=[ExportStock(str(path), hybrid=True)])
    restored = HYBRID.ours.restore_from(str(path))
    assert fingerprints(restored) == fingerprints(model)
