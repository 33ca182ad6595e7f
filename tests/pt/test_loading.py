"""from_pretrained and save_pretrained: arguments, errors, and nothing half-written."""

import json
import pickle
import struct
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from xlmfam import pt
from xlmfam.common.errors import CheckpointError, ConfigError, XlmfamError
from xlmfam.pt import XGLMForCausalLM, XGLMModel


@pytest.fixture
def folder(make, tmp_path):
    make().save_pretrained(tmp_path / "m")
    return tmp_path / "m"


def test_a_loaded_model_evaluates_in_float32(folder, ids):
    model = XGLMForCausalLM.from_pretrained(folder)
    assert not model.training
    assert model.dtype is torch.float32
    assert model.config.name_or_path == str(folder)
    assert all(p.requires_grad for p in model.parameters())
    assert model.generation_config.eos_token_id == 2


@pytest.mark.parametrize("name", ["torch_dtype", "dtype"])
@pytest.mark.parametrize("value", [torch.bfloat16, "bfloat16", "torch.bfloat16"])
def test_dtype_arguments(folder, name, value):
    model = XGLMForCausalLM.from_pretrained(folder, **{name: value})
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert XGLMForCausalLM.from_config(model.config, value).dtype is torch.bfloat16


def test_automatic_dtype_is_the_stored_one(make, tmp_path):
    make().half().save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["torch_dtype"] == "float16"
    assert XGLMForCausalLM.from_pretrained(tmp_path).dtype is torch.float32
    assert XGLMForCausalLM.from_pretrained(tmp_path, torch_dtype="auto").dtype is torch.float16


@pytest.mark.parametrize("value", ["int8", "float33", torch.int64])
def test_a_dtype_that_cannot_be(folder, value):
    with pytest.raises(ConfigError, match="dtype must be"):
        XGLMForCausalLM.from_pretrained(folder, torch_dtype=value)


def test_overrides_and_unknown_arguments(folder):
    model = XGLMForCausalLM.from_pretrained(folder, dropout=0.4, use_cache=False)
    assert (model.config.dropout, model.config.use_cache) == (0.4, False)
    with pytest.raises(ConfigError, match="called dropoot"):
        XGLMForCausalLM.from_pretrained(folder, dropoot=0.4)
    with pytest.raises(ConfigError, match="called to_dict"):
        XGLMForCausalLM.from_pretrained(folder, to_dict=1)
    with pytest.raises(ConfigError, match="dropout must be a probability"):
        XGLMForCausalLM.from_pretrained(folder, dropout=4)


def test_a_config_of_one_s_own(folder, config):
    model = XGLMForCausalLM.from_pretrained(folder, config=config(dropout=0.3))
    assert model.config.dropout == 0.3
    with pytest.raises(ConfigError, match="config must be a XGLMConfig"):
        XGLMForCausalLM.from_pretrained(folder, config={"d_model": 24})


def test_arguments_that_transformers_users_write(folder):
    XGLMForCausalLM.from_pretrained(
        folder, low_cpu_mem_usage=True, use_safetensors=True, trust_remote_code=False, from_tf=True
    )


def test_loading_info(folder, make, tmp_path):
    _, info = XGLMForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert info == {"missing_keys": [], "unexpected_keys": []}
    make("XGLMModel").save_pretrained(tmp_path / "base")
    model, info = XGLMForCausalLM.from_pretrained(
        tmp_path / "base", tie_word_embeddings=False, output_loading_info=True
    )
    assert info["missing_keys"] == ["lm_head.weight"]
    assert model.lm_head.weight.std() > 0


def test_a_new_head_is_announced(make, tmp_path, caplog):
    make("XGLMModel").save_pretrained(tmp_path)
    XGLMForCausalLM.from_pretrained(tmp_path, tie_word_embeddings=False)
    assert "new in XGLMForCausalLM, to be trained: lm_head.weight" in caplog.text


def test_mismatched_sizes(make, tmp_path):
    make(tie_word_embeddings=False).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"2 problem.*\n.*misshapen.*\n.*misshapen"):
        XGLMForCausalLM.from_pretrained(tmp_path, vocab_size=60)
    model = XGLMForCausalLM.from_pretrained(tmp_path, vocab_size=60, ignore_mismatched_sizes=True)
    assert model.lm_head.weight.shape == (60, 24)


def test_a_folder_within_a_folder(make, tmp_path):
    make().save_pretrained(tmp_path / "a" / "b")
    assert XGLMForCausalLM.from_pretrained(tmp_path / "a", subfolder="b").config.d_model == 24


def test_generation_options_travel(make, tmp_path):
    model = make()
    model.generation_config = model.generation_config.update(num_beams=3, eos_token_id=[2, 5])
    model.save_pretrained(tmp_path)
    again = XGLMForCausalLM.from_pretrained(tmp_path)
    assert again.generation_config == model.generation_config


# ---- damage ---------------------------------------------------------------------------------


def test_another_family(folder):
    data = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**data, "model_type": "bert"}))
    with pytest.raises(ConfigError, match="this one is 'bert'"):
        XGLMForCausalLM.from_pretrained(folder)
    with pytest.raises(ConfigError, match="'bert' is not one of xlmfam's"):
        pt.AutoModelForCausalLM.from_pretrained(folder)


def test_a_checkpoint_of_another_size(folder):
    with pytest.raises(CheckpointError, match=r"missing: model.layers.2.self_attn.k_proj.weight"):
        XGLMForCausalLM.from_pretrained(folder, num_layers=3)
    with pytest.raises(CheckpointError, match=r"unexpected: model.layers.1.fc1.weight"):
        XGLMForCausalLM.from_pretrained(folder, num_layers=1)


