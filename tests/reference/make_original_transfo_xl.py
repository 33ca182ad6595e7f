"""Write small checkpoints and outputs of the original Transformer-XL code (see README.md).

    python make_original_transfo_xl.py pytorch CHECKOUT
    python make_original_transfo_xl.py tf1 CHECKOUT
    python make_original_transfo_xl.py read CHECKOUT FOLDER
    python make_original_transfo_xl.py read-tf1 CHECKOUT FOLDER

CHECKOUT holds kimiyoung/transformer-xl, which runs as it is; what newer PyTorch and TensorFlow
lack is given from outside. ``read`` loads with the original code what xlmfam wrote: FOLDER has
``CASE/model.pt`` for some of the cases, whose outputs are compared with the recorded ones; with
``read-tf1``, ``CASE/model.ckpt-0.*``.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import importlib
import io
import json
import os
import runpy
import sys
import tempfile
import types
from pathlib import Path

import numpy as np

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

DATA = Path(__file__).resolve().parents[1] / "data" / "originals" / "transfo_xl"
BATCH, SEGMENTS = 2, 3
WORDS = 23
# Every size is different from the others.
SIZES = {"n_layer": 2, "n_head": 2, "d_model": 8, "d_head": 3, "d_inner": 11}
PYTORCH = {
    # Three tails: the order of the clusters shows.
    "tails": {
        "flags": {
            "d_embed": 9,
            "div_val": 2,
            "cutoffs": [7, 12, 17],
            "tie_projs": [False, True, False, True],
            "same_length": True,
            "clamp_len": 3,
            "mem_len": 4,
        },
        "steps": 5,
        "corpus": "wt103",
    },
    "untied": {
        "flags": {"d_embed": 5, "pre_lnorm": True, "tie_weight": False, "mem_len": 7, "n_layer": 1},
        "steps": 4,
        "legacy": True,
        "corpus": "text8",
    },
    # Only the tensors, as a training checkpoint has them; the rest is in settings.json.
    "state": {
        "flags": {
            "d_embed": 5,
            "cutoffs": [6, 13],
            "tie_projs": [True, False, True],
            "mem_len": 3,
            "clamp_len": 5,
            "n_layer": 1,
        },
        "steps": 4,
        "state": True,
        "legacy": True,
        "settings": ["cutoffs", "mem_len", "clamp_len"],
    },
    "half": {
        "flags": {"d_embed": 8, "div_val": 3, "cutoffs": [9], "mem_len": 3, "n_layer": 1},
        "steps": 3,
        "half": True,
    },
}
TF1 = {
    "tf1_tails": {
        "flags": {
            "d_embed": 9,
            "div_val": 2,
            "cutoffs": [7, 12, 17],
            "tie_projs": [False, True, True, True],
            "same_length": True,
            "clamp_len": 3,
            "mem_len": 4,
            "untie_r": True,
        },
        "steps": 3,
        "corpus": "wt103",
    },
    "tf1_same_dim": {
        "flags": {
            "d_embed": 8,
            "div_val": 2,
            "cutoffs": [9, 14],
            "tie_projs": [False, False, False],
            "mem_len": 3,
            "proj_same_dim": False,
            "n_layer": 1,
        },
        "steps": 4,
    },
    "tf1_one_table": {
        "flags": {
            "d_embed": 5,
            "cutoffs": [6, 13],
            "tie_projs": [False, True, True],
            "same_length": True,
            "mem_len": 2,
            "n_layer": 1,
        },
        "steps": 5,
    },
    "tf1_letters": {
        "flags": {"d_embed": 5, "tie_projs": [False], "mem_len": 4, "clamp_len": 2, "n_layer": 1},
        "steps": 4,
        "training": True,
    },
}


def stream(steps: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return inputs and targets, (segment, batch, step) each, with words of every cluster."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, WORDS, (BATCH, SEGMENTS * steps + 1))
    parts = [ids[:, i : i + SEGMENTS * steps] for i in (0, 1)]
    return tuple(p.reshape(BATCH, SEGMENTS, steps).swapaxes(0, 1).copy() for p in parts)


def random_values(shape: tuple[int, ...], name: str, rng: np.random.Generator) -> np.ndarray:
    """Return values with which nothing vanishes and no two names have the same."""
    is_scale = name.endswith(("layer_norm.weight", "LayerNorm/gamma"))
    return (0.35 * rng.normal(size=shape) + is_scale).astype(np.float32)


def write_text(folder: Path) -> None:
    """Write a little text with `WORDS` words, those of ``<eos>`` and letters beyond ASCII among."""
    rng = np.random.default_rng(5)
    words = [f"w{i}" for i in range(WORDS - 4)] + ["<unk>", "Caf\u00e9", "\u03b1\u03b2"]
    lines = [" ".join(rng.permutation(words)[: 3 + i % 5]) for i in range(9)] + [" ".join(words)]
    for split in ("train", "valid", "test"):
        (folder / f"{split}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_letters(folder: Path) -> None:
    letters = "_abcdefghijklmnopqrstuv"[:WORDS]
    for split in ("train", "valid", "test"):
        (folder / f"{split}.txt").write_text(" ".join(letters) + "\n", encoding="utf-8")


def make_corpus(kind: str, load: object) -> tuple[bytes, dict[str, object]]:
    """Return the vocabulary file of the original code, and what it makes of a line."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (write_letters if kind == "text8" else write_text)(folder)
        corpus = load(name + "/", kind)
        assert len(corpus.vocab) == WORDS, len(corpus.vocab)
        line = (folder / "test.txt").read_text(encoding="utf-8").split("\n")[0]
        symbols = corpus.vocab.tokenize(line, add_eos=kind == "wt103")
        encoded = {"line": line, "ids": corpus.vocab.get_indices(list(symbols))}
        cache = next(p for p in sorted(folder.iterdir()) if p.name.startswith("cache."))
        return cache.read_bytes(), encoded


