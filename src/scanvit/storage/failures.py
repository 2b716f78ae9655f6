"""What rclone and pyarrow say when something fails, as errors of our own tree: one sentence for each cause."""

from __future__ import annotations

import re

from ..core.errors import NoSpaceError, StorageError
from .credentials import VARIABLES, Credentials
from .remote import Remote

_NO_SPACE = re.compile(r"no space left|disk quota exceeded|too big for remaining disk space", re.I)
_REFUSED = re.compile(
    r"authorization failed|unauthorized|forbidden|SignatureDoesNotMatch|SIGNATURE_DOES_NOT_MATCH|InvalidAccessKeyId|INVALID_ACCESS_KEY_ID"
    r"|AccessDenied|ACCESS_DENIED|status ?code: 40[13]|HTTP (?:STATUS )?40[13]|\b40[13] (?:Unauthorized|Forbidden)",
    re.I,
)
_NO_ENDPOINT = re.compile(r"didn't have storage url|endpoint for object-store service", re.I)
_NOT_SECURE = re.compile(
    r"server gave HTTP response to HTTPS client|WRONG_VERSION_NUMBER|x509|certificate verify failed|CERTIFICATE_VERIFY_FAILED|\bSSL(?:\b|_|Error|Cert)", re.I
)
_MISSING = re.compile(
    r"directory not found|NoSuchBucket|NO_SUCH_BUCKET|NoSuchKey|NO_SUCH_KEY|RESOURCE_NOT_FOUND|(?:container|object|bucket) not found|\b404\b", re.I
)
_UNREACHABLE = re.compile(
    r"no such host|connection refused|connection reset|connection aborted|connection broken|broken pipe|unreachable|dial tcp|time-?d? ?-?out|\bEOF\b"
    r"|NETWORK_CONNECTION|curlCode|name or service not known|name resolution|ability to reset contents"
    r"|SLOW_DOWN|SERVICE_UNAVAILABLE|status ?code: 50\d|\b50[0-4] ",
    re.I,
)


def explain(said: str, remote: Remote, credentials: Credentials) -> StorageError:
    """The error that fits what the program said. Nothing of ``said`` is shown before the secrets are taken out."""
    said = credentials.redact(" ".join(said.split()))[-600:]
    if _NO_SPACE.search(said):
        return NoSpaceError(f"No space is left to copy {remote}.", hint="Free some space or choose another folder, then run the same command again.")
    if _NO_ENDPOINT.search(said):
        return StorageError(
            f"{credentials.address} names no object store for region {credentials.settings.get('region', '')!r}.",
            hint="Check OS_REGION_NAME (and OS_INTERFACE, where it is set): openstack catalog list shows what there is.",
        )
    if _NOT_SECURE.search(_without_names(said, remote)):
        return StorageError(
            f"No secure connection to {credentials.address}: {_last_clause(said)}.",
            hint="Check http or https in the address; for a certificate of its own, set OS_CACERT or AWS_CA_BUNDLE to the file of who signed it.",
        )
    if _REFUSED.search(said):
        return StorageError(
            f"{credentials.address} refused the credentials for {remote}.", hint=f"Check {VARIABLES[remote.kind]}, and that the user may read (or write) it."
        )
    if _MISSING.search(said):
        return missing(remote) if remote.bucket else _no_store(remote, credentials)
    if _UNREACHABLE.search(said):
        return StorageError(
            f"{credentials.address} cannot be reached, or stopped answering: {_last_clause(said)}.",
            hint="Check the address and the network, then run the same command again: it goes on where it stopped.",
        )
    return StorageError(
        f"{remote} cannot be copied or listed: {said or 'no reason was given'}", hint="Run the same command again: it goes on where it stopped."
    )


def missing(remote: Remote) -> StorageError:
    return StorageError(
        f"There is no {remote}.", hint=f"scanvit data ls {remote.kind}: lists the buckets; scanvit data ls {remote.kind}:BUCKET what is in one."
    )


def _no_store(remote: Remote, credentials: Credentials) -> StorageError:
    return StorageError(f"There is no {remote.kind} at {credentials.address}, as far as its answer tells.", hint=f"Check {VARIABLES[remote.kind]}.")


def _without_names(said: str, remote: Remote) -> str:
    """Without the names of buckets and objects, which may be any words."""
    said = re.sub(r"key '[^']*'", "", said)
    for word in filter(None, (remote.path, remote.bucket, *remote.prefix.split("/"))):
        said = re.sub(rf"(?<![\w-]){re.escape(word)}(?![\w-])", "", said)
    return said


def _last_clause(said: str) -> str:
    return said.rstrip(".'\")").rpartition(": ")[2][:200]
