"""The object store without containers: OpenStack Swift with its S3 interface, as one node with one replica; and the buckets of any store.

Swift is in Debian and Ubuntu and on PyPI. It keeps objects as plain files below one folder. Everything is on loopback but the proxy, which
listens where the platform does.
"""

from __future__ import annotations

import hashlib
import os
import pwd
from pathlib import Path
from typing import Any

from ..core.errors import ConfigError, EngineError, UnhealthyError
from ..storage.atomic import write_text
from .native.programs import Program, base_environment, find_program
from .processes import run_checked
from .settings import Settings

PACKAGE = (
    "apt install swift-proxy swift-account swift-container swift-object, or pipx install swift (with setuptools<81 injected); "
    "or give an S3 store that you have: STORE_ENDPOINT_URL, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in .env"
)
_SERVERS = ("account", "container", "object")


def programs(settings: Settings) -> list[Program]:
    """Nothing where the store runs elsewhere. The proxy is the program ``store``; the servers behind it are its helpers."""
    if settings["STORE_ENDPOINT_URL"]:
        return []
    etc = settings.folder / "data" / "store" / "etc"
    environment = base_environment(settings.folder)
    ports = _inner_ports(settings)
    helpers = [
        Program(
            name=f"store-{server}",
            command=(find_program(f"swift-{server}-server", package=PACKAGE), str(etc / f"{server}-server.conf"), "--verbose"),
            environment=environment,
            port=ports[server],
        )
        for server in _SERVERS
    ]
    python = Path(find_program("swift-proxy-server", package=PACKAGE)).resolve().parent / "python3"
    updater = Program(
        name="store-updater",
        command=(str(python), "-c", _UPDATER, str(etc / "object-server.conf"), str(etc)),
        environment=environment,
        after=tuple(p.name for p in helpers),
    )
    proxy = Program(
        name="store",
        command=(find_program("swift-proxy-server", package=PACKAGE), str(etc / "proxy-server.conf"), "--verbose"),
        environment=environment,
        host=settings.host,
        port=settings.port("STORE_PORT"),
        after=tuple(p.name for p in helpers),
    )
    return [*helpers, updater, proxy]


def prepare(settings: Settings) -> None:
    """Write Swift's configuration and, the first time, its rings. Idempotent."""
    if settings["STORE_ENDPOINT_URL"]:
        return
    account, colon, user = settings["AWS_ACCESS_KEY_ID"].partition(":")
    if not colon or not account.isalnum() or not user.isalnum():
        raise ConfigError("AWS_ACCESS_KEY_ID is not of the form ACCOUNT:USER, which Swift needs.", hint="For example scanvit:platform")
    data = settings.folder / "data" / "store"
    for name in ("etc", "node/d1", "run"):
        (data / name).mkdir(parents=True, exist_ok=True)
    data.chmod(0o700)
    ports = _inner_ports(settings)
    for server in _SERVERS:
        write_text(data / "etc" / f"{server}-server.conf", _server_conf(data, server, ports[server]), private=True)
    write_text(data / "etc" / "proxy-server.conf", _proxy_conf(settings, data, account, user), private=True)
    suffix = hashlib.sha256(str(settings.folder).encode()).hexdigest()[:16] if not (data / "etc" / "swift.conf").exists() else None
    if suffix:  # part of where each object lies: it must never change afterwards
        write_text(data / "etc" / "swift.conf", _SWIFT_CONF.format(suffix=suffix), private=True)
    _build_rings(data / "etc", ports)


def _inner_ports(settings: Settings) -> dict[str, int]:
    first = settings.port("STORE_PORT")
    step = 1 if first + len(_SERVERS) < 65536 else -1
    return {server: first + step * n for n, server in enumerate(_SERVERS, start=1)}


def _build_rings(etc: Path, ports: dict[str, int]) -> None:
    builder = find_program("swift-ring-builder", package=PACKAGE)
    for server, port in ports.items():
        wanted, ring, file = f"127.0.0.1:{port}", etc / f"{server}.ring.gz", f"{server}.builder"
        marker = etc / f"{server}.address"
        if ring.exists() and marker.is_file() and marker.read_text() == wanted:
            continue
        steps = [["create", "6", "1", "0"], ["add", f"r1z1-{wanted}/d1", "1"], ["rebalance"]]
        if (etc / file).exists():  # another port than before: the same device, so that nothing moves
            steps = [["set_info", "/d1", wanted], ["write_ring"]]
        for step in steps:
            run_checked([builder, file, *step], what="the object store's ring", cwd=etc, ok=(0, 1))  # 1: done, with a warning
        if not ring.exists():
            raise EngineError("swift-ring-builder wrote no ring.", hint=f"Run it by hand in {etc} to see why.")
        write_text(marker, wanted)


