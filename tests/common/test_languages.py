"""Languages: every form that callers may give, and what is refused."""

from types import SimpleNamespace

import numpy as np
import pytest

from xlmfam import XLMConfig
from xlmfam.common.errors import XlmfamError
from xlmfam.common.languages import (
    check_language_range,
    known_languages,
    language_id,
    resolve_langs,
)

NAMES = {"en": 2, "de": 0, "ro": 1}
NAMED = XLMConfig(n_langs=4, lang2id=NAMES)
UNNAMED = XLMConfig(n_langs=4)
ONE = XLMConfig(n_langs=1, lang2id={"en": 0})
UNUSED = XLMConfig(n_langs=4, use_lang_emb=False)


@pytest.mark.parametrize(
    ("langs", "expected"),
    [
        ("en", [[2]]),
        (3, [[3]]),
        (np.int64(1), [[1]]),
        (["en", "de"], [[2], [0]]),
        (("ro", 3), [[1], [3]]),
        ([1, np.int32(2)], [[1], [2]]),
        ([np.array(1), np.array(2)], [[1], [2]]),
        ([["en", "de", "de"], ["ro", 3, 0]], [[2, 0, 0], [1, 3, 0]]),
        (([1, 2], [3, 0]), [[1, 2], [3, 0]]),
        (np.array(2), [[2]]),
        (np.array([1, 3]), [[1], [3]]),
        (np.array([[1, 3, 0]]), [[1, 3, 0]]),
        (np.array(["en", "de"]), [[2], [0]]),
        (np.array([["en", "de"]], object), [[2, 0]]),
    ],
)
def test_every_form(langs, expected):
    ids = resolve_langs(NAMED, langs)
    assert isinstance(ids, np.ndarray)
    assert ids.dtype.kind == "i"
    assert ids.tolist() == expected


def test_none_stays_none():
    assert resolve_langs(NAMED, None) is None


class Tensor:
    """An array of a framework, as far as it matters here."""

    def __init__(self, array):
        self.array = array
        self.shape = array.shape

    def __getitem__(self, index):
        return Tensor(self.array[index])


@pytest.mark.parametrize(
    ("shape", "expected"), [((), (1, 1)), ((3,), (3, 1)), ((3, 5), (3, 5)), ((2, 3, 5), (2, 3, 5))]
)
def test_a_framework_s_own_array_stays_one(shape, expected):
    given = Tensor(np.zeros(shape, np.int64))
    came = resolve_langs(NAMED, given)
    assert isinstance(came, Tensor)
    assert came.shape == expected


@pytest.mark.parametrize("langs", ["xx", ["en", "xx"], [["de"], ["xx"]], np.array(["xx"])])
def test_an_unknown_name_lists_the_known_ones_by_id(langs):
    with pytest.raises(XlmfamError, match=r"unknown language 'xx'; this model knows de, ro, en$"):
        resolve_langs(NAMED, langs)


@pytest.mark.parametrize("langs", ["en", ["en"], [[0, "en"]]])
def test_a_name_in_a_model_that_has_no_names(langs):
    with pytest.raises(XlmfamError, match=r"'en' was given by name, .* no lang2id: .* below 4"):
        resolve_langs(UNNAMED, langs)


@pytest.mark.parametrize("langs", [4, -1, np.int64(9)])
def test_an_id_outside(langs):
    with pytest.raises(XlmfamError, match=f"langs holds {langs}; .* 4 languages: de, ro, en"):
        resolve_langs(NAMED, langs)
    with pytest.raises(XlmfamError, match=f"langs holds {langs}; .* the ids 0 to 3"):
        resolve_langs(UNNAMED, langs)


@pytest.mark.parametrize(
    ("langs", "message"),
    [
        (1.0, "langs must be a name, ids, or a list of them, got 1.0"),
        ({"en"}, "langs must be a name, ids, or a list"),
        ([1, None], "langs must hold names or ids, got None"),
        ([1.5, 2.0], "langs must hold names or ids, got 1.5"),
        (np.array([1.0]), "langs must hold names or ids, got 1.0"),
        ([np.array([0, 1]), np.array([2, 3])], "langs must hold names or ids"),
        ([[0, 1], [2]], "langs must hold as many ids in every row"),
        ([0, [1]], "langs must hold as many ids in every row"),
    ],
)
def test_what_is_no_language(langs, message):
    with pytest.raises(XlmfamError, match=message):
        resolve_langs(NAMED, langs)


# ---- ranges ---------------------------------------------------------------------------------


def test_ranges():
    check_language_range(UNNAMED, 0, 3)
    with pytest.raises(XlmfamError, match="langs holds 4"):
        check_language_range(UNNAMED, 0, 4)
    with pytest.raises(XlmfamError, match="langs holds -2"):
        check_language_range(UNNAMED, -2, 7)


@pytest.mark.parametrize("config", [ONE, UNUSED])
def test_ids_that_are_not_used_may_be_any(config):
    check_language_range(config, -3, 99)
    assert resolve_langs(config, 99).tolist() == [[99]]


def test_one_id():
    assert language_id(NAMED, "ro") == 1
    assert language_id(NAMED, np.int64(3)) == 3
    assert language_id(ONE, "en") == 0


def test_known_languages_in_the_order_of_their_ids():
    assert known_languages(NAMED) == "de, ro, en"
    assert known_languages(SimpleNamespace(lang2id={"b": 1, "a": 1, "z": 0})) == "z, a, b"
    assert known_languages(UNNAMED) == "the ids 0 to 3"
