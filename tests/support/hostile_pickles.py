"""Files of ``torch.save`` that lie or attack; see `hostile_files`."""

from __future__ import annotations

import os
import pickle
import struct
import warnings
import zipfile

from hostile_files import case, config

# ---- pickles ------------------------------------------------------------------------------


class Evil:
    """Makes a folder beside the file when it is unpickled."""

    def __init__(self, folder):
        self.path = str(folder / "was_here")

    def __reduce__(self):
        return os.mkdir, (self.path,)


def archive(path, content, folder="archive", others=(), compression=zipfile.ZIP_STORED):
    """A file of ``torch.save`` around any pickle."""
    with zipfile.ZipFile(path, "w", compression) as file:
        file.writestr(f"{folder}/data.pkl", content)
        file.writestr(f"{folder}/version", "3\n")
        for name, data in others:
            file.writestr(name, data)
    return path


MAGIC = pickle.dumps(0x1950A86A20F9469CFC6C, 2)
LEGACY = MAGIC + pickle.dumps(1001, 2) + pickle.dumps({"little_endian": True}, 2)


def storage(key="0", kind="FloatStorage", size=2):
    """What a pickle has for a storage that is kept outside of it."""
    words = b"".join(_text(word) for word in (key, "cpu"))
    return b"(" + _text("storage") + _global("torch", kind) + words + _int(size) + b"tQ"


def tensor(kept, shape=(2,), strides=(1,), offset=0):
    ints = [b"(" + b"".join(map(_int, numbers)) + b"t" for numbers in (shape, strides)]
    call = _global("torch._utils", "_rebuild_tensor_v2")
    return call + b"(" + kept + _int(offset) + b"".join(ints) + b"\x89}tR"


def _global(module, name):
    return f"c{module}\n{name}\n".encode()


def _text(text):
    return b"X" + struct.pack("<I", len(text.encode())) + text.encode()


def _int(number):
    return pickle.dumps(number, 2)[2:-1]


def state(value, name="x"):
    """A pickle of a dict with one value."""
    return b"\x80\x02}" + _text(name) + value + b"s."


# A list of two lists of two lists ...: 2**40 in all.
DOUBLED = b"]" + b"".join(b"q\0](h\0h\0e" for _ in range(40))
DOUBLED_TUPLES = b")" + b"".join(b"q\0h\0h\0\x86" for _ in range(40))
# Pickles that would take for ever, or all memory, or the stack.
PICKLE_BOMBS = {
    "lists": b"\x80\x02" + b"]" * 500_000 + b".",
    "notes": b"\x80\x04]" + b"\x94" * 500_000 + b".",
    "nothing": b"\x80\x02" + b"N0" * 250_000 + b"N.",
    "deep": b"\x80\x02" + b"]" * 50_000 + b"a" * 49_999 + b".",
    "doubled as a name": b"\x80\x04" + DOUBLED_TUPLES + b"h\0\x93)R.",
    "doubled as a key of a tensor": state(
        tensor(b"(" + _text("storage") + _global("torch", "FloatStorage") + DOUBLED + b"h\0K\2tQ")
    ),
    "doubled as a kind of storage": state(
        tensor(b"(" + _text("storage") + DOUBLED_TUPLES + b"h\0h\0K\2tQ")
    ),
    "doubled as a dict's key": state(DOUBLED_TUPLES[:-2] + b"h\0" + _text("y") + b"s", "x"),
    "doubled in a call": state(_global("collections", "OrderedDict") + DOUBLED + b"\x85R"),
    "a number of a million digits": state(b"\x8b" + struct.pack("<I", 400_000) + b"\x7f" * 400_000),
    "sizes of a million digits": state(
        tensor(storage(), [2 ** (8 * 50_000)] * 6, [1] * 6),
    ),
    "digits": b"\x80\x02I" + b"9" * 5_000_000 + b"\n.",
    "bytes that are not there": b"\x80\x04\x8e" + struct.pack("<Q", 2**62) + b"x.",
}


LAYOUTS = ("zip model.pt", "row model.pth", "zip pytorch_model.bin", "row pytorch_model.bin")


def put(folder, content, layout):
    """Write a pickle as ``torch.save`` would, where one of our readers opens it."""
    kind, name = layout.split()
    folder.mkdir(exist_ok=True)
    path = (config(folder) if name.endswith("bin") else folder) / name
    if kind == "zip":
        archive(path, content)
    else:
        path.write_bytes(LEGACY + content)
    return path