def client(settings: Settings) -> Any:
    """boto3's, which gives up after seconds."""
    import boto3
    from botocore.config import Config

    environment = settings.store_environment()
    proxies = None if settings["STORE_ENDPOINT_URL"] else {"none": ""}  # ours is no matter of a proxy; an empty dict would mean the environment's
    return boto3.client(
        "s3",
        endpoint_url=settings.store_url,
        aws_access_key_id=environment["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=environment["AWS_SECRET_ACCESS_KEY"],
        region_name=environment["AWS_REGION"],
        config=Config(connect_timeout=3, read_timeout=10, retries={"total_max_attempts": 1}, s3={"addressing_style": "path"}, proxies=proxies),
    )


def missing_buckets(settings: Settings) -> list[str]:
    """Raises botocore's errors where the store does not answer or refuses."""
    from botocore.exceptions import ClientError

    s3, missing = client(settings), []
    for bucket in (settings["MLFLOW_BUCKET"], settings["RAY_BUCKET"]):
        try:
            s3.head_bucket(Bucket=bucket)
        except ClientError as error:
            if error.response["ResponseMetadata"]["HTTPStatusCode"] != 404:
                raise
            missing.append(bucket)
    return missing


def make_buckets(settings: Settings) -> list[str]:
    """Make the buckets that are missing, and say which those were. Raises UnhealthyError."""
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        made = missing_buckets(settings)
        for bucket in made:
            client(settings).create_bucket(Bucket=bucket)
    except (BotoCoreError, ClientError) as error:
        said = settings.redact(" ".join(str(error).split()))
        raise UnhealthyError(f"store makes no buckets: {said[:200]}", hint="scanvit platform logs store") from None
    return made


# Brings listings up to date that an outage of the container server has left behind. Swift's own program reads /etc/swift alone.
_UPDATER = """
import sys
from swift.common import utils
utils.set_swift_dir(sys.argv[2])
from swift.common.daemon import run_daemon
from swift.obj.updater import ObjectUpdater
run_daemon(ObjectUpdater, sys.argv[1])
"""
_SWIFT_CONF = """[swift-hash]
swift_hash_path_suffix = {suffix}
[storage-policy:0]
name = default
default = yes
"""


def _server_conf(data: Path, server: str, port: int) -> str:
    return f"""[DEFAULT]
bind_ip = 127.0.0.1
bind_port = {port}
workers = 0
log_level = WARNING
swift_dir = {data / "etc"}
devices = {data / "node"}
mount_check = false
disable_fallocate = true
recon_cache_path = {data / "run"}
fallocate_reserve = 1%
user = {pwd.getpwuid(os.geteuid()).pw_name}
[pipeline:main]
pipeline = healthcheck {server}-server
[app:{server}-server]
use = egg:swift#{server}
[filter:healthcheck]
use = egg:swift#healthcheck
[{server}-updater]
interval = 60
"""


def _proxy_conf(settings: Settings, data: Path, account: str, user: str) -> str:
    filters = ("catch_errors", "gatekeeper", "healthcheck", "proxy-logging", "listing_formats", "copy", "slo")
    plain = "".join(f"[filter:{name}]\nuse = egg:swift#{name.replace('-', '_')}\n" for name in filters)
    return f"""[DEFAULT]
bind_ip = {settings.bind}
bind_port = {settings.port("STORE_PORT")}
workers = 0
log_level = WARNING
swift_dir = {data / "etc"}
[pipeline:main]
pipeline = catch_errors gatekeeper healthcheck proxy-logging listing_formats s3api tempauth copy slo proxy-logging proxy-server
[app:proxy-server]
use = egg:swift#proxy
account_autocreate = true
[filter:s3api]
use = egg:swift#s3api
location = {settings["AWS_REGION"]}
dns_compliant_bucket_names = true
[filter:tempauth]
use = egg:swift#tempauth
user_{account}_{user} = {settings["AWS_SECRET_ACCESS_KEY"]} .admin
{plain}"""
