from __future__ import annotations

import pytest

from scanvit.platform.ray_start import patient, told_beforehand


def test_a_node_that_registers_late_is_waited_for_and_one_that_never_does_is_told() -> None:
    said = [RuntimeError("no node yet"), RuntimeError("no node yet"), {"node_id": "a"}]

    def get_node(address: str, node_id: str) -> dict[str, str]:
        answer = said.pop(0) if said else RuntimeError("no node at all")
        if isinstance(answer, RuntimeError):
            raise answer
        return answer

    assert patient(get_node, 60)("127.0.0.1:1", "a") == {"node_id": "a"}
    with pytest.raises(RuntimeError, match="no node at all"):
        patient(get_node, 0)("127.0.0.1:1", "a")


def test_the_agents_port_lies_there_before_the_raylet_starts() -> None:
    done: list[tuple[object, ...]] = []

    def start_raylet(node_id: str, session_dir: str, dashboard_agent_listen_port: int | None = None) -> str:
        done.append(("started", node_id))
        return "process"

    start = told_beforehand(start_raylet, lambda *values: done.append(values), "name")
    assert start("a", "/session", dashboard_agent_listen_port=7) == "process"
    assert done == [("/session", "a", "name", 7), ("started", "a")]
    start("b", session_dir="/session")
    assert done[2:] == [("started", "b")]
