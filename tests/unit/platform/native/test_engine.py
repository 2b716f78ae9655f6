from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from scanvit.platform.native import engine
from scanvit.platform.native.programs import Program
from scanvit.platform.settings import Settings, init


def test_a_port_is_tried_where_its_program_listens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: dict[int, str] = {}

    def check(settings: Settings, host: str, port: int, variable: str) -> None:
        tried[port] = host

    monkeypatch.setattr(engine, "_check_port", check)
    made = init(tmp_path, {})[0]
    settings = replace(made, values={**made.values, "SCANVIT_BIND": "10.0.0.5"})
    outer = Program(name="mlflow", command=("true",), environment={}, host=settings.host, port=8000)
    inner = Program(name="postgres", command=("true",), environment={}, port=5432)
    engine._check_ports(settings, [outer, inner])
    assert tried == {8000: "10.0.0.5", 5432: "127.0.0.1"}
