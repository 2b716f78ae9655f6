from __future__ import annotations

import pytest

from scanvit.core.errors import StorageError
from scanvit.storage.credentials import credentials_from
from scanvit.storage.failures import explain
from scanvit.storage.remote import parse_remote

APPLICATION = {
    "OS_AUTH_URL": "https://keystone.example:5000/v3",
    "OS_APPLICATION_CREDENTIAL_ID": "an-id",
    "OS_APPLICATION_CREDENTIAL_SECRET": "t0p-s3cret",
    "OS_REGION_NAME": "north",
}
VERSION_1 = {"ST_AUTH": "http://swift.example/auth/v1.0", "ST_USER": "team:me", "ST_KEY": "t0p-s3cret"}
S3 = {"AWS_ACCESS_KEY_ID": "an-id", "AWS_SECRET_ACCESS_KEY": "t0p-s3cret"}


def test_an_application_credential() -> None:
    found = credentials_from(APPLICATION | {"OS_INTERFACE": "internal", "OS_CACERT": "/ca.pem"}, "swift")
    assert found.settings == {
        "auth": "https://keystone.example:5000/v3",
        "application_credential_id": "an-id",
        "application_credential_secret": "t0p-s3cret",
        "auth_version": "3",
        "region": "north",
        "endpoint_type": "internal",
    }
    assert (found.ca_file, found.address) == ("/ca.pem", "keystone.example:5000")


@pytest.mark.parametrize("url", ["https://keystone.example:5000", "https://keystone.example:5000/", "https://keystone.example:5000/v3/"])
def test_the_version_is_added_to_the_address_of_keystone(url: str) -> None:
    assert credentials_from(APPLICATION | {"OS_AUTH_URL": url}, "swift").settings["auth"] == "https://keystone.example:5000/v3"


def test_swift_of_version_1_and_the_application_credential_that_goes_before_it() -> None:
    assert credentials_from(VERSION_1, "swift").settings == {
        "auth": "http://swift.example/auth/v1.0",
        "user": "team:me",
        "key": "t0p-s3cret",
        "auth_version": "1",
    }
    assert credentials_from(VERSION_1 | APPLICATION, "swift").settings["auth_version"] == "3"


def test_s3_at_amazon_and_elsewhere() -> None:
    assert credentials_from(S3, "s3").settings == {"access_key_id": "an-id", "secret_access_key": "t0p-s3cret", "region": "us-east-1", "provider": "AWS"}
    elsewhere = S3 | {
        "AWS_ENDPOINT_URL": "http://all:1",
        "AWS_ENDPOINT_URL_S3": "http://s3:9000",
        "AWS_DEFAULT_REGION": "x",
        "AWS_REGION": "eu",
        "AWS_SESSION_TOKEN": "t",
    }
    settings = credentials_from(elsewhere, "s3").settings
    assert (settings["endpoint"], settings["region"], settings["force_path_style"], settings["session_token"]) == ("http://s3:9000", "eu", "true", "t")


@pytest.mark.parametrize(
    ("environment", "kind", "named"),
    [
        ({}, "swift", ["OS_AUTH_URL", "OS_APPLICATION_CREDENTIAL_ID", "OS_APPLICATION_CREDENTIAL_SECRET", "ST_AUTH"]),
        ({**APPLICATION, "OS_APPLICATION_CREDENTIAL_SECRET": ""}, "swift", ["OS_APPLICATION_CREDENTIAL_SECRET is not set"]),
        ({**VERSION_1, "ST_KEY": ""}, "swift", ["ST_KEY is not set"]),
        ({}, "s3", ["AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY are not set", "AWS_ENDPOINT_URL"]),
        ({**S3, "AWS_SECRET_ACCESS_KEY": "t0p-s3cret\n[other]"}, "s3", ["secret_access_key"]),
        ({**S3, "AWS_ENDPOINT_URL": "localhost:9000"}, "s3", ["http(s)://HOST"]),
        ({**S3, "AWS_ENDPOINT_URL": "https://me:t0p-s3cret" + "@host"}, "s3", ["http(s)://HOST"]),
    ],
)
def test_what_is_missing_or_unfit_is_named_and_no_value_is_told(environment: dict[str, str], kind: str, named: list[str]) -> None:
    with pytest.raises(StorageError) as caught:
        credentials_from(environment, kind)
    said = f"{caught.value.message} {caught.value.hint}"
    assert all(name in said for name in named)
    assert "t0p-s3cret" not in said


@pytest.mark.parametrize("environment", [APPLICATION, VERSION_1, S3 | {"AWS_SESSION_TOKEN": "t0p-s3cret-too"}])
def test_no_secret_is_shown(environment: dict[str, str]) -> None:
    kind = "s3" if environment.keys() & S3.keys() else "swift"
    found = credentials_from(environment, kind)
    assert "t0p-s3cret" not in repr(found) + found.account
    assert "t0p-s3cret" not in found.redact("it said t0p-s3cret and t0p-s3cret-too")
    error = explain("strange: t0p-s3cret was not liked", parse_remote(f"{kind}:b"), found)
    assert "t0p-s3cret" not in error.message + (error.hint or "")
    assert "was not liked" in error.message


def test_two_accounts_are_told_apart() -> None:
    accounts = {credentials_from(S3 | extra, "s3").account for extra in ({}, {"AWS_ENDPOINT_URL": "http://a"}, {"AWS_ACCESS_KEY_ID": "b"}, {"AWS_REGION": "c"})}
    assert len(accounts) == 4


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ("Failed to copy: write x: no space left on device", "No space is left"),
        ("Failed to create file system: Authorization Failed", "refused the credentials"),
        ("The request you have made requires authentication. (HTTP 401) (Request-ID: x)", "refused the credentials"),
        ("Response didn't have storage url and auth token", "names no object store for region"),
        ("public endpoint for object-store service in x region not found", "names no object store for region"),
        ("http: server gave HTTP response to HTTPS client", "No secure connection to"),
        ("tls: failed to verify certificate: x509: certificate signed by unknown authority", "No secure connection to"),
        ("('Connection aborted.', RemoteDisconnected('Remote end closed connection'))", "cannot be reached"),
        ("Failed to copy: preallocate: file too big for remaining disk space", "No space is left"),
        ("api error InvalidAccessKeyId: no", "refused the credentials"),
        ("error in ListJSON: directory not found", "There is no s3:b"),
        ("AWS Error NO_SUCH_BUCKET during ListObjectsV2 operation", "There is no s3:b"),
        ('Get "http://x": dial tcp: lookup x: no such host', "cannot be reached, or stopped answering: no such host"),
        ("read: connection reset by peer", "cannot be reached"),
        ("net/http: timeout awaiting response headers", "cannot be reached"),
        ("Failed to copy: unexpected EOF", "cannot be reached"),
        ("", "no reason was given"),
    ],
)
def test_each_cause_has_its_sentence(said: str, message: str) -> None:
    error = explain(said, parse_remote("s3:b"), credentials_from(S3, "s3"))
    assert message in error.message
    assert error.hint


def test_a_store_that_is_not_there_is_no_missing_bucket() -> None:
    error = explain("404 Not Found", parse_remote("s3:", whole_store=True), credentials_from(S3, "s3"))
    assert error.message.startswith("There is no s3 at s3.amazonaws.com")
