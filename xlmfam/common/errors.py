"""What xlmfam raises when a user gets something wrong: always a ``ValueError`` or a subclass."""

from __future__ import annotations


class XlmfamError(ValueError):
    """A mistake that the caller can mend; the message names the argument and what is allowed."""


class ConfigError(XlmfamError):
    """A configuration that no model can be built from."""


class CheckpointError(XlmfamError):
    """A checkpoint that is missing, damaged, of another family, or does not fit its config."""


class MissingPackageError(ImportError, XlmfamError):
    """An optional package is needed and not installed; the message says how to get it."""

    def __init__(self, package: str, purpose: str, install: str | None = None):
        install = install or f"pip install {package}"
        super().__init__(f"{purpose} needs the package '{package}': {install}")
