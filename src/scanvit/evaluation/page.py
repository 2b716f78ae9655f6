"""How every HTML page of scanvit is made: autoescaping templates, no script, no network, one file."""

from __future__ import annotations

from typing import Any

from .scores import Estimate

NONE = "–"
_SPACE = "\u202f"  # narrow, and does not break the line


def render(template: str, **context: Any) -> str:
    """Fill a template of this package. Every value is escaped: names in data may hold HTML."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("scanvit.evaluation", "templates"), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"percent": percent, "interval": interval, "decimal": decimal, "figure": figure, "count": count, "duration": duration}
    return environment.get_template(template).render(**context)


def percent(share: float | None, digits: int = 1) -> str:
    return NONE if share is None else f"{100 * share:.{digits}f}{_SPACE}%"


def decimal(value: float | None, digits: int = 3) -> str:
    return NONE if value is None else f"{value:.{digits}f}"


def figure(estimate: Estimate, name: str = "") -> str:
    """The value in the unit of its kind: areas and losses as decimals, shares in percent."""
    return decimal(estimate.value) if _is_decimal(name) else percent(estimate.value)


def interval(estimate: Estimate, name: str = "") -> str:
    """ "89.4 to 92.8 %"; a dash where there is none."""
    if estimate.low is None or estimate.high is None:
        return NONE
    if _is_decimal(name):
        return f"{estimate.low:.3f} to {estimate.high:.3f}"
    return f"{100 * estimate.low:.1f} to {100 * estimate.high:.1f}{_SPACE}%"


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


def _is_decimal(name: str) -> bool:
    return name in ("auroc", "macro_auroc", "average_precision", "log_loss")
