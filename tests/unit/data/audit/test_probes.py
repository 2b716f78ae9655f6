from __future__ import annotations

import numpy as np
import pytest

from scanvit.data.audit.probes import run_probe

NAMES = ["a", "b", "c"]


def drawn(signal: float, *, seed: int = 0, patients: int = 60, images: int = 3) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    labels = np.repeat(np.arange(patients) % 2, images)
    features = random.normal(size=(len(labels), 20))
    features[:, 0] += signal * labels
    return features, labels, np.repeat(np.arange(patients), images)


@pytest.mark.parametrize("model", ["linear", "tree"])
def test_a_strong_signal_is_found_and_noise_is_not(model: str) -> None:
    strong = run_probe(*drawn(8.0), names=NAMES, model=model)  # type: ignore[arg-type]
    noise = run_probe(*drawn(0.0), names=NAMES, model=model)  # type: ignore[arg-type]
    assert strong is not None
    assert noise is not None
    assert strong.value > 0.95
    assert strong.is_above_chance
    assert strong.chance == 0.5
    assert set(strong.recall) == {"a", "b"}
    assert strong.youden["a"] == pytest.approx(strong.skill, abs=0.01)
    assert not noise.is_above_chance
    assert noise.value > 0.35


def test_a_patient_is_never_on_both_sides() -> None:
    # The label is a coin for each patient, and the features name the patient: knowing a patient would be knowing the label.
    random = np.random.default_rng(1)
    patients = np.repeat(np.arange(80), 5)
    labels = random.integers(0, 2, 80)[patients]
    features = random.normal(size=(80, 30))[patients] + random.normal(scale=0.01, size=(400, 30))
    honest = run_probe(features, labels, patients, names=NAMES)
    leaking = run_probe(features, labels, np.arange(400), names=NAMES)
    assert honest is not None
    assert leaking is not None
    assert honest.low <= 0.5
    assert leaking.value > 0.6


def test_the_rare_label_weighs_the_same() -> None:
    features, labels, patients = drawn(0.0, patients=200)
    labels = (patients < 10).astype(np.int64)
    probe = run_probe(features, labels, patients, names=NAMES)
    assert probe is not None
    assert probe.value < 0.7  # always saying the common one would be right for 95 %


def test_labels_of_few_patients_are_left_out() -> None:
    features, labels, patients = drawn(8.0)
    labels[patients >= 56] = 2
    probe = run_probe(features, labels, patients, names=NAMES)
    assert probe is not None
    assert set(probe.recall) == {"a", "b"}
    assert probe.images == 56 * 3
    labels[labels == 1] = 2
    labels[patients >= 4] = 0
    assert run_probe(features, labels, patients, names=NAMES) is None


def test_the_interval_is_one_over_patients() -> None:
    # Twenty images of a patient that are all the same say no more than one.
    features, labels, patients = drawn(1.0, patients=60, images=1)
    one = run_probe(features, labels, patients, names=NAMES)
    twenty = run_probe(np.repeat(features, 20, axis=0), np.repeat(labels, 20), np.repeat(patients, 20), names=NAMES)
    assert one is not None
    assert twenty is not None
    assert 0.7 < (twenty.high - twenty.low) / (one.high - one.low) < 1.4


def test_the_same_input_gives_the_same_figure() -> None:
    assert run_probe(*drawn(1.0), names=NAMES) == run_probe(*drawn(1.0), names=NAMES)


def test_features_that_do_not_vary_are_at_chance() -> None:
    _, labels, patients = drawn(0.0)
    probe = run_probe(np.zeros((len(labels), 9)), labels, patients, names=NAMES)
    assert probe is not None
    assert probe.value == pytest.approx(0.5, abs=0.01)
