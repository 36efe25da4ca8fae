"""The example scripts as a user starts them: tokenizer, then training, each config shrunk by overrides only."""

import pytest
from scripts import SHRINK, run
from tiny import make_speech


@pytest.fixture(scope="module")
def speech(tmp_path_factory):
    return make_speech(tmp_path_factory.mktemp("speech"))


@pytest.fixture(scope="module")
def tokenizer(speech, tmp_path_factory):
    root = tmp_path_factory.mktemp("tokenizers")
    run("examples/process_asr_text_tokenizer.py", f"--manifest={speech}", f"--data_root={root}", "--vocab_size=40",
        "--tokenizer=spe", "--spe_type=bpe", "--spe_character_coverage=1.0")  # fmt: skip
    (folder,) = root.glob("tokenizer_*")
    return folder


def test_tokenizer(tokenizer):
    pieces = (tokenizer / "tokenizer.vocab").read_text().splitlines()
    assert len(pieces) == 40
    assert {"tokenizer.model", "vocab.txt"} <= {path.name for path in tokenizer.iterdir()}


@pytest.mark.parametrize(
    "config",
    ["conformer_transducer_bpe_sampled", "fastconformer_transducer_bpe_sampled", "fastconformer_tdt_bpe_sampled"],
)
def test_training(config, speech, tokenizer, tmp_path):
    output = run(
        "examples/speech_to_text_rnnt_bpe.py", f"--config-name={config}", *SHRINK,
        f"model.train_ds.manifest_filepath={speech}", f"model.validation_ds.manifest_filepath={speech}",
        f"model.tokenizer.dir={tokenizer}", "model.tokenizer.type=bpe", f"exp_manager.exp_dir={tmp_path}",
    )  # fmt: skip
    assert list(tmp_path.rglob("*.nemo")), output[-3000:]
    assert list(tmp_path.rglob("events.out.tfevents*")), "no TensorBoard log"
