"""Hostile checkpoints in every format: each ends in a clear error, soon, and in little memory."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import hostile_trees  # its cases join the others
import numpy as np
import pytest
from hostile_files import BOMBS, CASES, LM, make
from hostile_pickles import LAYOUTS, PICKLE_BOMBS, put
from tiny_checkpoints import change_json, make_arrays, make_config, save

from xlmfam.cli.main import main
from xlmfam.common import pickles
from xlmfam.common.errors import CheckpointError, XlmfamError
from xlmfam.conversion import checksum, convert, diff, inspect
from xlmfam.conversion.runners import installed_backends

HAS_TORCH = "pt" in installed_backends()
# More than that, on top of what a process has when all libraries are loaded, nothing may ask for.
GIBIBYTES = 1.5
SECONDS = 30


def skip_without_torch(case):
    if case.needs_torch and not HAS_TORCH:
        pytest.skip("needs torch")


@pytest.mark.parametrize("name", CASES)
def test_it_is_refused(tmp_path, name):
    case = CASES[name]
    skip_without_torch(case)
    path = case.make(tmp_path / "source")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(XlmfamError, match=case.says) as caught:
        convert(path, tmp_path / "target")
    assert len(str(caught.value)) < 4000
    assert "swordfish" not in str(caught.value)
    try:
        said = "\n".join(inspect(path).problems)
    except XlmfamError as error:
        said = str(error)
    assert re.search(case.says, said)
    assert sorted(tmp_path.rglob("*")) == before


def test_the_command_says_one_line(tmp_path, capsys):
    for name in ("safetensors overlapping", "bin that runs code", "config: layers"):
        skip_without_torch(CASES[name])
        path = str(CASES[name].make(tmp_path / name))
        for words in (["convert", path, str(tmp_path / "x")], ["diff", path, path]):
            assert main(words) == 2
            said = capsys.readouterr()
            assert said.out == ""
            assert re.fullmatch(r"error: [^\n]+\n", said.err)


@pytest.mark.skipif(not HAS_TORCH, reason="needs torch")
def test_the_attacks_are_real(tmp_path):
    """What would run code does so where it is let."""
    import torch

    name = "bin that runs code"
    path = CASES[name].make(tmp_path / "source")
    torch.load(path / "pytorch_model.bin", weights_only=False)
    assert (tmp_path / "source" / "was_here").is_dir()


# ---- what would never end -------------------------------------------------------------------


@pytest.fixture
def low_limits(monkeypatch):
    """Small bombs show what large ones do."""
    monkeypatch.setattr(pickles, "_MOST_INSTRUCTIONS", 100_000)
    monkeypatch.setattr(pickles, "_MOST_MEMORY", 10 * 2**20)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", PICKLE_BOMBS)
def test_pickles(tmp_path, low_limits, name, layout):
    if "bin" in layout and not HAS_TORCH:
        pytest.skip("needs torch")
    path = put(tmp_path / "source", PICKLE_BOMBS[name], layout)
    started = time.process_time()
    for call in (inspect, lambda path: convert(path, tmp_path / "target")):
        with pytest.raises(XlmfamError):
            call(path)
    assert time.process_time() - started < 10
    assert not (tmp_path / "target").exists()


RUN = """
import json, re, resource, sys, time
sys.path[:0] = json.loads(sys.argv[1])
import h5py, numpy, safetensors
import hostile_files, hostile_pickles, hostile_trees
from xlmfam.common.errors import XlmfamError
from xlmfam.conversion import convert, inspect
if json.loads(sys.argv[2]):
    import torch
from pathlib import Path
import xlmfam.conversion.formats.pytorch_bin, xlmfam.conversion.formats.tf_h5
folder = Path(sys.argv[3])
paths = {n: c.make(folder / str(i)) for i, (n, c) in enumerate(hostile_files.BOMBS.items())
         if json.loads(sys.argv[2]) or not c.needs_torch}
size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + int(float(sys.argv[4]) * 2**30),) * 2)
for name, path in paths.items():
    started = time.process_time()
    try:
        convert(path, folder / "target")
        came = "nothing"
    except XlmfamError as error:
        came = str(error)
    except BaseException as error:
        came = "RAW " + repr(error)
    print(json.dumps([name, came[:2000], time.process_time() - started]), flush=True)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux")
def test_bombs(tmp_path):
    """All in one process that may not have much more memory than it has."""
    arguments = [json.dumps(sys.path), json.dumps(HAS_TORCH), str(tmp_path), str(GIBIBYTES)]
    run = subprocess.run(
        [sys.executable, "-c", RUN, *arguments], capture_output=True, text=True, timeout=600
    )
    came = {name: (said, took) for name, said, took in map(json.loads, run.stdout.splitlines())}
    expected = {name for name, case in BOMBS.items() if HAS_TORCH or not case.needs_torch}
    assert came.keys() == expected, run.stderr[-2000:]
    for name, (said, took) in came.items():
        assert re.search(BOMBS[name].says, said), (name, said)
        assert not said.startswith("RAW"), (name, said)
        assert took < SECONDS, (name, took)
    assert not (tmp_path / "target").exists()


# ---- what does no harm ----------------------------------------------------------------------


