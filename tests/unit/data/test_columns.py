from __future__ import annotations

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from scanvit.data.columns import Strings, encode, take_strings

TEXTS = st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=12), max_size=60)


def column(texts: list[str]) -> pa.LargeStringArray:
    return pa.array(texts, pa.large_string())


@settings(deadline=None)
@given(TEXTS, TEXTS)
def test_strings_grow_by_one_and_by_columns(first: list[str], second: list[str]) -> None:
    strings = Strings()
    for text in first:
        strings.append(text)
    padded = column(["left out", *second, "left out"])
    strings.extend(padded[1 : len(second) + 1])
    for text in first:
        strings.append(text)
    expected = first + second + first
    assert list(strings) == strings[:] == expected
    assert len(strings) == len(expected)
    assert strings[1:7:2] == expected[1:7:2]
    assert strings.arrow().to_pylist() == expected
    if expected:
        assert strings[-1] == expected[-1]


def test_many_strings_and_the_pieces_of_a_long_column() -> None:
    texts = [f"source:{number * 7919 % 100_000}" for number in range(200_000)]
    strings = Strings()
    for text in texts:
        strings.append(text)
    assert list(strings) == texts
    rows = np.random.default_rng(0).permutation(len(texts))[:150_000]
    taken = take_strings(strings.arrow(), rows)
    assert taken.to_pylist() == [texts[row] for row in rows.tolist()]
    encoded = encode(strings.arrow())
    expected = strings.arrow().dictionary_encode()
    np.testing.assert_array_equal(encoded.codes, expected.indices.to_numpy())
    assert list(encoded.names) == expected.dictionary.to_pylist()


@settings(deadline=None)
@given(TEXTS, st.data())
def test_codes_are_those_of_a_dictionary_in_the_order_of_appearance(texts: list[str], data: st.DataObject) -> None:
    encoded, expected = encode(column(texts)), column(texts).dictionary_encode()
    assert encoded.codes.tolist() == expected.indices.to_pylist()
    assert encoded.names[:] == expected.dictionary.to_pylist()
    rows = data.draw(st.lists(st.integers(0, len(texts) - 1), max_size=40)) if texts else []
    part = encoded.take(np.array(rows, np.int64))
    assert [part.names[code] for code in part.codes.tolist()] == [texts[row] for row in rows]
    assert set(part.names) == {texts[row] for row in rows}
