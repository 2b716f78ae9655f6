from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scanvit.data import near_duplicates
from scanvit.data.near_duplicates import NEAR_DUPLICATE_BITS, find_near_duplicates, parse_hashes


def flip(value: np.ndarray, bits: np.ndarray | list[int]) -> np.ndarray:
    flipped = value.copy()
    for bit in bits:
        flipped[bit // 64] ^= np.uint64(1) << np.uint64(bit % 64)
    return flipped


def drawn(seed: int, count: int, *, planted: int, alike: float = 0.5) -> np.ndarray:
    """Random hashes whose bits are the usual ones with the chance ``alike``, some of them copies with up to 70 bits flipped."""
    random = np.random.default_rng(seed)
    chance = np.where(random.random(256) < 0.5, alike, 1 - alike)
    hashes = np.packbits(random.random((count, 256)) < chance, axis=1).view(np.uint64)
    for _ in range(planted):
        source, target = random.integers(0, count, 2)
        hashes[target] = flip(hashes[source], random.choice(256, random.integers(0, 70), replace=False))
    return hashes


def all_pairs(hashes: np.ndarray, within: int) -> list[tuple[int, int, int]]:
    """By comparing each with each."""
    distances = np.bitwise_count(hashes[:, None] ^ hashes[None]).sum(axis=2)
    first, second = np.nonzero(np.triu(distances <= within, 1) & hashes.any(axis=1)[:, None] & hashes.any(axis=1)[None])
    return [(int(i), int(j), int(distances[i, j])) for i, j in zip(first, second, strict=True)]


def groups_of(pairs: list[tuple[int, int, int]], count: int) -> list[int]:
    label = list(range(count))
    for i, j, _ in pairs:
        old, new = max(label[i], label[j]), min(label[i], label[j])
        label = [new if value == old else value for value in label]
    return label


def same_partition(one: np.ndarray, other: list[int]) -> bool:
    return len(set(zip(one.tolist(), other, strict=True))) == len(set(one.tolist())) == len(set(other))


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    count=st.integers(0, 150),
    planted=st.integers(0, 60),
    within=st.sampled_from([0, 1, 11, 22, NEAR_DUPLICATE_BITS, 24, 40, 63]),
    alike=st.sampled_from([0.5, 0.8, 0.97]),
)
def test_it_finds_what_comparing_each_with_each_finds(seed: int, count: int, planted: int, within: int, alike: float) -> None:
    hashes = drawn(seed, count, planted=planted if count else 0, alike=alike)
    expected = all_pairs(hashes, within)
    for few in (0, 1 << 13):  # by bands, and each with each
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(near_duplicates, "_FEW_POINTS", few)
            found = find_near_duplicates(hashes, within=within)
        assert found.pairs.tolist() == np.bincount([distance for *_, distance in expected], minlength=within + 1).tolist()
        assert same_partition(found.groups(count), groups_of(expected, count))
        links = list(zip(found.first.tolist(), found.second.tolist(), found.distance.tolist(), strict=True))
        assert set(links) <= set(expected)
        assert len(links) == count - len(set(groups_of(expected, count)))
        assert found.distance.tolist() == sorted(found.distance.tolist())


@pytest.mark.parametrize("bands", [12, 17, 23, 24, 40])
def test_every_number_of_bands_gives_the_same(monkeypatch: pytest.MonkeyPatch, bands: int) -> None:
    hashes = drawn(1, 300, planted=100)
    expected = find_near_duplicates(hashes)
    monkeypatch.setattr(near_duplicates, "_FEW_POINTS", 0)
    monkeypatch.setattr(near_duplicates, "_plan_bands", lambda count, within: bands)
    found = find_near_duplicates(hashes)
    assert found.pairs.tolist() == expected.pairs.tolist()
    assert found.groups(300).tolist() == expected.groups(300).tolist()


