from __future__ import annotations

from pathlib import Path

import pytest

from scanvit.cli import main


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SCANVIT_PLATFORM_DIR", str(tmp_path / "state"))
    return tmp_path / "state"


def test_init_says_where_the_secrets_are_and_what_comes_next_but_no_secret(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["platform", "init"]) == 0
    said = capsys.readouterr().out
    assert f"{folder}/.env has the ports and secrets" in said
    assert "Next: scanvit platform up --dir" in said
    secrets = [line.partition("=")[2] for line in (folder / ".env").read_text().splitlines() if "PASSWORD=" in line or "TOKEN=" in line]
    assert len(secrets) == 5
    assert not [secret for secret in secrets if secret in said]
    assert main(["platform", "init"]) == 0
    assert "nothing was changed" in capsys.readouterr().out


def test_other_images_or_another_store_than_the_platform_has_are_not_passed_over(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATA_PATH", "/srv/xrays")
    assert main(["platform", "init"]) == 0
    assert main(["platform", "init"]) == 0
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("DATA_PATH", "/srv/others")
    assert main(["platform", "init"]) == 0
    said = capsys.readouterr().err
    assert "DATA_PATH stays /srv/xrays, not /srv/others as in the environment" in said
    assert f"change it in {folder}/.env, then: scanvit platform up --dir {folder}" in said
    monkeypatch.setenv("DATA_PATH", "/srv/xrays")
    monkeypatch.setenv("STORE_ENDPOINT_URL", "https://me:" + "secret@s3.example.org")
    assert main(["platform", "init"]) == 0
    assert "STORE_ENDPOINT_URL stays empty, not https://s3.example.org as in the environment" in capsys.readouterr().err


def test_another_address_than_loopback_is_warned_of_with_the_reason(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["platform", "init", "--bind", "0.0.0.0"]) == 0
    assert "without TLS" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["up", "status", "down", "logs mlflow", "backup copy"])
def test_without_init_every_command_names_it(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["platform", *command.split()]) == 93
    assert "scanvit platform init" in capsys.readouterr().err


def test_before_up_the_others_name_it(capsys: pytest.CaptureFixture[str]) -> None:
    main(["platform", "init"])
    assert main(["platform", "status"]) == 93
    assert "scanvit platform up" in capsys.readouterr().err


def test_no_data_is_said_to_be_deleted_where_there_was_none(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["platform", "init"])
    capsys.readouterr()
    for _ in range(2):
        assert main(["platform", "down", "--volumes"]) == 0
        assert capsys.readouterr().out == f"There was nothing to delete: {folder} has no data of a platform.\n"
        (folder / "data" / "postgres").mkdir(parents=True)
        assert main(["platform", "down", "--volumes", "--native"]) == 0
        assert "all data is deleted" in capsys.readouterr().out


def test_one_engine_at_a_time(capsys: pytest.CaptureFixture[str]) -> None:
    main(["platform", "init"])
    assert main(["platform", "up", "--native", "--engine", "docker"]) == 2
    assert main(["platform", "up", "everything"]) == 2
    capsys.readouterr()
