"""Model folders, tokenizers and text that comes token by token."""

import json
from pathlib import Path

import jinja2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.kit.errors import StartupError
from services.kit.models import BUILTIN_SIM, StreamDecoder, Tokenizer, model_folder
from services.kit.sim_model.build import build

SIM = Tokenizer.load(model_folder(BUILTIN_SIM))


def test_the_simulated_models_tokens_are_bytes() -> None:
    assert SIM.encode("hé\n") == list("hé\n".encode())
    assert SIM.vocab_size == 259
    assert SIM.eos_token_ids == frozenset({258})
    assert SIM.encode("<|im_start|>user") == [257, *b"user"]
    assert SIM.token_id("<|endoftext|>") == 256


def test_the_committed_tokenizer_is_the_built_one() -> None:
    committed = (model_folder(BUILTIN_SIM) / "tokenizer.json").read_text(encoding="utf-8")
    assert json.loads(committed) == json.loads(build().to_str())


def test_its_chat_template_renders() -> None:
    """The template is what transformers would apply: each turn between its marks, then the assistant's mark."""
    folder = model_folder(BUILTIN_SIM)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    rendered = jinja2.Template(config["chat_template"]).render(
        messages=[{"role": "user", "content": "hi"}], add_generation_prompt=True
    )
    assert rendered == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert json.loads((folder / "config.json").read_text())["max_position_embeddings"] == 8192


@given(st.text())
def test_text_survives_the_round_trip(text: str) -> None:
    clean = text.replace("<|", "")
    assert SIM.decode(SIM.encode(clean)) == clean


@given(st.text(), st.integers(min_value=1, max_value=5))
def test_a_stream_gives_the_same_text(text: str, step: int) -> None:
    """However the tokens are cut, no piece has a broken code point and together they are the text."""
    clean = text.replace("<|", "").replace("�", "")
    ids, decoder = SIM.encode(clean), StreamDecoder(SIM)
    pieces = [decoder.push(ids[start : start + step]) for start in range(0, len(ids), step)]
    assert "".join(pieces) + decoder.flush() == clean
    assert all("�" not in piece for piece in pieces)


def test_half_a_code_point_waits_and_is_flushed_as_replacement() -> None:
    decoder = StreamDecoder(SIM)
    assert decoder.push([0x61, 0xF0, 0x9F]) == "a"
    assert set(decoder.flush()) == {"�"}
    assert decoder.flush() == ""
    assert decoder.push([0x62]) == "b"


def test_bytes_that_are_no_text_do_not_pile_up() -> None:
    """A model that emits broken UTF-8 for ever is not held back for ever."""
    decoder = StreamDecoder(SIM)
    text = decoder.push([0xFF] * 1000)
    assert len(text) > 900
    assert set(text) == {"�"}


def test_special_tokens_have_no_text() -> None:
    decoder = StreamDecoder(SIM)
    assert decoder.push([*b"ok", 258]) == "ok"
    assert decoder.flush() == ""


def test_what_is_no_model_folder_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match="There is no model folder"):
        model_folder(str(tmp_path / "nothing"))
    with pytest.raises(StartupError, match=r"has no tokenizer\.json and no config\.json"):
        model_folder(str(tmp_path))
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(StartupError, match="cannot be read"):
        Tokenizer.load(tmp_path)


def test_a_model_lies_in_an_installed_package() -> None:
    """The package is found without being imported; one that is not there is said so in a sentence."""
    assert model_folder("package:services/kit/sim_model") == model_folder(BUILTIN_SIM)
    for ref in ("package:no_such_package/model", "package:", "package:../x", "package:json.decoder/model"):
        with pytest.raises(StartupError, match="There is no Python package"):
            model_folder(ref)


def test_ends_are_read_from_every_file(tmp_path: Path) -> None:
    """Models say in three files which tokens end an answer."""
    (tmp_path / "tokenizer.json").write_text(build().to_str())
    (tmp_path / "config.json").write_text('{"eos_token_id": 1}')
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [2, 3]}')
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": {"content": "<|im_end|>"}}')
    assert Tokenizer.load(tmp_path).eos_token_ids == frozenset({1, 2, 3, 258})
    assert Tokenizer.load(tmp_path).revision == SIM.revision or len(Tokenizer.load(tmp_path).revision) == 16
