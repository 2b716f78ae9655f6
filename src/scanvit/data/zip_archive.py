"""Zip archives."""

from __future__ import annotations

import zipfile
from collections.abc import Container, Iterator

from ..core.errors import ArchiveError
from .archive_base import Archive, Member, MemberNames, read_capped, reading, refuse


class ZipArchive(Archive):
    def _list(self, names: MemberNames) -> Iterator[Member]:
        with reading(self.path), zipfile.ZipFile(self.path) as archive:
            for path, info in self._infos(archive, names):
                yield Member(path, info.file_size)

    def read(self, wanted: Container[str]) -> Iterator[tuple[str, bytes]]:
        with reading(self.path), zipfile.ZipFile(self.path) as archive:
            for path, info in self._infos(archive, MemberNames(self.limits, ())):
                if path in wanted:
                    with archive.open(info) as stream:
                        data = read_capped(stream, path, info.file_size, self.limits)
                    yield path, data

    def _infos(self, archive: zipfile.ZipFile, names: MemberNames) -> Iterator[tuple[str, zipfile.ZipInfo]]:
        for info in archive.infolist():
            # orig_filename: zipfile itself cuts filename at a NUL.
            if info.is_dir() and "\0" not in info.orig_filename:
                names.check(info.filename)
                continue
            if (info.external_attr >> 16) & 0o170000 not in (0, 0o100000):
                raise refuse(f"{info.filename!r} is a link or a device", self.path)
            if info.flag_bits & 0x1:
                raise ArchiveError(f"{info.filename!r} in {self.path} is encrypted.", hint="Unpack the archive with its password into a folder first.")
            if path := names.accept(info.orig_filename, info.file_size):
                self.limits.check_ratio(info.file_size, info.compress_size, f"{path!r} in {self.path}")
                yield path, info
        self.limits.check_ratio(names.total_bytes, self.path.stat().st_size, str(self.path))
