"""What only XLM's parameter table has: see test_parameters.py for the rest."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from tiny_checkpoints import make_arrays, save

from xlmfam import AutoConfig, XLMConfig
from xlmfam.common.checkpoints.files import open_checkpoint
from xlmfam.common.errors import CheckpointError
from xlmfam.common.parameters import (
    Kind,
    layout_shape,
    linear_styles,
    parameter_count,
    partition,
    plan_loading,
    spell,
    table_of,
)
from xlmfam.common.positions import interleaved_sinusoids

GOLDEN = Path(__file__).parents[1] / "data" / "golden" / "xlm"
TRANSLATION = json.loads((GOLDEN / "cases.json").read_text())["translation"]
FOLDERS = sorted(path.parent for path in GOLDEN.glob("*/model.safetensors"))
TABLE = table_of("xlm")
LM, BASE, BOTH = "XLMWithLMHeadModel", "XLMModel", "XLMEncoderDecoder"
SIZES = {
    "vocab_size": 53,
    "emb_dim": 20,
    "n_heads": 5,
    "n_layers": 2,
    "n_langs": 3,
    "max_position_embeddings": 31,
    "num_labels": 7,
}
ADAPTIVE = {"asm": True, "asm_cutoffs": [11, 29], "asm_div_value": 2.0}


def make(**settings):
    return XLMConfig(**{**SIZES, **settings})


def expand(head=LM, **settings):
    return TABLE.expand(make(**settings), head)


def specs_of(parameters, spelling="canonical"):
    """What a file holds that has these parameters."""
    return {
        spell(p, spelling): np.zeros(layout_shape(p, spelling), np.float32)
        for p in parameters.values()
        if p.tied_to is None
    }


def plan(head, specs, spelling="canonical", **settings):
    return plan_loading(TABLE, make(**settings), head, specs, spelling)


# ---- names and shapes -----------------------------------------------------------------------


def test_the_original_s_encoder_and_decoder():
    config = make(
        vocab_size=47,
        emb_dim=15,
        n_heads=5,
        n_layers=2,
        n_langs=4,
        max_position_embeddings=29,
        tie_word_embeddings=False,
    )
    parameters = TABLE.expand(config, BOTH)
    assert {name: list(p.shape) for name, p in parameters.items()} == TRANSLATION["shapes"]
    sizes = [np.prod(shape) for shape in TRANSLATION["shapes"].values()]
    assert parameter_count(parameters) == sum(sizes)
    assert not [name for name, p in parameters.items() if p.tied_to]


def test_a_decoder_by_itself_looks_at_a_source_too():
    decoder = expand(BASE, is_encoder=False)
    added = set(decoder) - set(expand(BASE))
    expected = {f"layer_norm15.{layer}.{leaf}" for layer in (0, 1) for leaf in ("weight", "bias")}
    expected |= {
        f"encoder_attn.{layer}.{name}_lin.{leaf}"
        for layer in (0, 1)
        for name in "qkv"
        for leaf in ("weight", "bias")
    }
    expected |= {f"encoder_attn.{i}.out_lin.{leaf}" for i in (0, 1) for leaf in ("weight", "bias")}
    assert added == expected


def test_pruned_heads_take_rows_and_columns():
    before, after = expand(), expand(pruned_heads={"1": [0, 3]})
    changed = {name: p.shape for name, p in after.items() if p.shape != before[name].shape}
    layer = "transformer.attentions.1"
    expected = {f"{layer}.{name}_lin.weight": (12, 20) for name in "qkv"}
    expected |= {f"{layer}.{name}_lin.bias": (12,) for name in "qkv"}
    assert changed == {**expected, f"{layer}.out_lin.weight": (20, 12)}


def test_pruning_spares_what_looks_at_the_source():
    before, after = expand(BOTH), expand(BOTH, pruned_heads={0: [4]})
    changed = {name for name, p in after.items() if p.shape != before[name].shape}
    assert {name.partition("_lin")[0] for name in changed} == {
        f"{side}.attentions.0.{name}"
        for side in ("encoder", "decoder")
        for name in ("q", "k", "v", "out")
    }


def test_cutoffs_that_are_not_used_make_no_clusters():
    assert set(expand(asm_cutoffs=[11, 29])) == set(expand())


@pytest.mark.parametrize(
    ("head", "name"),
    [(BASE, "embeddings.weight"), (LM, "transformer.embeddings.weight"), (BOTH, None)],
)
def test_the_token_embedding(head, name):
    found = TABLE.token_embedding(make(), head)
    assert (found and found.name) == name
    assert found is None or found.shape == (53, 20)


# ---- ties -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "tied"),
    [
        ({}, ["pred_layer.proj.weight"]),
        (ADAPTIVE, ["pred_layer.proj.weight"]),
        ({"tie_word_embeddings": False}, []),
        ({"tie_word_embeddings": False, **ADAPTIVE}, []),
    ],
    ids=["plain", "adaptive", "untied", "untied_adaptive"],
)
def test_ties(settings, tied):
    assert [name for name, p in expand(**settings).items() if p.tied_to] == tied


def test_a_decoder_s_projection_is_tied_to_its_own_embedding():
    parameters = expand(BOTH)
    tied = {name: p.tied_to for name, p in parameters.items() if p.tied_to}
    assert tied == {"decoder.pred_layer.proj.weight": "decoder.embeddings.weight"}


def test_tf_model_h5_lists_no_tied_projection(tmp_path):
    pytest.importorskip("h5py")
    config = make()
    folder = save(tmp_path, make_arrays(config, LM), config, LM, format="tf")
    with open_checkpoint(folder, format="tf") as source:
        specs = source.specs()
    assert [name for name in specs if name.startswith("pred_layer")] == ["pred_layer_._proj/bias"]
    assert set(plan(LM, specs, "keras_h5").sources.values()) == set(specs)


@pytest.mark.parametrize(
    ("settings", "name", "spelled"),
    [
        ({}, "pred_layer.proj.bias", "pred_layer_._proj/bias"),
        ({"tie_word_embeddings": False}, "pred_layer.proj.weight", "pred_layer_._proj/kernel"),
        (
            {},
            "transformer.position_embeddings.weight",
            "transformer/position_embeddings/embeddings",
        ),
        (
            {"sinusoidal_embeddings": True},
            "transformer.position_embeddings.weight",
            "transformer/position_embeddings/embeddings",
        ),
        ({}, "transformer.lang_embeddings.weight", "transformer/lang_embeddings/embeddings"),
        ({}, "transformer.embeddings.weight", "transformer/embeddings/weight"),
        ({}, "transformer.attentions.1.q_lin.weight", "transformer/attentions_._1/q_lin/kernel"),
        ({}, "transformer.layer_norm1.0.bias", "transformer/layer_norm1_._0/beta"),
        (ADAPTIVE, "pred_layer.proj.tail.1.0.weight", "pred_layer/proj/tail_._1/0/kernel"),
    ],
)
def test_names_in_tf_model_h5(settings, name, spelled):
    assert spell(expand(**settings)[name], "keras_h5") == spelled


# ---- initial values -------------------------------------------------------------------------


def test_sinusoids_are_neither_drawn_nor_learned():
    positions = "transformer.position_embeddings.weight"
    for settings, fixed in (({}, False), ({"sinusoidal_embeddings": True}, True)):
        parameters = expand(**settings)
        assert [name for name, p in parameters.items() if not p.trainable] == [positions] * fixed
        assert [n for n, p in parameters.items() if p.init == "sinusoids"] == [positions] * fixed
        assert parameters[positions].decays is not fixed


@pytest.mark.parametrize("width", [15, 20])
def test_sines_and_cosines_take_turns(width):
    table = interleaved_sinusoids(29, width)
    assert (table.shape, table.dtype) == ((29, width), np.float32)
    rows = np.arange(29)
    np.testing.assert_allclose(table[:, 0], np.sin(rows), atol=1e-6)
    np.testing.assert_allclose(table[:, 1], np.cos(rows), atol=1e-6)
    np.testing.assert_allclose(table[:, 4], np.sin(rows / 10000 ** (4 / width)), atol=1e-6)
    np.testing.assert_allclose(table[:, 5], np.cos(rows / 10000 ** (4 / width)), atol=1e-6)


def test_the_reference_s_sinusoids():
    stored = load_file(GOLDEN / "single" / "model.safetensors")
    table = stored["transformer.position_embeddings.weight"]
    np.testing.assert_allclose(interleaved_sinusoids(*table.shape), table, atol=1e-7)


@pytest.mark.parametrize("head", [LM, BOTH, "XLMForQuestionAnswering"])
def test_embeddings_have_a_deviation_of_their_own(head):
    for name, p in expand(head, embed_init_std=0.3, init_std=0.05).items():
        embedding = p.kind is Kind.EMBEDDING
        assert embedding == ("embeddings" in name)
        assert p.std == (0.3 if embedding else 0.05)


def test_the_padding_row_of_words_starts_as_zeros():
    for name, p in expand(BOTH, pad_index=7).items():
        words = name in ("encoder.embeddings.weight", "decoder.embeddings.weight")
        assert p.padding_row == (7 if words else None)


# ---- loading --------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_the_reference_s_files_fit(folder):
    config = AutoConfig.from_pretrained(folder)
    stored = load_file(folder / "model.safetensors")
    head = config.architectures[0]
    result = plan_loading(TABLE, config, head, stored, "canonical")
    assert set(result.sources.values()) == set(stored)
    assert not result.new
    assert not result.dropped


@pytest.mark.parametrize("head", [name for name in TABLE.heads if name != BOTH])
@pytest.mark.parametrize("spelling", ["canonical", "flax", "keras_h5"])
def test_base_and_heads_load_into_each_other(head, spelling):
    settings = {"num_labels": 2}
    full, base = expand(head, **settings), expand(BASE, **settings)
    into_base = plan(BASE, specs_of(full, spelling), spelling, **settings)
    assert not into_base.new
    assert set(into_base.sources) == set(base)
    assert len(into_base.dropped) == len(specs_of(full)) - len(base)
    from_base = plan(head, specs_of(base, spelling), spelling, **settings)
    kept = {name for name, p in full.items() if p.tied_to is None}
    assert set(from_base.new) == {n for n in kept if not n.startswith("transformer.")}
    assert not from_base.dropped


def test_names_that_are_not_read_have_a_reason():
    specs = specs_of(expand(BOTH))
    specs["encoder.pred_layer.proj.weight"] = np.zeros((53, 20))
    specs["encoder.pred_layer.proj.bias"] = np.zeros(53)
    dropped = plan(BOTH, specs).dropped
    assert set(dropped.values()) == {"the encoder's own head is not used to translate"}
    assert len(dropped) == 2
    specs = specs_of(expand(**ADAPTIVE))
    specs["pred_layer.proj.weight"] = np.zeros((53, 20))
    specs["transformer.position_ids"] = np.zeros((1, 31))
    dropped = plan(LM, specs, **ADAPTIVE).dropped
    assert dropped == {
        "pred_layer.proj.weight": "tied to transformer.embeddings.weight",
        "transformer.position_ids": "positions are counted, not stored",
    }


@pytest.mark.parametrize("specs", [{}, specs_of(TABLE.expand(make(), LM))], ids=["empty", "other"])
def test_a_translation_model_does_not_start_from_nothing(specs):
    with pytest.raises(CheckpointError, match=r"missing: encoder\.position_embeddings\.weight"):
        plan(BOTH, specs)


# ---- shardings ------------------------------------------------------------------------------


def test_partition():
    parameters = expand(**ADAPTIVE)
    wanted = {
        "transformer.embeddings.weight": ("model", None),
        "transformer.position_embeddings.weight": (None, None),
        "transformer.lang_embeddings.weight": (None, None),
        "transformer.attentions.0.k_lin.weight": ("model", None),
        "transformer.attentions.0.k_lin.bias": ("model",),
        "transformer.attentions.0.out_lin.weight": (None, "model"),
        "transformer.attentions.0.out_lin.bias": (None,),
        "transformer.ffns.1.lin1.weight": ("model", None),
        "transformer.ffns.1.lin2.weight": (None, "model"),
        "transformer.layer_norm2.1.weight": (None,),
        "pred_layer.proj.head.weight": ("model", None),
        "pred_layer.proj.tail.0.1.weight": ("model", None),
    }
    assert {name: partition(parameters[name], "canonical") for name in wanted} == wanted


@pytest.mark.parametrize("head", [BASE, *TABLE.heads])
def test_every_axis_is_one_that_rules_can_name(head):
    known = {"vocab", "embed", "heads", "mlp", "rows", "labels"}
    for name, p in expand(head).items():
        assert set(p.axes) <= known, name
        assert len(p.axes) == len(p.shape), name
        widths = {length for length, axis in zip(p.shape, p.axes, strict=True) if axis == "embed"}
        assert widths <= {20, 40}, f"{name}: emb_dim, or twice as much for a pair"


def test_linear_styles():
    styles = linear_styles(expand(BOTH))
    assert styles["decoder.encoder_attn.1.v_lin"] == "colwise"
    assert styles["encoder.attentions.0.out_lin"] == "rowwise"
    assert styles["encoder.ffns.0.lin1"] == "colwise"
    assert styles["decoder.ffns.1.lin2"] == "rowwise"
    assert styles["decoder.pred_layer.proj"] == "colwise"
    assert len(styles) == 2 * (2 * 6 + 4) + 1
