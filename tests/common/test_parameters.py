"""The parameter tables against the manifests of transformers 4.37.2."""

import json
from pathlib import Path

import numpy as np
import pytest

from xlmfam import AutoConfig
from xlmfam.common.configs.auto import CONFIGS
from xlmfam.common.errors import XlmfamError
from xlmfam.common.parameters import (
    TABLES,
    Kind,
    is_transposed,
    layout_shape,
    linear_styles,
    parameter_count,
    partition,
    relayout,
    spell,
    table_of,
)

FOLDER = Path(__file__).parents[1] / "data" / "manifests"
MANIFESTS = {
    name: json.loads((FOLDER / f"{name.replace('-', '_')}.json").read_text()) for name in TABLES
}
REFUSED = {("transfo-xl", "sampled")}  # test_configs.py has what is said
CASES = [
    (family, variant, head)
    for family, manifest in MANIFESTS.items()
    for variant, entry in manifest["variants"].items()
    for head in entry["classes"]
    if (family, variant) not in REFUSED
]


def mended(family, variant, head):
    """Return what has another shape in the reference, where it cannot be run."""
    if head != "TransfoXLForSequenceClassification":
        return {}
    config = MANIFESTS[family]["variants"][variant]["config"]
    return {"score.weight": [len(config["id2label"]), config["d_model"]]}


def manifest_of(family, variant, head):
    return MANIFESTS[family]["variants"][variant]["classes"][head]


def over(cases):
    return pytest.mark.parametrize(("family", "variant", "head"), cases)


every = over(CASES)
# Where the reference has a model of that framework: it has none of some variants and families.
in_h5 = over([case for case in CASES if manifest_of(*case).get("h5")])
in_flax = over([case for case in CASES if manifest_of(*case).get("flax")])


def expanded(family, variant, head, **more):
    options = MANIFESTS[family]["variants"][variant]["options"]
    options = {**options, **manifest_of(family, variant, head).get("options", {}), **more}
    config = AutoConfig.for_model(family, **options)
    return table_of(family).expand(config, head)


def shapes(parameters, spelling, prefixed=False):
    return {
        spell(p, spelling, prefixed): list(layout_shape(p, spelling)) for p in parameters.values()
    }


def test_every_config_has_a_table():
    assert set(TABLES) == set(CONFIGS)


@every
def test_state_dict_names_shapes_and_order(family, variant, head):
    manifest = manifest_of(family, variant, head)
    computed = manifest.get("pt_buffers", ())
    expected = {n: shape for n, shape in manifest["pt_state_dict"].items() if n not in computed}
    expected |= mended(family, variant, head)
    parameters = expanded(family, variant, head)
    assert {name: list(p.shape) for name, p in parameters.items()} == expected
    assert shapes(parameters, "canonical") == expected


@every
def test_counts(family, variant, head):
    parameters = expanded(family, variant, head)
    manifest = manifest_of(family, variant, head)
    wrong = [manifest["pt_state_dict"][name] for name in mended(family, variant, head)]
    more = sum(np.prod(shape) for shape in mended(family, variant, head).values())
    less = sum(np.prod(shape) for shape in wrong)
    assert parameter_count(parameters) == manifest["pt_parameters"] + more - less


@every
def test_ties_are_what_safetensors_leaves_out(family, variant, head):
    tied = [name for name, p in expanded(family, variant, head).items() if p.tied_to]
    assert sorted(tied) == sorted(manifest_of(family, variant, head)["safetensors_missing"])


# What the reference's TensorFlow model forgets: it always uses the embedding as its head.
LOST_IN_H5 = {("xlm", "untied", "XLMWithLMHeadModel"): {"pred_layer_._proj/kernel": [20, 53]}}


@in_h5
def test_h5_names_and_shapes(family, variant, head):
    manifest = manifest_of(family, variant, head)["h5"]
    parameters = expanded(family, variant, head)
    listed = {
        name: p
        for name, p in parameters.items()
        if p.tied_to is None or table_of(family).h5_has_ties
    }
    expected = {**manifest["shapes"], **LOST_IN_H5.get((family, variant, head), {})}
    assert shapes(listed, "keras_h5") == expected
    for repeated in manifest.get("repeated", {}).values():
        assert repeated.items() <= expected.items()


