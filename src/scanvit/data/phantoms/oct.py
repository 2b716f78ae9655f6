"""Phantom retinal B-scans: surfaces from the vitreous down to the choroid, painted between and covered with speckle.

Coordinates of the drawing: x from 0 to 1 across the image, depths in shares of its height, growing downwards. A surface is one depth a
column, (W,). The pictures look like B-scans and are none.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d

from .texture import Plane, bump, edge, resize, smooth_noise, to_pixels

FINDINGS = ("normal", "drusen", "cnv", "dme")

_GRID_PX = 224  # height of the drawing; only the speckle is made at the size of the file
_FILE_SIZES_PX = ((496, 512), (496, 768), (512, 512), (496, 640))  # height, width

# Depth through the retina and reflectivity. 0: inner limiting membrane (ILM), 1: outer plexiform layer (OPL), 2: retinal pigment
# epithelium (RPE). The inner half is what the foveal pit thins.
_LAYERS = (
    (0.00, 0.50), (0.03, 0.72), (0.16, 0.66), (0.20, 0.46), (0.55, 0.44), (0.60, 0.26), (0.82, 0.25), (0.87, 0.46), (0.98, 0.44),
    (1.06, 0.22), (1.52, 0.20), (1.55, 0.34), (1.59, 0.26), (1.64, 0.72), (1.76, 0.74), (1.80, 0.46), (1.90, 0.46), (2.00, 0.50),
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class _Eye:
    """What stays the same over the images of one patient. Lengths in shares of the image's height (thickness) or width (across)."""

    thickness: float
    pit_depth: float
    pit_width: float
    choroid: float
    """Depth over which the choroid fades."""
    curvature: float
    contrast: float
    mirrored: bool
    """A left eye: tilt and lesions change sides."""

    @classmethod
    def of(cls, rng: np.random.Generator) -> _Eye:
        u = rng.uniform
        return cls(
            thickness=u(0.17, 0.25),
            pit_depth=u(0.45, 0.90),
            pit_width=u(0.05, 0.11),
            choroid=u(0.07, 0.18),
            curvature=u(-0.10, 0.22),
            contrast=u(0.8, 1.2),
            mirrored=bool(rng.random() < 0.5),
        )


@dataclass(kw_only=True)
class _Scan:
    """The surfaces of one B-scan while it is drawn, and what to paint into it."""

    x: Plane
    membrane: Plane
    """Bruch's membrane: the floor that nothing lifts."""
    thickness: Plane
    """From ILM to RPE."""
    pit: Plane
    """How much of the inner retina is missing, 0..1."""
    under_rpe: Plane
    """Height of what lifts the RPE off Bruch's membrane."""
    fluid: Plane
    """Height of the sub-retinal fluid."""
    deposit: float = 0.4
    """Reflectivity of what lies under the RPE."""
    rough: float = 0.0
    """How broken the RPE and the deposit are, 0..1."""
    mound: Plane | None = None
    """Height of reflecting tissue on top of the RPE."""
    cysts: list[tuple[float, float, float, float]] = field(default_factory=list)
    """x, depth through the retina (0 ILM .. 2 RPE), half width and half height, shares of the image."""
    exudates: list[tuple[float, float]] = field(default_factory=list)
    """x and depth through the retina of bright dots."""


def draw_oct(finding: str, *, patient_seed: int, image_seed: int) -> NDArray[np.uint8]:
    """One phantom B-scan (H, W), uint8 0..255, 496 or 512 px high: a pure function of its arguments.

    Images with one ``patient_seed`` show one eye and one finding of ``FINDINGS``; position, tilt, the cut through the lesion, gain and
    speckle follow ``image_seed``.
    """
    patient, rng = np.random.default_rng(patient_seed), np.random.default_rng(image_seed)
    eye = _Eye.of(patient)
    shape = _FILE_SIZES_PX[int(rng.integers(len(_FILE_SIZES_PX)))]
    width = round(_GRID_PX * shape[1] / shape[0])
    scan = _lay_out(eye, rng, width)
    # Drawn last from the patient's generator, so that healthy and ill patients have the same eyes.
    _FINDINGS[finding](scan, patient, rng)
    plane = _paint(scan, eye, rng)
    return _acquire(plane[:, ::-1] if eye.mirrored else plane, rng, shape)


def _lay_out(eye: _Eye, rng: np.random.Generator, width: int) -> _Scan:
    x = np.linspace(0, 1, width, dtype=np.float32)
    centre = rng.uniform(0.3, 0.7)
    membrane = rng.uniform(0.46, 0.80) + rng.uniform(-0.20, 0.20) * (x - 0.5) - eye.curvature * (np.square(x - centre) - 0.08)
    membrane += 0.004 * smooth_noise(rng, (2, width), (2, 8))[0]
    # One scan in five passes beside the fovea: a missing pit must not tell illness from health.
    pit = eye.pit_depth * bump(x - centre, eye.pit_width) * (rng.random() < 0.8)
    rim = 0.10 * (bump(x - centre - 2.2 * eye.pit_width, 0.10) + bump(x - centre + 2.2 * eye.pit_width, 0.10))
    thickness = eye.thickness * (1 + rim + 0.05 * smooth_noise(rng, (2, width), (2, 5))[0])
    return _Scan(x=x, membrane=membrane, thickness=thickness, pit=pit, under_rpe=np.zeros_like(x), fluid=np.zeros_like(x))


