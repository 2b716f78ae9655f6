"""The pages of the evaluation: its templates, and how an estimate is written."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..pages.page import NONE, SPACE, decimal, environment, percent
from .estimates import Estimate
from .metrics import KINDS
from .seeds import Spread

if TYPE_CHECKING:
    import jinja2


def render(template: str, **context: Any) -> str:
    """Fill a template of this package. Every value is escaped: names in data may hold HTML."""
    return templates().get_template(template).render(**context)


def templates() -> jinja2.Environment:
    filters: dict[str, Any] = {"interval": interval, "figure": figure, "with_interval": with_interval}
    filters |= {"difference": difference, "difference_interval": difference_interval, "p_value": p_value, "spread": spread, "spread_range": spread_range}
    return environment("scanvit.evaluation", filters=filters)


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


def difference(estimate: Estimate, name: str = "") -> str:
    """Signed; shares and errors in points, which are hundredths."""
    if estimate.value is None:
        return NONE
    return f"{estimate.value:+.3f}" if _is_decimal(name) else f"{100 * estimate.value:+.1f}"


def difference_interval(estimate: Estimate, name: str = "") -> str:
    if estimate.low is None or estimate.high is None:
        return NONE
    if _is_decimal(name):
        return f"{estimate.low:+.3f} to {estimate.high:+.3f}"
    return f"{100 * estimate.low:+.1f} to {100 * estimate.high:+.1f}"


def p_value(value: float | None) -> str:
    if value is None:
        return NONE
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def spread(values: Spread, name: str = "") -> str:
    """ "91.2 ± 0.6 %": mean and standard deviation."""
    scale, digits, unit = (1, 3, "") if _is_decimal(name) else (100, 1, f"{SPACE}%")
    sd = "" if values.sd is None else f" ± {scale * values.sd:.{digits}f}"
    return f"{scale * values.mean:.{digits}f}{sd}{unit}"


def spread_range(values: Spread, name: str = "") -> str:
    return f"{values.low:.3f} to {values.high:.3f}" if _is_decimal(name) else f"{100 * values.low:.1f} to {100 * values.high:.1f}"


def _is_decimal(name: str) -> bool:
    return KINDS.get(name, "share") not in ("share", "error")
