"""The base of every PyTorch model: build, load, save, tie, resize; all by the parameter table."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import ml_dtypes
import numpy as np
import torch
from torch import Tensor, nn

from xlmfam.common.checkpoints.models import (
    build_config,
    load_generation_config,
    open_parameters,
    pop_loading_arguments,
    save_parameters,
)
from xlmfam.common.checks import check_token_range
from xlmfam.common.configs.base import PretrainedConfig, dtype_name, pop_hub_arguments
from xlmfam.common.errors import ConfigError, XlmfamError
from xlmfam.common.generation import GenerationConfig
from xlmfam.common.parameters import Parameter, Table, linear_styles, table_of
from xlmfam.common.positions import interleaved_sinusoids

Model = TypeVar("Model", bound="PreTrainedModel")


class PreTrainedModel(nn.Module):
    """A model whose parameters are those of its family's table.

    Subclasses build their modules in ``__init__`` and then call ``post_init``.

    Args:
        config: The family's config.
    """

    config_class: ClassVar[type[PretrainedConfig]]
    table_class: ClassVar[str]  # the name of the class in the parameter table
    base_model_prefix: ClassVar[str]
    init_arguments: ClassVar[tuple[str, ...]] = ()  # of the class, beside the config

    def __init__(self, config: PretrainedConfig):
        super().__init__()
        if not isinstance(config, self.config_class):
            raise ConfigError(
                f"{type(self).__name__} needs a {self.config_class.__name__}, "
                f"got {type(config).__name__}"
            )
        self.config = config
        self.generation_config = GenerationConfig.from_model_config(config)
        self.gradient_checkpointing = False

    def post_init(self, keep: tuple[str, ...] = ()) -> None:
        """Tie what is tied and draw initial values but for ``keep``, unless on the meta device."""
        for name, parameter in self.expected_parameters().items():
            if not parameter.trainable:
                self.get_parameter(name).requires_grad_(False)
        self.tie_weights()
        if self.device.type != "meta":
            self.init_weights([name for name in self.expected_parameters() if name not in keep])

    # ---- parameters ---------------------------------------------------------------------

    @property
    def table(self) -> Table:
        """The family's parameter table."""
        return table_of(self.config.model_type)

    def expected_parameters(self) -> dict[str, Parameter]:
        """Return the table's rows for this model, by state-dict name."""
        return self.table.expand(self.config, self.table_class)

    def init_weights(self, names: list[str] | None = None) -> None:
        """Draw initial values from torch's generator, for all parameters or for ``names``."""
        for name, parameter in self.expected_parameters().items():
            if parameter.tied_to is None and (names is None or name in names):
                initialise(self.get_parameter(name), parameter)

    def tie_weights(self) -> None:
        """Make parameters that the table ties one and the same."""
        parameters = self.expected_parameters()
        by_full_name = {p.full_name: name for name, p in parameters.items()}
        for name, parameter in parameters.items():
            if parameter.tied_to is not None:
                self._put(name, self.get_parameter(by_full_name[parameter.tied_to]))

    def _put(self, name: str, value: nn.Parameter) -> None:
        path, _, leaf = name.rpartition(".")
        setattr(self.get_submodule(path), leaf, value)

    def num_parameters(self, only_trainable: bool = False) -> int:
        """Return the number of values, shared ones counted once."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad or not only_trainable)

    def decay_parameters(self) -> list[str]:
        """Return the names that weight decay applies to: not biases and norms."""
        return [name for name, p in self.expected_parameters().items() if p.decays]

    def to_canonical(self, values: dict[str, Tensor] | None = None) -> dict[str, np.ndarray]:
        """Return NumPy arrays by canonical name and in canonical layout.

        Args:
            values: State-dict names and values shaped like the parameters, e.g. gradients;
                the parameters themselves by default. Shared ones are listed once.
        """
        if values is None:
            values = dict(self.named_parameters())
        return {name: as_array(value) for name, value in values.items()}

    def tensor_parallel_plan(self) -> dict[str, str]:
        """Return ``{module path: "colwise" | "rowwise"}`` for the linear layers to split."""
        return linear_styles(self.expected_parameters())

    @property
    def device(self) -> torch.device:
        """Device of the parameters."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the parameters."""
        return next(p.dtype for p in self.parameters() if p.is_floating_point())

    # ---- embeddings ---------------------------------------------------------------------

    @property
    def base_model(self) -> nn.Module:
        """The model without its head."""
        return getattr(self, self.base_model_prefix, self)

    def get_input_embeddings(self) -> nn.Embedding:
        """Return the token embedding."""
        raise NotImplementedError

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Replace the token embedding and what is tied to it."""
        raise NotImplementedError

    def get_output_embeddings(self) -> nn.Linear | None:
        """Return the projection to the vocabulary, or ``None``."""
        return None

    def resize_token_embeddings(
        self, new_num_tokens: int | None = None, pad_to_multiple_of: int | None = None
    ) -> nn.Embedding:
        """Give the vocabulary another size; what both sizes have is kept.

        New rows are drawn as initial values. The output projection follows, tied or not.

        Args:
            new_num_tokens: The size; ``None`` returns the embedding as it is.
            pad_to_multiple_of: Round the size up.

        Returns:
            The new token embedding.
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
                self._resize(name, parameter)
        self.tie_weights()
        self.get_input_embeddings().num_embeddings = new_num_tokens
        head = self.get_output_embeddings()
        if head is not None:
            head.out_features = new_num_tokens
        return self.get_input_embeddings()

    def _resize(self, name: str, parameter: Parameter) -> None:
        old = self.get_parameter(name)
        new = nn.Parameter(old.new_empty(parameter.shape), requires_grad=old.requires_grad)
        initialise(new, parameter)
        kept = tuple(slice(min(a, b)) for a, b in zip(old.shape, new.shape, strict=True))
        with torch.no_grad():
            new[kept] = old[kept]
        self._put(name, new)

    # ---- building, loading, saving ------------------------------------------------------

    @classmethod
    def from_config(cls: type[Model], config: PretrainedConfig, dtype: Any = None) -> Model:
        """Build with initial values; ``dtype`` is a torch dtype or its name."""
        model = cls(config)
        return model if dtype is None else model.to(torch_dtype(dtype))

    @classmethod
    def from_pretrained(
        cls: type[Model], pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any
    ) -> Model:
        """Load a checkpoint of this family, in any of the public formats, in evaluation mode.

        Memory never holds more than the model and one tensor. A checkpoint without this
        class's head loads too; the head then has initial values and a warning says so.

        Args:
            pretrained_model_name_or_path: Folder, file, or hub id.
            **kwargs: ``torch_dtype``/``dtype`` (default float32, ``"auto"`` as stored),
                ``device``, ``format`` (``safetensors``, ``pt``, ``tf``, ``flax``),
                ``ignore_mismatched_sizes``, ``output_loading_info``, ``config``; ``revision``,
                ``token``, ``cache_dir``, ``local_files_only``, ``subfolder``; and any setting
                of the config.

        Raises:
            CheckpointError: When files are missing or damaged, or names and shapes do not fit;
                the message lists all of them.
            ConfigError: For a config of another family or an unknown argument.
        """
        hub = pop_hub_arguments(kwargs)
        loading = pop_loading_arguments(kwargs)
        dtype = dtype_name(kwargs.pop("torch_dtype", kwargs.pop("dtype", None))) or "float32"
        device = torch.device(kwargs.pop("device", None) or "cpu")
        with_info = kwargs.pop("output_loading_info", False)
        chosen = {name: kwargs.pop(name) for name in cls.init_arguments if name in kwargs}
        config = build_config(cls.config_class, pretrained_model_name_or_path, kwargs, hub)
        with torch.device("meta"):
            model = cls(config, **chosen)
        with open_parameters(
            pretrained_model_name_or_path,
            config,
            model.table_class,
            "canonical",
            dtype=dtype,
            **loading,
            **hub,
        ) as reader:
            for name, array in reader.items():
                value = as_tensor(array).to(device)
                model._put(name, nn.Parameter(value, reader.parameters[name].trainable))
        kind = torch_dtype(reader.dtype.name) if reader.dtype is not None else torch.float32
        for name in reader.plan.new:
            row = reader.parameters[name]
            empty = torch.empty(row.shape, dtype=kind, device=device)
            model._put(name, nn.Parameter(empty, row.trainable))
        model.init_weights(reader.plan.new)
        model.tie_weights()
        model.generation_config = load_generation_config(
            pretrained_model_name_or_path, config, **hub
        )
        model.eval()
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
            safe_serialization: ``False`` is another way to say ``format="pt"``.

        Returns:
            The paths written.
        """
        state = self.state_dict()
        return save_parameters(
            save_directory,
            self.config,
            self.table_class,
            "canonical",
            lambda parameter: as_array(state[parameter.name]),
            lambda parameter: numpy_dtype(state[parameter.name].dtype),
            format=format if safe_serialization else "pt",
            max_shard_size=max_shard_size,
            generation_config=self.generation_config,
        )

    # ---- training and checks ------------------------------------------------------------

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: Any = None) -> None:
        """Recompute layers in the backward pass instead of keeping their activations."""
        del gradient_checkpointing_kwargs  # non-reentrant, whatever is asked for
        for module in self.modules():
            if isinstance(module, PreTrainedModel):
                module.gradient_checkpointing = True

    def gradient_checkpointing_disable(self) -> None:
        """Keep activations again."""
        for module in self.modules():
            if isinstance(module, PreTrainedModel):
                module.gradient_checkpointing = False

    @property
    def is_gradient_checkpointing(self) -> bool:
        """Whether layers are recomputed in the backward pass."""
        return any(
            m.gradient_checkpointing for m in self.modules() if isinstance(m, PreTrainedModel)
        )

    def check_ids(self, name: str, token_ids: Tensor | None) -> None:
        """Raise ``XlmfamError`` for ids outside the vocabulary, where looking is cheap."""
        if token_ids is None or torch.compiler.is_compiling():
            return
        if not isinstance(token_ids, Tensor):
            raise XlmfamError(f"{name} must be a torch tensor, got a {type(token_ids).__name__}")
        if token_ids.device.type != "cpu":
            return
        if token_ids.dtype.is_floating_point or token_ids.dtype is torch.bool:
            raise XlmfamError(f"{name} must hold integers, got {token_ids.dtype}")
        if type(token_ids) is not Tensor or not token_ids.numel():
            return  # a tracer or nothing
        least, most = (int(value) for value in torch.aminmax(token_ids))
        check_token_range(name, least, most, self.config.vocab_size)


def initialise(value: Tensor, parameter: Parameter) -> None:
    """Fill ``value`` with the initial values that the table states."""
    with torch.no_grad():
        if parameter.init == "sinusoids":
            value.copy_(torch.from_numpy(interleaved_sinusoids(*value.shape)))
        elif parameter.init in ("normal", "uniform"):
            if parameter.init == "uniform":
                value.uniform_(-parameter.bound, parameter.bound)
            else:
                value.normal_(0.0, parameter.std)
            if parameter.padding_row is not None:
                value[parameter.padding_row] = 0.0
        else:
            value.fill_(1.0 if parameter.init == "ones" else 0.0)


def torch_dtype(dtype: Any) -> torch.dtype:
    """Return a torch floating-point dtype from itself or its name."""
    found = getattr(torch, dtype_name(dtype) or "", None)
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ConfigError(f"dtype must be a floating-point dtype, got {dtype!r}")
    return found


def numpy_dtype(dtype: torch.dtype) -> np.dtype:
    """Return the NumPy dtype of a torch dtype."""
    name = dtype_name(dtype) or ""
    return np.dtype(getattr(ml_dtypes, name, name))


def as_tensor(array: np.ndarray) -> Tensor:
    """Return a tensor of an array, sharing memory where it can (bfloat16 too)."""
    array = np.ascontiguousarray(array)
    if not array.flags.writeable:
        array = array.copy()
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def as_array(tensor: Tensor) -> np.ndarray:
    """Return an array of a tensor, sharing memory where it can (bfloat16 too)."""
    tensor = tensor.detach().cpu().contiguous()
    if tensor.dtype is torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()
