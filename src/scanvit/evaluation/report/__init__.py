"""report.html and the cards: what a run's scores say, in plain words and figures, for who has to decide whether to trust it."""

from .environment import read_environment
from .render import Rendered, render_report

__all__ = ["Rendered", "read_environment", "render_report"]