def test_a_wrong_total_size_is_of_no_account(tmp_path):
    """Nothing goes by it; files that are whole otherwise are read."""
    source = make(tmp_path / "source", max_shard_size=4000)
    index = source / "model.safetensors.index.json"
    for total in (0, -5, 10**30, "many", None, [1]):
        change_json(index, metadata={"total_size": total})
        assert checksum(source) == checksum(make(tmp_path / "whole"))


@pytest.mark.parametrize("name", ["lists", "notes", "nothing"])
def test_what_a_pickle_asks_for_is_counted(tmp_path, low_limits, name):
    path = tmp_path / "vocab.pkl"
    path.write_bytes(PICKLE_BOMBS[name])
    with pytest.raises(CheckpointError, match="more in it than any vocabulary"):
        pickles.read_pickle(path)


def test_a_large_vocabulary_is_no_bomb(tmp_path, monkeypatch):
    """A tenth of the One Billion Word corpus's, within a tenth of what is allowed."""
    import pickle
    from collections import Counter, OrderedDict

    monkeypatch.setattr(pickles, "_MOST_INSTRUCTIONS", pickles._MOST_INSTRUCTIONS // 10)
    monkeypatch.setattr(pickles, "_MOST_MEMORY", pickles._MOST_MEMORY // 10)
    words = [f"word-{i:x}" for i in range(240_000)]
    kept = words[:79_347]
    value = {"idx2sym": kept, "sym2idx": OrderedDict((w, i) for i, w in enumerate(kept))}
    value["counter"] = Counter({word: i for i, word in enumerate(words)})
    (tmp_path / "cache.pkl").write_bytes(pickle.dumps(value, 2))
    assert pickles.read_pickle(tmp_path / "cache.pkl")["idx2sym"] == kept


@pytest.mark.parametrize("to", ["safetensors", "flax", "tf"])
def test_values_that_are_no_numbers_are_reported(tmp_path, to):
    settings = make_config(LM)
    arrays = make_arrays(settings)
    arrays["model.layers.0.fc2.weight"][3, 4:6] = np.nan
    arrays["model.layer_norm.bias"][1] = -np.inf
    source = save(tmp_path / "source", arrays, settings, LM)
    report = convert(source, tmp_path / "target", to)
    assert report.warnings == [
        "model.layers.0.fc2.weight: 2 of its 240 values are infinite or no number",
        "model.layer_norm.bias: 1 of its 12 values are infinite or no number",
    ]
    assert diff(source, tmp_path / "target").ok


def test_values_that_a_cast_makes_infinite_are_reported(tmp_path):
    settings = make_config(LM)
    arrays = make_arrays(settings)
    arrays["model.layer_norm.weight"][:] = 1e5
    source = save(tmp_path / "source", arrays, settings, LM)
    assert convert(source, tmp_path / "same").warnings == []
    (said,) = convert(source, tmp_path / "half", dtype="float16").warnings
    assert said.startswith("model.layer_norm.weight: 12 of its 12 values")


# ---- tokenizers -----------------------------------------------------------------------------


def refused(match, source, target):
    with pytest.raises(XlmfamError, match=match):
        convert(source, target)
    assert not target.exists()


def test_a_vocabulary_without_end(tmp_path):
    source = make(tmp_path / "source")
    with open(source / "tokenizer.json", "wb") as file:
        file.truncate(2**30)
    refused("too many for a file of a tokenizer", source, tmp_path / "target")


def test_a_vocabulary_that_is_a_link(tmp_path):
    source = make(tmp_path / "source")
    (tmp_path / "secret").write_text("swordfish")
    (source / "tokenizer.json").symlink_to(tmp_path / "secret")
    refused("link out of its folder", source, tmp_path / "target")
    (source / "tokenizer.json").unlink()
    (source / "words.json").write_text("{}")
    (source / "tokenizer.json").symlink_to("words.json")
    assert convert(source, tmp_path / "target").copied == ["tokenizer.json"]


def test_the_links_of_the_hub_s_cache(tmp_path):
    cache = tmp_path / "models--me--mine"
    source = make(cache / "snapshots" / "0123")
    (cache / "blobs").mkdir()
    (cache / "blobs" / "4567").write_text("{}")
    (source / "tokenizer.json").symlink_to("../../blobs/4567")
    assert convert(source, tmp_path / "target").copied == ["tokenizer.json"]


def test_damaged_tokenizers_are_carried_as_they_are(tmp_path):
    """They are copied and not read: what is wrong with them their own reader says."""
    source = make(tmp_path / "source")
    files = {"sentencepiece.bpe.model": b"\xff\0\xff" * 99, "tokenizer.json": b'{"a": "\xff"}'}
    for name, content in files.items():
        (source / name).write_bytes(content)
    convert(source, tmp_path / "target")
    for name, content in files.items():
        assert (tmp_path / "target" / name).read_bytes() == content


def test_generation_options_that_are_none(tmp_path):
    source = make(tmp_path / "source")
    for text in (b"[]", b"\xff", b"[" * 10**5, b'{"x": ' * 80 + b"1" + b"}" * 80):
        (source / "generation_config.json").write_bytes(text)
        refused("generation_config", source, tmp_path / "target")


def test_the_list_of_files_covers_every_format():
    names = " ".join([*CASES, *BOMBS])
    assert hostile_trees.__name__ == "hostile_trees"
    for word in ("safetensors", "shard", "index", "bin", "msgpack", "h5", "config", "original"):
        assert word in names
