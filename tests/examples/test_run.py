"""`python -m nemo_sampled_rnnt.run` with a script that knows NeMo only, and our targets in its config."""

import pytest
from nemo.collections.asr.models import ASRModel, EncDecRNNTBPEModel
from scripts import ROOT, SHRINK, run, start
from tiny import make_speech, make_tokenizer

SCRIPT = ROOT / "tests" / "examples" / "stock_script.py"


@pytest.fixture(scope="module")
def arguments(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    speech, tokenizer = make_speech(folder / "speech"), make_tokenizer(folder / "tokenizer")
    return [
        SCRIPT, f"--config-path={ROOT / 'configs'}", "--config-name=conformer_transducer_bpe_sampled", *SHRINK,
        "model.joint.sampled_softmax.sampler=uniform", "~model.aux_ctc", "~model.target",
        f"model.train_ds.manifest_filepath={speech}", f"model.validation_ds.manifest_filepath={speech}",
        f"model.tokenizer.dir={tokenizer}", "exp_manager.create_checkpoint_callback=false",
    ]  # fmt: skip


def test_without_us_the_target_is_refused(arguments):
    result = start(*arguments)
    assert result.returncode != 0 and "nemo_sampled_rnnt.modules.SampledRNNTJoint" in result.stderr


def test_two_ranks(arguments, tmp_path):
    """Lightning starts the second rank itself."""
    callback = f"{{_target_:nemo_sampled_rnnt.callbacks.ExportStock,path:{tmp_path / 'stock.nemo'}}}"
    output = run(
        "-m", "nemo_sampled_rnnt.run", *arguments, f"exp_manager.exp_dir={tmp_path}",
        "trainer.devices=2", "trainer.strategy=ddp", f"+trainer.callbacks=[{callback}]",
    )  # fmt: skip
    assert "GLOBAL_RANK: 1, MEMBER: 2/2" in output and "`Trainer.fit` stopped" in output
    assert type(ASRModel.restore_from(str(tmp_path / "stock.nemo"))) is EncDecRNNTBPEModel


def test_ranks_and_spawned_workers(tmp_path):
    """All are this script run by us, also where its first argument is a Python file."""
    output = run("-m", "nemo_sampled_rnnt.run", ROOT / "tests" / "examples" / "two_processes.py", "settings.py", "b=1")
    for rank in (0, 1):
        assert f"rank {rank} of two_processes.py ['settings.py', 'b=1']: 2 steps" in output


def test_the_script_sees_what_it_always_sees(tmp_path):
    (tmp_path / "neighbour.py").write_text("name = 'neighbour'")
    script = tmp_path / "script.py"
    script.write_text("import sys, neighbour; print(__name__, __file__, __doc__, *sys.argv, neighbour.name)")
    alone, through_us = run(script, "a", "b=1"), run("-m", "nemo_sampled_rnnt.run", script, "a", "b=1")
    assert through_us == alone and f"__main__ {script} None {script} a b=1 neighbour" in alone


def test_no_script():
    result = start("-m", "nemo_sampled_rnnt.run", "key=value")
    assert result.returncode == 1 and "expected a Python script" in result.stderr
