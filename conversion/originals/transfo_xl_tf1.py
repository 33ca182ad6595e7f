"""kimiyoung/transformer-xl, TensorFlow 1: its checkpoints in.

A checkpoint is ``model.ckpt-N.index`` and ``model.ckpt-N.data-*``; a path may name these files,
what they have in common, or the folder, where ``checkpoint`` tells the last one. Nearly all sizes
are those of the variables. What they do not tell comes from ``settings.json`` beside the
checkpoint or from the original's scripts; see `transfo_xl_flags`.

What differs from the PyTorch code, and how it is met:

- The norms add 1e-12 to the variance.
- With ``same_length`` a token sees ``mem_len`` tokens and itself; there and in ours, ``mem_len``
  with itself. So ``mem_len`` is one more here.
- With ``proj_same_dim=False`` embeddings as wide as the model are not projected; here their
  projection is the identity.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from xlmfam.common.checkpoints.source import TensorSpec
from xlmfam.common.configs import TransfoXLConfig
from xlmfam.common.errors import CheckpointError
from xlmfam.common.parameters import Kind, Parameter, relayout, spell, table_of
from xlmfam.conversion.originals.base import Original, Piece, PiecesSource
from xlmfam.conversion.originals.transfo_xl import HEAD
from xlmfam.conversion.originals.transfo_xl_bundle import Bundle
from xlmfam.conversion.originals.transfo_xl_flags import Flags, divisor, given_flags, new_config
from xlmfam.conversion.originals.transfo_xl_words import find_words

_SCOPE = "transformer"
_SIGN = f"{_SCOPE}/r_w_bias"
_EPSILON = 1e-12
_FILES = re.compile(r"(.+)\.(?:index|meta|data-\d{5}-of-\d{5})")
_POINTER_NAME = "checkpoint"
_POINTER = re.compile(r'^model_checkpoint_path:\s*"([^"]+)"', re.MULTILINE)
_OPTIMIZER = re.compile(r".*/Adam(?:_1)?|beta[12]_power|global_step")
# What a part of a layer is called here, by its canonical name.
_PARTS = {
    "dec_attn.qkv_net": "rel_attn/qkv",
    "dec_attn.o_net": "rel_attn/o",
    "dec_attn.r_net": "rel_attn/r",
    "dec_attn.layer_norm": "rel_attn/LayerNorm",
    "pos_ff.CoreNet.0": "ff/layer_1",
    "pos_ff.CoreNet.3": "ff/layer_2",
    "pos_ff.layer_norm": "ff/LayerNorm",
}
_EMBED, _SOFTMAX = f"{_SCOPE}/adaptive_embed", f"{_SCOPE}/adaptive_softmax"


def find(path: Path) -> Path | None:
    """Return the prefix of a checkpoint's files, or ``None`` where there is none."""
    if path.is_dir():
        return _in_folder(path)
    if path.name == _POINTER_NAME and path.is_file():
        return _last(path.parent)
    match = _FILES.fullmatch(path.name)
    prefix = path.with_name(match[1]) if match and path.is_file() else path
    return prefix if _index(prefix).is_file() else None


def _index(prefix: Path) -> Path:
    return prefix.with_name(prefix.name + ".index")


def _in_folder(folder: Path) -> Path | None:
    """Return the last checkpoint in a folder, if it is of this release."""
    if (folder / "config.json").is_file():
        return None
    for place in (folder, folder / "model"):  # the public releases have a folder for the model
        prefix = _last(place)
        if prefix is not None and _is_ours(prefix):
            return prefix
    return None


def _last(folder: Path) -> Path | None:
    try:
        with open(folder / _POINTER_NAME, encoding="utf-8") as file:
            pointed = _POINTER.search(file.read(2**16))
    except (OSError, ValueError):
        pointed = None
    # The path may be that of another machine, where it was written.
    name = pointed[1].replace("\\", "/").rpartition("/")[2] if pointed else ""
    if name and _index(folder / name).is_file():
        return folder / name
    found = sorted(folder.glob("*.index")) if folder.is_dir() else []
    return found[0].with_name(found[0].stem) if len(found) == 1 else None


def _is_ours(prefix: Path) -> bool:
    try:
        return _SIGN in Bundle(prefix).variables
    except CheckpointError:
        return True  # to be told what is wrong with it


def open_original(prefix: Path) -> Original:
    """Return the checkpoint.

    Args:
        prefix: What `find` returned.

    Raises:
        CheckpointError: It is damaged, or of another model.
    """
    bundle = Bundle(prefix)
    try:
        return _open(prefix, bundle)
    except BaseException:
        bundle.close()
        raise