def _healthy(scan: _Scan, patient: np.random.Generator, rng: np.random.Generator) -> None:
    if patient.random() < 0.3:  # one small hard druse, as in many healthy eyes
        scan.under_rpe += patient.uniform(0.008, 0.014) * bump(scan.x - patient.uniform(0.1, 0.9), 0.012)


def _drusen(scan: _Scan, patient: np.random.Generator, rng: np.random.Generator) -> None:
    """Dry macular degeneration: a row of domes under an RPE that stays whole."""
    scan.deposit = patient.uniform(0.36, 0.50)
    cut = rng.uniform(0.8, 1.1)
    for _ in range(int(patient.integers(4, 9))):
        at = patient.uniform(0.08, 0.92)
        scan.under_rpe = np.maximum(scan.under_rpe, cut * patient.uniform(0.035, 0.065) * _dome(scan.x - at, patient.uniform(0.025, 0.050)))


def _neovascularisation(scan: _Scan, patient: np.random.Generator, rng: np.random.Generator) -> None:
    """Wet macular degeneration: a vascular membrane lifts and breaks the RPE, with fluid beside and above it."""
    at, half = patient.uniform(0.28, 0.72), patient.uniform(0.10, 0.18)
    cut = rng.uniform(0.75, 1.1)
    scan.deposit, scan.rough = patient.uniform(0.55, 0.75), patient.uniform(0.6, 1.0)
    ragged = 1 + 0.25 * smooth_noise(patient, (2, scan.x.size), (2, 22))[0]
    scan.under_rpe += cut * patient.uniform(0.05, 0.10) * _dome(scan.x - at, half) * ragged
    scan.mound = cut * patient.uniform(0.02, 0.05) * _dome(scan.x - at - patient.uniform(-0.05, 0.05), 0.7 * half) * ragged
    side = patient.choice((-1, 1))
    scan.fluid += cut * patient.uniform(0.05, 0.10) * _dome(scan.x - at - side * patient.uniform(0.6, 1.1) * half, patient.uniform(0.12, 0.20))
    scan.pit = scan.pit * (1 - bump(scan.x - at, 0.2))


def _macular_oedema(scan: _Scan, patient: np.random.Generator, rng: np.random.Generator) -> None:
    """Diabetic macular oedema: a swollen retina with dark cysts and bright exudates; the RPE stays flat."""
    at, spread = patient.uniform(0.35, 0.65), patient.uniform(0.16, 0.26)
    cut = rng.uniform(0.8, 1.1)
    scan.thickness = scan.thickness * (1 + cut * patient.uniform(0.45, 0.95) * bump(scan.x - at, spread))
    scan.pit = scan.pit * patient.uniform(0.0, 0.4)
    for _ in range(int(patient.integers(6, 13))):
        across, depth = at + spread * patient.uniform(-1.3, 1.3), patient.uniform(0.55, 1.45)
        scan.cysts.append((across, depth, patient.uniform(0.016, 0.040), cut * patient.uniform(0.025, 0.050)))
    for _ in range(int(patient.integers(2, 9))):
        scan.exudates.append((at + spread * patient.uniform(-1.5, 1.5), patient.uniform(0.7, 1.4)))


_FINDINGS = dict(zip(FINDINGS, (_healthy, _drusen, _neovascularisation, _macular_oedema), strict=True))


def _dome(offset: Plane, half_width: float) -> Plane:
    return np.sqrt(np.clip(1 - np.square(offset / np.float32(half_width)), 0, 1))


