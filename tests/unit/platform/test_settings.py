from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from scanvit.core.errors import ConfigError, PlatformStateError
from scanvit.platform.settings import allowed_hosts, init, load, rebind, write
from scanvit.platform.state import State, exclusive, read_state, write_state
from scanvit.platform.variables import VARIABLES


def edit(folder: Path, name: str, value: str) -> None:
    path = folder / ".env"
    path.write_text(re.sub(rf"^{name}=.*$", f"{name}={value}", path.read_text(), flags=re.MULTILINE))


def test_init_writes_every_variable_once_for_its_owner_alone(tmp_path: Path) -> None:
    settings, added = init(tmp_path / "state", {})
    assert added == tuple(VARIABLES)
    path = tmp_path / "state" / ".env"
    assert path.stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "state" / "client.env").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "state" / ".gitignore").read_text() == "*\n"
    assert load(tmp_path / "state").values == settings.values
    before = path.read_bytes()
    assert init(tmp_path / "state", {}, bind="127.0.0.1")[1] == ()
    assert path.read_bytes() == before


def test_secrets_are_long_random_and_never_the_same(tmp_path: Path) -> None:
    first, second = init(tmp_path / "a", {})[0], init(tmp_path / "b", {})[0]
    secrets = [*first.secrets(), *second.secrets()]
    assert len(set(secrets)) == len(secrets) == 2 * sum(v.kind == "secret" for v in VARIABLES.values())
    assert all(len(secret) >= 32 for secret in secrets)
    assert not [secret for secret in secrets if secret in repr(first) + repr(second)]
    assert first.redact(f"password {first['POSTGRES_PASSWORD']}!") == "password ***!"


def test_clients_get_no_secret_that_only_servers_need(tmp_path: Path) -> None:
    settings, _ = init(tmp_path / "state", {})
    client = (tmp_path / "state" / "client.env").read_text()
    assert settings["MLFLOW_TRACKING_PASSWORD"] in client
    assert not [n for n in ("POSTGRES_PASSWORD", "MLFLOW_FLASK_SERVER_SECRET_KEY", "GRAFANA_ADMIN_PASSWORD") if settings[n] in client]


def test_a_store_of_the_environment_is_taken_with_its_address_alone(tmp_path: Path) -> None:
    keys = {"AWS_ACCESS_KEY_ID": "theirs", "AWS_SECRET_ACCESS_KEY": "their-secret"}
    assert init(tmp_path / "a", keys)[0]["AWS_ACCESS_KEY_ID"] != "theirs", "keys of some other store"
    settings = init(tmp_path / "b", keys | {"STORE_ENDPOINT_URL": "https://s3.example.org"})[0]
    assert (settings.store_url, settings["AWS_SECRET_ACCESS_KEY"]) == ("https://s3.example.org", "their-secret")


def test_what_a_half_finished_file_lacks_is_named_then_added(tmp_path: Path) -> None:
    init(tmp_path, {})
    path = tmp_path / ".env"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(line for line in lines if not line.startswith("JUPYTER_")) + "MINE=kept\n")
    with pytest.raises(PlatformStateError, match="lacks JUPYTER_PORT, JUPYTER_TOKEN"):
        load(tmp_path)
    settings, added = init(tmp_path, {})
    assert added == ("JUPYTER_PORT", "JUPYTER_TOKEN")
    assert settings["MINE"] == "kept"
    assert settings["POSTGRES_PASSWORD"] in "".join(lines)


def test_one_that_lost_its_first_line_is_still_completed(tmp_path: Path) -> None:
    init(tmp_path, {})
    path = tmp_path / ".env"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(line for line in lines[1:] if not line.startswith("JUPYTER_")))
    assert init(tmp_path, {})[1] == ("JUPYTER_PORT", "JUPYTER_TOKEN")


def test_a_file_of_something_else_is_told_apart_by_all_commands(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("MLFLOW_PORT=8123\n")
    for command in (load, lambda folder: init(folder, {})):
        with pytest.raises(PlatformStateError, match="is not of scanvit") as caught:
            command(tmp_path)
        assert "put that line at its head" in (caught.value.hint or "")


def test_images_are_not_looked_for_from_where_a_command_stands(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="DATA_PATH is 'packs'"):
        init(tmp_path, {"DATA_PATH": "packs"})


def test_no_platform_is_told_with_the_command_that_makes_one(tmp_path: Path) -> None:
    with pytest.raises(PlatformStateError, match=r"has no \.env") as caught:
        load(tmp_path)
    assert "scanvit platform init" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("MLFLOW_PORT", "99999", "is no port"),
        ("MLFLOW_PORT", "5432", "POSTGRES_PORT and MLFLOW_PORT are both 5432"),
        ("SCANVIT_BIND", "everywhere", "no IPv4 address"),
        ("SCANVIT_ACCELERATOR", "tpu", "SCANVIT_ACCELERATOR is 'tpu'"),
        ("MLFLOW_TRACKING_PASSWORD", "short", "shorter than 12"),
        ("MLFLOW_TRACKING_PASSWORD", "", "is empty"),
        ("POSTGRES_PASSWORD", "a $HOME b", "not every reader takes alike"),
        ("POSTGRES_DB", "x;DROP", "not every reader takes alike"),
        ("POSTGRES_DB", "Mlflow", "POSTGRES_DB is 'Mlflow'"),
        ("STORE_ENDPOINT_URL", "http://me:" + "secret@store", "not of the form"),
    ],
)
def test_a_value_that_cannot_be_is_named(tmp_path: Path, name: str, value: str, said: str) -> None:
    init(tmp_path, {})
    edit(tmp_path, name, value)
    with pytest.raises(ConfigError, match=re.escape(said)):
        load(tmp_path)


