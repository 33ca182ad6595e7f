"""Files of msgpack and HDF5 that lie or attack; see `hostile_files`."""

from __future__ import annotations

import struct

import h5py
import numpy as np
from hostile_files import case, config

# ---- msgpack ------------------------------------------------------------------------------


def msgpack_file(folder, content):
    (config(folder) / "flax_model.msgpack").write_bytes(content)
    return folder


def _key(text):
    return b"\xda" + struct.pack(">H", len(text)) + text.encode()


def _leaf(shape=b"\x91\2", dtype="float32", data=bytes(8), count=None):
    inner = b"\x93" + shape + bytes([0xA0 + len(dtype)]) + dtype.encode()
    inner += b"\xc6" + struct.pack(">I", len(data) if count is None else count) + data
    return b"\xc9" + struct.pack(">I", len(inner)) + b"\1" + inner


FLAX_SAYS = "truncated or damaged"


@case(FLAX_SAYS)
def msgpack_length_beyond_the_file(folder):
    return msgpack_file(folder, b"\x81\xa1x\xc9\xff\xff\xff\xff\1")


@case(FLAX_SAYS)
def msgpack_data_beyond_the_file(folder):
    return msgpack_file(folder, b"\x81\xa1x" + _leaf(b"\x91\xce\x3f\xff\xff\xff", count=2**32 - 4))


@case(FLAX_SAYS)
def msgpack_four_billion_entries(folder):
    return msgpack_file(folder, b"\xdf\xff\xff\xff\xff\xa1x")


@case("too deep a tree")
def msgpack_deep(folder):
    return msgpack_file(folder, b"\x81\xa1x" * 100_000 + b"\x80")


@case(FLAX_SAYS)
def msgpack_sizes_overflow(folder):
    shape = b"\x98" + (b"\xcf" + b"\xff" * 8) * 8
    return msgpack_file(folder, b"\x81\xa1x" + _leaf(shape))


@case("no array can have")
def msgpack_empty_beyond_measure(folder):
    return msgpack_file(
        folder, b"\x81\xa1x" + _leaf(b"\x92\xcf\x7f" + b"\xff" * 7 + b"\0", data=b"")
    )


@case("the dtype 'object'")
def msgpack_of_objects(folder):
    return msgpack_file(folder, b"\x81\xa1x" + _leaf(dtype="object"))


@case("is a bin, not an array")
def msgpack_with_other_things(folder):
    return msgpack_file(folder, b"\x81\xa1x\xc4\1x")


@case("a name that is not text")
def msgpack_name_is_not_utf_8(folder):
    return msgpack_file(folder, b"\x81\xa2\xff\xfe" + _leaf())


@case("twice")
def msgpack_one_name_twice(folder):
    return msgpack_file(folder, b"\x82\xa1x" + _leaf() + b"\xa1x" + _leaf())


@case("follow after the tree")
def msgpack_more_data(folder):
    return msgpack_file(folder, b"\x81\xa1x" + _leaf() + bytes(100))


@case("a name of", bomb=True)
def msgpack_long_names(folder):
    leaves = b"".join(_key(f"{i:04}") + _leaf() for i in range(60_000))
    path = b"".join(b"\x81" + _key("x" * 1000) for _ in range(60))
    return msgpack_file(folder, path + b"\xde" + struct.pack(">H", 60_000) + leaves)


@case("more entries than a model", bomb=True)
def msgpack_four_million_maps(folder):
    entries = b"".join(b"\xa3%c%c%c\x80" % (i >> 14, i >> 7 & 127, i & 127) for i in range(2**19))
    return msgpack_file(folder, b"\xdf" + struct.pack(">I", 2**19) + entries)


# ---- HDF5 ---------------------------------------------------------------------------------


def h5_file(folder, fill, **options):
    """A file with one layer that `fill` fills."""
    with h5py.File(config(folder) / "tf_model.h5", "w", **options) as file:
        file.attrs["layer_names"] = [b"m"]
        group = file.create_group("m")
        group.attrs["weight_names"] = [b"t/m/x:0"]
        fill(file, group)
    return folder


@case("claims .* bytes that are not in the file", bomb=True)
def h5_of_a_terabyte(folder):
    return h5_file(folder, lambda file, m: m.create_dataset("t/m/x:0", (2**20, 2**18), "f4"))


