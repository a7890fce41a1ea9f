"""Adapters: which files are taken, and what the table of those that are held says."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from services.kit.errors import DownstackError, Reason
from services.worker.adapters.adapter_files import CONFIG, WEIGHTS, AdapterFolder
from services.worker.domain.adapters import Adapter, Adapters
from tests.support.lora import TINY, make_adapter, make_model, write_safetensors


def refused(folder: AdapterFolder, path: Path, *, name: str = "legal") -> Reason:
    with pytest.raises(DownstackError) as caught:
        folder.read(name, path)
    return caught.value.reason


def test_the_id_names_the_files_content(tmp_path: Path) -> None:
    """The same files have the same id wherever they lie; other weights or settings have another one."""
    folder = AdapterFolder(tmp_path)
    first, copy, other, scaled = (
        folder.read("legal", make_adapter(tmp_path / str(number), **changes))
        for number, changes in enumerate(({}, {}, {"seed": 2}, {"lora_alpha": 99}))
    )
    assert first.id == copy.id
    assert first.id.startswith("legal@")
    assert len({first.id, other.id, scaled.id}) == 3
    assert (first.rank, first.path) == (8, str(tmp_path / "0"))


def _garbage(path: Path) -> None:
    (path / WEIGHTS).write_bytes(b"\x80\x04 pickled")


def _cut(path: Path) -> None:
    data = (path / WEIGHTS).read_bytes()
    (path / WEIGHTS).write_bytes(data[:-4])


def _huge_header(path: Path) -> None:
    (path / WEIGHTS).write_bytes((2**62).to_bytes(8, "little") + b"{}")


def _no_weights(path: Path) -> None:
    write_safetensors(path / WEIGHTS, {})


def _pickled(path: Path) -> None:
    (path / WEIGHTS).rename(path / "adapter_model.bin")


def _no_json(path: Path) -> None:
    (path / CONFIG).write_text("{", encoding="utf-8")


def _config(**changes: object) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        config = json.loads((path / CONFIG).read_text(encoding="utf-8"))
        (path / CONFIG).write_text(json.dumps({**config, **changes}), encoding="utf-8")

    return change


@pytest.mark.parametrize("damage", [_garbage, _cut, _huge_header, _no_weights, _pickled, _no_json, _config(r=4)])
def test_damaged_files_are_refused(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    """Before an engine sees them; pickles are not even looked at."""
    path = make_adapter(tmp_path / "a")
    damage(path)
    assert refused(AdapterFolder(tmp_path), path) == Reason.PARAM_OUT_OF_RANGE


@pytest.mark.parametrize("changes", [{"peft_type": "IA3"}, {"bias": "all"}, {"use_dora": True}, {"r": 512}])
def test_other_kinds_are_refused(tmp_path: Path, changes: dict[str, object]) -> None:
    """What changes more than low-rank matrices can, or has a higher rank than the engine has room for."""
    path = make_adapter(tmp_path / "a")
    _config(**changes)(path)
    assert refused(AdapterFolder(tmp_path), path) == Reason.UNSUPPORTED_FEATURE


@pytest.mark.parametrize("name", ["", "a:b", "a/b", "ä", "x" * 65])
def test_names_are_simple(tmp_path: Path, name: str) -> None:
    """A name is a part of what callers say."""
    path = make_adapter(tmp_path / "a")
    assert refused(AdapterFolder(tmp_path), path, name=name) == Reason.PARAM_OUT_OF_RANGE


@pytest.mark.parametrize("path", ["", ".", "..", "../outside", "/etc", "link", "a\0b"])
def test_a_path_leads_below_the_folder(tmp_path: Path, path: str) -> None:
    """Neither dots nor links lead out of it, and without a folder there is no path at all."""
    root = tmp_path / "root"
    root.mkdir()
    (root / "link").symlink_to(tmp_path)
    with pytest.raises(DownstackError) as caught:
        AdapterFolder(root).find(path)
    assert caught.value.reason == Reason.PARAM_OUT_OF_RANGE
    with pytest.raises(DownstackError) as caught:
        AdapterFolder().find("a")
    assert caught.value.reason == Reason.METHOD_DISABLED


def adapter(name: str, revision: str = "1") -> Adapter:
    return Adapter(name=name, id=f"{name}@{revision}", rank=8, path="/x")


def test_a_name_is_given_to_other_weights() -> None:
    """Requests get the new ones at once; the old ones stay until their last lease ends."""
    table = Adapters(most=2)
    table.offer(adapter("a"))
    table.take("a@1")
    table.offer(adapter("a", "2"))
    assert table.ids == {"a@2"}
    assert [(held.adapter.id, held.running, held.withdrawn) for held in table] == [("a@1", 1, True), ("a@2", 0, False)]
    assert table.unused() == []
    table.give_back("a@1")
    assert table.unused() == [adapter("a")]
    table.gone(adapter("a"))
    assert table.ids == {"a@2"}
    assert [held.adapter.id for held in table] == ["a@2"]


def test_their_number_is_bounded() -> None:
    """What is withdrawn counts until it has gone; what is held already needs no more room."""
    table = Adapters(most=1)
    table.offer(adapter("a"))
    table.check_room(adapter("a"))
    table.withdraw("a")
    with pytest.raises(DownstackError) as caught:
        table.check_room(adapter("b"))
    assert caught.value.reason == Reason.QUOTA_EXCEEDED
    table.gone(adapter("a"))
    table.check_room(adapter("b"))
    with pytest.raises(DownstackError) as caught:
        Adapters(most=0).check_room(adapter("a"))
    assert caught.value.reason == Reason.METHOD_DISABLED


def test_what_is_not_offered_cannot_be_withdrawn() -> None:
    """Twice neither."""
    table = Adapters(most=1)
    for _ in range(2):
        with pytest.raises(DownstackError) as caught:
            table.withdraw("a")
        assert caught.value.reason == Reason.ADAPTER_NOT_FOUND


def test_a_lease_may_outlive_its_adapter() -> None:
    """The engine was lost, and with it what was held; the lease that ends late does not count against what comes."""
    table = Adapters(most=1)
    table.offer(adapter("a"))
    table.take("a@1")
    table.gone(adapter("a"))
    table.offer(adapter("a"))
    assert [held.running for held in table] == [1]
    table.give_back("a@1")
    assert [held.running for held in table] == [0]


@pytest.mark.parametrize("layers", [1, 2])
def test_an_adapter_of_some_layers_fits_its_model(tmp_path: Path, layers: int) -> None:
    """A part of the layers is enough."""
    folder = AdapterFolder(model=make_model(tmp_path / "model", TINY))
    assert folder.read("legal", make_adapter(tmp_path / "a", TINY._replace(layers=layers))).rank == 8


@pytest.mark.parametrize("changes", [{"hidden": 32}, {"hidden": 128}, {"values": 32}, {"layers": 3}])
def test_an_adapter_of_another_model_is_refused(tmp_path: Path, changes: dict[str, int]) -> None:
    """Its matrices must have the sizes of the model's weights: an engine may take smaller ones for a part of them."""
    folder = AdapterFolder(model=make_model(tmp_path / "model", TINY))
    path = make_adapter(tmp_path / "a", TINY._replace(**changes))
    assert refused(folder, path) == Reason.UNSUPPORTED_FEATURE


def test_a_model_of_other_names_is_left_to_the_engine(tmp_path: Path) -> None:
    """Such as a quantized one, or one whose weights are not safetensors."""
    model = make_model(tmp_path / "model", TINY)
    write_safetensors(model / "model.safetensors", {"weights": np.zeros((2, 2), "<f4")})
    path = make_adapter(tmp_path / "a", TINY._replace(hidden=32))
    assert AdapterFolder(model=model).read("legal", path).rank == 8
    (model / "model.safetensors").unlink()
    assert AdapterFolder(model=model).read("legal", path).rank == 8
