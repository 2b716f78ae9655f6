"""audit.html: what the gates found, with the pictures that show it, in one file that opens offline."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

from ...pages import figures
from ...pages.page import environment
from ...pages.pictures import png_data_uri
from ..pack import Pack
from ..sources import SPLITS
from .gate import Gate

_PICTURE_PX = 128
_PICTURES_BYTES = 2_000_000
_BIN_BITS = 4
_WHY = {
    "G1": "The images of one patient are alike. A network that has seen a patient in training knows the answer in the test.",
    "G2": "An image that stands in training and in the test is no test.",
    "G3": "The same picture, saved again, resized or with another contrast, is no test either.",
    "G4": "Where a class comes from one hospital, a network may learn the hospital. Where the border tells the class, it may learn markers and framing.",
    "G5": "Where the classes differ in size or kind of file, a network may learn that difference.",
    "G6": "A class with hardly an image cannot be judged, and a test that is not like the training says little about it.",
}
_PROBES = {
    "source_probe": "Source, from the thumbnail",
    "image_probe": "Class, from the thumbnail",
    "border_probe": "Class, from its border alone",
    "file_probe": "Class, from the file alone",
}


def render_audit(pack: Pack, gates: list[Gate]) -> str:
    """The same pack and gates give the same bytes: no clock, no path."""
    album = _Album(pack)
    return (
        environment("scanvit.data.audit")
        .get_template("audit.html.j2")
        .render(
            pack=pack,
            splits=SPLITS,
            images=sum(pack.size(split) for split in SPLITS),
            patients=sum(pack.patients.values()),
            gates=[_shown(gate, album) for gate in gates],
            by_verdict={verdict: [gate for gate in gates if gate.verdict == verdict] for verdict in ("fail", "acknowledged", "pass", "not applicable")},
        )
    )


class _Album:
    """Pictures of the pack as sources of ``<img>``, until the page is full."""

    def __init__(self, pack: Pack) -> None:
        self._arrays = {split: pack.images(split) for split in SPLITS}
        self._left_bytes = _PICTURES_BYTES

    def uri(self, split: str, row: int) -> str | None:
        if self._left_bytes <= 0:
            return None
        pixels = np.array(self._arrays[split][row])
        if pixels.shape[-1] > _PICTURE_PX:
            image = Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0))
            small = np.asarray(image.resize((_PICTURE_PX, _PICTURE_PX), Image.Resampling.BILINEAR))
            pixels = small[None] if small.ndim == 2 else small.transpose(2, 0, 1)
        uri = png_data_uri(pixels)
        self._left_bytes -= len(uri)
        return uri


def _shown(gate: Gate, album: _Album) -> dict[str, Any]:
    examples = [
        {
            "caption": example.caption,
            "pictures": [{"uri": uri, "about": picture} for picture in example.pictures if (uri := album.uri(picture.split, picture.row))],
        }
        for example in gate.examples
    ]
    return {
        "gate": gate,
        "why": _WHY[gate.gate],
        "examples": [example for example in examples if example["pictures"]],
        "histogram": _distances(gate),
        "probes": _probes(gate),
        "sources": gate.measured.get("images"),
        "files": gate.measured.get("files"),
    }


def _distances(gate: Gate) -> figures.Chart | None:
    if "copies" not in gate.measured:
        return None
    series = {"copies of one image, made here": gate.measured["copies"], "nearest image of another patient": gate.measured["nearest_of_another_patient"]}
    limit = gate.measured["near_duplicate_bits"]
    return figures.histogram(
        series, title="Distances of images, share in %", x_label="bits of 256 that differ", bin_width=_BIN_BITS, marker=(limit + 1, f"at most {limit}")
    )


def _probes(gate: Gate) -> dict[str, Any] | None:
    found = [(title, gate.measured[name]) for name, title in _PROBES.items() if gate.measured.get(name)]
    if not found:
        return None
    axis = figures.percent_axis([bound for _, probe in found for bound in (probe["low"], probe["chance"])])
    rows = [
        {"title": title, "probe": probe, "strip": axis.strip(probe["value"], probe["low"], probe["high"]), "chance": axis.strip(probe["chance"], None, None)}
        for title, probe in found
    ]
    return {"axis": axis, "rows": rows}
