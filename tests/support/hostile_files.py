"""Checkpoints that lie, attack or are damaged, each made on the spot.

`CASES` maps a name to a `Case`: it fills an empty folder and gives the path to open. `BOMBS` are
those that would take memory or time without end; they run in a process with a limit. Those with
pickles in them are in `hostile_pickles`, msgpack and HDF5 in `hostile_trees`.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tiny_checkpoints import change_json, make_arrays, make_config, save
from tiny_checkpoints import make as make_any

LM = "XGLMForCausalLM"


@dataclass(frozen=True)
class Case:
    """A hostile checkpoint.

    Attributes:
        make: Fills a folder; gives what to open.
        says: What the error must say, as a regular expression.
        needs_torch: Whether PyTorch must be there to come so far.
    """

    make: Callable[[Path], Path]
    says: str
    needs_torch: bool = False


CASES: dict[str, Case] = {}
BOMBS: dict[str, Case] = {}


def case(says, bomb=False, torch=False):
    def register(function):
        name = function.__name__.replace("_", " ").strip()
        (BOMBS if bomb else CASES)[name] = Case(function, says, torch)
        return function

    return register


def config(folder, **settings):
    """A config beside which a hostile file is put."""
    folder.mkdir(parents=True, exist_ok=True)
    made = make_config(LM)
    made.architectures = [LM]
    made.save_pretrained(folder)
    change_json(folder / "config.json", **settings)
    return folder


def make(folder, **kwargs):
    """A checkpoint that is good."""
    settings = make_config(LM)
    return save(folder, make_arrays(settings), settings, LM, **kwargs)


# ---- safetensors --------------------------------------------------------------------------


def safetensors(folder, header, data=b"", length=None):
    """A file with any header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    size = len(text) if length is None else length
    (config(folder) / "model.safetensors").write_bytes(struct.pack("<Q", size) + text + data)
    return folder


