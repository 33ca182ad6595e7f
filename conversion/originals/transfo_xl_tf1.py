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
from xlmfam.common.parameters import Parameter, relayout, table_of
from xlmfam.conversion.originals.base import Original, Piece, PiecesSource
from xlmfam.conversion.originals.transfo_xl import HEAD
from xlmfam.conversion.originals.transfo_xl_bundle import Bundle
from xlmfam.conversion.originals.transfo_xl_flags import Flags, divisor, given_flags, new_config
from xlmfam.conversion.originals.transfo_xl_tf1_names import EMBED, SCOPE, SOFTMAX, Place, place_of
from xlmfam.conversion.originals.transfo_xl_words import find_words

SIGN = f"{SCOPE}/r_w_bias"
_EPSILON = 1e-12
_FILES = re.compile(r"(.+)\.(?:index|meta|data-\d{5}-of-\d{5})")
_POINTER_NAME = "checkpoint"
_POINTER = re.compile(r'^model_checkpoint_path:\s*"([^"]+)"', re.MULTILINE)
_OPTIMIZER = re.compile(r".*/Adam(?:_1)?|beta[12]_power|global_step")


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
        return SIGN in Bundle(prefix).variables
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
    if SIGN not in bundle.variables:
        some = ", ".join(list(bundle.variables)[:3]) or "nothing"
        raise CheckpointError(
            f"{bundle.path}: no checkpoint of kimiyoung/transformer-xl: it lacks {SIGN} and has "
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
    biases = _shape(bundle, SIGN, 2, 3)
    width, inner = _shape(bundle, f"{SCOPE}/layer_0/ff/layer_1/kernel", 2)
    clusters = _count(bundle, f"{SOFTMAX}/cutoff_{{}}/b")
    rows = [_shape(bundle, f"{SOFTMAX}/cutoff_{i}/b", 1)[0] for i in range(clusters)]
    tables = _count(bundle, f"{EMBED}/cutoff_{{}}/lookup_table")
    names = [f"{EMBED}/cutoff_{i}/lookup_table" for i in range(tables)]
    shapes = [_shape(bundle, name, 2) for name in names or [f"{EMBED}/lookup_table"]]
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
        "n_layer": _layers(bundle, biases),
        "untie_r": len(biases) == 3,
        "tie_word_embeddings": True,
        "tie_projs": _shared(bundle, tables, max(1, clusters)),
    }


def _shared(bundle: Bundle, tables: int, clusters: int) -> list[bool]:
    """Return for each cluster whether the softmax has the embedding's projection."""
    embedded = [
        f"{EMBED}/cutoff_{i}/proj_W" if tables else f"{EMBED}/proj_W" for i in range(clusters)
    ]
    own = [f"{SOFTMAX}/cutoff_{i}/proj" for i in range(clusters)]
    has = bundle.variables.__contains__
    return [has(one) and not has(other) for one, other in zip(embedded, own, strict=True)]


def _layers(bundle: Bundle, biases: tuple[int, ...]) -> int:
    """Return the number of layers.

    Raises:
        CheckpointError: The biases of layers are not as many.
    """
    pattern = re.compile(rf"{SCOPE}/layer_(\d+)/.*")
    count = len({match[1] for match in map(pattern.match, bundle.variables) if match})
    if len(biases) == 3 and biases[0] != count:
        raise CheckpointError(
            f"{bundle.path}: {SIGN} has the shape {biases}; there are {count} layers"
        )
    return count


def _count(bundle: Bundle, template: str) -> int:
    """Return how many variables there are whose names count up from 0."""
    count = 0
    while template.format(count) in bundle.variables:
        count += 1
    return count


def _pieces(bundle: Bundle, config: TransfoXLConfig) -> tuple[dict[str, Piece], set[str]]:
    """Return the parameters, and the names of the variables that they take."""
    pieces: dict[str, Piece] = {}
    used: set[str] = set()
    for parameter in table_of(config.model_type).expand(config, HEAD).values():
        if parameter.tied_to is None:
            place = place_of(parameter, config)
            pieces[parameter.full_name] = _piece(bundle, parameter, place)
            used.update(place.names)
    return pieces, used


def _piece(bundle: Bundle, parameter: Parameter, place: Place) -> Piece:
    """Return one parameter.

    Raises:
        CheckpointError: A variable of it is missing, or has no row for its layer.
    """
    rows = parameter.shape[0]
    missing = [name for name in place.names if name not in bundle.variables]
    if missing and place.is_projection and len(set(parameter.shape)) == 1:
        dtype = bundle.variables[SIGN].spec.dtype
        spec = TensorSpec(parameter.shape, dtype)
        return Piece("(not projected)", spec, lambda: np.eye(rows, dtype=dtype))
    if missing:
        raise CheckpointError(f"{bundle.path}: lacks {missing[0]}")
    specs = [bundle.variables[name].spec for name in place.names]
    if place.row is not None and len(specs[0].shape) != 3:
        raise CheckpointError(f"{bundle.path}: {place.names[0]} has the shape {specs[0].shape}")
    # No values, but a shape that is put together like theirs.
    shape = _joined(
        [np.broadcast_to(np.float32(0), spec.shape) for spec in specs], parameter, place
    )
    spec = TensorSpec(shape.shape, specs[0].dtype)

    def read() -> np.ndarray:
        array = _joined([bundle.read(name) for name in place.names], parameter, place)
        return np.ascontiguousarray(array)

    stored_as = ", ".join(place.names) + ("" if place.row is None else f"[{place.row}]")
    return Piece(stored_as, spec, read)


def _joined(arrays: list[np.ndarray], parameter: Parameter, place: Place) -> np.ndarray:
    """Return a parameter of the values of its variables, which lie as Keras has them."""
    if place.row is not None:
        arrays = [array[place.row] for array in arrays]
    array = arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
    return relayout(array, parameter, "keras_h5", "canonical")
