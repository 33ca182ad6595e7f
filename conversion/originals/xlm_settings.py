"""The options of facebookresearch/XLM, as our config, and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xlmfam.common.configs import XLMConfig
from xlmfam.common.errors import CheckpointError
from xlmfam.common.pickles import Placeholder

# What the original's command line has where an option is not given, or is younger than the file.
_DEFAULTS = {"dropout": 0.0, "attention_dropout": 0.0, "share_inout_emb": True, "asm": False}
_DIV_VALUE = 4.0
# Ids of the special words, the same in every dictionary.
_INDICES = {"bos_index": 0, "eos_index": 1, "pad_index": 2, "unk_index": 3, "mask_index": 5}
# Lists of what a run trains, by the original's options.
_STEPS = ("clm_steps", "mlm_steps", "mt_steps", "ae_steps", "bt_steps", "pc_steps")
_NUMBER = int | float
_LARGEST = 2**40  # no option of any run comes near, and Python's own numbers have no end

_LONGEST_LIST = 10_000  # characters


@dataclass(frozen=True)
class Sizes:
    """What the weights say about a model.

    Attributes:
        vocabulary: Rows of the token embedding.
        width: Its columns.
        positions: Rows of the position embedding.
        has_languages: Whether languages have embeddings.
        tensors: How many tensors there are: nothing of which each needs one can be more.
    """

    vocabulary: int
    width: int
    positions: int
    has_languages: bool
    tensors: int


class Settings:
    """The options of a run; what is asked for must be of the right kind.

    Args:
        values: The options.
        path: The file, for messages.
    """

    def __init__(self, values: Mapping[str, Any], path: Path):
        self.values = values
        self.path = path

    def get(self, name: str, kind: Any, default: Any = None) -> Any:
        """Return an option.

        Args:
            name: Its name.
            kind: The types that it may have.
            default: What it is where it is missing; without one it must be there.

        Raises:
            CheckpointError: It is missing or of another kind.
        """
        value = self.values.get(name)
        if value is None:
            value = default
        if value is None:
            raise CheckpointError(f"{self.path}: params lacks {name}, which the model needs")
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise self.wrong(name, value, getattr(kind, "__name__", "number"))
        if isinstance(value, _NUMBER) and not abs(value) < _LARGEST:
            raise self.wrong(name, value, "a number that a model can have")
        return value

    def wrong(self, name: str, value: Any, allowed: str) -> CheckpointError:
        """The error for an option that cannot be."""
        return CheckpointError(
            f"{self.path}: {name} in params is {_shown(value)}; it must be {allowed}"
        )

    def counted(self, name: str, most: int) -> int:
        """Return an option that counts things of which the file has ``most`` at most."""
        value = self.get(name, int)
        if not 0 < value <= most:
            raise self.wrong(name, value, f"between 1 and {most}, what the weights can have")
        return value

    def has_steps(self, name: str) -> bool:
        """Whether the run trained something; before it began, its lists were strings."""
        value = self.values.get(name)
        return isinstance(value, str | list | tuple) and len(value) > 0


def _shown(value: Any) -> str:
    if isinstance(value, int) and abs(value) >= _LARGEST:
        return "a huge number"  # which takes long to write out, where Python does it at all
    if isinstance(value, str | int | float):
        return repr(value)[:80]
    return "a container" if isinstance(value, list | tuple | Mapping) else "an object"


def settings_of(params: Any, path: Path) -> Settings:
    """Return the options that lie beside the weights: a dict, or a namespace that is not made."""
    values = params.state if isinstance(params, Placeholder) else params
    if not isinstance(values, Mapping):
        raise CheckpointError(
            f"{path}: has no params, the options of its run; without them nobody knows what "
            "model it is (n_heads, for one)"
        )
    return Settings(values, path)


def read_config(
    settings: Settings, sizes: Sizes, is_translation: bool, notes: list[str]
) -> XLMConfig:
    """Return the config that a run's options mean.

    Args:
        settings: The options.
        sizes: What the weights say.
        is_translation: It has an encoder and a decoder.
        notes: Takes what the user should know.

    Raises:
        CheckpointError: For options that are missing or cannot be, and for product-key memories.
        ConfigError: For values that do not fit together.
    """
    _require_fit(settings, sizes)
    indices = {name: settings.get(name, int, number) for name, number in _INDICES.items()}
    return XLMConfig(
        vocab_size=sizes.vocabulary,
        emb_dim=sizes.width,
        n_layers=settings.counted("n_layers", sizes.tensors),
        n_heads=settings.get("n_heads", int),
        dropout=float(settings.get("dropout", _NUMBER, _DEFAULTS["dropout"])),
        attention_dropout=float(
            settings.get("attention_dropout", _NUMBER, _DEFAULTS["attention_dropout"])
        ),
        gelu_activation=settings.get("gelu_activation", bool),
        sinusoidal_embeddings=settings.get("sinusoidal_embeddings", bool),
        causal=not is_translation and _is_causal(settings, notes),
        tie_word_embeddings=settings.get("share_inout_emb", bool, _DEFAULTS["share_inout_emb"]),
        **_adaptive(settings, sizes),
        **_languages(settings, sizes, notes),
        max_position_embeddings=sizes.positions,
        embed_init_std=max(sizes.width, 1) ** -0.5,
        **indices,
        mask_token_id=indices["mask_index"],
        pad_token_id=indices["pad_index"],
        # The original puts the end token before every text, too.
        bos_token_id=indices["eos_index"],
    )


def _require_fit(settings: Settings, sizes: Sizes) -> None:
    """Raise unless the options are of the weights that they came with, and of a plain model."""
    if settings.values.get("use_memory") not in (None, False):
        raise CheckpointError(
            f"{settings.path}: the model has product-key memories (use_memory), which XLM's "
            "classes do not have"
        )
    if settings.get("n_words", int, sizes.vocabulary) != sizes.vocabulary:
        told = settings.values["n_words"]
        raise settings.wrong("n_words", told, f"{sizes.vocabulary}, the rows of the embedding")
    if settings.get("emb_dim", int) != sizes.width:
        told = settings.values["emb_dim"]
        raise settings.wrong("emb_dim", told, f"{sizes.width}, the width of the embedding")


def _is_causal(settings: Settings, notes: list[str]) -> bool:
    """Whether the run trained a model that sees only what comes before."""
    causal, masked = settings.has_steps("clm_steps"), settings.has_steps("mlm_steps")
    if causal == masked:
        why = "names both clm_steps and mlm_steps" if causal else "names no clm_steps or mlm_steps"
        notes.append(
            f"params {why}: taken for a masked language model; if it is a causal one, set causal "
            "to true in config.json"
        )
        return False
    return causal


def _adaptive(settings: Settings, sizes: Sizes) -> dict[str, Any]:
    if not settings.get("asm", bool, _DEFAULTS["asm"]):
        return {"asm": False}
    cutoffs = settings.get("asm_cutoffs", str | list | tuple)
    if isinstance(cutoffs, str):  # as on the command line
        parts = cutoffs[:_LONGEST_LIST].split(",")
        cutoffs = [int(part) if part.isdecimal() and len(part) < 12 else None for part in parts]
    if len(cutoffs) > sizes.tensors or any(
        type(cut) is not int or not 0 < cut < sizes.vocabulary for cut in cutoffs
    ):
        raise settings.wrong("asm_cutoffs", cutoffs, "the first id of each cluster")
    value = settings.get("asm_div_value", _NUMBER, _DIV_VALUE)
    if value < 1:
        raise settings.wrong("asm_div_value", value, "at least 1")
    return {"asm": True, "asm_cutoffs": list(cutoffs), "asm_div_value": float(value)}


def _languages(settings: Settings, sizes: Sizes, notes: list[str]) -> dict[str, Any]:
    """Return what the config says about languages."""
    names = settings.get("lang2id", Mapping, {})
    if not names:
        # The original numbers them by alphabet.
        codes = settings.get("lgs", str, "")[:_LONGEST_LIST]
        names = {code: number for number, code in enumerate(sorted(filter(None, codes.split("-"))))}
    if any(type(number) is not int for number in names.values()):
        raise settings.wrong("lang2id", names, "numbers by language")
    n_langs = settings.get("n_langs", int, len(names) or 1)
    if names and (len(names) != n_langs or sorted(names.values()) != list(range(n_langs))):
        raise settings.wrong("lang2id", names, f"the {n_langs} languages of n_langs")
    if not names and n_langs > 1:
        notes.append("params does not name the languages: they go by number")
    uses = settings.get("use_lang_emb", bool, sizes.has_languages or n_langs == 1)
    return {"n_langs": n_langs, "lang2id": dict(names) or None, "use_lang_emb": uses}


def write_settings(config: XLMConfig, is_translation: bool) -> dict[str, Any]:
    """Return the options that the original needs to build a model and to read its weights."""
    names = {number: f"lang{number}" for number in range(config.n_langs)}
    names |= {number: name for name, number in (config.lang2id or {}).items()}
    languages = [names[number] for number in range(config.n_langs)]
    settings: dict[str, Any] = {
        "encoder_only": not is_translation,
        "emb_dim": config.emb_dim,
        "n_layers": config.n_layers,
        "n_heads": config.n_heads,
        "dropout": float(config.dropout),
        "attention_dropout": float(config.attention_dropout),
        "gelu_activation": bool(config.gelu_activation),
        "share_inout_emb": bool(config.tie_word_embeddings),
        "sinusoidal_embeddings": bool(config.sinusoidal_embeddings),
        "use_lang_emb": bool(config.use_lang_emb),
        "use_memory": False,
        "asm": bool(config.asm),
        "n_words": config.vocab_size,
        "lgs": "-".join(languages),
        "langs": languages,
        "n_langs": config.n_langs,
        "id2lang": dict(enumerate(languages)),
        "lang2id": {name: number for number, name in enumerate(languages)},
        **{name: getattr(config, name) for name in _INDICES},
        **{name: [] for name in _STEPS},
    }
    if config.asm:
        settings["asm_cutoffs"] = list(config.asm_cuts[:-1])
        settings["asm_div_value"] = float(config.asm_div_value)
    if not is_translation:
        steps = "clm_steps" if config.causal else "mlm_steps"
        settings[steps] = [(language, None) for language in languages]
    return settings


def why_not_original(config: XLMConfig) -> str | None:
    """Why the original code cannot have a model with this config; ``None`` where it can."""
    reasons = {
        "is_encoder is false: it knows decoders as halves of translation models only": (
            not config.is_encoder
        ),
        "layers have lost heads (pruned_heads)": bool(config.pruned_heads),
        f"layer_norm_eps is {config.layer_norm_eps}, and the original's is 1e-12": (
            config.layer_norm_eps != 1e-12
        ),
        "asm and tie_word_embeddings exclude each other there": (
            config.asm and config.tie_word_embeddings
        ),
        **{
            f"{name} is {getattr(config, name)}, and the original's is {number}": (
                getattr(config, name) != number
            )
            for name, number in _INDICES.items()
        },
    }
    return next((reason for reason, holds in reasons.items() if holds), None)