def test_a_line_that_is_none_is_told_by_its_number(tmp_path: Path) -> None:
    init(tmp_path, {})
    (tmp_path / ".env").write_text("A=1\nnonsense\n")
    with pytest.raises(ConfigError, match="line 2"):
        load(tmp_path)


def test_another_address_is_written_down_and_allowed_to_call_mlflow(tmp_path: Path) -> None:
    before = init(tmp_path, {})[0]
    settings = rebind(before, bind="10.0.0.5", accelerator="cuda")
    assert load(tmp_path).values == before.values, "not before it is known to work"
    write(settings)
    assert load(tmp_path).values == settings.values
    assert settings.mlflow_url == "http://10.0.0.5:8000"
    assert {"localhost:*", "10.0.0.5:*"} <= set(settings["MLFLOW_ALLOWED_HOSTS"].split(","))
    assert settings.mlflow_url in (tmp_path / "client.env").read_text()


def test_mlflow_answers_to_no_name_but_its_own() -> None:
    assert set(allowed_hosts("127.0.0.1").split(",")) == {"localhost", "localhost:*", "127.0.0.1", "127.0.0.1:*", "mlflow", "mlflow:*"}


def test_one_command_at_a_time_and_the_other_is_named(tmp_path: Path) -> None:
    with exclusive(tmp_path), pytest.raises(PlatformStateError, match=r"process \d+"), exclusive(tmp_path):
        raise AssertionError("two at once")
    with exclusive(tmp_path):
        pass


def test_the_state_is_what_up_was_asked_for(tmp_path: Path) -> None:
    assert read_state(tmp_path) is None
    state = State(engine="native", profiles=("mlflow", "ray"))
    write_state(tmp_path, state)
    assert read_state(tmp_path) == state
    (tmp_path / "platform.json").write_text("{")
    with pytest.raises(PlatformStateError, match="cannot be read"):
        read_state(tmp_path)
    write_state(tmp_path, None)
    assert read_state(tmp_path) is None


def test_two_platforms_of_a_machine_have_their_own_containers_and_volumes(tmp_path: Path) -> None:
    names = [init(tmp_path / name, {})[0]["COMPOSE_PROJECT_NAME"] for name in ("a", "b")]
    assert all(re.fullmatch(r"scanvit-[0-9a-f]{8}", name) for name in names)
    assert len(set(names)) == 2
    edit(tmp_path / "a", "COMPOSE_PROJECT_NAME", "scanvit")
    assert init(tmp_path / "a", {})[0]["COMPOSE_PROJECT_NAME"] == "scanvit", "its volumes are called so"


@pytest.mark.parametrize("name", ["data", "thesis.tex", ".gitignore", ".env"])
def test_the_folder_of_something_else_is_refused_and_stays(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("POSTGRES_PASSWORD=theirs\n")
    if name == ".gitignore":
        init(tmp_path, {})
    else:
        with pytest.raises(PlatformStateError, match=re.escape(name)) as caught:
            init(tmp_path, {})
        assert "an empty one" in (caught.value.hint or "")
        assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "POSTGRES_PASSWORD=theirs\n"


def test_what_an_interrupted_init_or_a_lease_has_left_is_no_hindrance(tmp_path: Path) -> None:
    for name in ("lock", ".gitignore", "client.env", ".client.env.abc.tmp", "chameleon-xrays.json"):
        (tmp_path / name).touch()
    assert init(tmp_path, {})[1] == tuple(VARIABLES)


@pytest.mark.parametrize(("option", "value"), [("bind", "10.0.0.5"), ("accelerator", "cuda")])
def test_what_a_platform_has_otherwise_is_told_with_the_command_that_changes_it(tmp_path: Path, option: str, value: str) -> None:
    init(tmp_path, {})
    with pytest.raises(PlatformStateError, match=f"already, not {value}") as caught:
        init(tmp_path, {}, **{option: value})
    assert f"scanvit platform up --dir {tmp_path} --{option} {value}" in (caught.value.hint or "")


def test_the_images_of_the_environment_are_taken(tmp_path: Path) -> None:
    assert init(tmp_path, {"DATA_PATH": "/srv/xrays"})[0]["DATA_PATH"] == "/srv/xrays"
    assert init(tmp_path, {"DATA_PATH": "/srv/others"})[0]["DATA_PATH"] == "/srv/xrays", "what is there stays"


def test_what_root_writes_is_the_owners_of_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[tuple[str, int, int]] = []
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(os, "chown", lambda path, user, group, *, follow_symlinks: given.append((path.name, user, group)))
    settings = init(tmp_path, {})[0]
    write(settings)
    owner = tmp_path.stat()
    assert set(given) == {(name, owner.st_uid, owner.st_gid) for name in (".env", "client.env")}
    assert given[-1][0] == "client.env"
