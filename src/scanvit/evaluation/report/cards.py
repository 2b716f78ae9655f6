"""model-card.md and data-card.md: what a hub shows of a run, in Markdown, from the same facts as the report."""

from __future__ import annotations

import re
from typing import Any

from ..page import templates

CARDS = ("model-card.md", "data-card.md")
_LINES = re.compile(r"[\s\x85\u2028\u2029]*[\n\r\x0b\x0c\x85\u2028\u2029]\s*")
_MARKUP = re.compile(r"([\\`*_{}\[\]<>#|~!&])")


def render_cards(context: dict[str, Any]) -> dict[str, str]:
    """{file name: text}. ``context``: of the report."""
    made = templates().overlay(autoescape=False, finalize=_plain)
    return {name: made.get_template(f"{name}.j2").render(**context) for name in CARDS}


def _plain(value: Any) -> Any:
    """Every text that a template puts in is text in Markdown too: names in data may hold markup, HTML or lines of their own."""
    return _MARKUP.sub(r"\\\1", _LINES.sub(" ", value)) if isinstance(value, str) else value
