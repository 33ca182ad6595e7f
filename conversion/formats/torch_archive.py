"""The archive that ``torch.save`` makes of a state dict, as a layout to be filled.

A ZIP archive without compression: the values of each tensor, then a pickle that says which is
which. Sizes come before the values and checksums are known after them, so what describes the
values is written last.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from xlmfam.common.checkpoints.filling import Layout, Pieces
from xlmfam.common.checkpoints.source import TensorSpec
from xlmfam.conversion.formats.torch_writer import StatePickle, Tensor

# Any name will do; PyTorch takes it from the first entry.
_FOLDER = "archive"
_ALIGNMENT = 64  # as PyTorch does it, so that mapped tensors are aligned
_MOST = 0xFFFFFFFF  # larger sizes and offsets stand in an extra field of 64 bits
_ZIP64 = 1
_PADDING = 0x4246
_VERSION = 20
_VERSION_OF_ZIP64 = 45
_DATE = 0x21  # the first day that such archives know: equal tensors make equal files


@dataclass
class _Entry:
    """A file in the archive.

    Attributes:
        name: Its name.
        header: Where its header begins.
        padding: Bytes between its header and its content.
        size: Bytes of its content.
        crc: Checksum of its content.
    """

    name: bytes
    header: int
    padding: int
    size: int
    crc: int = 0

    @property
    def begin(self) -> int:
        """Where the content begins."""
        return self.header + 30 + len(self.name) + len(self._wide_sizes()) + self.padding

    def _wide_sizes(self) -> bytes:
        return struct.pack("<HHQQ", _ZIP64, 16, self.size, self.size) if self.is_large else b""

    @property
    def is_large(self) -> bool:
        """Whether the size needs 64 bits."""
        return self.size >= _MOST

    def local_header(self) -> bytes:
        """What stands before the content."""
        extra = self._wide_sizes()
        if self.padding:
            extra += struct.pack("<HH", _PADDING, self.padding - 4) + bytes(self.padding - 4)
        size = min(self.size, _MOST)
        version = _VERSION_OF_ZIP64 if self.is_large else _VERSION
        return (
            struct.pack("<4s5HI", b"PK\3\4", version, 0, 0, 0, _DATE, self.crc)
            + struct.pack("<IIHH", size, size, len(self.name), len(extra))
            + self.name
            + extra
        )

    def listing(self) -> bytes:
        """What stands in the directory at the archive's end."""
        wide = [self.size, self.size] if self.is_large else []
        wide += [self.header] if self.header >= _MOST else []
        extra = struct.pack(f"<HH{len(wide)}Q", _ZIP64, 8 * len(wide), *wide) if wide else b""
        size, header = min(self.size, _MOST), min(self.header, _MOST)
        version = _VERSION_OF_ZIP64 if wide else _VERSION
        return (
            struct.pack("<4s6HI", b"PK\1\2", version, version, 0, 0, 0, _DATE, self.crc)
            + struct.pack("<IIHHHHHII", size, size, len(self.name), len(extra), 0, 0, 0, 0, header)
            + self.name
            + extra
        )


class TorchArchive(Layout):
    """Where everything goes in the archive.

    Args:
        specs: The tensors.
        exists: Whether the file is there already.
    """

    shares = True
    needs_crc = True

    def __init__(self, specs: Mapping[str, TensorSpec], exists: bool = False):
        super().__init__([], dict.fromkeys(specs, ()), exists)
        self._specs = specs
        self._entries: list[_Entry] = []
        self._tensors: dict[str, Tensor] = {}

    def _add(self, name: str, size: int) -> _Entry:
        end = self._entries[-1].begin + self._entries[-1].size if self._entries else 0
        entry = _Entry(f"{_FOLDER}/{name}".encode(), end, 0, size)
        padding = -entry.begin % _ALIGNMENT
        # The field that fills the gap has a head of four bytes of its own.
        entry.padding = padding + _ALIGNMENT if 0 < padding < 4 else padding
        self._entries.append(entry)
        return entry

    def place(self, name: str) -> Pieces:
        """Return where the values of the next tensor go."""
        spec = self._specs[name]
        self._tensors[name] = Tensor(spec, lambda: ())
        entry = self._add(f"data/{len(self._entries)}", spec.nbytes)
        return ((entry.begin, entry.size),)

    def filled(self, name: str, crc: int) -> None:  # noqa: ARG002
        """Note the checksum of the tensor that was placed last."""
        self._entries[-1].crc = crc

    def same(self, name: str, other: str) -> None:
        """Give a tensor a second name."""
        self._tensors[name] = self._tensors[other]

    def closing(self) -> Iterable[tuple[int, bytes]]:
        """The pickle, the headers and the directory."""
        pickle = StatePickle()
        pickle.add({name: self._tensors[name] for name in self._specs})
        for name, content in (
            ("data.pkl", pickle.finish()),
            ("byteorder", b"little"),
            ("version", b"3\n"),
        ):
            entry = self._add(name, len(content))
            entry.crc = zlib.crc32(content)
            yield entry.begin, content
        for entry in self._entries:
            yield entry.header, entry.local_header()
        yield self._entries[-1].begin + self._entries[-1].size, self._directory()

    def _directory(self) -> bytes:
        begin = self._entries[-1].begin + self._entries[-1].size
        listings = b"".join(entry.listing() for entry in self._entries)
        count, size = len(self._entries), len(listings)
        wide = b""
        if count >= 0xFFFF or begin >= _MOST or size >= _MOST:
            version = _VERSION_OF_ZIP64
            wide = struct.pack("<4sQHHII", b"PK\6\6", 44, version, version, 0, 0)
            wide += struct.pack("<QQQQ", count, count, size, begin)
            wide += struct.pack("<4sIQI", b"PK\6\7", 0, begin + size, 1)
        few, small, near = min(count, 0xFFFF), min(size, _MOST), min(begin, _MOST)
        end = struct.pack("<4sHHHHIIH", b"PK\5\6", 0, 0, few, few, small, near, 0)
        return listings + wide + end
