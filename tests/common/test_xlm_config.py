"""XLM's own config: aliases, languages, the adaptive softmax, pruned heads, what is refused."""

import json

import pytest

from xlmfam import XLMConfig
from xlmfam.common.errors import ConfigError

SIZES = {"vocab_size": 53, "emb_dim": 20, "n_heads": 5, "n_layers": 3, "n_langs": 4}


def make(**settings):
    return XLMConfig(**{**SIZES, **settings})


def again(config):
    """The config as its own file gives it back."""
    return XLMConfig.from_dict(json.loads(config.to_json_string()))


def test_aliases():
    config = XLMConfig(hidden_size=32, num_attention_heads=4, num_hidden_layers=5, n_words=61)
    assert (config.emb_dim, config.n_heads, config.n_layers, config.vocab_size) == (32, 4, 5, 61)
    config.n_words = 67
    assert config.vocab_size == config.n_words == 67
    assert not {"hidden_size", "n_words"} & set(config.to_dict())


# ---- languages ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        {"lang2id": {"de": 0, "en": 1, "ro": 3}},
        {"lang2id": {"de": "0", "en": "1", "ro": "3"}},
        {"id2lang": {0: "de", 1: "en", 3: "ro"}},
        {"id2lang": {"0": "de", "1": "en", "3": "ro"}},
        {"lang2id": {"de": 0, "en": 1, "ro": 3}, "id2lang": {"0": "de", "1": "en", "3": "ro"}},
    ],
    ids=["names", "text_ids", "ids", "text_keys", "both"],
)
def test_each_mapping_of_languages_is_made_of_the_other(settings):
    config = make(**settings)
    for each in (config, again(config)):
        assert each.lang2id == {"de": 0, "en": 1, "ro": 3}
        assert each.id2lang == {0: "de", 1: "en", 3: "ro"}


@pytest.mark.parametrize(
    ("settings", "mentioned"),
    [
        ({}, set()),
        ({"lang2id": None, "id2lang": None, "asm_cutoffs": None, "asm_div_value": None}, set()),
        ({"id2lang": {"0": "de"}}, {"lang2id", "id2lang"}),
        ({"asm": True, "asm_cutoffs": [11]}, {"asm_cutoffs"}),
        ({"asm_div_value": 2.0}, {"asm_div_value"}),
        ({"summary_last_dropout": 0.5}, {"summary_last_dropout"}),
    ],
)
def test_a_file_mentions_some_settings_only_where_they_are_set(settings, mentioned):
    optional = {"lang2id", "id2lang", "asm_cutoffs", "asm_div_value", "summary_last_dropout"}
    config = make(**settings)
    assert optional & set(config.to_diff_dict()) == mentioned
    assert optional & set(again(config).to_diff_dict()) == mentioned


def test_what_is_not_set_has_a_default():
    config = make()
    assert config.lang2id is config.id2lang is config.asm_cutoffs is None
    assert (config.asm_div_value, config.summary_last_dropout) == (4.0, 0.0)
    assert (make(asm_div_value=2.0).asm_div_value, config.asm_div_value) == (2.0, 4.0)


@pytest.mark.parametrize(
    ("settings", "used"),
    [({}, True), ({"use_lang_emb": False}, False), ({"n_langs": 1}, False), ({"n_langs": 2}, True)],
)
def test_languages_are_used_where_there_are_several(settings, used):
    assert make(**settings).uses_languages is used


@pytest.mark.parametrize("settings", [{"n_langs": 1}, {"use_lang_emb": False}])
def test_ids_of_languages_that_are_not_used_do_not_matter(settings):
    config = make(lang_id=9, lang2id={"zz": 17}, **settings)
    assert config.lang_id == 9


def test_no_language_for_generated_text():
    assert again(make(lang_id=None)).lang_id is None


# ---- directions, halves ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "causal"),
    [({}, False), ({"causal": True}, True), ({"is_encoder": False}, True)],
)
def test_who_looks_back_only(settings, causal):
    assert make(**settings).is_causal is causal


def test_halves_of_a_translation_model():
    whole = make(
        causal=True,
        tie_word_embeddings=False,
        id2lang={0: "de", 1: "en"},
        pruned_heads={0: [2]},
        my_key=5,
    )
    encoder, decoder = whole.half(True), whole.half(False)
    assert (encoder.is_encoder, encoder.causal, encoder.is_causal) == (True, False, False)
    assert (decoder.is_encoder, decoder.causal, decoder.is_causal) == (False, False, True)
    for half in (encoder, decoder):
        rest = {**half.to_dict(), "is_encoder": True, "causal": True}
        assert rest == whole.to_dict()
    encoder.lang2id["de"] = 3
    assert whole.lang2id["de"] == 0


# ---- adaptive softmax, pruned heads ---------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "cuts"),
    [({}, [53]), ({"asm": True, "asm_cutoffs": [11, 29]}, [11, 29, 53])],
)
def test_cuts(settings, cuts):
    assert make(**settings).asm_cuts == cuts


@pytest.mark.parametrize("key", [1, "1"])
def test_kept_heads(key):
    config = make(pruned_heads={key: [0, 3, 3]})
    assert [list(config.kept_heads(layer)) for layer in range(3)] == [
        [0, 1, 2, 3, 4],
        [1, 2, 4],
        [0, 1, 2, 3, 4],
    ]
    assert list(again(config).kept_heads(1)) == [1, 2, 4]


def test_pruning_adds_to_what_is_pruned():
    config = make(pruned_heads={"1": [0]})
    config.prune({1: [3], 2: [4, 4], 0: []})
    assert config.pruned_heads == {1: [0, 3], 2: [4]}


