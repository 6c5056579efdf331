"""Known labels of a scan: found by identity, of the rows that were asked for."""

from __future__ import annotations

import numpy as np

from galscan.scanning import known_labels
from galscan.scanning.known_labels import KnownLabels
from galscan.stats.purity import AMBIGUOUS


def test_labels_belong_to_rows():
    known = KnownLabels((np.array([3, 7]), np.empty(0, int)), (np.array([1.0, AMBIGUOUS]), np.empty(0)))
    np.testing.assert_array_equal(known.of(0, np.array([7, 4, 3, 9])), [AMBIGUOUS, np.nan, 1, np.nan])
    assert np.isnan(known.of(1, np.array([3, 7]))).all()
    assert [known.any_in(0, *span) for span in ((0, 3), (0, 4), (4, 7), (7, 8), (8, 20))] == [
        False, True, False, True, False,
    ]  # fmt: skip
    assert not KnownLabels.none(2).any_in(1, 0, 100)


def test_words_and_numbers_are_one_another():
    values = np.array([1.0, 0.0, AMBIGUOUS, np.nan])
    words = known_labels.names(values)
    assert words.tolist() == ["target", "negative", "ambiguous", ""]
    np.testing.assert_array_equal(known_labels.numbers(words), values)
