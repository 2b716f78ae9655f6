from __future__ import annotations

import hashlib

import numpy as np
import pytest
from PIL import Image
from scipy.fft import dctn

from scanvit.data.hashing import perceptual_hash, sha256_bytes


def picture(seed: int, side: int = 64, channels: int = 1) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 256, (10, 10, 3), np.uint8)
    image = Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC)
    return np.asarray(image.convert("L"))[None] if channels == 1 else np.asarray(image).transpose(2, 0, 1)


def test_sha256_is_hashlib_s() -> None:
    assert sha256_bytes(b"abc") == hashlib.sha256(b"abc").hexdigest()


def test_it_is_scipy_s_cosine_transform_against_its_median() -> None:
    pixels = picture(0)
    low = dctn(pixels[0].astype(float), norm="ortho")[:16, :16].ravel()
    bits = low > np.median(low[1:])
    bits[0] = False
    assert perceptual_hash(pixels) == np.packbits(bits).tobytes().hex()


def test_a_hash_has_64_digits_and_nearly_half_its_bits_set() -> None:
    value = perceptual_hash(picture(1))
    assert len(value) == 64
    assert int(value, 16).bit_count() in (127, 128)


def bits_apart(one: str, other: str) -> int:
    return (int(one, 16) ^ int(other, 16)).bit_count()


def test_near_duplicates_are_near_and_others_far() -> None:
    one, other = picture(2), picture(3)
    noisy = np.clip(one + np.random.default_rng(0).normal(0, 3, one.shape), 0, 255).astype(np.uint8)
    brighter = np.clip(one.astype(int) * 9 // 10 + 12, 0, 255).astype(np.uint8)
    assert bits_apart(perceptual_hash(one), perceptual_hash(noisy)) < 40
    assert bits_apart(perceptual_hash(one), perceptual_hash(brighter)) < 40
    assert bits_apart(perceptual_hash(one), perceptual_hash(other)) > 80


def test_size_and_channels_hardly_matter() -> None:
    small = perceptual_hash(picture(4))
    assert bits_apart(small, perceptual_hash(picture(4, side=128))) < 40
    assert bits_apart(small, perceptual_hash(picture(4, channels=3))) < 40


@pytest.mark.parametrize("value", [0, 77, 255])
def test_a_flat_picture_has_no_structure(value: int) -> None:
    assert perceptual_hash(np.full((1, 64, 64), value, np.uint8)) == "0" * 64
