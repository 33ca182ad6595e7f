"""Text as it is generated."""

from __future__ import annotations

from collections.abc import Iterator
from queue import Queue
from typing import Any, Protocol

from torch import Tensor


class Streamer(Protocol):
    """What ``generate(streamer=...)`` needs."""

    def put(self, value: Tensor) -> None:
        """Receive the prompt (1, C) first, then one token (1,) at a time."""

    def end(self) -> None:
        """Receive the end."""


class TextStreamer:
    """Prints text as soon as it can no longer change.

    A token may be half a character or half a word, so text is held back until a space, a line
    break or a character that stands alone (as in Chinese) completes it.

    Args:
        tokenizer: Has ``decode``.
        skip_prompt: Do not print the prompt.
        **decode_kwargs: For ``decode``, e.g. ``skip_special_tokens=True``.
    """

    def __init__(self, tokenizer: Any, skip_prompt: bool = False, **decode_kwargs: Any):
        self.tokenizer = tokenizer
        self.skip_prompt = skip_prompt
        self.decode_kwargs = decode_kwargs
        self._tokens: list[int] = []
        self._shown = 0
        self._in_prompt = True

    def put(self, value: Tensor) -> None:
        """Take tokens; hand on the text that they complete."""
        if value.dim() > 1 and value.shape[0] > 1:
            raise ValueError("a text streamer takes one prompt")
        in_prompt, self._in_prompt = self._in_prompt, False
        if in_prompt and self.skip_prompt:
            return
        self._tokens.extend(value.flatten().tolist())
        text = self.tokenizer.decode(self._tokens, **self.decode_kwargs)
        end = _complete(text)
        if end > self._shown:
            self.on_text(text[self._shown : end], False)
            self._shown = end

    def end(self) -> None:
        """Hand on what was held back."""
        text = self.tokenizer.decode(self._tokens, **self.decode_kwargs)
        self.on_text(text[self._shown :], True)
        self._tokens, self._shown, self._in_prompt = [], 0, True

    def on_text(self, text: str, is_end: bool) -> None:
        """Print ``text``; override to do something else with it."""
        print(text, end="\n" if is_end else "", flush=True)


class TextIteratorStreamer(TextStreamer):
    """Gives text to a ``for`` loop while ``generate`` runs in another thread.

    Args:
        tokenizer: Has ``decode``.
        skip_prompt: Leave the prompt out.
        timeout: Seconds to wait for the next piece; ``None`` waits for ever.
        **decode_kwargs: For ``decode``.
    """

    def __init__(
        self,
        tokenizer: Any,
        skip_prompt: bool = False,
        timeout: float | None = None,
        **decode_kwargs: Any,
    ):
        super().__init__(tokenizer, skip_prompt, **decode_kwargs)
        self._queue: Queue[str | None] = Queue()
        self._timeout = timeout

    def on_text(self, text: str, is_end: bool) -> None:
        """Queue ``text``."""
        if text:
            self._queue.put(text)
        if is_end:
            self._queue.put(None)

    def __iter__(self) -> Iterator[str]:
        while (text := self._queue.get(timeout=self._timeout)) is not None:
            yield text


def _complete(text: str) -> int:
    """Return how much of ``text`` no later token can change."""
    if text.endswith("\n"):
        return len(text)
    if text and _stands_alone(text[-1]):
        return len(text)
    return text.rfind(" ") + 1


def _stands_alone(character: str) -> bool:
    """Whether a character is a word by itself: Chinese, kana, and their punctuation."""
    code = ord(character)
    return 0x3000 <= code <= 0x30FF or 0x3400 <= code <= 0x9FFF or 0x20000 <= code <= 0x3FFFF
