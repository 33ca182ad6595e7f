"""A TensorFlow SavedModel, to be served without xlmfam.

Its signature ``serving_default`` reads whole texts. ``decode`` of a causal model also takes what
an earlier call returned: keys and values that grow (``past_key_values_0_key``), of XLM those of a
buffer and how many tokens are in it (``past_length``), of Transformer-XL its memory (``mems_0``).
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from xlmfam.common.errors import CheckpointError
from xlmfam.conversion.targets import Work
from xlmfam.conversion.targets.keras_model import KerasReader, build
from xlmfam.conversion.targets.signatures import Input, Signature, signature_of

_LENGTH = "past_length"


def write(work: Work) -> None:
    """Write ``saved_model.pb`` and ``variables``.

    Raises:
        MissingPackageError: TensorFlow is not installed.
        CheckpointError: The dtype cannot be served.
    """
    dtype = "float32" if work.reader.dtype is None else work.reader.dtype.name
    if dtype not in ("float32", "float16", "bfloat16"):
        raise CheckpointError(f"a SavedModel is of float32, float16 or bfloat16, not of {dtype}")
    model = build(work, KerasReader(work), dtype)
    keras = importlib.import_module("keras")
    signature = signature_of(work.config, work.head)
    archive = keras.export.ExportArchive()
    archive.track(model)
    archive.add_endpoint("serving_default", _reading(model), [_specs(signature.inputs, dtype)])
    if signature.memory:
        inputs, decode = _decoding(model, signature)
        archive.add_endpoint("decode", decode, [_specs(inputs, dtype)])
    archive.write_out(str(work.folder), verbose=False)


def _name(name: str) -> str:
    return name.replace(".", "_")


def _specs(inputs: tuple[Input, ...], dtype: str) -> dict[str, Any]:
    tf = importlib.import_module("tensorflow")
    return {
        _name(each.name): tf.TensorSpec(
            [size if isinstance(size, int) else None for size in each.shape],
            dtype if each.floating else "int32",
            name=_name(each.name),
        )
        for each in inputs
    }


def _tensors(output: Any) -> dict[str, Any]:
    tf = importlib.import_module("tensorflow")
    return {name: output[name] for name in output if tf.is_tensor(output[name])}


def _reading(model: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Return a function that reads texts from their beginning."""

    def serve(inputs: dict[str, Any]) -> dict[str, Any]:
        output = model(**inputs, training=False, return_dict=True, **model._no_cache())
        return _tensors(output)

    return serve


def _decoding(model: Any, signature: Signature) -> tuple[tuple[Input, ...], Callable]:
    """Return the inputs of a call that goes on from another, and the function."""
    pack, unpack, inputs = _grown, _presents, signature.every
    argument = str(signature.memory_argument)
    if argument == "mems":
        pack, unpack = _mems, _new_mems
    elif argument == "cache":
        pack, unpack, inputs = _buffers, _filled, _buffered(model.config, signature)

    def decode(given: dict[str, Any]) -> dict[str, Any]:
        named = {each.name: given[_name(each.name)] for each in signature.inputs}
        named[argument] = pack(given, signature)
        if "use_cache" in model._no_cache():
            named["use_cache"] = True
        output = model(**named, training=False, return_dict=True)
        names = [_name(signature.returned(each.name)) for each in signature.memory]
        kept = unpack(output)
        length = {"present_length": kept.pop()} if len(kept) > len(names) else {}
        return _tensors(output) | dict(zip(names, kept, strict=True)) | length

    return inputs, decode


def _flat(given: dict[str, Any], signature: Signature) -> list[Any]:
    return [given[_name(each.name)] for each in signature.memory]


def _grown(given: dict[str, Any], signature: Signature) -> Any:
    """Keys and values as one pair for each layer."""
    flat = _flat(given, signature)
    return tuple(zip(flat[::2], flat[1::2], strict=True))


def _presents(output: Any) -> list[Any]:
    return [tensor for layer in output["past_key_values"] for tensor in layer[:2]]


def _mems(given: dict[str, Any], signature: Signature) -> Any:
    return _flat(given, signature)


def _new_mems(output: Any) -> list[Any]:
    return list(output["mems"])


def _buffered(config: Any, signature: Signature) -> tuple[Input, ...]:
    """The inputs with keys and values in buffers that hold the longest text."""
    sizes: dict[Any, int] = dict.fromkeys(("past", "total"), config.max_position_embeddings)
    changed = [
        Input(each.name, tuple(sizes.get(size, size) for size in each.shape), each.floating)
        for each in signature.every
    ]
    return (*changed, Input(_LENGTH, ()))


def _buffers(given: dict[str, Any], signature: Signature) -> Any:
    cache = importlib.import_module("xlmfam.tf.cache")
    flat = _flat(given, signature)
    return cache.KeyValueCache(tuple(flat[::2]), tuple(flat[1::2]), given[_LENGTH])


def _filled(output: Any) -> list[Any]:
    cache = output["past_key_values"]
    pairs = zip(cache.keys, cache.values, strict=True)
    return [tensor for pair in pairs for tensor in pair] + [cache.length]