@in_flax
def test_flax_names_and_shapes(family, variant, head):
    expected = manifest_of(family, variant, head)["flax"]
    parameters = expanded(family, variant, head)
    came = {spell(p, "flax"): list(layout_shape(p, "flax")) for p in parameters.values()}
    tied = {spell(p, "flax") for p in parameters.values() if p.tied_to}
    assert {k: v for k, v in came.items() if k not in tied} == {
        k: v for k, v in expected.items() if k not in tied
    }


@every
def test_keras_paths_follow_the_modules(family, variant, head):
    leaves = {"kernel", "bias", "gamma", "beta", "embeddings"}
    raw = (Kind.RAW, Kind.RAW_BIAS)
    for parameter in expanded(family, variant, head).values():
        path, _, leaf = spell(parameter, "keras").rpartition("/")
        own = parameter.full_name.rpartition(".")[2]
        assert leaf == own if parameter.kind in raw else leaf in leaves
        assert path == parameter.full_name.rpartition(".")[0].replace(".", "/")


def test_names_are_unique_in_every_spelling():
    for case in CASES:
        parameters = expanded(*case)
        for spelling in ("canonical", "flax", "keras", "keras_h5"):
            names = [spell(p, spelling) for p in parameters.values()]
            assert len(set(names)) == len(names)


def test_only_linear_weights_are_transposed():
    for p in expanded("xglm", "untied", "XGLMForCausalLM").values():
        assert not is_transposed(p, "canonical")
        for spelling in ("flax", "keras", "keras_h5"):
            assert is_transposed(p, spelling) == (p.kind is Kind.LINEAR)


def test_relayout_transposes_once_and_keeps_the_rest():
    parameters = expanded("xglm", "untied", "XGLMForCausalLM")
    rng = np.random.default_rng(0)
    for p in parameters.values():
        array = rng.normal(size=p.shape)
        other = relayout(array, p, "canonical", "flax")
        assert other.shape == layout_shape(p, "flax")
        assert relayout(other, p, "flax", "keras") is other
        np.testing.assert_array_equal(relayout(other, p, "keras", "canonical"), array)


def test_initial_values_and_decay():
    for p in expanded("xglm", "untied", "XGLMForCausalLM").values():
        is_vector = len(p.shape) == 1
        assert p.decays != is_vector
        expected = "normal" if not is_vector else "ones" if p.kind is Kind.NORM_SCALE else "zeros"
        assert p.init == expected
        assert (p.padding_row == 1) == (p.kind is Kind.EMBEDDING)


def test_unknown_family_and_class():
    with pytest.raises(XlmfamError, match=r"'bert' is not one of .*xglm"):
        table_of("bert")
    with pytest.raises(XlmfamError, match="no class of family xglm: XGLMModel, XGLMForCausalLM"):
        table_of("xglm").expand(AutoConfig.for_model("xglm"), "XGLMForBallet")


# ---- shardings ------------------------------------------------------------------------------


def test_partition_follows_the_axes_in_every_layout():
    parameters = expanded("xglm", "untied", "XGLMForCausalLM")
    layer = "model.layers.0"
    wanted = {
        "model.embed_tokens.weight": (("model", None), ("model", None)),
        f"{layer}.self_attn.q_proj.weight": (("model", None), (None, "model")),
        f"{layer}.self_attn.q_proj.bias": (("model",), ("model",)),
        f"{layer}.self_attn.out_proj.weight": ((None, "model"), ("model", None)),
        f"{layer}.self_attn.out_proj.bias": ((None,), (None,)),
        f"{layer}.fc1.weight": (("model", None), (None, "model")),
        f"{layer}.fc2.weight": ((None, "model"), ("model", None)),
        f"{layer}.final_layer_norm.weight": ((None,), (None,)),
        "lm_head.weight": (("model", None), (None, "model")),
    }
    for name, (canonical, flax) in wanted.items():
        assert partition(parameters[name], "canonical") == canonical
        assert partition(parameters[name], "flax") == flax
    rules = {"embed": "data"}
    assert partition(parameters[f"{layer}.fc1.weight"], "flax", rules) == ("data", None)


def test_linear_styles():
    styles = linear_styles(expanded("xglm", "cross_attention_untied", "XGLMForCausalLM"))
    assert styles["model.layers.0.encoder_attn.k_proj"] == "colwise"
    assert styles["model.layers.0.self_attn.out_proj"] == "rowwise"
    assert styles["model.layers.0.fc1"] == "colwise"
    assert styles["model.layers.0.fc2"] == "rowwise"
    assert styles["lm_head"] == "colwise"
    assert len(styles) == 8 + 2 + 1
