"""Back to the files that the original code of a family reads."""

from __future__ import annotations

from xlmfam.conversion.originals import module_of
from xlmfam.conversion.targets import Work

# Which code reads a family; its module has ``write_original``.
RELEASE_OF_FAMILY = {
    "xlm": "xlm",
    "xglm": "fairseq-xglm",
    "xmod": "fairseq-xmod",
    "transfo-xl": "transfo-xl",
}


def write(work: Work) -> None:
    """Write the original's files; see the modules in `xlmfam.conversion.originals`."""
    module_of(RELEASE_OF_FAMILY[work.config.model_type]).write_original(work)
