from __future__ import annotations

from pathlib import Path

from scanvit.platform.native.log_files import follow, last_lines


def test_the_last_lines_of_a_log(tmp_path: Path) -> None:
    path = tmp_path / "x.log"
    assert last_lines(path, 3) == ""
    path.write_bytes(b"1\n\n2\n\xff\n3\n")
    assert last_lines(path, 3) == "2\n\ufffd\n3"


def test_following_goes_on_with_whole_lines_also_after_the_log_was_trimmed(tmp_path: Path) -> None:
    path = tmp_path / "x.log"
    path.write_text("1\n2\n")
    lines = follow(path, 1)
    assert next(lines) == "2"
    with open(path, "a") as file:
        file.write("3\nhal")
    assert next(lines) == "3"
    with open(path, "a") as file:
        file.write("f\n")
    assert next(lines) == "half"
    path.write_text("new\n")
    assert next(lines) == "new"