def entry(begin, end, shape=None, dtype="F32"):
    shape = [(end - begin) // 4] if shape is None else shape
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@case("truncated")
def safetensors_empty(folder):
    (config(folder) / "model.safetensors").write_bytes(b"")
    return folder


@case("truncated")
def safetensors_of_seven_bytes(folder):
    (config(folder) / "model.safetensors").write_bytes(b"\1\0\0\0\0\0\0")
    return folder


@case("truncated or damaged")
def safetensors_header_of_2_63(folder):
    return safetensors(folder, {}, length=2**63)


@case("truncated or damaged")
def safetensors_header_beyond_the_file(folder):
    return safetensors(folder, {"x": entry(0, 8)}, bytes(8), length=1000)


@case("truncated or damaged")
def safetensors_header_is_no_json(folder):
    return safetensors(folder, b'{"x": [}' + b" " * 8)


@case("truncated or damaged")
def safetensors_header_is_not_utf_8(folder):
    return safetensors(folder, b'{"\xff\xfe": {}}' + b" " * 8)


@case("truncated or damaged")
def safetensors_overlapping(folder):
    return safetensors(folder, {"x": entry(0, 8), "y": entry(4, 12)}, bytes(12))


@case("truncated or damaged")
def safetensors_with_a_hole(folder):
    return safetensors(folder, {"x": entry(0, 8), "y": entry(12, 20)}, bytes(20))


@case("truncated or damaged")
def safetensors_truncated_data(folder):
    return safetensors(folder, {"x": entry(0, 800)}, bytes(799))


@case("truncated or damaged")
def safetensors_more_data(folder):
    return safetensors(folder, {"x": entry(0, 8)}, bytes(80))


@case("truncated or damaged|twice")
def safetensors_one_name_twice(folder):
    one = json.dumps({"x": entry(0, 8)})[:-1]
    return safetensors(folder, f"{one}, {one[1:]}}}".encode(), bytes(8))


@case("truncated or damaged")
def safetensors_sizes_overflow(folder):
    return safetensors(folder, {"x": entry(0, 8, [2**62, 8])}, bytes(8))


@case("truncated or damaged")
def safetensors_negative_sizes(folder):
    return safetensors(folder, {"x": entry(0, 8, [-1, -2])}, bytes(8))


@case("no array can have")
def safetensors_a_thousand_dimensions(folder):
    return safetensors(folder, {"x": entry(0, 0, [0] * 1000)})


@case("no array can have")
def safetensors_empty_beyond_measure(folder):
    return safetensors(folder, {"x": entry(0, 0, [2**62, 0])})


@case("truncated or damaged")
def safetensors_deep(folder):
    return safetensors(folder, b'{"x": ' + b"[" * 200_000 + b"]" * 200_000 + b"}")


@case("misshapen: model.layers.0.fc1.weight is \\(12, 20\\)")
def safetensors_other_shapes(folder):
    make(folder)
    content = (folder / "model.safetensors").read_bytes()
    # As many values, and spaces for what the text is shorter.
    before, after = b'fc1.weight":{"dtype":"F32","shape":[20,12]', b'"shape":[12,20]'
    assert content.count(before) == 2
    (folder / "model.safetensors").write_bytes(content.replace(before, before[:-15] + after))
    return folder


@case("int64; parameters must be floating-point")
def safetensors_whole_numbers(folder):
    arrays = make_arrays(make_config())
    header, data = {}, b""
    for name, array in arrays.items():
        kept = array.astype(np.int64).tobytes()
        header[name] = entry(len(data), len(data) + len(kept), list(array.shape), "I64")
        data += kept
    return safetensors(folder, header, data)


@case("no model's", bomb=True)
def safetensors_header_of_90_mb(folder):
    return safetensors(folder, b"{" + b" " * 90_000_000 + b"}")


@case("unexpected|truncated|no array", bomb=True)
def safetensors_a_list_of_8_mb(folder):
    shape = b"[" + b",".join([b"1"] * 3_999_999) + b",0]"
    entry = b'{"dtype":"F32","data_offsets":[0,0],"shape":%s}' % shape
    return safetensors(folder, b'{"x":%s}' % entry)


@case("missing: model.embed_tokens", bomb=True)
def safetensors_of_many_tensors(folder):
    each = b'"%d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    return safetensors(folder, b"{" + b",".join(each % i for i in range(20_000)) + b"}")


# ---- shards -------------------------------------------------------------------------------


def sharded(folder, change=None, files=None):
    """A checkpoint in shards whose index is changed."""
    make(folder, max_shard_size=4000)
    assert len(list(folder.glob("*.safetensors"))) > 3
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    if change is not None:
        change(index)
    path.write_text(json.dumps(index))
    return folder


def _placed(where):
    def change(index):
        index["weight_map"]["model.layer_norm.weight"] = where

    return change


@case("only the names of files in the same folder")
def shard_in_the_folder_above(folder):
    return sharded(folder, _placed("../model-00001-of-00004.safetensors"))


@case("only the names of files in the same folder")
def shard_at_an_absolute_path(folder):
    return sharded(folder, _placed("/etc/hostname"))


@case("only the names of files in the same folder")
def shard_on_another_drive(folder):
    return sharded(folder, _placed("C:\\secret.safetensors"))


@case("only the names of files in the same folder")
def shard_is_a_number(folder):
    return sharded(folder, _placed(7))


@case("1 of \\d+ shards are missing: nowhere")
def shard_is_missing(folder):
    return sharded(folder, _placed("nowhere.safetensors"))


@case("1 of \\d+ shards are missing: pipe")
def shard_is_a_pipe(folder):
    sharded(folder, _placed("pipe.safetensors"))
    os.mkfifo(folder / "pipe.safetensors")
    return folder


@case("1 of \\d+ shards are missing: link")
def shard_is_a_link_to_nothing(folder):
    sharded(folder, _placed("link.safetensors"))
    (folder / "link.safetensors").symlink_to("../nothing")
    return folder


@case("link.safetensors: .*truncated or damaged")
def shard_is_a_link_to_a_secret(folder):
    sharded(folder, _placed("link.safetensors"))
    (folder.parent / "secret").write_text("the password is swordfish")
    (folder / "link.safetensors").symlink_to("../secret")
    return folder


@case("not where the index places them")
def shard_lacks_a_tensor(folder):
    return sharded(folder, lambda index: index["weight_map"].update(more=_first(index)))


def _first(index):
    return sorted(index["weight_map"].values())[0]


@case("tensors lie in both")
def shard_twice(folder):
    sharded(folder, lambda index: index["weight_map"].update(more="copy.safetensors"))
    some = sorted(folder.glob("model-*.safetensors"))[0]
    (folder / "copy.safetensors").write_bytes(some.read_bytes())
    return folder


@case("not a readable index")
def index_is_deep(folder):
    text = "[" * 100_000 + "]" * 100_000
    (config(folder) / "model.safetensors.index.json").write_text(text)
    return folder


@case("not a readable index")
def index_is_not_utf_8(folder):
    (config(folder) / "model.safetensors.index.json").write_bytes(b'{"weight_map": "\xff"}')
    return folder


@case('no "weight_map"')
def index_of_a_list(folder):
    (config(folder) / "model.safetensors.index.json").write_text('{"weight_map": ["x"]}')
    return folder


@case("too large for an index", bomb=True)
def index_of_a_gigabyte(folder):
    with open(config(folder) / "model.safetensors.index.json", "wb") as file:
        file.truncate(2**30)
    return folder


@case("no.*weight_map", bomb=True)
def index_of_lists(folder):
    (config(folder) / "model.safetensors.index.json").write_text("[" + "[]," * 1_500_000 + "[]]")
    return folder


# ---- configs ------------------------------------------------------------------------------

WRONG_SETTINGS = {
    "layers": ({"num_layers": 10**9}, "num_hidden_layers must be at most"),
    "layers beyond counting": ({"num_layers": 10**30}, "beyond any model|at most"),
    "heads": ({"attention_heads": 10**9, "d_model": 10**9}, "num_attention_heads must be at most"),
    "labels": ({"num_labels": 10**9}, "num_labels"),
    "width": ({"d_model": 10**300}, "d_model"),
    "no number": ({"d_model": "12"}, "d_model"),
    "half a layer": ({"num_layers": 2.5}, "num_layers"),
    "minus": ({"ffn_dim": -20}, "ffn_dim"),
    "true": ({"vocab_size": True}, "vocab_size"),
    "a list": ({"vocab_size": [61]}, "vocab_size"),
    "a dict of classes": ({"architectures": {"0": LM}}, "architectures must be a list"),
    "classes of numbers": ({"architectures": [7]}, "architectures must be a list"),
    "another class": ({"architectures": ["os.system"]}, "os.system"),
    "labels of lists": ({"id2label": [[1, 2, 3]]}, "not a valid"),
    "labels of words": ({"id2label": {"x": "y"}}, "not a valid"),
    "pruned": ({"pruned_heads": {"0": 5}}, "not a valid"),
    "another family": ({"model_type": "../../etc"}, "is not one of"),
    "a family that cannot be looked up": ({"model_type": ["xglm"]}, "model_type"),
    "no family": ({"model_type": 7}, "is not one of"),
    "more values than the file": ({"vocab_size": 2**39}, "misshapen"),
}


def _config_cases():
    def put(settings):
        def fill(folder):
            make(folder)
            change_json(folder / "config.json", **settings)
            return folder

        return fill

    for name, (settings, says) in WRONG_SETTINGS.items():
        CASES[f"config: {name}"] = Case(put(settings), says)


_config_cases()


@case("is not valid JSON")
def config_is_not_utf_8(folder):
    (make(folder) / "config.json").write_bytes(b'{"model_type": "xglm\xff"}')
    return folder


@case("is not valid JSON")
def config_is_endlessly_deep(folder):
    (make(folder) / "config.json").write_text("[" * 100_000 + "]" * 100_000)
    return folder


@case("levels")
def config_is_deep(folder):
    value = {}
    for _ in range(300):
        value = {"x": value}
    change_json(make(folder) / "config.json", my_own=value)
    return folder


@case("is not valid JSON")
def config_with_a_number_of_many_digits(folder):
    (make(folder) / "config.json").write_text('{"vocab_size": ' + "9" * 10_000 + "}")
    return folder


@case("holds a list")
def config_is_a_list(folder):
    (make(folder) / "config.json").write_text("[]")
    return folder


@case("too large for a config", bomb=True)
def config_of_100_mb(folder):
    (make(folder) / "config.json").write_text(" " * 100_000_000 + "{}")
    return folder


@case("too many of|not a valid|languages", bomb=True)
def config_of_a_million_languages(folder):
    make_any(folder, "XmodForMaskedLM")
    languages = [f"{i:x}" for i in range(900_000)]
    change_json(folder / "config.json", languages=languages, default_language=None)
    return folder
