"""Phantom chest X-rays: an upright frontal thorax as overlapping smooth shapes, each adding to or taking from the attenuation.

Coordinates of the drawing: x from -1 to 1 across the image (the heart lies at positive x, as in a frontal view), y from -1 (top) to 1
(bottom), before the patient is posed. The pictures look like X-rays and are none: nothing about a real patient can be learnt from them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .texture import Plane, bump, edge, resize, smooth_noise, to_pixels

FINDINGS = ("normal", "covid", "opacity", "viral-pneumonia", "tuberculosis")

_GRID_PX = 208  # height of the drawing; only the grain is made at the size of the file
_MEDIASTINUM = 0.11


@dataclass(frozen=True, kw_only=True)
class _Anatomy:
    """What stays the same over the images of one patient. Lengths in the units of the drawing."""

    lung_width: float
    lung_top: float
    lung_base: float
    dome: float
    heart: float
    heart_x: float
    rib_spacing: float
    rib_phase: float
    bone: float
    haze: float
    """Attenuation of the healthy lung."""
    vessels: float
    breast: float
    clavicle_slope: float
    bubble: float
    """Radius of the air in the stomach."""

    @classmethod
    def of(cls, rng: np.random.Generator) -> _Anatomy:
        u = rng.uniform
        return cls(
            lung_width=u(0.54, 0.70),
            lung_top=u(-0.76, -0.62),
            lung_base=u(0.38, 0.62),
            dome=u(0.08, 0.24),
            heart=u(0.82, 1.25),
            heart_x=u(0.08, 0.20),
            rib_spacing=u(0.15, 0.20),
            rib_phase=u(0, 1),
            bone=u(0.04, 0.09),
            haze=u(0.0, 0.07),
            vessels=u(0.02, 0.06),
            breast=u(0.02, 0.07) * (rng.random() < 0.45),
            clavicle_slope=u(0.05, 0.35),
            bubble=u(0.06, 0.16) * (rng.random() < 0.5),
        )


@dataclass(frozen=True, kw_only=True)
class _Lungs:
    """The posed lungs on the grid. ``u`` runs from 0 at the mediastinum to 1 at the ribs, ``v`` from 0 at the apex to 1 at the base."""

    mask: Plane
    side: Plane
    """-1 in the lung drawn on the left, 1 in the one on the right."""
    u: Plane
    v: Plane
    x: Plane
    y: Plane
    lateral: Plane
    """|x| of the chest wall."""
    below: Plane
    """1 under the diaphragm."""


def draw_chest(finding: str, *, patient_seed: int, image_seed: int) -> NDArray[np.uint8]:
    """One phantom X-ray (H, W), uint8 0..255, 384 to 640 px high: a pure function of its arguments.

    Images with one ``patient_seed`` show one anatomy and one finding of ``FINDINGS``; pose, exposure and grain follow ``image_seed``.
    """
    patient, rng = np.random.default_rng(patient_seed), np.random.default_rng(image_seed)
    anatomy = _Anatomy.of(patient)
    height_px = int(rng.integers(384, 641))
    width_px = int(height_px * rng.uniform(0.85, 1.2))
    shape = (_GRID_PX, round(_GRID_PX * width_px / height_px))
    lungs = _lay_out(anatomy, *_posed_grid(rng, shape))
    attenuation = _thorax(anatomy, lungs, rng)
    # Drawn last from the patient's generator, so that healthy and ill patients have the same anatomies.
    attenuation += lungs.mask * _FINDINGS[finding](lungs, patient)
    return _expose(attenuation, rng, (height_px, width_px))


def _posed_grid(rng: np.random.Generator, shape: tuple[int, int]) -> tuple[Plane, Plane]:
    rows = np.linspace(-1, 1, shape[0], dtype=np.float32)[:, None]
    columns = np.linspace(-1, 1, shape[1], dtype=np.float32)[None, :]
    zoom = rng.uniform(0.84, 1.22)
    stretch = rng.uniform(0.92, 1.08)
    angle = np.deg2rad(rng.uniform(-7, 7))
    x0, y0 = rng.uniform(-0.17, 0.17), rng.uniform(-0.17, 0.17)
    cos, sin = np.float32(np.cos(angle) / zoom), np.float32(np.sin(angle) / zoom)
    across, down = (columns - np.float32(x0)) * np.float32(stretch), rows - np.float32(y0)
    return cos * across + sin * down, cos * down - sin * across


def _lay_out(anatomy: _Anatomy, x: Plane, y: Plane) -> _Lungs:
    ax = np.abs(x)
    side = np.where(x > 0, np.float32(1), np.float32(-1))
    widest = 0.28
    reach = np.clip((y - widest) / (anatomy.lung_top - widest), 0, 1)
    lateral = _MEDIASTINUM + anatomy.lung_width * np.sqrt(np.clip(1 - reach**2, 0, 1))
    base = anatomy.lung_base + anatomy.dome * (np.square((ax - 0.34) / 0.36) - 0.5) + 0.04 * side
    inside = np.minimum(np.minimum(lateral - ax, ax - _MEDIASTINUM), base - y)
    return _Lungs(
        mask=edge(inside, 0.03),
        side=side,
        u=(ax - _MEDIASTINUM) / np.maximum(lateral - _MEDIASTINUM, 0.05),
        v=(y - anatomy.lung_top) / (base - anatomy.lung_top),
        x=x,
        y=y,
        lateral=lateral,
        below=edge(y - base, 0.03),
    )


def _thorax(anatomy: _Anatomy, lungs: _Lungs, rng: np.random.Generator) -> Plane:
    x, y, ax = lungs.x, lungs.y, np.abs(lungs.x)
    shoulder = edge(-0.42 - y, 0.16)
    width = anatomy.lung_width + 0.24 + 0.5 * shoulder
    width = width + (0.3 - width) * edge(-0.86 - y, 0.07)  # the neck
    body = edge(width - ax, 0.03)
    thickness = np.sqrt(np.clip(1 - np.square(ax / width), 0, 1))
    plane = body * (0.26 + 0.22 * thickness)
    plane += lungs.mask * (anatomy.haze - 0.31 + anatomy.vessels * _vessel_tree(x, y, rng))
    silhouette = np.maximum(_heart(anatomy, x, y), 0.8 * edge(_MEDIASTINUM + 0.01 - ax, 0.05))
    plane += 0.25 * silhouette * body * (1 - lungs.below)
    plane += 0.22 * lungs.below * body
    plane += 0.07 * edge(0.07 - ax, 0.02) * (1 + 0.5 * np.cos(2 * np.pi * y / (0.8 * anatomy.rib_spacing))) * body  # vertebrae
    plane += 0.09 * bump(np.hypot(ax - 0.17, (y + 0.06 - 0.03 * lungs.side) / 1.6), 0.05)  # hila, the heart's side higher
    plane += anatomy.breast * edge(0.27 - np.hypot(ax - 0.42, y - 0.34), 0.10)
    plane -= 0.30 * edge(anatomy.bubble - np.hypot(x - 0.36, (y - anatomy.lung_base - 0.2) * 1.4), 0.03) * (anatomy.bubble > 0)
    plane += anatomy.bone * _bones(anatomy, lungs)
    return plane.astype(np.float32)


def _heart(anatomy: _Anatomy, x: Plane, y: Plane) -> Plane:
    """Heart, right atrium and aortic arch as one silhouette."""
    dx, dy = (x - anatomy.heart_x) / anatomy.heart, (y - 0.22) / anatomy.heart
    heart = 1 - np.hypot((0.80 * dx + 0.60 * dy) / 0.36, (0.80 * dy - 0.60 * dx) / 0.24)  # its long axis points down to the left flank
    atrium = 1 - np.hypot((dx + 0.18) / 0.14, (dy - 0.02) / 0.24)
    arch = 1 - np.hypot((x - 0.08) / 0.10, (y + 0.28) / 0.12)
    return edge(np.maximum(np.maximum(heart, atrium), arch), 0.14)


def _bones(anatomy: _Anatomy, lungs: _Lungs) -> Plane:
    y, ax = lungs.y, np.abs(lungs.x)
    cage = edge(lungs.lateral + 0.05 - ax, 0.02) * edge(y - anatomy.lung_top + 0.06, 0.04) * (1 - 0.75 * lungs.below)
    bend = np.square(np.maximum(ax - 0.35, 0))
    posterior = _rib(y + 0.10 * ax - 1.5 * bend, anatomy.rib_spacing, anatomy.rib_phase, 0.19) * edge(ax - 0.08, 0.03)
    anterior = _rib(y + 0.75 * ax, 1.15 * anatomy.rib_spacing, anatomy.rib_phase + 0.3, 0.24) * edge(ax - 0.42, 0.20) * edge(y + 0.35, 0.2)
    clavicle_y = anatomy.lung_top + 0.16 - anatomy.clavicle_slope * (ax - 0.1) + 0.05 * np.sin(9 * ax)
    clavicle = edge(0.030 - np.abs(y - clavicle_y), 0.015) * edge(ax - 0.06, 0.02) * edge(anatomy.lung_width + 0.06 - ax, 0.05)
    return cage * (posterior + 0.45 * anterior) + clavicle


def _rib(y: Plane, spacing: float, phase: float, half_width: float) -> Plane:
    """Stripes ``spacing`` apart with a brighter rim, as cortical bone has."""
    offset = np.abs(np.mod(y / np.float32(spacing) + np.float32(phase), 1) - np.float32(0.5))
    return edge(half_width - offset, 0.07) * (0.70 + 0.5 * bump(offset - half_width, 0.07))


def _vessel_tree(x: Plane, y: Plane, rng: np.random.Generator) -> Plane:
    """Streaks that run outwards from both hila and grow thin."""
    streaks = smooth_noise(rng, (256, 48), (44, 7))
    dx, dy = np.abs(x) - np.float32(0.15), y + np.float32(0.05)
    angle = np.arctan2(dy, np.where(x > 0, dx, -dx)) * np.float32(128 / np.pi)
    radius = np.hypot(dx, dy)
    row = angle.astype(np.int32) & 255
    column = np.minimum((radius * 40).astype(np.int32), 47)
    return np.maximum(streaks[row, column] - np.float32(0.3), 0) * np.exp(-1.6 * radius)


def _healthy(lungs: _Lungs, patient: np.random.Generator) -> Plane:
    if patient.random() < 0.3:  # a healed calcified granuloma, so that a single dot makes no illness
        at = np.hypot(lungs.x - patient.choice((-1, 1)) * patient.uniform(0.25, 0.55), lungs.y - patient.uniform(-0.4, 0.3))
        return 0.3 * bump(at, 0.022)
    return np.zeros_like(lungs.x)


def _ground_glass(lungs: _Lungs, patient: np.random.Generator) -> Plane:
    """COVID-19: hazy patches on both sides, at the rim and mostly low (Wong et al. 2020, Radiology 296)."""
    plane = np.zeros_like(lungs.x)
    for side in (-1, 1):
        for _ in range(int(patient.integers(3, 6))):
            u, v = patient.uniform(0.65, 1.0), patient.uniform(0.40, 0.95)
            size = patient.uniform(0.22, 0.36)
            ragged = 1 + 0.30 * smooth_noise(patient, plane.shape, (14, 14))
            patch = edge(1 - ragged * np.hypot((lungs.u - u) / size, (lungs.v - v) / (0.75 * size)), 0.5)
            plane = np.maximum(plane, patient.uniform(0.18, 0.27) * patch * (lungs.side == side))
    return plane * (1 + 0.22 * smooth_noise(patient, plane.shape, (40, 40)))


def _consolidation(lungs: _Lungs, patient: np.random.Generator) -> Plane:
    """One dense lobe or segment with a sharp fissure on one side; open bronchi show as dark branches."""
    side = patient.choice((-1, 1))
    middle, half = patient.uniform(0.22, 0.80), patient.uniform(0.15, 0.24)
    tilt = patient.uniform(-0.35, 0.35)
    inner, outer = patient.choice(((-0.1, 0.75), (0.25, 1.2), (-0.1, 1.2)))
    ragged = 0.05 * smooth_noise(patient, lungs.x.shape, (16, 16))
    height = lungs.v - middle - tilt * (lungs.u - 0.5)
    lobe = edge(half + ragged - height, 0.12) * edge(height + half, 0.03) * edge(lungs.u - inner + ragged, 0.12) * edge(outer - lungs.u + ragged, 0.12)
    bronchi = _ridges(smooth_noise(patient, lungs.x.shape, (14, 22)), 0.14) if patient.random() < 0.6 else 0.0
    return patient.uniform(0.32, 0.42) * lobe * (lungs.side == side) * (1 - 0.4 * bronchi)


def _reticulation(lungs: _Lungs, patient: np.random.Generator) -> Plane:
    """Viral pneumonia: a net of thickened interstitium through both lungs, densest about the hila."""
    cells, spread, density = patient.uniform(19, 25), patient.uniform(0.42, 0.62), patient.uniform(0.26, 0.36)
    wide = lungs.x.shape[1] / lungs.x.shape[0]
    coarse = smooth_noise(patient, lungs.x.shape, (cells, cells * wide))
    fine = smooth_noise(patient, lungs.x.shape, (1.8 * cells, 1.8 * cells * wide))
    patchy = 1 + 0.25 * smooth_noise(patient, lungs.x.shape, (5, 5))
    perihilar = bump(np.hypot(lungs.u - 0.15, 0.9 * (lungs.v - 0.5)), spread)
    return perihilar * patchy * (density * _ridges(coarse + 0.35 * fine, 0.34) + 0.02)


def _cavities(lungs: _Lungs, patient: np.random.Generator) -> Plane:
    """Tuberculosis: ring-shaped cavities in the upper zones among small nodules."""
    plane = np.zeros_like(lungs.x)
    main = int(patient.choice((-1, 1)))
    for index in range(int(patient.integers(2, 5))):
        side = main if index < 2 or patient.random() < 0.5 else -main
        centre_x, centre_y = _at(lungs, side, patient.uniform(0.25, 0.70), patient.uniform(0.16, 0.42))
        dx, dy = lungs.x - centre_x, lungs.y - centre_y
        radius, wall = patient.uniform(0.09, 0.15), patient.uniform(0.026, 0.038)
        distance, angle, turns = np.hypot(dx, dy * patient.uniform(0.8, 1.25)), np.arctan2(dy, dx), patient.uniform(0, 6.28, size=3)
        rim = radius * (1 + 0.13 * np.sin(2 * angle + turns[0]) + 0.08 * np.sin(3 * angle + turns[1]))
        ring = bump(distance - rim, wall) * (1 + 0.3 * np.sin(angle + turns[2]))
        plane = np.maximum(plane, patient.uniform(0.32, 0.44) * ring) - 0.06 * edge(rim - wall - distance, 0.03)
        plane += 0.05 * bump(distance - 1.3 * radius, 0.6 * radius)
        for away, turn, size in patient.uniform((1.3, 0, 0.018), (3.2, 6.28, 0.030), size=(int(patient.integers(6, 13)), 3)):
            dot = np.hypot(dx - away * radius * np.cos(turn), dy - away * radius * np.sin(turn))
            plane = np.maximum(plane, 0.30 * bump(dot, size))
    return plane


def _at(lungs: _Lungs, side: int, u: float, v: float) -> tuple[float, float]:
    """Where a lung's (u, v) lies in the drawing: the grid point nearest to it."""
    flat = int(np.argmin(np.square(lungs.u - u) + np.square(lungs.v - v) + 9 * (lungs.side != side)))
    return float(lungs.x.flat[flat]), float(lungs.y.flat[flat])


