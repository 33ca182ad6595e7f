"""Loading and saving in Flax."""

import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax_helpers import SIZES, make_config, randomise

from xlmfam.common.errors import CheckpointError, ConfigError, MissingPackageError
from xlmfam.flax import AutoModel, AutoModelForCausalLM, XGLMForCausalLM, XGLMModel


def same(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(np.asarray(x), np.asarray(y)), a, b)


@pytest.mark.parametrize("format", ["safetensors", "pt", "tf", "flax"])
def test_every_format_comes_back(model, tmp_path, format):
    try:
        paths = model.save_pretrained(tmp_path, format=format)
    except MissingPackageError as error:
        pytest.skip(str(error))
    assert all(path.exists() for path in paths)
    same(XGLMForCausalLM.from_pretrained(tmp_path).params, model.params)


def test_shards_and_given_params(model, tmp_path):
    doubled = jax.tree.map(lambda x: x * 2, model.params)
    model.save_pretrained(tmp_path, params=doubled, max_shard_size="10KB")
    assert (tmp_path / "model.safetensors.index.json").exists()
    loaded, params = XGLMForCausalLM.from_pretrained(tmp_path, _do_init=False)
    same(params, doubled)
    with pytest.raises(ValueError, match="_do_init=False"):
        _ = loaded.params


def test_dtypes(model, tmp_path):
    model.save_pretrained(tmp_path, params=model.to_bf16(model.params))

    def dtypes(**kwargs):
        loaded = XGLMForCausalLM.from_pretrained(tmp_path, **kwargs)
        (kept,) = {str(x.dtype) for x in jax.tree.leaves(loaded.params)}
        return str(loaded.dtype), kept

    assert dtypes() == ("float32", "float32")
    assert dtypes(dtype=jnp.bfloat16) == ("bfloat16", "float32")
    assert dtypes(param_dtype="auto") == ("float32", "bfloat16")
    assert dtypes(torch_dtype="auto") == ("bfloat16", "bfloat16")
    assert dtypes(torch_dtype="float16") == ("float16", "float16")
    with pytest.raises(ConfigError, match="dtype"):
        dtypes(dtype="float31")


def test_base_and_head_load_into_each_other(model, tmp_path):
    model.save_pretrained(tmp_path / "head")
    base = XGLMModel.from_pretrained(tmp_path / "head")
    same(base.params, model.params["model"])
    base.save_pretrained(tmp_path / "base")
    again = XGLMForCausalLM.from_pretrained(tmp_path / "base")
    same(again.params, model.params)
    loaded, info = XGLMForCausalLM.from_pretrained(
        tmp_path / "base", tie_word_embeddings=False, output_loading_info=True
    )
    assert info["missing_keys"] == ["lm_head.weight"]
    assert loaded.params["lm_head"]["kernel"].shape == (24, 61)


def test_auto_classes(model, tmp_path):
    model.save_pretrained(tmp_path)
    assert isinstance(AutoModelForCausalLM.from_pretrained(tmp_path), XGLMForCausalLM)
    bare, params = AutoModel.from_pretrained(tmp_path, _do_init=False)
    assert isinstance(bare, XGLMModel)
    same(params, model.params["model"])
    assert isinstance(AutoModel.from_config(model.config, _do_init=False), XGLMModel)


def test_what_does_not_fit_is_listed(model, tmp_path):
    model.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"missing: model\.layers\.2"):
        XGLMForCausalLM.from_pretrained(tmp_path, num_layers=3)
    with pytest.raises(CheckpointError, match="misshapen"):
        XGLMForCausalLM.from_pretrained(tmp_path, ffn_dim=41)
    loaded = XGLMForCausalLM.from_pretrained(tmp_path, ffn_dim=41, ignore_mismatched_sizes=True)
    assert loaded.params["model"]["layers"]["0"]["fc1"]["kernel"].shape == (24, 41)
    with pytest.raises(ConfigError, match="no_such_setting"):
        XGLMForCausalLM.from_pretrained(tmp_path, no_such_setting=1)


def test_canonical_layout(model):
    values = model.to_canonical()
    assert values["model.layers.1.fc1.weight"].shape == (SIZES["ffn_dim"], SIZES["d_model"])
    kernel = model.params["model"]["layers"]["1"]["fc1"]["kernel"]
    np.testing.assert_array_equal(values["model.layers.1.fc1.weight"], np.asarray(kernel).T)
    assert "lm_head.weight" not in values
    untied = randomise(XGLMForCausalLM(make_config(tie_word_embeddings=False)))
    assert untied.to_canonical()["lm_head.weight"].shape == (61, 24)


