"""Pseudonyms for patients: a keyed hash of what a DICOM file calls the patient. Without the salt nobody can find the name by trying names.

The salt is the value of ``SCANVIT_SALT``, or else a random one that is made at its first use and kept, readable by its owner alone, in
``$XDG_CONFIG_HOME/scanvit/salt`` (``~/.config/scanvit/salt``). It never gets into a pack. The same salt gives the same pseudonyms, and so
the same pack: who prepares one data set on two machines gives both the same salt; who loses it can no longer match new images of a patient
to old ones.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
import tempfile
from pathlib import Path

from ...core.errors import ConfigError
from ...storage.atomic import storage_errors

VARIABLE = "SCANVIT_SALT"
_LEAST = 16


def load_salt() -> bytes:
    """Raises ConfigError for a salt that is too short or that others may read, StorageError where none can be kept."""
    given = os.environ.get(VARIABLE)
    if given is not None:
        return _checked(given, f"The salt in {VARIABLE}")
    file = salt_file()
    if not file.is_file():
        _make(file)
    with storage_errors(file):
        if os.name == "posix" and (mode := file.stat().st_mode & 0o077):
            raise ConfigError(f"The salt in {file} may be read by others (mode {mode:03o} too many).", hint=f"chmod 600 {file}")
        return _checked(file.read_text(encoding="utf-8", errors="replace"), f"The salt in {file}")


def salt_file() -> Path:
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "scanvit" / "salt"


def pseudonym(issuer: str, patient: str, salt: bytes) -> str:
    """32 hexadecimal digits: 128 bits of HMAC-SHA256. Ids of two issuers differ, as they may mean two people."""
    return hmac.new(salt, json.dumps([issuer, patient]).encode("ascii"), hashlib.sha256).hexdigest()[:32]


def salt_mark(salt: bytes) -> str:
    """Tells one salt from another without giving it away."""
    return hmac.new(salt, b"scanvit: which salt", hashlib.sha256).hexdigest()[:16]


def _checked(text: str, what: str) -> bytes:
    if len(text.strip()) < _LEAST:
        raise ConfigError(f"{what} has fewer than {_LEAST} characters.", hint="Make one: python -c 'import secrets; print(secrets.token_hex(16))'")
    return text.strip().encode("utf-8")


def _make(file: Path) -> None:
    with storage_errors(file):
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor, temporary = tempfile.mkstemp(dir=file.parent, prefix=".salt.")  # mode 600
        try:
            with os.fdopen(descriptor, "w", encoding="ascii") as stream:
                stream.write(secrets.token_hex(16) + "\n")
                stream.flush()
                os.fsync(stream.fileno())
            os.link(temporary, file)  # unlike a rename it leaves the salt of who was first
        except FileExistsError:
            pass
        finally:
            os.unlink(temporary)