# -- PyTorch ----------------------------------------------------------------------------------


def prepare_torch(checkout: Path) -> types.SimpleNamespace:
    """Import the original's PyTorch code; what it expects of old PyTorch is given here."""
    import torch

    torch.version.cuda = "9.0"
    fill, fill_in_place = torch.Tensor.masked_fill, torch.Tensor.masked_fill_
    torch.Tensor.masked_fill = lambda self, mask, value: fill(self, mask.bool(), value)
    torch.Tensor.masked_fill_ = lambda self, mask, value: fill_in_place(self, mask.bool(), value)
    load = torch.load
    torch.load = lambda *args, **kwargs: load(*args, **{"weights_only": False, **kwargs})

    # The older format keeps the source of every class; the tests need none of it.
    def no_source(_: object) -> tuple[list[str], int, str]:
        return ["# a class\n"], 0, "mem_transformer.py"

    torch.serialization.get_source_lines_and_file = no_source
    os.chdir(checkout / "pytorch")
    sys.path[:0] = [os.getcwd(), os.path.join(os.getcwd(), "utils")]
    transformer = importlib.import_module("mem_transformer")
    return types.SimpleNamespace(torch=torch, transformer=transformer)


def run_torch(torch: object, model: object, inputs: np.ndarray, targets: np.ndarray) -> dict:
    """Return losses, last hidden states and memories of a stream, as the original computes them."""
    model.eval()
    model.crit.keep_order = True  # the order of the tokens, not that of the clusters
    found: dict[str, list[np.ndarray]] = {"losses": [], "hidden": []}
    memories: tuple = ()
    with torch.no_grad():
        for ids, wanted in zip(inputs, targets, strict=True):
            data, target = (torch.from_numpy(a.T.copy()) for a in (ids, wanted))
            hidden, _ = model._forward(data, mems=memories or model.init_mems())
            loss, *memories = model(data, target, *memories)
            found["losses"].append(loss.float().numpy().T)
            found["hidden"].append(hidden.float().numpy().swapaxes(0, 1))
    return {
        "inputs": inputs.astype(np.int16),
        "targets": targets.astype(np.int16),
        **{name: np.stack(values) for name, values in found.items()},
        "mems": np.stack([m.float().numpy() for m in memories[:-1]]),
    }


