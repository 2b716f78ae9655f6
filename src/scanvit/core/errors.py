"""Every error that scanvit raises on purpose, in one tree.

    ScanvitError                 1
    ├── AuditError               3   a gate of the audit failed
    ├── PartialError             4   done, but some inputs were skipped
    ├── ConfigError             10
    │   ├── UnknownExperimentError  11
    │   └── UnknownKeyError      12
    ├── DataError               20
    │   ├── SourcesError         21   the sources file or a source cannot be used
    │   ├── ArchiveError         22   hostile or broken archive
    │   ├── ImageError           23   unreadable, wrong kind or too large an image
    │   ├── QuarantineError      24   more unreadable images than allowed
    │   └── EmptyClassError      25
    ├── PackError               30
    │   ├── PackMissingError     31
    │   ├── PackVersionError     32
    │   ├── PackCorruptError     33
    │   └── PackMismatchError    34   another pack than the run was started with
    ├── RunError                40
    │   ├── RunMissingError      41
    │   ├── RunExistsError       42
    │   ├── ProcessLostError     43   a process of the run was killed or crashed
    │   ├── StalledError         44   a process of the run did not take part for trainer.timeout_s
    │   ├── TrialsFailedError    45   no trial of a search came to a figure
    │   └── DivergedError        46   val_loss was a number in no epoch
    ├── CheckpointError         50
    │   └── ExportError          51   a file that would answer otherwise than the network
    ├── RequestError            52   a request to `scanvit serve` that is not answered
    ├── StorageError            60
    │   ├── NoSpaceError         61
    │   ├── FetchError           62   a download did not come through; what has come is kept
    │   └── ChecksumError        63   another file than the one that was recorded
    ├── TrackingError           70
    │   └── RegistryError        71   a model that must not take the alias, or a name that cannot be one
    ├── PreemptedError          75   stopped by a signal after a checkpoint; resume to go on
    ├── ClusterError            80   a Ray cluster cannot be reached or used, or a run on it failed
    │   ├── ClusterStorageError  81   a node cannot use the storage of a run
    │   ├── ClusterResourcesError  82   more was asked than the cluster has, or came to have in time
    │   └── JobError             83   a job failed or was stopped
    └── PlatformError           90
        ├── EngineError          91   a program or container engine is missing, or refuses
        ├── PortTakenError       92
        ├── PlatformStateError   93   not initialised, half-finished, or another command is at work on it
        ├── UnhealthyError       94   a service does not answer as it should
        ├── RemoteError          95   another machine cannot be reached, or its set-up failed
        └── CloudError           96   the cloud refuses, or what was asked for does not come

The number is the exit code of the process. 2 is a usage error (click), 130 an interrupt from the keyboard.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar


class ScanvitError(Exception):
    """An error with a sentence that names the offending value, a hint that says what to do, and an exit code."""

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __reduce__(self) -> tuple[Any, ...]:  # keeps the hint when the error crosses a process boundary
        return (_rebuild, (type(self), self.message, self.hint))


def _rebuild(kind: type[ScanvitError], message: str, hint: str | None) -> ScanvitError:
    return kind(message, hint=hint)


class AuditError(ScanvitError):
    exit_code = 3


class PartialError(ScanvitError):
    exit_code = 4


class ConfigError(ScanvitError):
    exit_code = 10


class UnknownExperimentError(ConfigError):
    exit_code = 11


class UnknownKeyError(ConfigError):
    exit_code = 12


class DataError(ScanvitError):
    exit_code = 20


class SourcesError(DataError):
    exit_code = 21


class ArchiveError(DataError):
    exit_code = 22


class ImageError(DataError):
    exit_code = 23


class QuarantineError(DataError):
    exit_code = 24


class EmptyClassError(DataError):
    exit_code = 25


class PackError(ScanvitError):
    exit_code = 30


class PackMissingError(PackError):
    exit_code = 31


class PackVersionError(PackError):
    exit_code = 32


class PackCorruptError(PackError):
    exit_code = 33


class PackMismatchError(PackError):
    exit_code = 34


class RunError(ScanvitError):
    exit_code = 40


class RunMissingError(RunError):
    exit_code = 41


class RunExistsError(RunError):
    exit_code = 42


class ProcessLostError(RunError):
    exit_code = 43


class StalledError(RunError):
    exit_code = 44


class TrialsFailedError(RunError):
    exit_code = 45


class DivergedError(RunError):
    exit_code = 46


class CheckpointError(ScanvitError):
    exit_code = 50


class ExportError(CheckpointError):
    exit_code = 51


class RequestError(ScanvitError):
    """``status``: of the HTTP answer."""

    exit_code = 52

    def __init__(self, message: str, *, hint: str | None = None, status: int = 400) -> None:
        super().__init__(message, hint=hint)
        self.status = status


class StorageError(ScanvitError):
    exit_code = 60


class NoSpaceError(StorageError):
    exit_code = 61


class FetchError(StorageError):
    exit_code = 62


class ChecksumError(StorageError):
    exit_code = 63


class TrackingError(ScanvitError):
    exit_code = 70


class RegistryError(TrackingError):
    exit_code = 71


class PreemptedError(ScanvitError):
    exit_code = 75


class ClusterError(ScanvitError):
    exit_code = 80


class ClusterStorageError(ClusterError):
    exit_code = 81


class ClusterResourcesError(ClusterError):
    exit_code = 82


class JobError(ClusterError):
    exit_code = 83


class PlatformError(ScanvitError):
    exit_code = 90


class EngineError(PlatformError):
    exit_code = 91


class PortTakenError(PlatformError):
    exit_code = 92


class PlatformStateError(PlatformError):
    exit_code = 93


class UnhealthyError(PlatformError):
    exit_code = 94


class RemoteError(PlatformError):
    exit_code = 95


class CloudError(PlatformError):
    exit_code = 96


_NO_PLACE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP)


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn the operating system's refusals to write ``path`` into errors of our own tree."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise NoSpaceError(
                f"No space is left to write {path}.", hint="Free some space or choose another folder, then run the same command again."
            ) from error
        if error.errno in _NO_PLACE:
            raise StorageError(f"{path} cannot be written: {error.strerror}.", hint="Choose another name or folder, one that you may write to.") from error
        raise
