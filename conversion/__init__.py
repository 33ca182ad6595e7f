"""Moving checkpoints between frameworks and proving that nothing was lost on the way.

``convert`` rewrites a checkpoint in another file format, ``verify`` runs one checkpoint in every
installed framework and compares what comes out, ``diff`` compares two checkpoints tensor by
tensor, ``inspect`` says what a checkpoint holds,
``change_languages`` adds languages to X-MOD checkpoints and takes them out. Nothing here imports a
framework before it is needed.
"""

# Not lazy like other packages: `convert` and the others are modules too, and a name resolved
# later would give the module to whoever imported that first.
from xlmfam.conversion.checksum import checksum
from xlmfam.conversion.convert import convert
from xlmfam.conversion.diff import Difference, diff
from xlmfam.conversion.inspect import inspect
from xlmfam.conversion.languages import change_languages
from xlmfam.conversion.report import Contents, Conversion, Verification
from xlmfam.conversion.verify import verify

__all__ = [
    "Contents",
    "Conversion",
    "Difference",
    "Verification",
    "change_languages",
    "checksum",
    "convert",
    "diff",
    "inspect",
    "verify",
]
