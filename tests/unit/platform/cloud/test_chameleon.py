from __future__ import annotations

import json
from pathlib import Path

import pytest

from scanvit.cli import main
from scanvit.core.errors import PlatformStateError
from scanvit.platform.cloud.chameleon import _Record, record_path


def test_a_record_of_another_site_is_told_with_a_command_that_there_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = record_path(tmp_path, "xrays")
    path.write_text(json.dumps({"site": "CHI@UC", "ids": {}}))
    with pytest.raises(PlatformStateError, match="is of CHI@UC, not of CHI@TACC") as caught:
        _Record.open(path, "CHI@TACC")
    words = (caught.value.hint or "").partition("scanvit ")[2].split()
    assert words == ["chameleon", "down", "--lease", "xrays"]
    assert main([*words, "--help"]) == 0
    capsys.readouterr()