@case("claims .* bytes that are not in the file", bomb=True)
def h5_of_a_compressed_terabyte(folder):
    def fill(file, group):
        options = {"chunks": (2**10, 2**10), "compression": "gzip"}
        group.create_dataset("t/m/x:0", (2**20, 2**18), "f4", **options)

    return h5_file(folder, fill)


@case("too large pieces", bomb=True)
def h5_with_a_piece_of_a_gigabyte(folder):
    def fill(file, group):
        made = group.create_dataset(
            "t/m/x:0", (64,), "f4", maxshape=(None,), chunks=(2**28,), compression="gzip"
        )
        import zlib

        pressed = zlib.compressobj(1)
        block = bytes(2**24)
        stream = b"".join(pressed.compress(block) for _ in range(64)) + pressed.flush()
        made.id.write_direct_chunk((0,), stream)

    return h5_file(folder, fill)


@case("more weights than any model", bomb=True)
def h5_that_lists_one_weight_for_ever(folder):
    def fill(file, group):
        group["t/m/x:0"] = np.ones(3, "f4")
        group.attrs["weight_names"] = np.array([b"t/m/x:0", *(b"t/%d" % i for i in range(3000))])
        for i in range(3000):
            group[f"t/{i}"] = group["t/m/x:0"]
        for i in range(100):
            file[f"{i}"] = group
        file.attrs["layer_names"] = np.array([b"%d" % i for i in range(100)])

    return h5_file(folder, fill, libver="latest")


@case("names of any length", bomb=True)
def h5_of_one_long_name(folder):
    def fill(file, group):
        del file.attrs["layer_names"]
        file.attrs["layer_names"] = np.array(["x" * 500_000] * 5000, dtype=h5py.string_dtype())

    return h5_file(folder, fill, libver="latest")


@case("layer_names is no list of names")
def h5_whose_layers_are_numbers(folder):
    return h5_file(folder, lambda file, group: file.attrs.__setitem__("layer_names", [1.5]))


@case("lists 'm' and does not hold it|model_weights")
def h5_that_is_a_link_to_another_file(folder):
    with h5py.File(config(folder) / "other.h5", "w") as other:
        other.attrs["layer_names"] = [b"m"]

    def fill(file, group):
        del file.attrs["layer_names"]
        file["model_weights"] = h5py.ExternalLink("other.h5", "/")

    return h5_file(folder, fill)


@case("does not hold it")
def h5_with_a_layer_in_another_file(folder):
    with h5py.File(config(folder) / "other.h5", "w") as other:
        other["m"] = np.ones(3)

    def fill(file, group):
        del file["m"]
        file["m"] = h5py.ExternalLink("other.h5", "/m")

    return h5_file(folder, fill)


@case("does not hold it")
def h5_with_a_soft_link(folder):
    return h5_file(folder, lambda file, m: m.__setitem__("t/m/x:0", h5py.SoftLink("/m")))


@case("not in the file")
def h5_with_data_in_another_file(folder):
    (folder.parent / "secret").write_bytes(b"1234")
    secret = [(str(folder.parent / "secret"), 0, 4)]
    return h5_file(folder, lambda f, m: m.create_dataset("t/m/x:0", (4,), "u1", external=secret))


@case("not in the file")
def h5_with_a_virtual_weight(folder):
    with h5py.File(config(folder) / "other.h5", "w") as other:
        other["x"] = np.ones(4, "f4")
    layout = h5py.VirtualLayout((4,), "f4")
    layout[:] = h5py.VirtualSource(str(folder / "other.h5"), "x", (4,))
    return h5_file(folder, lambda file, m: m.create_virtual_dataset("t/m/x:0", layout))


@case("the dtype")
def h5_of_text(folder):
    return h5_file(folder, lambda file, m: m.create_dataset("t/m/x:0", data=["a"]))


@case("the dtype")
def h5_of_records(folder):
    kind = np.dtype([("a", "f4"), ("b", "i4")])
    return h5_file(folder, lambda file, m: m.create_dataset("t/m/x:0", data=np.zeros(3, kind)))


@case("does not hold it")
def h5_that_goes_in_circles(folder):
    def fill(file, group):
        group["t"] = file
        group.attrs["weight_names"] = [b"t/m/" * 500 + b"x:0"]

    return h5_file(folder, fill)