def _open(prefix: Path, bundle: Bundle) -> Original:
    if _SIGN not in bundle.variables:
        some = ", ".join(list(bundle.variables)[:3]) or "nothing"
        raise CheckpointError(
            f"{bundle.path}: no checkpoint of kimiyoung/transformer-xl: it lacks {_SIGN} and has "
            f"{some}"
        )
    bundle.require()
    flags = Flags(bundle.path, given_flags(prefix.parent), {})
    sizes = _sizes(bundle)
    flags.stored = {"pre_lnorm": False, "cutoffs": sizes["cutoffs"]}  # the code has no other
    words = find_words(prefix.parent, sizes["vocab_size"])
    settings = flags.complete(sizes)
    notes = [*flags.notes, *words.notes]
    if settings["same_length"]:
        settings["mem_len"] += 1
        notes.append(
            "same_length: the original's mem_len does not count the token itself, ours does; it "
            f"is {settings['mem_len']} here"
        )
    config = new_config(
        bundle.path,
        **sizes,
        **settings,
        layer_norm_epsilon=_EPSILON,
        eos_token_id=words.eos_token_id,
    )
    pieces, used = _pieces(bundle, config)
    return Original(
        release="transfo-xl",
        config=config,
        head=HEAD,
        source=PiecesSource(bundle.path, pieces, bundle.close),
        dropped=_dropped(bundle, used),
        tokenizer_files=words.files,
        notes=notes,
    )


def _dropped(bundle: Bundle, used: set[str]) -> dict[str, str]:
    """Return the variables that are not read, with the reason.

    Raises:
        CheckpointError: There are some that nobody knows.
    """
    rest = [name for name in bundle.variables if name not in used]
    unknown = [name for name in rest if not _OPTIMIZER.fullmatch(name)]
    if unknown:
        raise CheckpointError(
            f"{bundle.path}: unexpected: {', '.join(unknown[:20])}; this is not a checkpoint of "
            "the original model"
        )
    return dict.fromkeys(rest, "the optimizer's")


def _shape(bundle: Bundle, name: str, *dimensions: int) -> tuple[int, ...]:
    variable = bundle.variables.get(name)
    if variable is None:
        raise CheckpointError(f"{bundle.path}: lacks {name}")
    if len(variable.spec.shape) not in dimensions:
        raise CheckpointError(f"{bundle.path}: {name} has the shape {variable.spec.shape}")
    return variable.spec.shape


def _sizes(bundle: Bundle) -> dict[str, Any]:
    """Return the settings that shapes tell."""
    biases = _shape(bundle, _SIGN, 2, 3)
    width, inner = _shape(bundle, f"{_SCOPE}/layer_0/ff/layer_1/kernel", 2)
    layers = {
        m[1] for m in map(re.compile(rf"{_SCOPE}/layer_(\d+)/.*").match, bundle.variables) if m
    }
    clusters = _count(bundle, f"{_SOFTMAX}/cutoff_{{}}/b")
    rows = [_shape(bundle, f"{_SOFTMAX}/cutoff_{i}/b", 1)[0] for i in range(clusters)]
    tables = _count(bundle, f"{_EMBED}/cutoff_{{}}/lookup_table")
    names = [f"{_EMBED}/cutoff_{i}/lookup_table" for i in range(tables)]
    shapes = [_shape(bundle, name, 2) for name in names or [f"{_EMBED}/lookup_table"]]
    widths = [shape[1] for shape in shapes]
    return {
        "vocab_size": sum(shape[0] for shape in shapes),
        "cutoffs": [sum(rows[: place + 1]) for place in range(len(rows) - 1)],
        "d_model": width,
        "d_embed": widths[0],
        "n_head": biases[-2],
        "d_head": biases[-1],
        "d_inner": inner,
        "div_val": divisor(bundle.path, widths) if tables else 1,
        "n_layer": len(layers),
        "untie_r": len(biases) == 3,
        "tie_word_embeddings": True,
        "tie_projs": [
            f"{_SOFTMAX}/cutoff_{place}/proj" not in bundle.variables
            for place in range(max(1, clusters))
        ],
    }


def _count(bundle: Bundle, template: str) -> int:
    """Return how many variables there are whose names count up from 0."""
    count = 0
    while template.format(count) in bundle.variables:
        count += 1
    return count


