"""Drawn patients: ``folder.draw_phantoms`` is the door."""
