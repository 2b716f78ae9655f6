"""The pages of the evaluation: its templates, and how an estimate is written."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..pages.page import NONE, SPACE, decimal, environment, percent
from .estimates import Estimate
from .metrics import KINDS

if TYPE_CHECKING:
    import jinja2


def render(template: str, **context: Any) -> str:
    """Fill a template of this package. Every value is escaped: names in data may hold HTML."""
    return templates().get_template(template).render(**context)


def templates() -> jinja2.Environment:
    return environment("scanvit.evaluation", filters={"interval": interval, "figure": figure, "with_interval": with_interval})


def figure(estimate: Estimate, name: str = "") -> str:
    """The value in the unit of its kind: shares and errors in percent, the rest as decimals."""
    return decimal(estimate.value) if _is_decimal(name) else percent(estimate.value)


def interval(estimate: Estimate, name: str = "") -> str:
    """ "89.4 to 92.8 %"; a dash where there is none."""
    if estimate.low is None or estimate.high is None:
        return NONE
    if _is_decimal(name):
        return f"{estimate.low:.3f} to {estimate.high:.3f}"
    return f"{100 * estimate.low:.1f} to {100 * estimate.high:.1f}{SPACE}%"


def with_interval(estimate: Estimate, name: str = "") -> str:
    """ "91.2 % (89.4 to 92.8 %)"; the figure alone where there is no interval."""
    return figure(estimate, name) + (f" ({interval(estimate, name)})" if estimate.low is not None else "")


def _is_decimal(name: str) -> bool:
    return KINDS.get(name, "share") not in ("share", "error")