@pytest.mark.parametrize("heads", [{3: [0]}, {0: [5]}, {1: [1, 2, 3, 4]}])
def test_pruning_that_cannot_be_leaves_the_config_as_it_was(heads):
    config = make(pruned_heads={1: [0]})
    with pytest.raises(ConfigError, match="pruned_heads"):
        config.prune(heads)
    assert config.pruned_heads == {1: [0]}


# ---- what is refused ------------------------------------------------------------------------

ADAPTIVE = {"asm": True, "asm_cutoffs": [11, 29]}
CUTS = r"asm_cutoffs must rise and lie between 0 and 53, got"
WRONG = {
    "vocabulary": ({"vocab_size": 0}, "vocab_size must be a positive integer, got 0"),
    "width": ({"emb_dim": 20.0}, "emb_dim must be a positive integer"),
    "layers": ({"n_layers": True}, "n_layers must be a positive integer"),
    "heads": ({"n_heads": 0}, "n_heads must be a positive integer"),
    "languages": ({"n_langs": 0}, "n_langs must be a positive integer"),
    "positions": ({"max_position_embeddings": -1}, "max_position_embeddings must be a positive"),
    "starts": ({"start_n_top": 0}, "start_n_top must be a positive integer"),
    "ends": ({"end_n_top": 0}, "end_n_top must be a positive integer"),
    "divisible": ({"n_heads": 3}, r"emb_dim \(20\) must be divisible by n_heads \(3\)"),
    "dropout": ({"dropout": 1.5}, "dropout must be a probability"),
    "attention_dropout": ({"attention_dropout": -1}, "attention_dropout must be a probability"),
    "first_dropout": ({"summary_first_dropout": 2}, "summary_first_dropout must be a prob"),
    "last_dropout": ({"summary_last_dropout": 2}, "summary_last_dropout must be a prob"),
    "summary": ({"summary_type": "attn"}, "summary_type must be one of first, .*; got 'attn'"),
    "activation": ({"summary_activation": "tan"}, "summary_activation must be None or one of .*"),
    "padding": ({"pad_index": 53}, r"pad_index must lie in \[0, 53\), got 53"),
    "negative_padding": ({"pad_index": -1}, r"pad_index must lie in \[0, 53\), got -1"),
    "no_cutoffs": ({"asm": True}, "asm=True needs asm_cutoffs, a list of ids; got None"),
    "empty_cutoffs": ({"asm": True, "asm_cutoffs": []}, "asm=True needs asm_cutoffs"),
    "float_cutoffs": ({"asm": True, "asm_cutoffs": [11.5]}, "a list of ids; got"),
    "falling_cutoffs": ({"asm": True, "asm_cutoffs": [29, 11]}, CUTS),
    "equal_cutoffs": ({"asm": True, "asm_cutoffs": [11, 11]}, CUTS),
    "cutoff_zero": ({"asm": True, "asm_cutoffs": [0, 11]}, CUTS),
    "cutoff_outside": ({"asm": True, "asm_cutoffs": [11, 53]}, CUTS),
    "no_width_left": (
        {**ADAPTIVE, "asm_div_value": 5.0},
        "asm_div_value 5.0 leaves the last of 2 clusters no width: emb_dim is 20",
    ),
    "division_by_zero": ({**ADAPTIVE, "asm_div_value": 0.0}, "asm_div_value 0.0 leaves"),
    "negative_division": ({**ADAPTIVE, "asm_div_value": -2.0}, "asm_div_value -2.0 leaves"),
    "language": ({"lang2id": {"de": 4}}, "lang2id gives 'de' the id 4; there are 4 languages"),
    "negative_language": ({"lang2id": {"de": -1}}, "lang2id gives 'de' the id -1"),
    "name_of_no_language": ({"id2lang": {"7": "de"}}, "lang2id gives 'de' the id 7"),
    "lang_id": ({"lang_id": 4}, r"lang_id must lie in \[0, 4\), got 4"),
    "negative_lang_id": ({"lang_id": -1}, r"lang_id must lie in \[0, 4\), got -1"),
    "pruned_layer": ({"pruned_heads": {3: [0]}}, "pruned_heads names layer 3, .* 3 layers of 5"),
    "pruned_head": ({"pruned_heads": {0: [1, 5]}}, r"names layer 0, heads \[1, 5\]"),
    "negative_head": ({"pruned_heads": {0: [-1]}}, r"names layer 0, heads \[-1\]"),
    "no_head_left": ({"pruned_heads": {"2": [0, 1, 2, 3, 4]}}, "leaves layer 2 no head"),
}


@pytest.mark.parametrize(("settings", "message"), WRONG.values(), ids=list(WRONG))
def test_values_that_describe_no_model(settings, message):
    with pytest.raises(ConfigError, match=message):
        make(**settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"asm": False, "asm_cutoffs": [99]},  # not used
        {**ADAPTIVE, "asm_div_value": 4.0},
        {"asm": True, "asm_cutoffs": [1, 52], "asm_div_value": 1},
        {"lang2id": {"de": 0, "ro": 3}, "lang_id": 3},
        {"summary_activation": ""},
        {"pruned_heads": {"2": [0, 1, 2, 3]}},
        {"pad_index": 52},
        {"pad_index": 0},
        *({"summary_type": name} for name in ("first", "last", "mean", "cls_index")),
    ],
)
def test_values_at_the_edge_that_do_describe_one(settings):
    config = make(**settings)
    assert again(config).to_json_string() == config.to_json_string()


@pytest.mark.parametrize(
    "data", [{"lang2id": 3}, {"id2lang": {"x": "de"}}, {"lang2id": {"de": "x"}}, {"n_words": "x"}]
)
def test_wrong_types_in_a_file_are_config_errors(data):
    with pytest.raises(ConfigError):
        XLMConfig.from_dict({**SIZES, **data})
