"""The base of every Keras model: build, load, save, tie, resize; all by the parameter table."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import keras
import numpy as np
import tensorflow as tf

from xlmfam.common.checkpoints.models import (
    ParameterReader,
    as_dtype,
    build_config,
    load_generation_config,
    open_parameters,
    pop_loading_arguments,
    save_parameters,
)
from xlmfam.common.checkpoints.raw import aligned_copy, is_aligned
from xlmfam.common.configs.base import PretrainedConfig, dtype_name, pop_hub_arguments
from xlmfam.common.errors import ConfigError, XlmfamError
from xlmfam.common.generation import GenerationConfig
from xlmfam.common.logging import progress
from xlmfam.common.parameters import (
    Kind,
    Parameter,
    Table,
    layout_shape,
    relayout,
    spell,
    table_of,
)
from xlmfam.common.positions import interleaved_sinusoids
from xlmfam.tf.attention import Tensor
from xlmfam.tf.checks import check_ids
from xlmfam.tf.training import TrainingMixin

Model = TypeVar("Model", bound="PreTrainedModel")

# Gives the value of a parameter that is being created, in Keras layout, or None for an initial
# one. So variables are made of what is loaded, and never hold anything else before.
_loading: ContextVar[Callable[[str], np.ndarray | None] | None] = ContextVar(
    "_loading", default=None
)


class PreTrainedModel(TrainingMixin, keras.Model):
    """A Keras model whose variables are those of its family's table.

    Subclasses make their layers in ``__init__`` and then call ``post_init``, which creates all
    variables.

    Args:
        config: The family's config.
        dtype: Dtype policy or its name; Keras's global one by default.
        **kwargs: Of the Keras model: ``name``, ``trainable``.
    """

    config_class: ClassVar[type[PretrainedConfig]]
    table_class: ClassVar[str]  # the name of the class in the parameter table
    init_arguments: ClassVar[tuple[str, ...]] = ()  # of the class, beside config and dtype

    def __init__(self, config: PretrainedConfig, dtype: Any = None, **kwargs: Any):
        if not isinstance(config, self.config_class):
            raise ConfigError(
                f"{type(self).__name__} needs a {self.config_class.__name__}, "
                f"got {type(config).__name__}"
            )
        super().__init__(dtype=keras_dtype(dtype), **kwargs)
        self._allow_non_tensor_positional_args = True
        self.config = config
        self.generation_config = GenerationConfig.from_model_config(config)
        self.gradient_checkpointing = False

    def post_init(self) -> None:
        """Create the variables: with the values being loaded, or else initial ones."""
        loading = _loading.get()
        parameters = self.expected_parameters().values()
        largest_first = sorted(parameters, key=lambda parameter: -parameter.size)
        waiting = [p for p in largest_first if p.tied_to is None and self._variable(p) is None]
        for parameter in progress(waiting, "Loading") if loading else waiting:
            self._create(parameter, None if loading is None else loading(parameter.name))
        self.built = True

    # ---- parameters ---------------------------------------------------------------------

    @property
    def table(self) -> Table:
        """The family's parameter table."""
        return table_of(self.config.model_type)

    def expected_parameters(self) -> dict[str, Parameter]:
        """Return the table's rows for this model, by canonical name."""
        return self.table.expand(self.config, self.table_class)

    @classmethod
    def table_class_with(cls, **arguments: Any) -> str:
        """Return the name in the parameter table of what ``init_arguments`` make of the class."""
        del arguments
        return cls.table_class

    def _place(self, parameter: Parameter) -> tuple[Any, str]:
        """Return the layer that has ``parameter`` and the attribute that it is."""
        *path, leaf = spell(parameter, "keras").split("/")
        owner: Any = self
        for step in path:
            if isinstance(owner, dict):
                owner = owner[step]
            else:
                owner = owner[int(step)] if step.isdigit() else getattr(owner, step)
        return owner, leaf

    def _variable(self, parameter: Parameter) -> Any:
        owner, leaf = self._place(parameter)
        return getattr(owner, leaf, None)

    def _create(self, parameter: Parameter, value: Any = None) -> None:
        """Create the variable of ``parameter``, with ``value`` or else an initial one."""
        owner, leaf = self._place(parameter)

        def values(shape, dtype):  # noqa: ARG001
            if value is None:
                return initial(parameter, dtype)
            return from_array(value, dtype)

        variable = owner.add_weight(
            shape=layout_shape(parameter, "keras"),
            initializer=values,
            name=leaf,
            trainable=parameter.trainable,
            # Whole tables are never cast, and norms are computed in float32.
            autocast=parameter.kind in (Kind.LINEAR, Kind.BIAS, Kind.RAW, Kind.RAW_BIAS),
        )
        setattr(owner, leaf, variable)

    def canonical_variables(self) -> dict[str, Any]:
        """Return the variables by canonical name; shared ones are listed once."""
        return {
            name: self._variable(parameter)
            for name, parameter in self.expected_parameters().items()
            if parameter.tied_to is None
        }

    def num_parameters(self, only_trainable: bool = False) -> int:
        """Return the number of values, shared ones counted once."""
        chosen = self.trainable_variables if only_trainable else self.weights
        return sum(int(np.prod(variable.shape)) for variable in chosen)

    def decay_parameters(self) -> list[str]:
        """Return the names that weight decay applies to: not biases and norms."""
        return [name for name, p in self.expected_parameters().items() if p.decays]

    def exclude_from_weight_decay(self, optimizer: keras.optimizers.Optimizer) -> None:
        """Tell ``optimizer``, before it is built, not to decay biases and norms."""
        decayed = self.decay_parameters()
        variables = self.canonical_variables().items()
        optimizer.exclude_from_weight_decay([v for name, v in variables if name not in decayed])

    def to_canonical(self, values: Sequence[Any] | None = None) -> dict[str, np.ndarray]:
        """Return NumPy arrays by canonical name and in canonical layout.

        Args:
            values: As many as ``trainable_variables`` and shaped like them, e.g. gradients; the
                variables themselves by default. Shared ones are listed once.
        """
        variables = self.canonical_variables()
        given = {id(variable): variable for variable in variables.values()}
        if values is not None:
            pairs = zip(self.trainable_variables, values, strict=True)
            given = {id(variable): value for variable, value in pairs}
        parameters = self.expected_parameters()
        return {
            name: relayout(as_array(given[id(v)]), parameters[name], "keras", "canonical")
            for name, v in variables.items()
            if given.get(id(v)) is not None
        }

    # ---- embeddings ---------------------------------------------------------------------

    def get_input_embeddings(self) -> keras.layers.Layer:
        """Return the token embedding."""
        raise NotImplementedError

    def set_input_embeddings(self, value: Any) -> None:
        """Use the table of another embedding layer, or a (V, D) array, for the tokens."""
        parameter = self.table.token_embedding(self.config, self.table_class)
        if parameter is None:
            raise XlmfamError(f"{type(self).__name__} has no one token embedding")
        table = getattr(value, "embeddings", value)
        if tuple(table.shape) != parameter.shape:
            raise XlmfamError(
                f"the embeddings must have shape {parameter.shape}, got {tuple(table.shape)}"
            )
        self._remove(parameter)
        if isinstance(table, keras.Variable):
            owner, leaf = self._place(parameter)
            setattr(owner, leaf, table)
        else:
            # A copy: the caller may go on changing the array.
            self._create(parameter, table.copy() if isinstance(table, np.ndarray) else table)

    def get_output_embeddings(self) -> keras.layers.Layer | None:
        """Return the layer that has the projection to the vocabulary, or ``None``."""
        return None

    def resize_token_embeddings(
        self, new_num_tokens: int | None = None, pad_to_multiple_of: int | None = None
    ) -> keras.layers.Layer:
        """Give the vocabulary another size; what both sizes have is kept.

        New rows are drawn as initial values. The output projection follows, tied or not. Compile
        again before training on: the optimizer knows the old variables.

        Args:
            new_num_tokens: The size; ``None`` returns the embedding as it is.
            pad_to_multiple_of: Round the size up.

        Returns:
            The token embedding.
        """
        if pad_to_multiple_of:
            size = new_num_tokens or self.config.vocab_size
            new_num_tokens = -(-size // pad_to_multiple_of) * pad_to_multiple_of
        if new_num_tokens is None or new_num_tokens == self.config.vocab_size:
            return self.get_input_embeddings()
        if new_num_tokens < 1:
            raise XlmfamError(f"new_num_tokens must be positive, got {new_num_tokens}")
        old = self.expected_parameters()
        # Raises for a size that cannot be before anything has changed.
        type(self.config).from_dict(self.config.to_dict(), vocab_size=new_num_tokens)
        self.config.vocab_size = new_num_tokens
        for name, parameter in self.expected_parameters().items():
            if parameter.shape != old[name].shape and parameter.tied_to is None:
                self._resize(parameter)
        return self.get_input_embeddings()

    def _resize(self, parameter: Parameter) -> None:
        variable = self._variable(parameter)
        old = as_array(variable)
        new = as_array(initial(parameter, old.dtype.name)).copy()
        kept = tuple(slice(min(a, b)) for a, b in zip(old.shape, new.shape, strict=True))
        new[kept] = old[kept]
        self._remove(parameter)
        self._create(parameter, new)
        self._variable(parameter).trainable = variable.trainable

    def _remove(self, parameter: Parameter) -> None:
        owner, leaf = self._place(parameter)
        # Keras collects garbage here, at every variable; it need not search all that there is.
        gc.freeze()
        delattr(owner, leaf)
        gc.unfreeze()
        # Whatever was traced reads the variable that is gone.
        self.forget_traces()

    def forget_traces(self) -> None:
        """Drop the graphs of ``fit``, ``evaluate`` and ``predict``, and those of ``generate``."""
        self.train_function = self.test_function = self.predict_function = None

    # ---- building, loading, saving ------------------------------------------------------

    def get_config(self) -> dict[str, Any]:
        """Return what ``.keras`` files hold to build the model again."""
        return {
            "config": self.config.to_dict(),
            "generation_config": self.generation_config.to_diff_dict(),
            "dtype": keras.dtype_policies.serialize(self.dtype_policy),
            "name": self.name,
            "arguments": {name: getattr(self, name) for name in self.init_arguments},
            "frozen": [
                name
                for name, parameter in self.expected_parameters().items()
                if parameter.trainable and not getattr(self._variable(parameter), "trainable", True)
            ],
        }

    @classmethod
    def from_config(
        cls: type[Model], config: PretrainedConfig | dict[str, Any], dtype: Any = None
    ) -> Model:
        """Build with initial values.

        Args:
            config: The config, or what ``get_config`` returned.
            dtype: Dtype policy or its name.
        """
        if isinstance(config, PretrainedConfig):
            return cls(config, dtype=dtype)
        policy = keras.dtype_policies.deserialize(config["dtype"])
        settings = cls.config_class.from_dict(config["config"])
        model = cls(settings, policy, name=config["name"], **config.get("arguments", {}))
        model.generation_config = GenerationConfig.from_dict(config["generation_config"])
        for name in config.get("frozen", ()):
            model._variable(model.expected_parameters()[name]).trainable = False
        return model

    @classmethod
    def from_pretrained(
        cls: type[Model], pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any
    ) -> Model:
        """Load a checkpoint of this family, in any of the public formats.

        Memory never holds more than the model and one tensor. A checkpoint without this
        class's head loads too; the head then has initial values and a warning says so.

        Args:
            pretrained_model_name_or_path: Folder, file, or hub id.
            **kwargs: ``torch_dtype``/``dtype`` (a dtype or Keras policy; default Keras's global
                policy, ``"auto"`` as stored), ``format`` (``safetensors``, ``pt``, ``tf``,
                ``flax``), ``ignore_mismatched_sizes``, ``output_loading_info``, ``config``;
                ``revision``, ``token``, ``cache_dir``, ``local_files_only``, ``subfolder``; and
                any setting of the config.

        Raises:
            CheckpointError: When files are missing or damaged, or names and shapes do not fit;
                the message lists all of them.
            ConfigError: For a config of another family or an unknown argument.
        """
        hub = pop_hub_arguments(kwargs)
        loading = pop_loading_arguments(kwargs)
        dtype = kwargs.pop("torch_dtype", kwargs.pop("dtype", None))
        automatic = isinstance(dtype, str) and dtype == "auto"
        policy = None if automatic else keras_dtype(dtype)
        with_info = kwargs.pop("output_loading_info", False)
        chosen = {name: kwargs.pop(name) for name in cls.init_arguments if name in kwargs}
        config = build_config(cls.config_class, pretrained_model_name_or_path, kwargs, hub)
        with (
            open_parameters(
                pretrained_model_name_or_path,
                config,
                cls.table_class_with(**chosen),
                "keras",
                dtype="auto" if policy is None else policy.variable_dtype,
                **loading,
                **hub,
            ) as reader,
            values_from(reader),
        ):
            model = cls(config, dtype=reader.dtype if policy is None else policy, **chosen)
        model.generation_config = load_generation_config(
            pretrained_model_name_or_path, config, **hub
        )
        info = {"missing_keys": reader.plan.new, "unexpected_keys": list(reader.plan.dropped)}
        return (model, info) if with_info else model  # type: ignore[return-value]

    def save_pretrained(
        self,
        save_directory: str | os.PathLike,
        *,
        format: str = "safetensors",
        max_shard_size: int | str = "5GB",
        safe_serialization: bool = True,
    ) -> list[Path]:
        """Write weights, ``config.json`` and ``generation_config.json``, all or nothing.

        Args:
            save_directory: Folder; made when missing.
            format: ``safetensors``, ``pt``, ``tf`` or ``flax``.
            max_shard_size: Larger checkpoints are split.
            safe_serialization: ``False`` is another way to say ``format="tf"``.

        Returns:
            The paths written.
        """
        return save_parameters(
            save_directory,
            self.config,
            self.table_class,
            "keras",
            lambda parameter: as_array(self._variable(parameter)),
            lambda parameter: as_dtype(self._variable(parameter).dtype),
            format=format if safe_serialization else "tf",
            max_shard_size=max_shard_size,
            generation_config=self.generation_config,
        )

    # ---- training and checks ------------------------------------------------------------

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: Any = None) -> None:
        """Recompute layers in the backward pass instead of keeping their activations."""
        del gradient_checkpointing_kwargs
        self._set_checkpointing(True)

    def gradient_checkpointing_disable(self) -> None:
        """Keep activations again."""
        self._set_checkpointing(False)

    def _set_checkpointing(self, value: bool) -> None:
        self.gradient_checkpointing = value
        for layer in self._flatten_layers(include_self=False):
            if hasattr(layer, "gradient_checkpointing"):
                layer.gradient_checkpointing = value
        self.train_function = None

    @property
    def is_gradient_checkpointing(self) -> bool:
        """Whether layers are recomputed in the backward pass."""
        return self.gradient_checkpointing

    def check_ids(self, name: str, token_ids: Tensor | None) -> None:
        """Raise ``XlmfamError`` for ids outside the vocabulary, where looking is cheap."""
        check_ids(name, token_ids, self.config.vocab_size)