class _Pieces:
    """Makes our parameters of the variables.

    Args:
        bundle: The checkpoint.
        config: Its config.
    """

    def __init__(self, bundle: Bundle, config: TransfoXLConfig):
        self.bundle = bundle
        self.config = config
        self.used: set[str] = set()

    def piece(self, parameter: Parameter) -> Piece:
        """Return one parameter.

        Raises:
            CheckpointError: Its variable is missing.
        """
        name = parameter.full_name
        leaf = name.rpartition(".")[2]
        if parameter.layer is not None:
            return self._of_layer(parameter, leaf)
        if name.startswith("transformer.word_emb.emb_layers."):
            return self._plain(f"{_EMBED}/{self._table(name)}lookup_table", parameter)
        if name.startswith("transformer.word_emb.emb_projs."):
            return self._projection(f"{_EMBED}/{self._table(name)}proj_W", parameter)
        if name.startswith("crit.out_projs."):
            return self._projection(f"{_SOFTMAX}/cutoff_{leaf}/proj", parameter)
        if name.startswith("crit.cluster_"):
            of = {Kind.RAW: "W", Kind.RAW_BIAS: "b"}[parameter.kind]
            return self._plain(f"{_SOFTMAX}/cutoff_0/cluster_{of}", parameter)
        if name.startswith("crit.out_layers."):
            return self._bias(int(name.split(".")[2]), parameter)
        return self._plain(f"{_SCOPE}/{leaf}", parameter)

    def _table(self, name: str) -> str:
        number = re.search(r"\d+", name)
        return f"cutoff_{number[0]}/" if number and self.config.div_val > 1 else ""

    def _of_layer(self, parameter: Parameter, leaf: str) -> Piece:
        place, own = parameter.layer, parameter.full_name.partition(".layers.")[2]
        part = own.partition(".")[2].rpartition(".")[0]
        if part in _PARTS:
            leaf = spell(parameter, "keras").rpartition("/")[2]
            return self._plain(f"{_SCOPE}/layer_{place}/{_PARTS[part]}/{leaf}", parameter)
        name = f"{_SCOPE}/{leaf}"  # one variable for the biases of all layers
        shape = self._shape(name)
        if len(shape) != 3 or shape[0] != self.config.n_layer:
            raise CheckpointError(
                f"{self.bundle.path}: {name} has the shape {shape}; there are "
                f"{self.config.n_layer} layers"
            )
        spec = TensorSpec(shape[1:], self.bundle.variables[name].spec.dtype)
        return Piece(f"{name}[{place}]", spec, lambda: self.bundle.read(name, place))

    def _shape(self, name: str) -> tuple[int, ...]:
        if name not in self.bundle.variables:
            raise CheckpointError(f"{self.bundle.path}: lacks {name}")
        self.used.add(name)
        return self.bundle.variables[name].spec.shape

    def _plain(self, name: str, parameter: Parameter) -> Piece:
        """Return a parameter that is one variable, which lies as Keras has it."""
        # No values, but a shape that turns round like theirs.
        like = np.broadcast_to(np.float32(0), self._shape(name))
        shape = relayout(like, parameter, "keras_h5", "canonical").shape
        spec = TensorSpec(shape, self.bundle.variables[name].spec.dtype)

        def read() -> np.ndarray:
            array = relayout(self.bundle.read(name), parameter, "keras_h5", "canonical")
            return np.ascontiguousarray(array)

        return Piece(name, spec, read)

    def _projection(self, name: str, parameter: Parameter) -> Piece:
        rows, columns = parameter.shape
        if name in self.bundle.variables or rows != columns:
            return self._plain(name, parameter)
        spec = TensorSpec(parameter.shape, self.bundle.variables[_SIGN].spec.dtype)
        return Piece("(not projected)", spec, lambda: np.eye(rows, dtype=spec.dtype))

    def _bias(self, table: int, parameter: Parameter) -> Piece:
        """Return the biases of a table's words, which lie by clusters."""
        clusters = len(self.config.cluster_ends)
        if clusters == 1:
            return self._plain(f"{_SOFTMAX}/bias", parameter)
        if self.config.div_val > 1:
            return self._plain(f"{_SOFTMAX}/cutoff_{table}/b", parameter)
        names = [f"{_SOFTMAX}/cutoff_{place}/b" for place in range(clusters)]
        size = sum(self._shape(name)[0] for name in names)
        spec = TensorSpec((size,), self.bundle.variables[names[0]].spec.dtype)

        def read() -> np.ndarray:
            return np.concatenate([self.bundle.read(name) for name in names])

        return Piece(", ".join(names), spec, read)


def _pieces(bundle: Bundle, config: TransfoXLConfig) -> tuple[dict[str, Piece], set[str]]:
    """Return the parameters, and the names of the variables that they take."""
    maker = _Pieces(bundle, config)
    expected = table_of(config.model_type).expand(config, HEAD)
    pieces = {
        parameter.full_name: maker.piece(parameter)
        for parameter in expected.values()
        if parameter.tied_to is None
    }
    return pieces, maker.used