@pytest.mark.parametrize("few", [0, 1 << 13])
def test_small_chunks_give_the_same(monkeypatch: pytest.MonkeyPatch, few: int) -> None:
    hashes = np.concatenate([drawn(2, 200, planted=100), drawn(3, 60, planted=0, alike=0.97)])
    expected = find_near_duplicates(hashes)
    monkeypatch.setattr(near_duplicates, "_FEW_POINTS", few)
    monkeypatch.setattr(near_duplicates, "_CANDIDATES_AT_ONCE", 7)
    monkeypatch.setattr(near_duplicates, "_LINKS_AT_ONCE", -250)
    found = find_near_duplicates(hashes)
    assert expected.pairs.sum() > 100
    assert found.pairs.tolist() == expected.pairs.tolist()
    assert found.groups(260).tolist() == expected.groups(260).tolist()


@pytest.mark.parametrize("few", [0, 1 << 13])
def test_pairs_on_the_edge_are_found_wherever_their_bits_lie(monkeypatch: pytest.MonkeyPatch, few: int) -> None:
    monkeypatch.setattr(near_duplicates, "_FEW_POINTS", few)
    random = np.random.default_rng(0)
    base = drawn(4, 1, planted=0)[0]
    spread = [int(bit) for bit in np.linspace(0, 255, NEAR_DUPLICATE_BITS)]
    run = list(range(100, 100 + NEAR_DUPLICATE_BITS))
    for bits in (spread, run, random.choice(256, NEAR_DUPLICATE_BITS, replace=False).tolist()):
        hashes = np.concatenate([np.stack([base, flip(base, bits)]), drawn(5, 5000, planted=0)])
        found = find_near_duplicates(hashes)
        assert (found.first.tolist(), found.second.tolist(), found.distance.tolist()) == ([0], [1], [NEAR_DUPLICATE_BITS])
        further = flip(flip(base, bits), [next(bit for bit in range(256) if bit not in bits)])
        assert not len(find_near_duplicates(np.stack([base, further])).first)


def test_few_images_are_not_searched_by_bands_which_near_copies_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(near_duplicates, "_plan_bands", lambda count, within: pytest.fail("bands hold all of a group"))
    base, random = drawn(7, 1, planted=0)[0], np.random.default_rng(0)
    hashes = np.stack([flip(base, random.choice(256, 5, replace=False)) for _ in range(500)])
    found = find_near_duplicates(hashes)
    assert (found.pairs.sum(), len(found.first)) == (500 * 499 // 2, 499)


def test_a_thousand_equal_hashes_are_one_group() -> None:
    hashes = np.repeat(drawn(6, 2, planted=0), [1000, 1], axis=0)
    found = find_near_duplicates(hashes)
    assert found.pairs[0] == 1000 * 999 // 2
    assert len(found.first) == 999
    assert len(set(found.groups(1001).tolist())) == 2


def test_flat_pictures_are_linked_to_none() -> None:
    found = find_near_duplicates(np.zeros((50, 4), np.uint64))
    assert found.pairs.sum() == 0
    assert len(set(found.groups(50).tolist())) == 50


def test_hexadecimal_hashes_keep_their_distances() -> None:
    random = np.random.default_rng(0)
    digits = [random.bytes(32).hex() for _ in range(2)]
    one, other = parse_hashes(digits)
    assert np.bitwise_count(one ^ other).sum() == (int(digits[0], 16) ^ int(digits[1], 16)).bit_count()
    assert parse_hashes([]).shape == (0, 4)


@pytest.mark.parametrize("value", ["", "0" * 63, "g" * 64, "0" * 65, "0" * 62 + "  "])
def test_what_is_no_hash_is_refused(value: str) -> None:
    with pytest.raises(ValueError):
        parse_hashes([value])


@pytest.mark.parametrize("within", [-1, 64])
def test_distances_out_of_range_are_refused(within: int) -> None:
    with pytest.raises(ValueError, match=str(within)):
        find_near_duplicates(np.zeros((1, 4), np.uint64), within=within)
