from __future__ import annotations

import os
import stat
import threading
from pathlib import Path

import pytest

from scanvit.core.errors import ConfigError, StorageError
from scanvit.data.dicom.pseudonym import load_salt, pseudonym, salt_file, salt_mark


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv("SCANVIT_SALT", raising=False)


def test_a_pseudonym_is_a_function_of_issuer_patient_and_salt() -> None:
    first = pseudonym("hospital", "4711", b"s" * 16)
    assert first == pseudonym("hospital", "4711", b"s" * 16)
    others = {pseudonym("hospital", "4712", b"s" * 16), pseudonym("clinic", "4711", b"s" * 16), pseudonym("hospital", "4711", b"t" * 16)}
    assert len({first, *others}) == 4
    assert len(first) == 32
    assert set(first) <= set("0123456789abcdef")


def test_issuer_and_patient_do_not_run_into_each_other() -> None:
    assert pseudonym("ab", "c", b"s" * 16) != pseudonym("a", "bc", b"s" * 16)
    assert pseudonym("", "Müller\udce4", b"s" * 16)


def test_a_salt_is_made_once_and_is_private() -> None:
    salt = load_salt()
    assert len(salt) == 32
    assert load_salt() == salt
    assert stat.S_IMODE(salt_file().stat().st_mode) == 0o600
    assert [path.name for path in salt_file().parent.iterdir()] == ["salt"]


def test_everybody_who_starts_at_once_gets_the_same_salt() -> None:
    salts: list[bytes] = []
    threads = [threading.Thread(target=lambda: salts.append(load_salt())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(salts) == 8
    assert len(set(salts)) == 1


def test_the_environment_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCANVIT_SALT", "0123456789abcdef\n")
    assert load_salt() == b"0123456789abcdef"
    assert not salt_file().exists()


@pytest.mark.parametrize("salt", ["", "short", "               "])
def test_a_short_salt_is_refused(salt: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCANVIT_SALT", salt)
    with pytest.raises(ConfigError, match="fewer than 16"):
        load_salt()


def test_a_salt_that_others_may_read_is_refused() -> None:
    load_salt()
    salt_file().chmod(0o644)
    with pytest.raises(ConfigError, match="read by others") as caught:
        load_salt()
    assert "chmod 600" in str(caught.value.hint)


def test_a_place_that_takes_no_file_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "file"))
    with pytest.raises(StorageError):
        load_salt()


def test_the_mark_does_not_hold_the_salt() -> None:
    assert salt_mark(b"s" * 16) != salt_mark(b"t" * 16)
    assert b"s" * 4 not in salt_mark(b"s" * 16).encode()
    assert os.environ.get("SCANVIT_SALT") is None
