"""The pack that a network was trained on: known by its fingerprint, wherever it lies now."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..core.errors import PackError, PackMismatchError, PackMissingError

if TYPE_CHECKING:
    from ..data.pack import Pack
    from ..model.checkpoint import Classifier


def open_own_pack(model: Classifier, path: Path | str | None = None, *, option: str = "--pack") -> Pack:
    """``path``: where it is, if it was moved; ``option`` of the command gives it. Raises PackError: it is missing, damaged, or another than the run's."""
    from ..data.pack import Pack

    named = path or model.experiment.get("data", {}).get("pack")
    if not named:
        raise PackMissingError("The run does not say which pack it was trained on.", hint=f"Give it: {option} PACK")
    try:
        opened = Pack.open(named)
    except PackMissingError as error:
        raise PackMissingError(error.message, hint=f"If the pack was moved, say where it is: {option} PACK") from None
    if opened.fingerprint != model.fingerprint:
        raise PackMismatchError(
            f"{named} has the fingerprint {opened.fingerprint[:12]}, but the run was trained on {model.fingerprint[:12] or 'an unknown pack'}.",
            hint=f"Its test images may be among the run's training images. Give the pack that the run was trained on: {option} PACK",
        )
    return opened


def find_own_pack(model: Classifier, path: Path | str | None = None, *, option: str = "--pack") -> Pack | None:
    """The same; None where it is not where the run says. Raises PackError for a ``path`` alone."""
    try:
        return open_own_pack(model, path, option=option)
    except PackError:
        if path:
            raise
        return None