def run_python(code, *arguments):
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
def test_memory_while_loading(tmp_path):
    code = """
        import sys
        from xlmfam.flax import XGLMConfig, XGLMForCausalLM

        def peak():
            for line in open("/proc/self/status"):
                if line.startswith("VmHWM"):
                    return int(line.split()[1]) * 1024

        large = {"vocab_size": 20000, "d_model": 768, "ffn_dim": 3072, "num_layers": 8}
        small = {"vocab_size": 200, "d_model": 48, "ffn_dim": 32, "num_layers": 1}
        folder = sys.argv[1]
        if sys.argv[2] == "save":
            XGLMForCausalLM(XGLMConfig(**large, attention_heads=12)).save_pretrained(folder)
            config = XGLMConfig(**small, attention_heads=12)
            XGLMForCausalLM(config).save_pretrained(folder + "/small")
        else:
            XGLMForCausalLM.from_pretrained(folder + "/small")  # imports and compiles
            before = peak()
            model = XGLMForCausalLM.from_pretrained(folder)
            print((peak() - before) / (4 * model.num_parameters()))
    """
    run_python(code, tmp_path, "save")
    ratio = float(run_python(code, tmp_path, "load"))
    print("memory ratio", ratio)
    assert ratio < 1.1


def test_sharded_parameters(tmp_path):
    """Tensor and data parallelism on eight devices give what one device gives."""
    code = """
        import os
        os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
        os.environ["JAX_PLATFORMS"] = "cpu"
        import jax, numpy as np
        from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
        from xlmfam.common.errors import XlmfamError
        from xlmfam.flax import XGLMConfig, XGLMForCausalLM

        config = XGLMConfig(vocab_size=61, d_model=24, ffn_dim=40, num_layers=1, attention_heads=4)
        model = XGLMForCausalLM(config)
        ids = np.arange(3, 23).reshape(2, 10)
        mesh = Mesh(np.array(jax.devices()).reshape(2, 4), ("data", "model"))
        shardings = model.params_shardings(mesh)
        layer = shardings["model"]["layers"]["0"]
        assert layer["fc1"]["kernel"].spec == P(None, "model")
        assert layer["fc2"]["kernel"].spec == P("model", None)
        assert layer["self_attn"]["out_proj"]["kernel"].spec == P("model", None)
        # 61 rows do not go into 4 parts.
        assert shardings["model"]["embed_tokens"]["embedding"].spec == P(None, None)

        def loss(params, ids):
            return model(ids, labels=ids, params=params, use_cache=False).loss

        step = jax.jit(jax.value_and_grad(loss))
        one, gradients = step(model.params, ids)
        params = jax.device_put(model.params, shardings)
        batch = jax.device_put(ids, NamedSharding(mesh, P("data")))
        many, sharded = step(params, batch)
        np.testing.assert_allclose(one, many, rtol=1e-5)
        close = lambda a, b: np.testing.assert_allclose(np.asarray(a), np.asarray(b), atol=1e-5)
        jax.tree.map(close, gradients, sharded)
        assert sharded["model"]["layers"]["0"]["fc1"]["kernel"].sharding.spec[-1] == "model"
        want = model.generate(ids, max_new_tokens=3, eos_token_id=None)
        got = model.generate(ids, max_new_tokens=3, eos_token_id=None, params=params)
        assert (np.asarray(got) == np.asarray(want)).all()
        try:
            model.params_shardings(mesh, {"mlp": "nowhere"})
        except XlmfamError as error:
            assert "nowhere" in str(error)
        else:
            raise AssertionError
    """
    run_python(code)


@pytest.mark.parametrize("missing", ["jax", "flax"])
def test_missing_package(missing):
    code = f"""
        import sys
        sys.modules["{missing}"] = None
        try:
            import xlmfam.flax
        except ImportError as error:
            assert "pip install 'xlmfam[flax]'" in str(error), error
            assert "{missing}" in str(error)
        else:
            raise AssertionError
    """
    run_python(code)


def test_import_brings_no_other_framework():
    code = """
        import sys
        import xlmfam.flax
        from xlmfam.flax import FlaxXGLMForCausalLM, XGLMForCausalLM, FlaxAutoModel
        assert FlaxXGLMForCausalLM is XGLMForCausalLM
        assert "torch" not in sys.modules and "tensorflow" not in sys.modules
        assert "FlaxXGLMModel" in dir(xlmfam.flax)
    """
    run_python(code)