@pytest.mark.parametrize("keep", [0, 5, 300, -1])
def test_a_truncated_file(folder, keep):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        XGLMForCausalLM.from_pretrained(folder)


def test_a_header_that_lies_about_its_length(folder):
    path = folder / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(struct.pack("<Q", 2**62) + data[8:])
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        XGLMForCausalLM.from_pretrained(folder)


def test_a_missing_shard(make, tmp_path):
    make().save_pretrained(tmp_path, max_shard_size=8000)
    shard = sorted(tmp_path.glob("model-*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(CheckpointError, match=shard.name):
        XGLMForCausalLM.from_pretrained(tmp_path)


def test_missing_files(folder, tmp_path):
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"found none of model\.safetensors"):
        XGLMForCausalLM.from_pretrained(folder)
    (folder / "config.json").unlink()
    with pytest.raises(XlmfamError, match=r"config\.json"):
        XGLMForCausalLM.from_pretrained(folder)


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (Path(self.path),)


@pytest.mark.parametrize("new_format", [True, False])
def test_a_pickle_that_runs_code_does_not(folder, tmp_path, new_format):
    (folder / "model.safetensors").unlink()
    mark = tmp_path / "exploded"
    state = {"model.embed_tokens.weight": torch.zeros(53, 24), "x": Bomb(mark)}
    torch.save(state, folder / "pytorch_model.bin", _use_new_zipfile_serialization=new_format)
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin"):
        XGLMForCausalLM.from_pretrained(folder)
    assert not mark.exists()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(mark), protocol=2))
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin"):
        XGLMForCausalLM.from_pretrained(folder)
    assert not mark.exists()


def test_integers_where_weights_are_due(folder):
    from safetensors.torch import load_file, save_file

    state = load_file(folder / "model.safetensors")
    state["model.layer_norm.bias"] = torch.zeros(24, dtype=torch.int64)
    save_file(state, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"model.layer_norm.bias holds int64"):
        XGLMForCausalLM.from_pretrained(folder)


# ---- saving ---------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["safetensors", "pt", "tf", "flax"])
def test_a_save_that_fails_leaves_what_was_there(make, folder, form, monkeypatch):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    model = make(seed=5)
    reads = []

    def failing(tensor):
        reads.append(tensor)
        if len(reads) == 20:
            raise OSError(28, "No space left on device")
        return original(tensor)

    original = pt.base.as_array
    monkeypatch.setattr("xlmfam.pt.base.as_array", failing)
    with pytest.raises(CheckpointError, match="No space left"):
        model.save_pretrained(folder, format=form)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_formats_and_their_names(make, tmp_path):
    model = make()
    names = [path.name for path in model.save_pretrained(tmp_path / "a")]
    assert sorted(names) == ["config.json", "generation_config.json", "model.safetensors"]
    model.save_pretrained(tmp_path / "b", safe_serialization=False)
    assert (tmp_path / "b" / "pytorch_model.bin").is_file()
    with pytest.raises(CheckpointError, match="format must be one of safetensors, pt, tf, flax"):
        model.save_pretrained(tmp_path / "c", format="onnx")
    assert not (tmp_path / "c").exists()


def test_ties_are_stored_once_and_metadata_is_there(make, tmp_path):
    from safetensors import safe_open

    make().save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert "lm_head.weight" not in file.keys()  # noqa: SIM118 - not a dict
        assert file.metadata() == {"format": "pt"}
    make().save_pretrained(tmp_path / "pt", format="pt")
    state = torch.load(tmp_path / "pt" / "pytorch_model.bin", weights_only=True)
    assert "lm_head.weight" in state


def test_saving_a_model_changes_nothing_in_it(make, tmp_path):
    model = make()
    before = model.config.to_dict()
    model.save_pretrained(tmp_path)
    assert model.config.to_dict() == before


def test_a_base_model_s_config_names_its_class(make, tmp_path):
    make("XGLMModel").save_pretrained(tmp_path)
    data = json.loads((tmp_path / "config.json").read_text())
    assert data["architectures"] == ["XGLMModel"]
    assert "_name_or_path" not in data
    assert XGLMModel.from_pretrained(tmp_path).config.architectures == ["XGLMModel"]


# ---- memory ---------------------------------------------------------------------------------

PEAK = """
    import resource, sys, threading, time
    import torch
    from xlmfam.pt import XGLMForCausalLM
    import xlmfam.common.checkpoints.safetensors_files

    def anonymous():
        with open("/proc/self/smaps_rollup") as file:
            return sum(int(l.split()[1]) for l in file if l.startswith(("Anonymous", "Private_")))

    def resident():
        with open("/proc/self/status") as file:
            fields = dict(line.split(":", 1) for line in file)
        return int(fields["RssAnon"].split()[0])

    XGLMForCausalLM.from_pretrained(sys.argv[2])  # imports and pools
    before, peak, done = resident(), 0, False

    def watch():
        global peak
        while not done:
            peak = max(peak, resident())
            time.sleep(0.001)

    thread = threading.Thread(target=watch)
    thread.start()
    model = XGLMForCausalLM.from_pretrained(sys.argv[1])
    done = True
    thread.join()
    size = sum(p.numel() * p.element_size() for p in model.parameters()) / 1024
    print((peak - before) / size)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's /proc")
@pytest.mark.parametrize("form", ["safetensors", "pt"])
def test_peak_memory_of_loading(config, tmp_path, form):
    big = config(vocab_size=60000, d_model=512, ffn_dim=2048, num_layers=6, attention_heads=8)
    XGLMForCausalLM(big).save_pretrained(tmp_path / "big", format=form)
    XGLMForCausalLM(config()).save_pretrained(tmp_path / "small")
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(PEAK), tmp_path / "big", tmp_path / "small"],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert 0.9 < float(done.stdout) <= 1.1
