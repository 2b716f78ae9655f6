from __future__ import annotations

from pathlib import Path

import pytest

from scanvit.core.errors import RemoteError
from scanvit.platform.cloud import remote
from scanvit.platform.cloud.remote import Host


@pytest.mark.parametrize(("given", "kept"), [("scanvit/", "scanvit"), ("~/scanvit", "scanvit"), ("/srv//scanvit/", "/srv/scanvit"), ("./a/../b", "b")])
def test_a_folder_is_written_one_way(given: str, kept: str) -> None:
    assert Host(address="box", folder=given).folder == kept


@pytest.mark.parametrize("folder", ["", ".", "./", "~", "~/", "~other/x", "/", "//", "..", "../x", "a/.."])
def test_a_folder_that_is_none_of_its_own_is_refused(folder: str) -> None:
    with pytest.raises(RemoteError, match="is no folder for a copy of scanvit"):
        Host(address="box", folder=folder)


def test_a_set_up_that_hangs_without_a_word_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ssh = tmp_path / "ssh"
    ssh.write_text("#!/bin/sh\nexec sleep 600\n")
    ssh.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    with pytest.raises(RemoteError, match="takes longer than"):
        remote._run_steps(Host(address="box"), ["check"], {}, say=str, timeout_s=0.2)
