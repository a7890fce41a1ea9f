import socket
from pathlib import Path

import pytest
from downstack.local.folder import Credentials, DataFolder, find_folder
from downstack.local.layout import DataFolderVersionError, LocalError
from downstack.local.ports import choose_ports, port_is_free


@pytest.fixture
def folder(tmp_path: Path) -> DataFolder:
    folder = DataFolder(tmp_path / "data")
    folder.claim()
    return folder


def test_the_nearest_folder_is_found_from_below(tmp_path: Path) -> None:
    (tmp_path / ".downstack").mkdir()
    below = tmp_path / "a" / "b"
    below.mkdir(parents=True)
    assert find_folder(None, start=below) == tmp_path / ".downstack"
    assert find_folder(Path("/x"), start=below) == Path("/x")


def test_a_folder_of_another_version_is_refused_in_one_sentence(folder: DataFolder) -> None:
    (folder.path / "DOWNSTACK_LAYOUT").write_text("99\n")
    with pytest.raises(DataFolderVersionError, match="layout 99"):
        folder.claim()


def test_a_folder_with_something_else_in_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("x")
    with pytest.raises(DataFolderVersionError, match="not a data folder"):
        DataFolder(tmp_path).claim()
    assert [file.name for file in tmp_path.iterdir()] == ["precious"]


def test_secrets_stay_the_same_and_are_for_the_owner_only(folder: DataFolder) -> None:
    first = folder.secrets()
    assert folder.secrets() == first
    modes = {file.stat().st_mode & 0o777 for file in (folder.path / "secrets").iterdir()}
    assert modes == {0o600}
    assert folder.admin_key() == first.bootstrap_admin_key
    assert first.bootstrap_admin_key not in repr(first)


def test_credentials_come_back_and_are_for_the_owner_only(folder: DataFolder) -> None:
    assert folder.credentials() is None
    saved = Credentials(api_key="k", key_id="i", tenant="default", tenant_id="t")
    folder.save_credentials(saved)
    assert folder.credentials() == saved
    assert folder.credentials_file.stat().st_mode & 0o777 == 0o600
    assert folder.key_file.read_text() == "k"


def test_only_one_supervisor_holds_a_folder(folder: DataFolder) -> None:
    assert not folder.held()
    with folder.hold():
        assert folder.held()
        with pytest.raises(LocalError, match="already"), folder.hold():
            pass
    assert not folder.held()


def test_a_folder_that_nobody_holds_does_not_run(folder: DataFolder) -> None:
    with pytest.raises(LocalError, match="downstack up"):
        folder.running()


def test_ports_are_different_and_those_of_the_last_run_come_back() -> None:
    first = choose_ports(["a", "b", "c"], last={}, fixed={})
    assert len(set(first.values())) == 3
    assert choose_ports(["a", "b", "c"], last=first, fixed={}) == first


def test_a_port_that_was_asked_for_and_is_in_use_gives_one_sentence() -> None:
    taken = choose_ports(["a"], last={}, fixed={})["a"]
    port = int(taken.rpartition(":")[2])
    assert choose_ports(["router"], last={}, fixed={"router": port}) == {"router": taken}

    with socket.socket() as holder:
        holder.bind(("127.0.0.1", port))
        holder.listen()
        assert not port_is_free(port)
        with pytest.raises(LocalError, match=f"port {port} is in use"):
            choose_ports(["router"], last={}, fixed={"router": port})
