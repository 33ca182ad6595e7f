"""The base of every Flax model: build, load, save, resize, shard; all by the parameter table."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.core import FrozenDict, unfreeze
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from xlmfam.common.checkpoints.models import (
    build_config,
    load_generation_config,
    open_parameters,
    pop_loading_arguments,
    save_parameters,
)
from xlmfam.common.checkpoints.raw import aligned_copy, is_aligned
from xlmfam.common.checks import check_token_range
from xlmfam.common.configs.base import PretrainedConfig, dtype_name, pop_hub_arguments
from xlmfam.common.errors import ConfigError, XlmfamError
from xlmfam.common.generation import GenerationConfig
from xlmfam.common.logging import progress
from xlmfam.common.parameters import (
    Parameter,
    Table,
    layout_shape,
    partition,
    relayout,
    spell,
    table_of,
)
from xlmfam.common.parameters.sharding import DEFAULT_RULES
from xlmfam.common.positions import interleaved_sinusoids

Model = TypeVar("Model", bound="PreTrainedModel")
Params = dict[str, Any]
Path_ = tuple[str, ...]


class PreTrainedModel:
    """A config, a linen module and its parameters, which are those of the family's table.

    The object itself is no linen module: its calls are plain functions of ``params``, and work
    under ``jax.jit``, ``jax.grad`` and ``jax.vmap``.

    Args:
        config: The family's config.
        input_shape: Kept for the documented signature; the table states all shapes.
        seed: Draws the initial values.
        dtype: Of the computation; the parameters have their own.
        _do_init: ``False`` leaves ``params`` out: they are handed to every call.

    Attributes:
        module: The linen module.
        params: Its parameters, a tree of plain dicts.
    """

    config_class: ClassVar[type[PretrainedConfig]]
    module_class: ClassVar[Callable[..., nn.Module]]
    table_class: ClassVar[str]  # the name of the class in the parameter table
    base_model_prefix: ClassVar[str]
    init_arguments: ClassVar[tuple[str, ...]] = ()  # of the class, beside those below

    def __init__(
        self,
        config: PretrainedConfig,
        input_shape: tuple[int, ...] = (1, 1),
        seed: int = 0,
        dtype: Any = jnp.float32,
        _do_init: bool = True,
    ):
        if not isinstance(config, self.config_class):
            raise ConfigError(
                f"{type(self).__name__} needs a {self.config_class.__name__}, "
                f"got {type(config).__name__}"
            )
        self.config = config
        self.dtype = jax_dtype(dtype)
        self.input_shape = input_shape
        self.key = jax.random.key(seed)
        self.generation_config = GenerationConfig.from_model_config(config)
        self.module = self.module_class(config, dtype=self.dtype)
        self._params: Params | None = None
        if _do_init:
            self._params = self.init_weights(self.key, input_shape)

    # ---- parameters ---------------------------------------------------------------------

    @property
    def table(self) -> Table:
        """The family's parameter table."""
        return table_of(self.config.model_type)

    def expected_parameters(self) -> dict[str, Parameter]:
        """Return the table's rows for this model, by canonical name."""
        return self.table.expand(self.config, self.table_class)

    def paths(self) -> dict[Path_, Parameter]:
        """Return the rows that have values of their own, by path in the tree."""
        rows = self.expected_parameters().values()
        return {tuple(spell(row, "flax").split("/")): row for row in rows if row.tied_to is None}

    def _tree(self, leaf: Callable[[Parameter], Any]) -> Params:
        """Return a tree like ``params`` of what ``leaf`` says of every row."""
        return unflatten_dict({path: leaf(row) for path, row in self.paths().items()})

    @property
    def params(self) -> Params:
        """The parameters; a setter takes a whole tree."""
        if self._params is None:
            raise XlmfamError(
                "the model was built with _do_init=False and keeps no params: pass params=... "
                "to the call, or set model.params"
            )
        return self._params

    @params.setter
    def params(self, value: Mapping[str, Any]) -> None:
        given = flatten_dict(unfreeze(value) if isinstance(value, FrozenDict) else dict(value))
        expected = self.paths()
        wrong = [("/".join(path), "missing") for path in expected if path not in given]
        wrong += [("/".join(path), "unexpected") for path in given if path not in expected]
        wrong += [
            ("/".join(path), f"is {np.shape(given[path])}, not {layout_shape(row, 'flax')}")
            for path, row in expected.items()
            if path in given and np.shape(given[path]) != layout_shape(row, "flax")
        ]
        if wrong:
            shown = "; ".join(f"{name}: {problem}" for name, problem in wrong[:20])
            raise XlmfamError(f"params do not fit {type(self).__name__}: {shown}")
        self._params = unflatten_dict(given)

    @property
    def params_shape_tree(self) -> Params:
        """Shapes and dtypes of the parameters, as a tree of ``jax.ShapeDtypeStruct``."""
        if self._params is not None:
            return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), self._params)
        return self._tree(
            lambda row: jax.ShapeDtypeStruct(layout_shape(row, "flax"), jnp.dtype("float32"))
        )

    @property
    def required_params(self) -> set[Path_]:
        """Paths of all parameters."""
        return set(self.paths())

    def init_weights(
        self,
        rng: Array,
        input_shape: tuple[int, ...] = (1, 1),  # noqa: ARG002 - the table states all shapes
        params: Mapping[str, Any] | None = None,
    ) -> Params:
        """Return initial values; what ``params`` holds is kept.

        Args:
            rng: A key; every parameter has its own values, whatever others there are.
            input_shape: Kept for the documented signature.
            params: Some or all of the tree.
        """
        kept = flatten_dict(unfreeze(params) if isinstance(params, FrozenDict) else params or {})
        values = {
            path: kept[path] if path in kept else initialise(rng, index, row)
            for index, (path, row) in enumerate(self.paths().items())
        }
        return unflatten_dict(values)

    def num_parameters(self) -> int:
        """Return the number of values, shared ones counted once."""
        return sum(row.size for row in self.paths().values())

    def decay_parameters(self) -> list[str]:
        """Return the canonical names that weight decay applies to: not biases and norms."""
        return [name for name, p in self.expected_parameters().items() if p.decays]

    def decay_mask(self, params: Params | None = None) -> Params:  # noqa: ARG002 - optax calls it
        """Return a tree of booleans, ``optax.adamw(..., mask=model.decay_mask)``."""
        return self._tree(lambda row: row.decays)

    def to_canonical(self, values: Mapping[str, Any] | None = None) -> dict[str, np.ndarray]:
        """Return NumPy arrays by canonical name and in canonical layout.

        Args:
            values: A tree like ``params``, e.g. gradients; the parameters themselves by
                default. Shared ones are listed once, and of ``values`` only what is learned.
        """
        flat = flatten_dict(self.params if values is None else dict(values))
        return {
            row.name: relayout(np.asarray(flat[path]), row, "flax", "canonical")
            for path, row in self.paths().items()
            if row.trainable or values is None
        }

    def params_shardings(
        self, mesh: Mesh, rules: Mapping[str, str | None] = DEFAULT_RULES
    ) -> Params:
        """Return where each parameter lives on a mesh, a tree of ``NamedSharding``.

        Use as ``jax.device_put(model.params, model.params_shardings(mesh))``.

        Args:
            mesh: Devices with named axes.
            rules: Mesh axis of each logical axis (``vocab``, ``heads``, ``mlp``, ``embed``);
                what is not named, and what the axis does not divide, is replicated.
        """
        for axis in rules.values():
            if axis is not None and axis not in mesh.axis_names:
                raise XlmfamError(
                    f"rules name the mesh axis '{axis}'; the mesh has {', '.join(mesh.axis_names)}"
                )

        def sharding(row: Parameter) -> NamedSharding:
            axes = zip(partition(row, "flax", rules), layout_shape(row, "flax"), strict=True)
            spec = [a if a is not None and size % mesh.shape[a] == 0 else None for a, size in axes]
            return NamedSharding(mesh, PartitionSpec(*spec))

        return self._tree(sharding)

    # ---- dtypes -------------------------------------------------------------------------

    def to_bf16(self, params: Params, mask: Params | None = None) -> Params:
        """Return ``params`` in bfloat16, or those that ``mask`` (a tree of booleans) marks."""
        return cast(params, jnp.bfloat16, mask)

    def to_fp16(self, params: Params, mask: Params | None = None) -> Params:
        """Return ``params`` in float16, or those that ``mask`` (a tree of booleans) marks."""
        return cast(params, jnp.float16, mask)

    def to_fp32(self, params: Params, mask: Params | None = None) -> Params:
        """Return ``params`` in float32, or those that ``mask`` (a tree of booleans) marks."""
        return cast(params, jnp.float32, mask)

    # ---- training -----------------------------------------------------------------------

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: Any = None) -> None:
        """Recompute each layer in the backward pass instead of keeping its activations."""
        del gradient_checkpointing_kwargs  # there is one way to do it
        self.module = self.module.clone(gradient_checkpointing=True)

    def gradient_checkpointing_disable(self) -> None:
        """Keep activations again."""
        self.module = self.module.clone(gradient_checkpointing=False)

    # ---- embeddings ---------------------------------------------------------------------

    def _embedding_path(self) -> Path_:
        parameter = self.table.token_embedding(self.config, self.table_class)
        if parameter is None:
            raise XlmfamError(f"{type(self).__name__} has no one token embedding")
        return next(path for path, row in self.paths().items() if row.name == parameter.name)

    def get_input_embeddings(self, params: Params | None = None) -> Array:
        """Return the token embedding, (V, D)."""
        return flatten_dict(self.params if params is None else params)[self._embedding_path()]

    def set_input_embeddings(self, value: Any) -> None:
        """Replace the token embedding, (V, D), and with it what is tied to it."""
        flat = flatten_dict(self.params)
        flat[self._embedding_path()] = jnp.asarray(value)
        self.params = unflatten_dict(flat)

    def resize_token_embeddings(
        self,
        new_num_tokens: int | None = None,
        pad_to_multiple_of: int | None = None,
        params: Params | None = None,
    ) -> Params:
        """Give the vocabulary another size; what both sizes have is kept.

        New rows are drawn as initial values. The output projection follows, tied or not.

        Args:
            new_num_tokens: The size; ``None`` keeps it.
            pad_to_multiple_of: Round the size up.
            params: Of a model that keeps none.

        Returns:
            The new parameters; the model's own are replaced by them where it keeps them.
        """
        old = flatten_dict(self.params if params is None else params)
        if pad_to_multiple_of:
            size = new_num_tokens or self.config.vocab_size
            new_num_tokens = -(-size // pad_to_multiple_of) * pad_to_multiple_of
        if new_num_tokens is None or new_num_tokens == self.config.vocab_size:
            return unflatten_dict(old)
        if new_num_tokens < 1:
            raise XlmfamError(f"new_num_tokens must be positive, got {new_num_tokens}")
        # Raises for a size that cannot be before anything has changed.
        type(self.config).from_dict(self.config.to_dict(), vocab_size=new_num_tokens)
        self.config.vocab_size = new_num_tokens
        for index, (path, row) in enumerate(self.paths().items()):
            if layout_shape(row, "flax") != old[path].shape:
                new = initialise(self.key, index, row).astype(old[path].dtype)
                kept = tuple(
                    slice(min(a, b)) for a, b in zip(new.shape, old[path].shape, strict=True)
                )
                old[path] = new.at[kept].set(old[path][kept])
        # A module of its own: what was compiled for the other size is not to be met again.
        self.module = self.module.clone()
        resized = unflatten_dict(old)
        if params is None:
            self._params = resized
        return resized

    # ---- building, loading, saving ------------------------------------------------------

    @classmethod
    def from_config(cls: type[Model], config: PretrainedConfig, **kwargs: Any) -> Model:
        """Build with initial values; arguments as in the class."""
        return cls(config, **kwargs)

    @classmethod
    def from_pretrained(
        cls: type[Model], pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any
    ) -> Any:
        """Load a checkpoint of this family, in any of the public formats.

        Memory never holds more than the model and one tensor. A checkpoint without this
        class's head loads too; the head then has initial values and a warning says so.

        Args:
            pretrained_model_name_or_path: Folder, file, or hub id.
            **kwargs: ``dtype`` of the computation (default float32), ``param_dtype`` of the
                parameters (default float32, ``"auto"`` as stored), or ``torch_dtype`` for both;
                ``_do_init=False`` returns ``(model, params)``, ``seed``; ``format``
                (``safetensors``, ``pt``, ``tf``, ``flax``), ``ignore_mismatched_sizes``,
                ``output_loading_info``, ``config``; ``revision``, ``token``, ``cache_dir``,
                ``local_files_only``, ``subfolder``; and any setting of the config.

        Raises:
            CheckpointError: When files are missing or damaged, or names and shapes do not fit;
                the message lists all of them.
            ConfigError: For a config of another family or an unknown argument.
        """
        hub = pop_hub_arguments(kwargs)
        loading = pop_loading_arguments(kwargs)
        both = kwargs.pop("torch_dtype", None)
        kept_as = dtype_name(kwargs.pop("param_dtype", both)) or "float32"
        dtype = kwargs.pop("dtype", both)
        do_init = kwargs.pop("_do_init", True)
        seed = kwargs.pop("seed", 0)
        with_info = kwargs.pop("output_loading_info", False)
        kwargs.pop("input_shape", None)
        chosen = {name: kwargs.pop(name) for name in cls.init_arguments if name in kwargs}
        config = build_config(cls.config_class, pretrained_model_name_or_path, kwargs, hub)
        # An argument may choose the class of the table.
        table_class = cls(config, _do_init=False, **chosen).table_class
        with open_parameters(
            pretrained_model_name_or_path,
            config,
            table_class,
            "flax",
            dtype=kept_as,
            **loading,
            **hub,
        ) as reader:
            if dtype is None or dtype_name(dtype) == "auto":
                dtype = jnp.float32 if both is None else reader.dtype
            model = cls(config, seed=seed, dtype=dtype, _do_init=False, **chosen)
            params = model._read(reader)
        model.generation_config = load_generation_config(
            pretrained_model_name_or_path, config, **hub
        )
        info = {"missing_keys": reader.plan.new, "unexpected_keys": list(reader.plan.dropped)}
        if do_init:
            model._params = params
            return (model, info) if with_info else model
        return (model, params, info) if with_info else (model, params)

    def _read(self, reader: Any) -> Params:
        """Return the parameters of an open checkpoint, each read straight onto the device."""
        by_name = {row.name: path for path, row in self.paths().items()}
        values: dict[Path_, Array] = {}
        for name in progress(reader.names(), "Loading"):
            # No name for what was read: it is to be gone before the next one comes.
            values[by_name[name]] = on_device(reader.read(name))
        dtype = reader.dtype if reader.dtype is not None else jnp.float32
        for index, (path, row) in enumerate(self.paths().items()):
            if path not in values:
                values[path] = initialise(self.key, index, row).astype(dtype)
        return unflatten_dict({path: values[path] for path in self.paths()})

    def save_pretrained(
        self,
        save_directory: str | os.PathLike,
        params: Mapping[str, Any] | None = None,
        *,
        format: str = "safetensors",
        max_shard_size: int | str = "5GB",
        safe_serialization: bool = True,
    ) -> list[Path]:
        """Write weights, ``config.json`` and ``generation_config.json``, all or nothing.

        Args:
            save_directory: Folder; made when missing.
            params: To write instead of the model's own.
            format: ``safetensors``, ``pt``, ``tf`` or ``flax``.
            max_shard_size: Larger checkpoints are split.
            safe_serialization: ``False`` is another way to say ``format="flax"``.

        Returns:
            The paths written.
        """
        flat = flatten_dict(self.params if params is None else dict(params))
        leaves = {row.name: flat[path] for path, row in self.paths().items()}
        return save_parameters(
            save_directory,
            self.config,
            self.table_class,
            "flax",
            lambda parameter: np.asarray(leaves[parameter.name]),
            lambda parameter: np.dtype(leaves[parameter.name].dtype),
            format=format if safe_serialization else "flax",
            max_shard_size=max_shard_size,
            generation_config=self.generation_config,
        )

    # ---- checks -------------------------------------------------------------------------

    def check_ids(self, name: str, token_ids: Any) -> None:
        """Raise ``XlmfamError`` for ids outside the vocabulary, where looking is cheap."""
        if token_ids is None:
            return
        if not jnp.issubdtype(token_ids.dtype, jnp.integer):
            raise XlmfamError(f"{name} must hold integers, got {token_ids.dtype}")
        if not token_ids.size or not is_concrete(token_ids):
            return
        values = np.asarray(token_ids)
        check_token_range(name, int(values.min()), int(values.max()), self.config.vocab_size)


def initialise(rng: Array, index: int, parameter: Parameter) -> Array:
    """Return the initial values that the table states, in the layout of Flax."""
    shape = layout_shape(parameter, "flax")
    if parameter.init == "sinusoids":
        return jnp.asarray(interleaved_sinusoids(*shape))
    if parameter.init not in ("normal", "uniform"):
        return jnp.full(shape, 1.0 if parameter.init == "ones" else 0.0, jnp.float32)
    key = jax.random.fold_in(rng, index)
    if parameter.init == "uniform":
        value = jax.random.uniform(key, shape, jnp.float32, -parameter.bound, parameter.bound)
    else:
        value = jax.random.normal(key, shape, jnp.float32) * parameter.std
    if parameter.padding_row is not None:
        value = value.at[parameter.padding_row].set(0.0)
    return value


def on_device(array: np.ndarray) -> Array:
    """Return a device array of a NumPy array that nobody changes any more.

    JAX copies in the background, and what it copies from is freed late: memory would grow by a
    fifth while loading. It takes memory over as it is when it is aligned as XLA wants it.
    """
    if not is_aligned(array):
        array = aligned_copy(array)
    return jax.device_put(array)


def cast(params: Params, dtype: Any, mask: Params | None = None) -> Params:
    """Return ``params`` with floating-point leaves in ``dtype``, where ``mask`` holds."""

    def one(value: Array, marked: bool = True) -> Array:
        return (
            value.astype(dtype) if marked and jnp.issubdtype(value.dtype, jnp.floating) else value
        )

    return jax.tree.map(one, params) if mask is None else jax.tree.map(one, params, mask)


def jax_dtype(dtype: Any) -> jnp.dtype:
    """Return a floating-point dtype from itself or its name."""
    try:
        found = jnp.dtype(dtype_name(dtype) or "float32")
    except TypeError:
        found = None
    if found is None or not jnp.issubdtype(found, jnp.floating):
        raise ConfigError(f"dtype must be a floating-point dtype, got {dtype!r}")
    return found


def is_concrete(value: Any) -> bool:
    """Whether an array's values can be looked at without waiting for another device."""
    if isinstance(value, jax.core.Tracer):
        return False
    if not isinstance(value, jax.Array):
        return True
    return value.is_fully_addressable and all(d.platform == "cpu" for d in value.devices())


def as_arrays(**values: Any) -> dict[str, Any]:
    """Return lists and the like as arrays; ids keep the range they came with until checked."""
    return {
        name: value if value is None or hasattr(value, "dtype") else jnp.asarray(value)
        for name, value in values.items()
    }