def build_torch(code: types.SimpleNamespace, case: dict, seed: int) -> object:
    flags = {"tgt_len": 6, "ext_len": 0, "dropout": 0.2, "dropatt": 0.1, **SIZES, **case["flags"]}
    model = code.transformer.MemTransformerLM(WORDS, **flags)
    rng = np.random.default_rng(seed)
    with code.torch.no_grad():
        for name, parameter in model.named_parameters():
            values = random_values(tuple(parameter.shape), name, rng)
            parameter.copy_(code.torch.from_numpy(values))
    if not case.get("half"):
        return model
    # Values that half precision has, so that the outputs are those of the file.
    return model.half().float()


def save_torch(code: types.SimpleNamespace, model: object, case: dict, folder: Path) -> None:
    value = model.half() if case.get("half") else model
    name = "model.pt"
    if case.get("state"):
        name = "checkpoint.pt"
        value = {"epoch": 3, "model_state": model.state_dict(), "optimizer_state": {"state": {}}}
    is_new = not case.get("legacy")
    code.torch.save(value, folder / name, _use_new_zipfile_serialization=is_new)


def write_pytorch(checkout: Path) -> None:
    code = prepare_torch(checkout)
    for seed, (name, case) in enumerate(PYTORCH.items()):
        folder = new_folder(name)
        model = build_torch(code, case, seed)
        outputs = run_torch(code.torch, model, *stream(case["steps"], seed))
        save_torch(code, model, case, folder)
        if "corpus" in case:
            load = importlib.import_module("data_utils").get_lm_corpus
            content, encoded = make_corpus(case["corpus"], load)
            (folder / "cache.pt").write_bytes(content)
            write_json(folder / "line.json", encoded)
        save_case(folder, case, outputs)


def read(checkout: Path, root: Path) -> None:
    """Load models that xlmfam wrote, and compare what they compute with what was recorded."""
    root = root.resolve()
    code = prepare_torch(checkout)
    for path in sorted(root.glob("*/model.pt")):
        with open(path, "rb") as file:
            model = code.torch.load(file)
        model.backward_compatible()
        recorded = np.load(DATA / path.parent.name / "outputs.npz")
        inputs, targets = (recorded[n].astype(np.int64) for n in ("inputs", "targets"))
        came = run_torch(code.torch, model.float(), inputs, targets)
        compare(path.parent.name, came, recorded)
        tied = case_flags(path.parent.name).get("tie_weight", True)
        first = model.crit.out_layers[0].weight is model.word_emb.emb_layers[0].weight
        assert first == tied, "ties"
        model.train()  # and it can be trained on
        data = code.torch.from_numpy(inputs[0].T.copy())
        model(data, data)[0].mean().backward()
        if "corpus" in PYTORCH[path.parent.name]:
            evaluate(path.parent)


def evaluate(folder: Path) -> None:
    """Run the original's ``eval.py`` on what it wrote itself and on what xlmfam wrote."""
    case = PYTORCH[folder.name]
    said = []
    for source in (DATA / folder.name, folder):
        with tempfile.TemporaryDirectory() as name:
            for file in ("model.pt", "cache.pt"):
                packed = source / f"{file}.gz"
                if not packed.exists():
                    packed = DATA / folder.name / f"{file}.gz"
                content = gzip.decompress(packed.read_bytes())
                if (source / file).exists():
                    content = (source / file).read_bytes()
                Path(name, file).write_bytes(content)
            options = {"data": name, "work_dir": name, "dataset": case["corpus"], "mem_len": 4}
            options |= {"batch_size": 2, "tgt_len": 3, "split": "test"}
            sys.argv = ["eval.py", "--no_log"]
            sys.argv += [part for key, v in options.items() for part in (f"--{key}", str(v))]
            with contextlib.redirect_stdout(io.StringIO()) as out:
                runpy.run_path("eval.py", run_name="__main__")
            said.append(next(line for line in out.getvalue().splitlines() if "loss" in line))
    print(f"{folder.name} eval.py: {said[1]}", flush=True)
    assert said[0] == said[1], said


def case_flags(name: str) -> dict:
    return PYTORCH[name]["flags"]


# -- TensorFlow 1 -----------------------------------------------------------------------------


