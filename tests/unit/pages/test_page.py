from __future__ import annotations

import base64
import hashlib
import re

import jinja2
import pytest

from scanvit.pages.page import count, decimal, duration, environment, percent


def test_values_are_escaped_and_missing_ones_are_errors() -> None:
    template = environment("scanvit.evaluation", filters={"shout": lambda name: f"{name}".upper()}).from_string("{{ name | shout }}")
    assert template.render(name='<b a="1">') == "&lt;B A=&#34;1&#34;&gt;"
    with pytest.raises(jinja2.UndefinedError):
        environment("scanvit.evaluation").from_string("{{ name }}").render()


@pytest.mark.parametrize("package", ["scanvit.evaluation", "scanvit.data.audit"])
def test_every_package_finds_the_shared_templates(package: str) -> None:
    names = set(environment(package).list_templates())
    assert {"base.html.j2", "figures.html.j2", "style.css"} < names


def test_the_base_page_allows_its_own_script_and_no_network() -> None:
    text = environment("scanvit.evaluation").get_template("base.html.j2").render()
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")
    assert f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; img-src data:" in text
    for forbidden in ("innerHTML", "eval(", "fetch(", "XMLHttpRequest", "document.write", "import("):
        assert forbidden not in script


def test_numbers_are_written_for_people() -> None:
    assert (percent(0.1234), percent(None)) == ("12.3\u202f%", "–")
    assert (decimal(0.1234), decimal(None)) == ("0.123", "–")
    assert (count(1, "image"), count(2400, "class"), count(7)) == ("1 image", "2,400 classes", "7")
    assert (duration(61), duration(600), duration(10_000), duration(None)) == ("61 s", "10.0 min", "2.8 h", "–")
