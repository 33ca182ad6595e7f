"""Special tokens by role: ``bos_token``, ``pad_token_id``, ``additional_special_tokens``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from tokenizers import AddedToken

from xlmfam.common.errors import XlmfamError
from xlmfam.common.logging import get_logger

logger = get_logger(__name__)

ROLES = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)
ADDITIONAL = "additional_special_tokens"

Token = str | AddedToken


def as_added_token(token: Any, special: bool = False) -> AddedToken:
    """Return ``token`` (a string, an ``AddedToken`` or what a file says of one) as AddedToken.

    Raises:
        XlmfamError: it is none of these.
    """
    if isinstance(token, AddedToken):
        return token
    if isinstance(token, str):
        return AddedToken(token, normalized=not special, special=special)
    if isinstance(token, Mapping) and isinstance(token.get("content"), str):
        known = ("lstrip", "rstrip", "single_word", "normalized", "special")
        flags = {name: bool(token[name]) for name in known if name in token}
        return AddedToken(token["content"], **{"special": special, **flags})
    raise XlmfamError(f"a token is {token!r}; it may be a string or an AddedToken")


def added_token_fields(token: AddedToken) -> dict[str, Any]:
    """Return what ``added_tokens_decoder`` in a file says of ``token``."""
    return {
        "content": token.content,
        "lstrip": token.lstrip,
        "normalized": token.normalized,
        "rstrip": token.rstrip,
        "single_word": token.single_word,
        "special": token.special,
    }


def _role(name: str) -> Any:
    def get(self: SpecialTokens) -> str | None:
        token = self._roles.get(name)
        if token is None:
            if self.verbose:
                logger.debug("%s is asked for, and not set", name)
            return None
        return str(token)

    def put(self: SpecialTokens, value: Token | None) -> None:
        self._set_role(name, value)

    return property(get, put, doc=f"The {name.replace('_', ' ')}, ``None`` where there is none.")


def _role_id(name: str) -> Any:
    def get(self: SpecialTokens) -> int | None:
        token = self._roles.get(name)
        return None if token is None else self.convert_tokens_to_ids(str(token))

    def put(self: SpecialTokens, value: int | None) -> None:
        self._set_role(name, None if value is None else self.convert_ids_to_tokens(value))

    return property(get, put, doc=f"The id of `{name}`, ``None`` where there is none.")


class SpecialTokens:
    """What a tokenizer knows of its special tokens.

    A role holds a string or an ``AddedToken``; the attributes give strings. Setting an attribute
    names a token and adds nothing to the vocabulary: `add_special_tokens` does both.
    """

    SPECIAL_TOKENS_ATTRIBUTES = (*ROLES, ADDITIONAL)

    verbose = False

    bos_token = _role("bos_token")
    eos_token = _role("eos_token")
    unk_token = _role("unk_token")
    sep_token = _role("sep_token")
    pad_token = _role("pad_token")
    cls_token = _role("cls_token")
    mask_token = _role("mask_token")
    bos_token_id = _role_id("bos_token")
    eos_token_id = _role_id("eos_token")
    unk_token_id = _role_id("unk_token")
    sep_token_id = _role_id("sep_token")
    pad_token_id = _role_id("pad_token")
    cls_token_id = _role_id("cls_token")
    mask_token_id = _role_id("mask_token")

    def _init_special_tokens(self, kwargs: Mapping[str, Any]) -> None:
        self._roles: dict[str, Token] = {}
        self._additional: list[Token] = []
        for name in ROLES:
            if kwargs.get(name) is not None:
                self._set_role(name, kwargs[name])
        if kwargs.get(ADDITIONAL) is not None:
            self.additional_special_tokens = kwargs[ADDITIONAL]

    def _set_role(self, name: str, value: Any) -> None:
        if value is None:
            self._roles.pop(name, None)
        elif isinstance(value, Mapping):
            self._roles[name] = as_added_token(value, special=True)
        elif isinstance(value, (str, AddedToken)):
            self._roles[name] = value
        else:
            raise XlmfamError(f"{name} is {value!r}; it may be a string or an AddedToken")

    def convert_tokens_to_ids(self, tokens: Any) -> Any:
        """Return the id of a token, or the ids of several."""
        raise NotImplementedError

    def convert_ids_to_tokens(self, ids: Any, skip_special_tokens: bool = False) -> Any:
        """Return the token of an id, or the tokens of several."""
        raise NotImplementedError

    def add_tokens(self, new_tokens: Any, special_tokens: bool = False) -> int:
        """Add tokens to the vocabulary."""
        raise NotImplementedError

    # -- several at once --------------------------------------------------------------------

    @property
    def additional_special_tokens(self) -> list[str]:
        """The special tokens that have no role."""
        return [str(token) for token in self._additional]

    @additional_special_tokens.setter
    def additional_special_tokens(self, value: Iterable[Any] | None) -> None:
        if isinstance(value, (str, Mapping)) or (value is not None and not _is_iterable(value)):
            raise XlmfamError(f"{ADDITIONAL} is {value!r}; it may be a list of tokens")
        self._additional = [
            token if isinstance(token, str) else as_added_token(token, special=True)
            for token in value or []
        ]

    @property
    def additional_special_tokens_ids(self) -> list[int]:
        """The ids of `additional_special_tokens`."""
        return self.convert_tokens_to_ids(self.additional_special_tokens)

    @additional_special_tokens_ids.setter
    def additional_special_tokens_ids(self, values: list[int]) -> None:
        self.additional_special_tokens = [self.convert_ids_to_tokens(value) for value in values]

    @property
    def pad_token_type_id(self) -> int:
        """The token type of padding."""
        return getattr(self, "_pad_token_type_id", 0)

    @property
    def special_tokens_map_extended(self) -> dict[str, Any]:
        """Token by role, as ``AddedToken`` where the tokenizer holds one."""
        found: dict[str, Any] = {name: self._roles[name] for name in ROLES if name in self._roles}
        if self._additional:
            found[ADDITIONAL] = list(self._additional)
        return found

    @property
    def special_tokens_map(self) -> dict[str, Any]:
        """Token by role, as strings."""
        return {
            name: [str(token) for token in value] if isinstance(value, list) else str(value)
            for name, value in self.special_tokens_map_extended.items()
        }

    @property
    def all_special_tokens_extended(self) -> list[Token]:
        """Every special token once, as ``AddedToken`` where the tokenizer holds one."""
        found: dict[str, Token] = {}
        for token in [*(self._roles[n] for n in ROLES if n in self._roles), *self._additional]:
            found.setdefault(str(token), token)
        return list(found.values())

    @property
    def all_special_tokens(self) -> list[str]:
        """Every special token once."""
        return [str(token) for token in self.all_special_tokens_extended]

    @property
    def all_special_ids(self) -> list[int]:
        """The ids of `all_special_tokens`."""
        return self.convert_tokens_to_ids(self.all_special_tokens)

    def sanitize_special_tokens(self) -> int:
        """Add the special tokens that the vocabulary lacks; returns how many those were."""
        return self.add_tokens(self.all_special_tokens_extended, special_tokens=True)

    def add_special_tokens(
        self,
        special_tokens_dict: Mapping[str, Any],
        replace_additional_special_tokens: bool = True,
    ) -> int:
        """Give tokens their roles, and add to the vocabulary those it lacks.

        Args:
            special_tokens_dict: Token by role (``pad_token``, ...); a list of them for
                ``additional_special_tokens``.
            replace_additional_special_tokens: Forget the earlier ``additional_special_tokens``
                (which stay in the vocabulary) instead of extending them.

        Returns:
            How many tokens were added to the vocabulary.

        Raises:
            XlmfamError: a key is no role, or a value no token.
        """
        for name in special_tokens_dict:
            if name not in self.SPECIAL_TOKENS_ATTRIBUTES:
                raise XlmfamError(
                    f"special_tokens_dict has the key {name!r}; it may have "
                    f"{', '.join(self.SPECIAL_TOKENS_ATTRIBUTES)}"
                )
        added: list[AddedToken] = []
        for name, value in special_tokens_dict.items():
            if name == ADDITIONAL:
                if isinstance(value, str) or not _is_iterable(value):
                    raise XlmfamError(f"{ADDITIONAL} is {value!r}; it may be a list of tokens")
                tokens = [as_added_token(token, special=True) for token in value]
                known = (
                    set() if replace_additional_special_tokens else {*map(str, self._additional)}
                )
                kept = [] if replace_additional_special_tokens else self._additional
                self._additional = [*kept, *(t for t in tokens if t.content not in known)]
                added += tokens
            else:
                token = as_added_token(value, special=True)
                self._set_role(name, token)
                added.append(token)
        return self.add_tokens(added, special_tokens=True)


def _is_iterable(value: Any) -> bool:
    try:
        iter(value)
    except TypeError:
        return False
    return True
