"""The way to Lightning: some three thousand modules, of which the first step of a run has to wait for each."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

from ..core.runtime import importing

_UNUSED = ("scipy", "matplotlib")


@contextmanager
def quick_imports() -> Iterator[None]:
    """Import inside it what needs Lightning. A quarter to a third of the time is left out:

    - The garbage collector looks again and again through all that has been imported, and finds nothing.
    - torchmetrics, which Lightning imports for the name of a class, imports SciPy and matplotlib where they are installed, for metrics of sound and
      for plots. It is told that they are not.
    """
    from lightning_utilities.core import imports

    check = imports.RequirementCache._check_available
    available = imports.package_available

    def told(requirement: Any) -> None:
        if str(requirement.requirement or requirement.module).startswith(_UNUSED):
            requirement.available, requirement.message = False, "Hidden by scanvit, which does not use it."
        else:
            check(requirement)

    with (
        importing("lightning"),
        mock.patch.object(imports.RequirementCache, "_check_available", told),
        mock.patch.object(imports, "package_available", lambda name: name not in _UNUSED and available(name)),
    ):
        yield
