"""The audit: gates that a pack passes or fails, each with a figure, a threshold and examples."""

from .gate import Example, Gate, Picture
from .run import GATES, audit, run_gates, write_audit

__all__ = ["GATES", "Example", "Gate", "Picture", "audit", "run_gates", "write_audit"]