def _ridges(noise: Plane, width: float) -> Plane:
    """1 along the lines where the noise passes through 0: a net."""
    return bump(noise, width)


_FINDINGS = dict(zip(FINDINGS, (_healthy, _ground_glass, _consolidation, _reticulation, _cavities), strict=True))


def _expose(attenuation: Plane, rng: np.random.Generator, shape: tuple[int, int]) -> NDArray[np.uint8]:
    """Tube, detector and archive: contrast, brightness and gamma of each image, grain, a side marker, a collimated rim."""
    plane = np.maximum(resize(attenuation, shape) + np.float32(rng.uniform(-0.05, 0.03)), 0)
    saturation = np.float32(rng.uniform(1.6, 2.6))
    tone = (1 - np.exp(-saturation * plane)) ** np.float32(rng.uniform(0.85, 1.25)) * np.float32(rng.uniform(0.88, 1.15))
    tone += np.float32(rng.uniform(-0.06, 0.08))
    tilt_x, tilt_y = rng.uniform(-0.08, 0.08, size=2)
    tone += np.linspace(-tilt_x, tilt_x, shape[1], dtype=np.float32) + np.linspace(-tilt_y, tilt_y, shape[0], dtype=np.float32)[:, None]
    tone += np.float32(rng.uniform(0.010, 0.035)) * rng.standard_normal(shape, dtype=np.float32)
    if rng.random() < 0.6:
        _mark(tone, rng)
    if rng.random() < 0.3:
        _collimate(tone, rng)
    return to_pixels(tone)


def _mark(tone: Plane, rng: np.random.Generator) -> None:
    """A lead letter L near an upper corner."""
    height_px, width_px = tone.shape
    size_px = int(height_px * rng.uniform(0.04, 0.06))
    top, left = int(height_px * rng.uniform(0.03, 0.12)), int(width_px * rng.uniform(0.80, 0.90))
    stroke_px = max(2, size_px // 5)
    tone[top : top + size_px, left : left + stroke_px] = 0.98
    tone[top + size_px - stroke_px : top + size_px, left : left + int(0.7 * size_px)] = 0.98


def _collimate(tone: Plane, rng: np.random.Generator) -> None:
    top, bottom, left, right = (rng.uniform(0.0, 0.07, size=4) * (rng.random(4) < 0.6) * min(tone.shape)).astype(int)
    dark = rng.uniform(0.0, 0.06)
    tone[:top] = dark
    tone[tone.shape[0] - bottom :] = dark
    tone[:, :left] = dark
    tone[:, tone.shape[1] - right :] = dark
