"""The probe of the storage, as each node does it."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from scanvit.cluster.preflight import NodeReport, _probe, _refusal, _refuse_other_versions, _versions
from scanvit.cluster.storage import Storage, open_storage
from scanvit.core.errors import ClusterError

MARK = b"a mark"


@pytest.fixture
def place(tmp_path: Path) -> Storage:
    return open_storage(str(tmp_path / "shared"), {}).below("probe")


def test_a_shared_folder_passes_and_is_left_as_it_was(place: Storage) -> None:
    assert _probe(place, "driver", MARK, None) is None
    assert _probe(place, "node-1", MARK, "driver") is None
    assert os.listdir(place.path) == ["driver"]


def test_a_folder_of_the_same_name_that_is_not_shared_is_found_out(place: Storage, tmp_path: Path) -> None:
    _probe(place, "driver", MARK, None)
    elsewhere = open_storage(str(tmp_path / "other"), {}).below("probe")
    elsewhere.make()
    assert "is another place there" in str(_probe(elsewhere, "node-1", MARK, "driver"))
    elsewhere.write("driver", b"from an earlier run")
    assert "is another place there" in str(_probe(elsewhere, "node-1", MARK, "driver"))


class Broken:
    """A file system on which one thing fails."""

    def __init__(self, real: Any, failing: str, fault: Any) -> None:
        self.real, self.failing, self.fault = real, failing, fault

    def __getattr__(self, name: str) -> Any:
        if name == self.failing:

            def fail(*args: object, **options: object) -> Any:
                raise self.fault

            return fail
        return getattr(self.real, name)


@pytest.mark.parametrize(
    ("failing", "said"),
    [
        ("open_output_stream", "cannot be written: No space left on device"),
        ("create_dir", "cannot be written: No space left on device"),
        ("delete_file", "cannot be deleted in: No space left on device"),
    ],
)
def test_what_fails_is_said_in_one_sentence(place: Storage, failing: str, said: str) -> None:
    _probe(place, "driver", MARK, None)
    broken = replace(place, filesystem=Broken(place.filesystem, failing, OSError(28, "full")))
    assert _probe(broken, "node-1", MARK, "driver") == said
    error = _refusal(place, "10.0.0.2", said)
    assert error.message == f"On the node 10.0.0.2 the storage {place.address} {said}."
    assert "--storage" in str(error.hint)


def test_a_node_with_other_versions_is_refused() -> None:
    def report(**changed: str) -> NodeReport:
        return NodeReport(node="10.0.0.2", storage_fault=None, sees_pack=True, versions=_versions() | changed)

    _refuse_other_versions([report()])
    with pytest.raises(ClusterError, match=r"10\.0\.0\.2 has torch 1\.0"):
        _refuse_other_versions([report(torch="1.0")])