@case("more in it than any vocabulary or model", bomb=True)
def pickle_of_thirty_million_lists(folder):
    return put(folder, b"\x80\x02" + b"]" * 30_000_000, "zip model.pt")


@case("compressed|cannot be read", bomb=True)
def original_is_a_zip_bomb(folder):
    folder.mkdir()
    return archive(folder / "model.pt", bytes(60_000_000), compression=zipfile.ZIP_DEFLATED)


def bin_file(folder, content, **options):
    return archive(config(folder) / "pytorch_model.bin", content, **options).parent


@case("more than tensors", torch=True)
def bin_that_runs_code(folder):
    return bin_file(folder, pickle.dumps({"x": Evil(folder)}, 2))


@case("more than tensors", torch=True)
def bin_that_runs_code_as_a_state(folder):
    content = b"\x80\x02" + _global("posix", "system") + b")\x81}" + _text("x") + b"Nsb."
    return bin_file(folder, content)


@case("more than tensors", torch=True)
def bin_that_runs_code_of_the_oldest_kind(folder):
    path = config(folder) / "pytorch_model.bin"
    path.write_bytes(LEGACY + pickle.dumps({"x": Evil(folder)}, 0) + pickle.dumps([], 2))
    return folder


@case("more than tensors|truncated or damaged", torch=True)
def bin_that_runs_code_by_inst(folder):
    content = b"(S'mkdir'\niposix\nmkdir\n."
    return bin_file(folder, content)


@case("more than tensors", torch=True)
def bin_is_a_bare_pickle(folder):
    path = config(folder) / "pytorch_model.bin"
    path.write_bytes(pickle.dumps(Evil(folder), 2))
    return folder


@case(r"more than tensors \(builtins.bytearray\)", bomb=True, torch=True)
def bin_with_a_bytearray_of_a_terabyte(folder):
    call = _global("builtins", "bytearray") + _int(10**12) + b"\x85R"
    return bin_file(folder, state(call))


@case(r"more than tensors \(torch.Tensor\)", bomb=True, torch=True)
def bin_with_a_tensor_of_nothing(folder):
    return bin_file(folder, state(_global("torch", "Tensor") + _int(10**9) + b"\x85R"))


@case("truncated", bomb=True, torch=True)
def bin_whose_storage_is_a_terabyte(folder):
    return bin_file(folder, state(tensor(storage(size=10**12))))


@case("truncated", bomb=True, torch=True)
def bin_of_the_old_kind_whose_storage_is_a_terabyte(folder):
    content = state(tensor(storage(size=10**12)))
    path = config(folder) / "pytorch_model.bin"
    path.write_bytes(LEGACY + content + pickle.dumps(["0"], 2) + struct.pack("<Q", 10**12))
    return folder


@case("compressed", bomb=True, torch=True)
def bin_is_a_zip_bomb(folder):
    content = bytes(60_000_000)
    return bin_file(folder, content, compression=zipfile.ZIP_DEFLATED)


@case("damaged", torch=True)
def bin_with_two_entries_of_one_name(folder):
    others = [("archive/data/0", bytes(8)), ("archive/data/0", bytes(8))]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return bin_file(folder, state(tensor(storage())), others=others)


@case("without one data.pkl", torch=True)
def bin_with_two_pickles(folder):
    content = state(tensor(storage()))
    return bin_file(folder, content, others=[("../../data.pkl", content)])


@case("does not fit|truncated or damaged", torch=True)
def bin_with_names_that_lead_out(folder):
    """Nothing is unpacked, so they lead nowhere."""
    content = state(tensor(storage("../../../was_here")))
    others = [("archive/data/../../../was_here", bytes(8)), ("/was_here", bytes(8))]
    return bin_file(folder, content, others=others)


@case("truncated|damaged", torch=True)
def bin_whose_tensor_is_elsewhere(folder):
    content = state(tensor(storage(), (2,), (1,), 2**40))
    return bin_file(folder, content, others=[("archive/data/0", bytes(8))])


@case("more entries than any model", bomb=True, torch=True)
def bin_with_half_a_million_entries(folder):
    path = archive(config(folder) / "pytorch_model.bin", state(tensor(storage())))
    content = path.read_bytes()
    at = content.index(b"PK\1\2")
    one = content[at : content.index(b"PK\1\2", at + 4)]
    entries = one * 500_000
    end = content[content.index(b"PK\5\6") :]
    end = end[:12] + struct.pack("<II", len(entries), at) + end[20:]
    path.write_bytes(content[:at] + entries + end)
    return folder
