"""Holding a file's names and shapes against the table: all or nothing, all problems at once."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from xlmfam import XGLMConfig
from xlmfam.common.errors import CheckpointError
from xlmfam.common.parameters import layout_shape, plan_loading, spell, table_of
from xlmfam.common.parameters.matching import MOST_NAMES_SHOWN

SIZES = {"vocab_size": 61, "d_model": 24, "ffn_dim": 40, "num_layers": 2, "attention_heads": 4}
TIED = XGLMConfig(**SIZES)
UNTIED = XGLMConfig(**SIZES, tie_word_embeddings=False)
TABLE = table_of("xglm")
MODEL, LM = "XGLMModel", "XGLMForCausalLM"
K = "model.layers.1.self_attn.k_proj.weight"


def spec(*shape):
    return SimpleNamespace(shape=shape)


def file_of(config, head, spelling="canonical", prefixed=False, ties=False):
    """What a file of class ``head`` holds."""
    return {
        spell(p, spelling, prefixed): spec(*layout_shape(p, spelling))
        for p in TABLE.expand(config, head).values()
        if ties or not p.tied_to
    }


def plan(config, head, specs, spelling="canonical", **options):
    return plan_loading(TABLE, config, head, specs, spelling, **options)


def problems_of(config, head, specs, spelling="canonical"):
    with pytest.raises(CheckpointError) as caught:
        plan(config, head, specs, spelling)
    return str(caught.value)


@pytest.mark.parametrize("spelling", ["canonical", "flax", "keras_h5"])
@pytest.mark.parametrize("config", [TIED, UNTIED], ids=["tied", "untied"])
@pytest.mark.parametrize("head", [MODEL, LM])
@pytest.mark.parametrize("written_by", [MODEL, LM])
def test_heads_and_bases_load_into_each_other(spelling, config, head, written_by):
    specs = file_of(config, written_by, spelling, ties=True)
    result = plan(config, head, specs, spelling)
    expected = {n for n, p in TABLE.expand(config, head).items() if not p.tied_to}
    new = {"lm_head.weight"} if (head, written_by) == (LM, MODEL) and config is UNTIED else set()
    assert set(result.new) == new
    assert set(result.sources) == expected - new
    for name, source in result.sources.items():
        parameter = TABLE.expand(config, head)[name]
        assert source.replace("model/", "").replace("model.", "") in {
            spell(parameter, spelling, True).replace("model/", "").replace("model.", "")
        }
    assert set(result.dropped) == set(specs) - set(result.sources.values())


@pytest.mark.parametrize("prefixed", [True, False])
def test_base_files_with_and_without_prefix(prefixed):
    result = plan(TIED, MODEL, file_of(TIED, MODEL, prefixed=prefixed))
    name = "layers.0.fc1.weight"
    assert result.sources[name] == ("model." if prefixed else "") + name


def test_a_kept_tie_is_named_and_not_read():
    result = plan(TIED, LM, file_of(TIED, LM, ties=True))
    assert result.dropped == {"lm_head.weight": "tied to model.embed_tokens.weight"}


def test_the_other_name_of_a_shared_tensor_serves():
    specs = file_of(TIED, LM, ties=True)
    del specs["model.embed_tokens.weight"]
    result = plan(TIED, LM, specs)
    assert result.sources["model.embed_tokens.weight"] == "lm_head.weight"


def test_ignored_names_are_dropped_with_their_reason():
    specs = file_of(TIED, LM)
    specs["model.embed_positions.weights"] = spec(39, 24)
    specs["embed_positions._float_tensor"] = spec(1)
    result = plan(TIED, LM, specs)
    assert "sinusoidal" in result.dropped["model.embed_positions.weights"]
    assert "embed_positions._float_tensor" in result.dropped
    flax = file_of(TIED, LM, "flax")
    flax["model/embed_positions/weights"] = spec(39, 24)
    assert list(plan(TIED, LM, flax, "flax").dropped) == ["model/embed_positions/weights"]


def test_everything_wrong_is_reported_at_once():
    specs = file_of(UNTIED, LM)
    del specs[K]
    del specs["model.layer_norm.bias"]
    specs["model.layers.2.fc1.weight"] = spec(40, 24)
    specs["extra"] = spec(1)
    specs["model.layers.0.fc1.weight"] = spec(24, 40)  # transposed
    text = problems_of(UNTIED, LM, specs)
    assert "5 problem(s)" in text
    assert f"missing: {K}" in text
    assert "missing: model.layer_norm.bias" in text
    assert "unexpected: model.layers.2.fc1.weight" in text
    assert "unexpected: extra" in text
    assert "misshapen: model.layers.0.fc1.weight is (24, 40), the config asks for (40, 24)" in text


def test_a_long_list_is_cut_and_counted():
    text = problems_of(TIED, LM, {})
    missing = len(file_of(TIED, LM))
    assert f"{missing} problem(s)" in text
    assert f"and {missing - MOST_NAMES_SHOWN} more" in text
    assert text.count("missing: ") == MOST_NAMES_SHOWN


def test_two_names_for_one_parameter_are_ambiguous():
    specs = file_of(TIED, LM)
    specs[K.removeprefix("model.")] = spec(24, 24)
    assert f"ambiguous: {K} could be any of {K}, " in problems_of(TIED, LM, specs)


def test_a_similar_name_is_never_taken():
    specs = file_of(TIED, LM)
    specs["transformer." + K] = specs.pop(K)
    text = problems_of(TIED, LM, specs)
    assert f"missing: {K}" in text
    assert f"unexpected: transformer.{K}" in text


def test_a_part_of_a_head_is_not_new_but_missing():
    """A head starts anew as a whole or not at all."""
    extra = replace(TABLE.rows[-1], name="lm_head.second", tied_to=None)
    table = replace(TABLE, rows=(*TABLE.rows, extra))
    specs = file_of(UNTIED, LM)
    with pytest.raises(CheckpointError, match=r"missing: lm_head.second"):
        plan_loading(table, UNTIED, LM, specs, "canonical")


def test_mismatched_sizes_can_be_ignored():
    specs = file_of(UNTIED, LM)
    specs["lm_head.weight"] = spec(7, 24)
    result = plan(UNTIED, LM, specs, ignore_mismatched_sizes=True)
    assert result.new == ["lm_head.weight"]
    assert "lm_head.weight" in result.dropped


def test_aliases_are_explicit_rows():
    template = "model.layers.{layer}.self_attn.k_proj.weight"
    table = replace(TABLE, aliases=(("old.{layer}.key", template),))
    specs = file_of(TIED, LM)
    specs["old.1.key"] = specs.pop(K)
    assert plan_loading(table, TIED, LM, specs, "canonical").sources[K] == "old.1.key"
    specs[K] = spec(24, 24)
    with pytest.raises(CheckpointError, match="ambiguous"):
        plan_loading(table, TIED, LM, specs, "canonical")


def test_a_file_in_another_spelling_does_not_fit():
    specs = file_of(TIED, LM, "flax")
    assert f"{2 * len(specs)} problem(s)" in problems_of(TIED, LM, specs, "canonical")
