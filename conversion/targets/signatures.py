"""What a model takes when it is called without Python: the inputs of an exported graph.

Sizes are numbers, or names for what changes from call to call: ``batch``, ``length``, ``past``
(tokens before), ``total`` (those and the new ones), ``choices``, ``target`` (of a translation),
``source`` (of an encoder).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from xlmfam.common.configs import PretrainedConfig, TransfoXLConfig, XLMConfig, XmodConfig
from xlmfam.common.parameters import table_of

Size = int | str


@dataclass(frozen=True)
class Input:
    """One input.

    Attributes:
        name: Its name.
        shape: Its sizes.
        floating: Whether it holds numbers of the model's dtype; else ids and masks.
    """

    name: str
    shape: tuple[Size, ...]
    floating: bool = False

    def sized(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """Return the shape with numbers in it."""
        return tuple(size if isinstance(size, int) else sizes[size] for size in self.shape)


@dataclass(frozen=True)
class Signature:
    """The inputs of a class.

    Attributes:
        inputs: Without what is remembered.
        memory: What an earlier call returned: keys and values, or the memory of Transformer-XL,
            several for each layer.
        memory_argument: What the models call it; ``None`` where nothing is remembered.
    """

    inputs: tuple[Input, ...]
    memory: tuple[Input, ...] = ()
    memory_argument: str | None = None

    @property
    def every(self) -> tuple[Input, ...]:
        """All inputs."""
        return self.inputs + self.memory

    def returned(self, name: str) -> str:
        """Return the name of the output that is given as input ``name`` to the next call."""
        return name.replace("past_key_values", "present").replace("mems", "new_mems")


def signature_of(config: PretrainedConfig, head: str) -> Signature:
    """Return the inputs of class ``head``, the whole of what it can remember included."""
    name = head.partition("(")[0]
    if isinstance(config, TransfoXLConfig):
        return _transfo_xl(config, name)
    if name == "XLMEncoderDecoder":
        return _translation(config)
    rows: tuple[Size, ...] = ("batch", "choices") if name.endswith("MultipleChoice") else ("batch",)
    remembers = _remembers(config, name)
    ids = Input("input_ids", (*rows, "length"))
    mask = Input("attention_mask", (*rows, "total" if remembers else "length"))
    inputs = (ids, mask, *_languages(config, rows), *_encoder(config))
    if not remembers:
        return Signature(inputs)
    argument = "cache" if isinstance(config, XLMConfig) else "past_key_values"
    return Signature(inputs, _keys_and_values(config), argument)


def _languages(config: Any, rows: tuple[Size, ...]) -> tuple[Input, ...]:
    if isinstance(config, XmodConfig):  # whose adapters are gathered for whole texts
        return (Input("lang_ids", rows[:1]),)
    if isinstance(config, XLMConfig) and config.uses_languages:
        return (Input("langs", (*rows, "length")),)
    return ()


def _encoder(config: Any) -> tuple[Input, ...]:
    """The states that a decoder looks at, where it has what it takes."""
    decodes = not isinstance(config, XmodConfig) or config.is_decoder
    if isinstance(config, XLMConfig) or not (decodes and config.add_cross_attention):
        return ()
    states = Input("encoder_hidden_states", ("batch", "source", config.hidden_size), True)
    return (states, Input("encoder_attention_mask", ("batch", "source")))


def _remembers(config: Any, name: str) -> bool:
    """Whether the class gives keys and values to the next call."""
    if isinstance(config, XLMConfig):
        return bool(config.is_causal) and name in ("XLMModel", "XLMWithLMHeadModel")
    if isinstance(config, XmodConfig):
        return bool(config.is_decoder) and name in ("XmodModel", "XmodForCausalLM")
    return True


def _keys_and_values(config: Any) -> tuple[Input, ...]:
    layers, heads = config.num_hidden_layers, config.num_attention_heads
    width = config.hidden_size // heads
    found = []
    for layer in range(layers):
        own = len(config.kept_heads(layer)) if hasattr(config, "kept_heads") else heads
        for part in ("key", "value"):
            name = f"past_key_values.{layer}.{part}"
            found.append(Input(name, ("batch", own, "past", width), True))
    return tuple(found)


def _transfo_xl(config: TransfoXLConfig, name: str) -> Signature:
    inputs: tuple[Input, ...] = (Input("input_ids", ("batch", "length")),)
    classifies = name not in (table_of(config.model_type).base, "TransfoXLLMHeadModel")
    # A classifier finds the ends of its texts by the padding token, where there is one.
    if not (classifies and config.pad_token_id is not None):
        inputs += (Input("attention_mask", ("batch", "length")),)
    if not config.mem_len:
        return Signature(inputs)
    shape = (config.mem_len, "batch", config.d_model)
    memory = tuple(Input(f"mems.{layer}", shape, True) for layer in range(config.n_layer))
    return Signature(inputs, memory, "mems")


def _translation(config: Any) -> Signature:
    source, target = ("batch", "length"), ("batch", "target")
    inputs = [Input("input_ids", source), Input("attention_mask", source)]
    if config.uses_languages:
        inputs.append(Input("langs", source))
    inputs += [Input("decoder_input_ids", target), Input("decoder_attention_mask", target)]
    if config.uses_languages:
        inputs.append(Input("decoder_langs", target))
    return Signature(tuple(inputs))
