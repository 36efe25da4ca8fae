"""The file of characters: what is written is what is read."""

from __future__ import annotations

import json

import pytest
from characters import main, read_labels
from click.testing import CliRunner
from hydra import compose, initialize_config_dir
from scripts import ROOT, SHRINK

from nemo_sampled_rnnt.models import EncDecSampledRNNTModel


def write(folder, *entries):
    manifest, out = folder / "train.json", folder / "characters.txt"
    manifest.write_text("".join(f"{json.dumps(entry)}\n" for entry in entries))
    return CliRunner().invoke(main, [str(manifest), str(out)]), out


def test_written_and_read(tmp_path):
    """The most frequent first, with spaces, without what ends a line anywhere."""
    result, out = write(tmp_path, {"text": "b　今 今\u2028\x85今"}, {"text": "\u2029\r\x0bb\x1c é"})
    assert result.exit_code == 0 and "5 characters" in result.output
    assert "left out: U+000B, U+000D, U+001C, U+0085, U+2028, U+2029" in result.output
    assert read_labels(out) == ["今", " ", "b", "é", "\u3000"]


@pytest.mark.parametrize("entry", [{"words": "a"}, {"text": None}, ["text"]])
def test_no_text(entry, tmp_path):
    result, out = write(tmp_path, {"text": "a"}, entry)
    assert result.exit_code == 1 and 'train.json, line 2: expected a JSON object with "text"' in result.output
    assert not out.exists()


def test_only_line_ends(tmp_path):
    result, _ = write(tmp_path, {"text": "\u2028"})
    assert result.exit_code == 1 and "found none" in result.output


@pytest.mark.parametrize(
    "content, message",
    [
        ("", "line 1: expected a character, found an empty line"),
        ("a\n\nb\n", "line 2: expected a character"),
        ("a\nb\na\n", "line 3: expected another character on each line, found 'a' of line 1 again"),
    ],
)
def test_bad_labels(content, message, tmp_path):
    (tmp_path / "characters.txt").write_text(content)
    with pytest.raises(ValueError, match=f"characters.txt, {message}"):
        read_labels(tmp_path / "characters.txt")


def test_other_separators_do_not_end_a_line(tmp_path):
    (tmp_path / "characters.txt").write_text("a\n\u2028\n\x85\n", encoding="utf-8")
    assert read_labels(tmp_path / "characters.txt") == ["a", "\u2028", "\x85"]


def test_other_characters_for_a_model_of_the_recipe(monkeypatch):
    monkeypatch.chdir(ROOT)
    small = [override for override in SHRINK if override.startswith(("model.encoder", "model.model_defaults"))]
    with initialize_config_dir(str(ROOT / "examples/recipes/aishell"), version_base=None):
        config = compose("small", [*small, "model.labels=[a,b]", "~model.train_ds", "~model.validation_ds"])
    model = EncDecSampledRNNTModel(cfg=config.model)
    model.change_vocabulary(["a", "b", "c"])
    assert list(model.joint.vocabulary) == list(model.cfg.labels) == ["a", "b", "c"]