@contextmanager
def values_from(reader: ParameterReader):
    """Let models that are built in this context take their values from ``reader``."""
    sources = reader.plan.sources
    token = _loading.set(lambda name: reader.read(name) if name in sources else None)
    try:
        yield
    finally:
        _loading.reset(token)


def initial(parameter: Parameter, dtype: str) -> Tensor:
    """Return the initial values that the table states, in Keras layout."""
    shape = layout_shape(parameter, "keras")
    if parameter.init == "sinusoids":
        return tf.constant(interleaved_sinusoids(*shape), dtype)
    if parameter.init not in ("normal", "uniform"):
        return (tf.ones if parameter.init == "ones" else tf.zeros)(shape, dtype)
    if parameter.init == "uniform":
        values = keras.random.uniform(shape, -parameter.bound, parameter.bound, dtype=dtype)
    else:
        values = keras.random.normal(shape, 0.0, parameter.std, dtype=dtype)
    if parameter.padding_row is not None:
        empty = tf.zeros((1, *shape[1:]), dtype)
        values = tf.tensor_scatter_nd_update(values, [[parameter.padding_row]], empty)
    return values


def from_array(array: Any, dtype: str) -> Tensor:
    """Return a tensor of an array that nobody changes any more.

    TensorFlow copies what it converts, twice; memory that is aligned it takes over as it is.
    """
    if not (isinstance(array, np.ndarray) and tf.executing_eagerly()):
        return tf.convert_to_tensor(array, dtype)
    if array.dtype.name != dtype or array.dtype.kind != "f" or not array.size:
        return tf.convert_to_tensor(array, dtype)  # bfloat16 among others
    if not (is_aligned(array) and array.flags.writeable):
        array = aligned_copy(array)
    return tf.experimental.dlpack.from_dlpack(array.__dlpack__())


def keras_dtype(dtype: Any) -> keras.dtype_policies.DTypePolicy:
    """Return a Keras dtype policy from itself, a name, any framework's dtype, or ``None``."""
    if dtype is None:
        return keras.config.dtype_policy()
    if isinstance(dtype, keras.dtype_policies.DTypePolicy):
        return dtype
    try:
        policy = keras.dtype_policies.get(dtype_name(dtype))
        floating = "float" in policy.compute_dtype
    except (ValueError, TypeError, AttributeError):
        floating = False
    if not floating:
        raise ConfigError(f"dtype must be a floating-point dtype or a policy, got {dtype!r}")
    return policy


def as_array(value: Any) -> np.ndarray:
    """Return an array of a variable, a tensor or slices of one (bfloat16 too)."""
    if isinstance(value, keras.Variable):
        value = value.value
    if isinstance(value, tf.IndexedSlices):
        value = tf.convert_to_tensor(value)
    return value.numpy() if hasattr(value, "numpy") else np.asarray(value)


TFPreTrainedModel = PreTrainedModel