def _paint(scan: _Scan, eye: _Eye, rng: np.random.Generator) -> Plane:
    """Reflectivity (H, W) of the grid, 0..1, before speckle."""
    width = scan.x.size
    z = np.linspace(0, 1, _GRID_PX, dtype=np.float32)[:, None]
    mound = scan.mound if scan.mound is not None else np.zeros_like(scan.x)
    rpe = scan.membrane - scan.under_rpe
    retina_floor = rpe - mound - scan.fluid
    inner = 0.55 * scan.thickness * (1 - scan.pit)
    # The outer retina gives way over a steep lesion: the layers above follow it flatter and flatter.
    lift = scan.membrane - retina_floor
    opl = scan.membrane - 0.45 * scan.thickness - np.minimum(gaussian_filter1d(0.75 * lift, 0.03 * width), lift + 0.1 * scan.thickness)
    outer = np.maximum(retina_floor - opl, 0.12 * scan.thickness)
    opl = retina_floor - outer
    inner = inner + 0.25 * (gaussian_filter1d(opl, 0.04 * width) - opl)
    depth = np.where(z < opl, 1 - (opl - z) / inner, 2 - (retina_floor - z) / outer).astype(np.float32)
    depths, reflectivities = zip(*_LAYERS, strict=True)
    texture = smooth_noise(rng, (_GRID_PX, width), (110, 50))
    retina = np.interp(depth, depths, reflectivities).astype(np.float32) * (1 + 0.10 * texture)
    for cyst in scan.cysts:
        retina *= 1 - 0.92 * _ellipse(scan, z, opl, inner, outer, cyst)
    for across, level in scan.exudates:
        retina = np.maximum(retina, 0.95 * _ellipse(scan, z, opl, inner, outer, (across, level, 0.007, 0.009)))
    plane = _choroid(scan, eye, z, rng)
    lumps = 1 + 0.5 * scan.rough * smooth_noise(rng, (_GRID_PX, width), (26, 26))
    plane = np.where(z < scan.membrane, scan.deposit * lumps, plane)
    pigment = 1 - 0.6 * scan.rough * np.clip(smooth_noise(rng, (2, width), (2, 26))[0] - 0.2, 0, 1) * (scan.under_rpe > 0.01)
    plane = np.maximum(plane, 0.95 * pigment * bump(z - rpe - 0.008, 0.009))
    plane = np.where(z < rpe, 0.62 * lumps, plane)  # the mound
    plane = np.where(z < rpe - mound, 0.05, plane)  # the fluid
    plane = np.where(z < retina_floor, retina, plane)
    vitreous = 0.04 + 0.02 * np.maximum(smooth_noise(rng, (_GRID_PX, width), (5, 4)), 0)
    plane = np.where(depth < 0, vitreous, plane)
    return (plane * _shadows(scan, opl, z, rng)).astype(np.float32)


def _ellipse(scan: _Scan, z: Plane, opl: Plane, inner: Plane, outer: Plane, shape: tuple[float, float, float, float]) -> Plane:
    """1 inside an ellipse whose centre follows the retina, 0 outside."""
    across, level, half_width, half_height = shape
    column = int(np.clip(across, 0, 1) * (scan.x.size - 1))
    centre = opl[column] - (1 - level) * inner[column] if level < 1 else opl[column] + (level - 1) * outer[column]
    return edge(1 - np.hypot((scan.x - across) / np.float32(half_width), (z - centre) / np.float32(half_height)), 0.25)


def _choroid(scan: _Scan, eye: _Eye, z: Plane, rng: np.random.Generator) -> Plane:
    below = np.maximum(z - scan.membrane, 0)
    vessels = smooth_noise(rng, (_GRID_PX, scan.x.size), (30, 22))
    return (0.04 + 0.50 * np.exp(-below / eye.choroid) * (1 + 0.22 * vessels)).astype(np.float32)


def _shadows(scan: _Scan, opl: Plane, z: Plane, rng: np.random.Generator) -> Plane:
    """Retinal vessels and thick deposits keep light from what lies below them."""
    light = np.ones_like(scan.x)
    for _ in range(int(rng.integers(1, 6))):
        light *= 1 - rng.uniform(0.25, 0.6) * bump(scan.x - rng.uniform(0, 1), rng.uniform(0.004, 0.010))
    lifted = edge(z - scan.membrane, 0.05) * np.clip(5 * scan.under_rpe * scan.rough, 0, 0.5)
    return (1 - edge(z - opl + 0.6 * scan.thickness, 0.03) * (1 - light)) * (1 - lifted)


def _acquire(plane: Plane, rng: np.random.Generator, shape: tuple[int, int]) -> NDArray[np.uint8]:
    """Gain, the vignette of a tilted beam, speckle (multiplicative, two looks averaged) and detector noise."""
    reflectivity = np.clip(resize(plane, shape), 0, 1)
    fall = np.linspace(-1, 1, shape[1], dtype=np.float32) * np.float32(rng.uniform(-0.25, 0.25))
    looks = rng.uniform(5, 12)
    speckle = 1 + np.float32(1 / np.sqrt(looks)) * rng.standard_normal(shape, dtype=np.float32)
    tone = reflectivity ** np.float32(rng.uniform(0.8, 1.3)) * np.float32(rng.uniform(0.65, 1.05)) * (1 + fall) * speckle
    tone += np.float32(rng.uniform(0.01, 0.05)) * (1 + rng.standard_normal(shape, dtype=np.float32))
    if rng.random() < 0.08:  # a page turned upright by its software leaves a white wedge
        rows = np.arange(shape[0], dtype=np.float32)[:, None]
        left, right = rng.permutation((0.0, rng.uniform(0.02, 0.12) * shape[0]))
        tone[rows < np.linspace(float(left), float(right), shape[1])] = 1
    return to_pixels(tone)
