"""How every HTML page of scanvit is made: autoescaping templates, one script that the policy knows by its hash, no network, one file."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Mapping
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import jinja2

NONE = "–"
SPACE = "\u202f"
"""Narrow, and does not break the line."""


def environment(package: str, *, filters: Mapping[str, Callable[..., Any]] | None = None) -> jinja2.Environment:
    """For the templates of ``package``, which may build on the base page, the style and the figures of this room.

    Every value is escaped: names in data may hold HTML. A value that a template asks for and does not get is an error.
    """
    import jinja2

    loaders = [jinja2.PackageLoader(name, "templates") for name in (package, "scanvit.pages")]
    made = jinja2.Environment(loader=jinja2.ChoiceLoader(loaders), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    made.globals |= _script()
    made.filters |= {"percent": percent, "decimal": decimal, "count": count, "duration": duration} | dict(filters or {})
    return made


@cache
def _script() -> dict[str, Any]:
    """The script itself, to stand in the page as it is, and its hash for the policy: whatever else gets into a page does not run."""
    from markupsafe import Markup

    text = files("scanvit.pages").joinpath("templates/page.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")
    return {
        "script": Markup(text),  # noqa: S704  # a file of this package
        "script_hash": f"sha256-{digest}",
    }


def percent(share: float | None, digits: int = 1) -> str:
    return NONE if share is None else f"{100 * share:.{digits}f}{SPACE}%"


def decimal(value: float | None, digits: int = 3) -> str:
    return NONE if value is None else f"{value:.{digits}f}"


def count(number: int, noun: str = "") -> str:
    """ "1 image", "2,400 images"."""
    plural = "" if number == 1 or not noun else "es" if noun.endswith("s") else "s"
    return f"{number:,} {noun}{plural}".strip()


def duration(seconds: float | None) -> str:
    if seconds is None:
        return NONE
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
