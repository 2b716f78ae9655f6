from __future__ import annotations

import pytest

from scanvit.core.errors import RemoteError
from scanvit.platform.cloud.remote import Host


@pytest.mark.parametrize(("given", "kept"), [("scanvit/", "scanvit"), ("~/scanvit", "scanvit"), ("/srv//scanvit/", "/srv/scanvit"), ("./a/../b", "b")])
def test_a_folder_is_written_one_way(given: str, kept: str) -> None:
    assert Host(address="box", folder=given).folder == kept


@pytest.mark.parametrize("folder", ["", ".", "./", "~", "~/", "~other/x", "/", "//", "..", "../x", "a/.."])
def test_a_folder_that_is_none_of_its_own_is_refused(folder: str) -> None:
    with pytest.raises(RemoteError, match="is no folder for a copy of scanvit"):
        Host(address="box", folder=folder)