def prepare_tensorflow(checkout: Path) -> types.SimpleNamespace:
    """Import the original's TensorFlow code on what TensorFlow 2 keeps of version 1."""
    import tensorflow

    tf = tensorflow.compat.v1
    tf.disable_eager_execution()

    def layer_norm(inputs: object, begin_norm_axis: int) -> object:
        """As of contrib: gamma and beta below LayerNorm, 1e-12 beside the variance."""
        assert begin_norm_axis == -1
        with tf.variable_scope(None, "LayerNorm"):
            beta = tf.get_variable("beta", [inputs.shape[-1]], initializer=tf.zeros_initializer())
            gamma = tf.get_variable("gamma", [inputs.shape[-1]], initializer=tf.ones_initializer())
        mean, variance = tf.nn.moments(inputs, [-1], keepdims=True)
        return tf.nn.batch_normalization(inputs, mean, variance, beta, gamma, 1e-12)

    tf.layers.dense  # noqa: B018  (is loaded when first used, from the module replaced here)
    shim = types.ModuleType("tensorflow")
    shim.__dict__.update({n: getattr(tf, n) for n in dir(tf) if not n.startswith("__")})
    layers = types.SimpleNamespace(layer_norm=layer_norm)
    shim.contrib = types.SimpleNamespace(layers=layers)
    sys.modules["tensorflow"] = shim
    sys.modules["tensorflow.gfile"] = tf.gfile
    sys.path.insert(0, str(checkout / "tf"))
    return types.SimpleNamespace(tf=tf, model=importlib.import_module("model"))


def build_tensorflow(code: types.SimpleNamespace, flags: dict, steps: int) -> tuple:
    tf, flags = code.tf, {**SIZES, **flags}
    ids, wanted = (tf.placeholder(tf.int32, [steps, BATCH]) for _ in range(2))
    shape = [flags["mem_len"], BATCH, SIZES["d_model"]]
    mems = [tf.placeholder(tf.float32, shape) for _ in range(flags["n_layer"])]
    # The states are inside; they are caught where the softmax takes them.
    caught: dict = {}
    softmax = code.model.mask_adaptive_logsoftmax

    def catch(**kwargs: object) -> object:
        caught["hidden"] = kwargs["hidden"]
        return softmax(**kwargs, return_mean=False)

    code.model.mask_adaptive_logsoftmax = catch
    try:
        losses, new = code.model.transformer(
            ids, wanted, mems, WORDS, dropout=0.0, dropatt=0.0, is_training=False, use_tpu=False,
            initializer=tf.initializers.random_normal(stddev=0.1), **flags,
        )  # fmt: skip
    finally:
        code.model.mask_adaptive_logsoftmax = softmax
    return ids, wanted, mems, losses, caught["hidden"], new


def run_tensorflow(
    code: types.SimpleNamespace, case: dict, streams: tuple, prefix: Path, seed: int | None = None
) -> dict:
    """Run a model over a stream: one with random values, which is saved, or a saved one."""
    tf, flags = code.tf, case["flags"]
    inputs, targets = streams
    with tf.Graph().as_default(), tf.Session() as session:
        ids, wanted, mems, losses, hidden, new = build_tensorflow(code, flags, case["steps"])
        variables = tf.trainable_variables()
        if seed is not None and case.get("training"):
            step = tf.train.get_or_create_global_step()
            tf.train.AdamOptimizer(1e-3).minimize(tf.reduce_mean(losses), step)
        if seed is None:
            tf.train.Saver().restore(session, str(prefix))
        else:
            session.run(tf.global_variables_initializer())
            rng = np.random.default_rng(seed)
            for variable in variables:
                name = variable.name.partition(":")[0]
                variable.load(random_values(tuple(variable.shape), name, rng), session)
            tf.train.Saver().save(session, str(prefix), write_meta_graph=False)
        memories = [np.zeros(m.shape, np.float32) for m in mems]
        found: dict[str, list[np.ndarray]] = {"losses": [], "hidden": []}
        for segment in range(SEGMENTS):
            feed = {ids: inputs[segment].T, wanted: targets[segment].T}
            feed |= dict(zip(mems, memories, strict=True))
            loss, state, memories = session.run([losses, hidden, new], feed)
            found["losses"].append(loss.T)
            found["hidden"].append(state.swapaxes(0, 1))
    return {
        "inputs": inputs.astype(np.int16),
        "targets": targets.astype(np.int16),
        **{name: np.stack(values) for name, values in found.items()},
        "mems": np.stack(memories),
    }


