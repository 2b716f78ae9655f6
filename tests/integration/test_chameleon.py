"""A machine of Chameleon, through python-chi's real clients, against a site on loopback."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from tests.integration.conftest import Scanvit
from tests.openstack_site import Site

from scanvit.core.errors import CloudError, PlatformStateError
from scanvit.platform.cloud import chameleon
from scanvit.platform.cloud.chameleon import Patience, Wanted
from scanvit.platform.cloud.openstack import Cloud

pytest.importorskip("chi", reason="python-chi is not installed (scripts/install all)")
WANTED = Wanted(
    lease="xrays",
    site="CHI@TACC",
    image="CC-Ubuntu24.04-hwe",
    node_type="gpu_mi100",
    days=1,
    key_name="mine",
    public_key="ssh-ed25519 AAAA",
    network="sharednet1",
)
QUICK = Patience(lease_s=2, server_s=2, port_s=0.5, poll_s=0.01)


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    site = Site()
    for name, value in site.environment().items():
        monkeypatch.setenv(name, value)
    yield site
    site.close()


@pytest.fixture
def cloud(site: Site) -> Iterator[Cloud]:
    from chi import context

    context.reset()
    yield Cloud("CHI@TACC")
    context.reset()


@pytest.fixture(autouse=True)
def answering_port(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The server's port 22 is one of this machine's."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        plain = chameleon._wait_for_port
        monkeypatch.setattr(chameleon, "_wait_for_port", lambda address, patience, say: plain(address, patience, say, port))
        yield


def ups(cloud: Cloud, folder: Path, wanted: Wanted = WANTED) -> tuple[str, list[str]]:
    said: list[str] = []
    return chameleon.up(wanted, folder, say=said.append, patience=QUICK, cloud=cloud), said


def test_a_machine_is_made_found_again_and_given_back(site: Site, cloud: Cloud, tmp_path: Path) -> None:
    site.faults["pending"] = 3
    address, said = ups(cloud, tmp_path)
    assert address == "127.0.0.1"
    assert said[:-1] == [
        "lease xrays made",
        "waiting for the lease: PENDING",
        "key pair mine registered",
        "server scanvit-xrays is being started",
        "address 127.0.0.1",
    ]
    assert said[-1].startswith("waiting for 127.0.0.1:")
    assert [len(things) for things in (site.leases, site.servers, site.addresses, site.keys)] == [1, 1, 1, 1]
    asked = list(site.asked)
    assert ups(cloud, tmp_path)[0] == address  # everything is there
    assert site.asked == asked
    assert chameleon.status("xrays", "CHI@TACC", cloud=cloud)["server"] == "scanvit-xrays: ACTIVE"
    chameleon.down("xrays", tmp_path, say=said.append, cloud=cloud)
    assert [len(things) for things in (site.leases, site.servers, site.addresses, site.keys)] == [0, 0, 0, 0]
    with pytest.raises(PlatformStateError, match="no record"):
        chameleon.down("xrays", tmp_path, say=said.append, cloud=cloud)


def test_what_was_there_before_stays(site: Site, cloud: Cloud, tmp_path: Path) -> None:
    lease, free = site.add_lease("xrays"), site.add_address()
    other = site.add_address("port-of-another-server")
    site.keys["mine"] = "ssh-ed25519 AAAA"
    ups(cloud, tmp_path, replace(WANTED, node_type=None, public_key=None))
    assert site.addresses[free]["port_id"].startswith("port-")
    assert json.loads(chameleon.record_path(tmp_path, "xrays").read_text())["ids"].keys() == {"server"}
    chameleon.down("xrays", tmp_path, say=str, cloud=cloud)
    assert set(site.leases) == {lease}
    assert set(site.addresses) == {free, other}
    assert set(site.keys) == {"mine"}
    assert site.servers == {}


@pytest.mark.parametrize(
    ("fault", "sentence", "left"),
    [
        ("no_nodes", "Not enough hosts available", {}),
        ("no_quota", "would spend more SUs", {}),
        ("server_error", "No valid host was found", {"lease", "key_pair", "server"}),
        ("no_address", "Quota exceeded", {"lease", "key_pair", "server"}),
    ],
)
def test_a_refusal_is_one_sentence_and_the_next_try_goes_on(site: Site, cloud: Cloud, tmp_path: Path, fault: str, sentence: str, left: set[str]) -> None:
    site.faults[fault] = True
    with pytest.raises(CloudError, match=sentence) as error:
        ups(cloud, tmp_path)
    assert error.value.hint
    path = chameleon.record_path(tmp_path, "xrays")
    assert set(json.loads(path.read_text())["ids"] if path.is_file() else {}) == set(left)
    del site.faults[fault]
    assert ups(cloud, tmp_path)[0] == "127.0.0.1"
    assert [len(things) for things in (site.leases, site.servers, site.addresses)] == [1, 1, 1]


def test_a_lease_that_does_not_start_and_a_machine_that_does_not_answer(site: Site, cloud: Cloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site.faults["pending"] = 10_000
    with pytest.raises(CloudError, match="still PENDING after 0 s"):
        chameleon.up(WANTED, tmp_path, say=str, patience=replace(QUICK, lease_s=0.1), cloud=cloud)
    site.faults["pending"] = 0
    monkeypatch.undo()
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    with pytest.raises(CloudError, match=f"127.0.0.1:{port} does not answer"):
        chameleon._wait_for_port("127.0.0.1", QUICK, str, port)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"image": "CC-Nothing"}, "no image 'CC-Nothing'"),
        ({"network": "nowhere"}, "no network 'nowhere'"),
        ({"node_type": None}, "There is no lease 'xrays'"),
        ({"public_key": None}, "no key pair 'mine'"),
    ],
)
def test_a_wrong_name_is_named(site: Site, cloud: Cloud, tmp_path: Path, changes: dict[str, str | None], sentence: str) -> None:
    with pytest.raises(CloudError, match=sentence):
        ups(cloud, tmp_path, replace(WANTED, **changes))


def test_the_command_line(site: Site, scanvit: Scanvit) -> None:
    out = scanvit("chameleon", "up", "--lease", "xrays", "--node-type", "gpu_mi100", "--gpu", "amd", "--dry-run")
    assert "1. log in at CHI@TACC" in out
    assert "deploy/remote/setup packages driver check install image data platform" in out
    assert site.asked == []
    assert "xrays: none" in scanvit("chameleon", "status", "--lease", "xrays", **site.environment())
    wrong = scanvit("chameleon", "status", "--lease", "xrays", code=96, **site.environment(secret="wrong"))
    assert "requires authentication" in wrong
    assert "openrc" in wrong
    assert "no record" in scanvit("chameleon", "down", "--lease", "xrays", code=93)
