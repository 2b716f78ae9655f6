"""Functions that numba compiles and LLVM loads alone, in processes of their own: whether numba is imported can be seen there only."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path

import numba
import pytest
from numba import carray, types

from scanvit.core import object_file
from scanvit.core.machine_code import MachineCode

_SHARE = numba.cfunc(types.void(types.CPointer(types.int64)))
_SCRIPT = """
import ctypes, sys
import numpy as np
from scanvit.core.machine_code import MachineCode

def compiled():
    from numba import cfunc, types
    @cfunc(types.void(types.CPointer(types.int64)))
    def twice(given):
        given[1] = 2 * given[0]
    return {"twice": twice}

address = MachineCode("twice", [], what="number", takes="a moment").addresses(["twice"], compiled, calls={})["twice"]
given = np.array([21, 0], np.int64)
ctypes.CFUNCTYPE(None, ctypes.c_void_p)(address)(given.ctypes.data)
print(given[1], "numba" in sys.modules)
"""


def run(home: Path) -> str:
    environment = {"XDG_CACHE_HOME": str(home), "PATH": ""}
    return subprocess.run([sys.executable, "-c", _SCRIPT], env=environment, capture_output=True, text=True, check=True).stdout.strip()


def test_it_is_compiled_once_and_then_loaded_without_numba(tmp_path: Path) -> None:
    assert run(tmp_path) == "42 True"
    assert run(tmp_path) == "42 False"


@pytest.mark.parametrize("damage", ["cut", "changed", "gone"])
def test_damaged_code_is_made_anew(tmp_path: Path, damage: str) -> None:
    run(tmp_path)
    (file,) = tmp_path.rglob("functions.o")
    good = file.read_bytes()
    if damage == "gone":
        file.unlink()
    else:
        file.write_bytes(good[:100] if damage == "cut" else good[:-1] + bytes([good[-1] ^ 1]))
    assert run(tmp_path) == "42 True"
    assert file.read_bytes() == good
    assert run(tmp_path) == "42 False"
    assert {path.name for path in file.parent.iterdir()} == {"functions.o", "lock", "ready"}


def test_where_nothing_can_be_kept_each_process_compiles(tmp_path: Path) -> None:
    (tmp_path / "scanvit").write_text("a file where the folder would be")
    assert run(tmp_path) == "42 True"
    assert run(tmp_path) == "42 True"


def test_on_a_full_disk_it_is_compiled_once_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    def compiled() -> dict[str, object]:
        made.append(1)

        @_SHARE
        def nothing(given):  # type: ignore[no-untyped-def]
            given[0] = 0

        return {"nothing": nothing}

    def full(path: Path, data: bytes) -> int:
        path.touch()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(Path, "write_bytes", full)
    code = MachineCode("nothing", [], what="number", takes="a moment")
    assert code.addresses(["nothing"], compiled, calls={})["nothing"]
    assert (len(made), [path.name for path in code.folder.iterdir()]) == (1, ["lock"])


def test_a_function_that_takes_memory_is_refused() -> None:
    @_SHARE
    def hungry(given):  # type: ignore[no-untyped-def]
        given[0] = len([given[0]] * given[1])

    with pytest.raises(ValueError, match=r"hungry: calls .*NRT_"):
        object_file.link({"hungry": hungry}, calls=())


def test_a_function_that_fails_ends_the_process() -> None:
    @_SHARE
    def divide(given):  # type: ignore[no-untyped-def]
        values = carray(given, 2)
        values[0] = values[0] // values[1]

    code = object_file.link({"divide": divide}, calls=())
    script = (
        "import ctypes, sys; import numpy as np; from scanvit.core import object_file\n"
        "run = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(object_file.load(sys.stdin.buffer.read(), ['divide'], calls={})['divide'])\n"
        "for below in (2, 0):\n    given = np.array([6, below], np.int64)\n    run(given.ctypes.data)\n    print(given[0], flush=True)"
    )
    done = subprocess.run([sys.executable, "-c", script], input=code, capture_output=True, check=False)
    assert done.stdout == b"3\n"
    assert done.returncode < 0
