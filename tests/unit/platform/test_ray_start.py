from __future__ import annotations

import pytest

from scanvit.platform.ray_start import patient


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
