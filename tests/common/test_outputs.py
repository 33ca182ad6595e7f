"""Outputs: attribute, key, index, slice, and only what is there."""

import copy
import json
import pickle
from pathlib import Path

import pytest

from xlmfam.common.outputs import OUTPUTS, CausalLMOutputWithCrossAttentions, GenerateOutput
from xlmfam.common.parameters import TABLES

FOLDER = Path(__file__).parents[1] / "data" / "manifests"
MANIFESTS = {
    name: json.loads((FOLDER / f"{name.replace('-', '_')}.json").read_text()) for name in TABLES
}
DOCUMENTED = {
    model: entry
    for manifest in MANIFESTS.values()
    for model, entry in manifest.get("outputs", {}).items()
}

Output = CausalLMOutputWithCrossAttentions


def test_attribute_key_index_and_slice_are_the_same_thing():
    output = Output(logits="b", loss="a", attentions=("c",))
    assert output.loss == output["loss"] == output[0] == "a"
    assert output.logits == output["logits"] == output[1] == "b"
    assert output[-1] == ("c",)
    assert output[:2] == ("a", "b")
    assert output.to_tuple() == ("a", "b", ("c",))
    assert list(output) == list(output.keys()) == ["loss", "logits", "attentions"]
    assert len(output) == 3
    assert tuple(output.values()) == output.to_tuple()


def test_fields_that_are_none_do_not_count():
    output = Output(loss=None, logits="b")
    assert output.loss is None
    assert output[0] == "b"
    assert "loss" not in output
    with pytest.raises(KeyError):
        output["loss"]
    with pytest.raises(IndexError):
        output[1]


def test_fields_keep_their_order_whatever_the_call_s():
    assert list(Output(**dict.fromkeys(reversed(Output.fields), 1))) == list(Output.fields)


def test_values_can_be_set():
    output = Output(loss=1, logits=2)
    output.loss = 3
    output["logits"] = 4
    assert output.to_tuple() == (3, 4)
    with pytest.raises(AttributeError, match="no field 'lss'"):
        output.lss = 1


def test_a_field_set_later_keeps_the_field_order():
    output = Output(logits=2)
    output.loss = 1
    assert output.to_tuple() == (1, 2)
    output.loss = None
    assert output.to_tuple() == (2,)
    assert output.loss is None


def test_unknown_fields():
    with pytest.raises(TypeError, match="no field nothing"):
        Output(nothing=1)
    with pytest.raises(AttributeError, match="no field 'nothing'"):
        _ = Output(logits=1).nothing
    assert not hasattr(Output(), "__array__")


@pytest.mark.parametrize(
    "again", [copy.copy, copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))]
)
def test_copies_and_pickles(again):
    output = GenerateOutput(sequences=[1], scores=([2.0],))
    assert again(output) == output
    assert type(again(output)) is GenerateOutput
    assert again(output).sequences == [1]


def test_every_output_is_made_of_pairs_and_mappings():
    for output in OUTPUTS:
        first = output.fields[0]
        assert output({first: 1}) == output([(first, 1)]) == output(**{first: 1})
        assert len(set(output.fields)) == len(output.fields)


@pytest.mark.parametrize("entry", DOCUMENTED.values(), ids=list(DOCUMENTED))
def test_fields_are_the_reference_s_in_its_order(entry):
    by_name = {output.__name__: output for output in OUTPUTS}
    assert list(by_name[entry["class"]].fields) == entry["fields"]


def test_every_output_says_what_its_fields_are():
    for output in OUTPUTS:
        assert all(field in output.__doc__ for field in output.fields), output
        assert len({other.__name__ for other in OUTPUTS}) == len(OUTPUTS)
