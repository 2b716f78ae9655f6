"""Access to an object store, from the environment alone. Secrets are held out of ``repr``, and taken out of any text that is shown."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from ..core.errors import StorageError

VARIABLES = {
    "swift": (
        "OS_AUTH_URL, OS_APPLICATION_CREDENTIAL_ID and OS_APPLICATION_CREDENTIAL_SECRET (and OS_REGION_NAME where there are several), "
        "or for version 1 ST_AUTH, ST_USER and ST_KEY"
    ),
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, and AWS_ENDPOINT_URL and AWS_REGION where it is not Amazon's in us-east-1",
}
_SECRET = ("key", "application_credential_secret", "secret_access_key", "session_token")


@dataclass(frozen=True, kw_only=True)
class Credentials:
    """``settings`` are the keys and values of rclone's configuration for this kind of remote."""

    kind: str
    settings: Mapping[str, str] = field(repr=False)
    ca_file: str | None = None

    @property
    def address(self) -> str:
        """Host and port of the store, to be shown."""
        parts = urlsplit(self.settings.get("auth") or self.settings.get("endpoint") or "")
        return parts.netloc.rpartition("@")[2] or "s3.amazonaws.com"

    @property
    def account(self) -> str:
        """Address and user: the same for two credentials of the same account, without a secret."""
        names = ("user", "application_credential_id", "access_key_id", "region")
        return "/".join([self.kind, self.address, *(self.settings.get(name, "") for name in names)])

    def redact(self, text: str) -> str:
        for name in _SECRET:
            if secret := self.settings.get(name):
                text = text.replace(secret, "***")
        return text


def credentials_from(environment: Mapping[str, str], kind: str) -> Credentials:
    """Raises StorageError that names the variables which are missing or cannot be used; never a value."""
    settings, ca_file = _swift(environment) if kind == "swift" else _s3(environment)
    for name, value in settings.items():
        if not value.isprintable() or value != value.strip():
            raise StorageError(f"The value given for rclone's {name} has control characters or blanks at its ends.", hint=_hint(kind))
    url = urlsplit(settings.get("auth") or settings.get("endpoint") or "https://s3.amazonaws.com")
    if url.scheme not in ("http", "https") or not url.hostname or url.username is not None:
        raise StorageError("The address of the object store is not of the form http(s)://HOST[:PORT][/PATH].", hint=_hint(kind))
    return Credentials(kind=kind, settings=settings, ca_file=ca_file)


def _swift(environment: Mapping[str, str]) -> tuple[dict[str, str], str | None]:
    version_1 = not environment.get("OS_APPLICATION_CREDENTIAL_ID") and any(environment.get(name) for name in ("ST_AUTH", "ST_USER", "ST_KEY"))
    if version_1:
        settings = _required(environment, "swift", {"auth": "ST_AUTH", "user": "ST_USER", "key": "ST_KEY"}) | {"auth_version": "1"}
    else:
        names = ("AUTH_URL", "APPLICATION_CREDENTIAL_ID", "APPLICATION_CREDENTIAL_SECRET")
        keys = ("auth", "application_credential_id", "application_credential_secret")
        settings = _required(environment, "swift", {key: f"OS_{name}" for key, name in zip(keys, names, strict=True)})
        settings["auth"] = _version_3(settings["auth"])
        settings |= {"auth_version": "3"} | _optional(environment, {"region": "OS_REGION_NAME", "endpoint_type": "OS_INTERFACE"})
    return settings, environment.get("OS_CACERT") or None


def _version_3(url: str) -> str:
    """Clouds give the address with and without the version, and clients of OpenStack take both."""
    url = url.rstrip("/")
    return url if url.endswith("/v3") else f"{url}/v3"


def _s3(environment: Mapping[str, str]) -> tuple[dict[str, str], str | None]:
    settings = _required(environment, "s3", {"access_key_id": "AWS_ACCESS_KEY_ID", "secret_access_key": "AWS_SECRET_ACCESS_KEY"})
    settings |= _optional(environment, {"session_token": "AWS_SESSION_TOKEN"})
    settings["region"] = environment.get("AWS_REGION") or environment.get("AWS_DEFAULT_REGION") or "us-east-1"
    if endpoint := environment.get("AWS_ENDPOINT_URL_S3") or environment.get("AWS_ENDPOINT_URL"):
        settings |= {"provider": "Other", "endpoint": endpoint, "force_path_style": "true"}
    else:
        settings["provider"] = "AWS"
    return settings, environment.get("AWS_CA_BUNDLE") or None


def _required(environment: Mapping[str, str], kind: str, names: Mapping[str, str]) -> dict[str, str]:
    if missing := [name for name in names.values() if not environment.get(name)]:
        verb = "is" if len(missing) == 1 else "are"
        raise StorageError(f"No credentials for {kind}: {', '.join(missing)} {verb} not set in the environment.", hint=_hint(kind))
    return _optional(environment, names)


def _optional(environment: Mapping[str, str], names: Mapping[str, str]) -> dict[str, str]:
    return {key: environment[name] for key, name in names.items() if environment.get(name)}


def _hint(kind: str) -> str:
    return f"Set {VARIABLES[kind]}."