def read_tf1(checkout: Path, root: Path) -> None:
    """As `read`, with the TensorFlow code; the flags are those that xlmfam wrote beside."""
    root = root.resolve()
    code = prepare_tensorflow(checkout)
    for path in sorted(root.glob("*/model.ckpt-0.index")):
        name = path.parent.name
        recorded = np.load(DATA / name / "outputs.npz")
        streams = tuple(recorded[n].astype(np.int64) for n in ("inputs", "targets"))
        case = TF1[name]
        flags = json.loads((path.parent / "settings.json").read_text())
        flags = {**case["flags"], **{k: v for k, v in flags.items() if not k.startswith("drop")}}
        # All is projected in what xlmfam writes.
        case = {**case, "flags": {**flags, "proj_same_dim": True}}
        came = run_tensorflow(code, case, streams, path.with_suffix(""))
        compare(name, came, recorded)


def compare(case: str, came: dict, recorded: dict) -> None:
    for name in ("losses", "hidden", "mems"):
        error = np.abs(came[name] - recorded[name]).max() / np.abs(recorded[name]).max()
        print(f"{case} {name}: {error:.1e}", flush=True)
        assert error < 1e-6, error


def write_tf1(checkout: Path) -> None:
    code = prepare_tensorflow(checkout)
    for seed, (name, case) in enumerate(TF1.items(), 10):
        folder = new_folder(name)
        streams = stream(case["steps"], seed)
        outputs = run_tensorflow(code, case, streams, folder / "model.ckpt-0", seed)
        # What it writes beside is the folder that it was written in.
        text = 'model_checkpoint_path: "model.ckpt-0"\nall_model_checkpoint_paths: "model.ckpt-0"\n'
        (folder / "checkpoint").write_text(text)
        keys = ("mem_len", "clamp_len", "same_length")
        case = {**case, "settings": [key for key in keys if key in case["flags"]]}
        if "corpus" in case:
            utils = importlib.import_module("data_utils")
            content, encoded = make_corpus(case["corpus"], utils.get_lm_corpus)
            (folder / "cache.pkl").write_bytes(content)
            write_json(folder / "line.json", encoded)
        save_case(folder, case, outputs)


# -- files ------------------------------------------------------------------------------------


def new_folder(name: str) -> Path:
    folder = DATA / name
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.iterdir():
        path.unlink()
    return folder


def pack(path: Path) -> None:
    """Compress a file: small tensors have much space around them."""
    path.with_name(path.name + ".gz").write_bytes(gzip.compress(path.read_bytes(), mtime=0))
    path.unlink()


def save_case(folder: Path, case: dict, outputs: dict[str, np.ndarray]) -> None:
    np.savez_compressed(folder / "outputs.npz", **outputs)
    flags = {**SIZES, **case["flags"]}
    write_json(folder / "flags.json", {"vocab_size": WORDS, **flags})
    if "settings" in case:
        given = {name: flags[name] for name in case["settings"]}
        write_json(folder / "settings.json", given)
    for path in sorted(folder.iterdir()):
        if path.suffix in (".pt", ".pkl", ".index"):
            pack(path)
    print(folder.name, sum(p.stat().st_size for p in folder.iterdir()), "bytes", flush=True)


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=("pytorch", "tf1", "read", "read-tf1"))
    parser.add_argument("checkout", type=Path, help="kimiyoung/transformer-xl")
    parser.add_argument("folder", type=Path, nargs="?", help="for read: what xlmfam wrote")
    arguments = parser.parse_args()
    checkout = arguments.checkout.resolve()
    if arguments.part == "read":
        read(checkout, arguments.folder)
    elif arguments.part == "read-tf1":
        read_tf1(checkout, arguments.folder)
    elif arguments.part == "pytorch":
        write_pytorch(checkout)
    else:
        write_tf1(checkout)


if __name__ == "__main__":
    main()
