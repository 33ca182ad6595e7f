"""From every backend into every other one, through every file format, bit for bit."""

import itertools
import json

import pytest
from backends import BACKENDS, get_backend
from comparing import assert_same_bits
from families import FAMILIES, head_of, heads
from golden import folder

from xlmfam.common.checkpoints.files import FORMATS
from xlmfam.common.parameters import table_of

HEADS = heads()
WITH_HEAD = [entry for entry in HEADS if head_of(*entry).training]
# A translation model is two transformers: it has no base that stands by itself.
WITH_BASE = [entry for entry in WITH_HEAD if entry[2] != "XLMEncoderDecoder"]
DIRECTIONS = list(itertools.permutations(BACKENDS, 2))


def over(entries):
    return pytest.mark.parametrize("entry", entries, ids=["-".join(e) for e in entries])


def untied(entry):
    config = FAMILIES[entry[0]].configs[entry[1]]
    rows = table_of(entry[0]).expand(config, entry[2])
    return sorted(name for name, row in rows.items() if row.tied_to is None)


@pytest.fixture(scope="module")
def models(checkpoint):
    """Load a head's random checkpoint once per backend."""
    loaded = {}

    def get(name, entry):
        if (name, entry) not in loaded:
            loaded[name, entry] = get_backend(name).load(entry[2], checkpoint(*entry)[0])
        return loaded[name, entry]

    return get


@pytest.fixture(scope="module")
def written(models, tmp_path_factory):
    """A head saved by a backend in a format, once."""
    made = {}

    def get(name, entry, form, **options):
        key = (name, entry, form, *options.items())
        if key not in made:
            target = tmp_path_factory.mktemp(f"{name}-{form}")
            made[key] = get_backend(name).save(models(name, entry), target, format=form, **options)
        return made[key]

    return get


@over(HEADS)
def test_loading_is_bit_exact(backend, entry, checkpoint, models):
    came = backend.parameters(models(backend.name, entry))
    assert sorted(came) == untied(entry), "every parameter, shared ones once"
    assert_same_bits(came, checkpoint(*entry)[1], f"{backend} {entry}")


@over(HEADS)
@pytest.mark.parametrize(("source", "target"), DIRECTIONS, ids=["-".join(d) for d in DIRECTIONS])
def test_six_directions(source, target, entry, checkpoint, written):
    get_backend(target)
    path = written(source, entry, "safetensors")
    again = get_backend(target).load(entry[2], path)
    assert_same_bits(get_backend(target).parameters(again), checkpoint(*entry)[1], f"{entry}")
    assert sorted(get_backend(target).parameters(again)) == untied(entry)


@over(WITH_HEAD)
@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("source", BACKENDS)
def test_every_format_of_every_backend_loads_into_each(
    backend, source, form, entry, checkpoint, written
):
    path = written(source, entry, form)
    assert (path / FORMATS[form].single).is_file()
    again = backend.load(entry[2], path)
    assert_same_bits(backend.parameters(again), checkpoint(*entry)[1], f"{entry} {form}")


@over(WITH_HEAD)
@pytest.mark.parametrize("form", FORMATS)
def test_shards(backend, form, entry, checkpoint, written):
    path = written(backend.name, entry, form, max_shard_size=9000)
    assert len(list(path.glob(f"{FORMATS[form].stem}-*-of-*"))) > 1
    assert (path / FORMATS[form].index).is_file()
    again = backend.load(entry[2], path)
    assert_same_bits(backend.parameters(again), checkpoint(*entry)[1], f"{entry} {form}")


@over(WITH_HEAD)
def test_a_file_does_not_tell_which_backend_wrote_it(entry, written):
    for form in ("safetensors", "flax"):
        files = {(written(n, entry, form) / FORMATS[form].single).read_bytes() for n in BACKENDS}
        assert len(files) == 1, form
    configs = {(written(n, entry, "safetensors") / "config.json").read_text() for n in BACKENDS}
    assert len(configs) == 1


@over(WITH_HEAD)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision(backend, dtype, entry, checkpoint, tmp_path):
    folder_ = checkpoint(*entry)[0]
    half = backend.load(entry[2], folder_, torch_dtype=dtype)
    expected = {
        name: value.astype(dtype_of(dtype)) for name, value in checkpoint(*entry)[1].items()
    }
    assert_same_bits(backend.parameters(half), expected, f"{backend} {dtype}")
    backend.save(half, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["torch_dtype"] == dtype
    for name in BACKENDS:
        again = get_backend(name).load(entry[2], tmp_path, torch_dtype="auto")
        came = get_backend(name).parameters(again)
        assert_same_bits(came, expected, f"{backend} to {name} {dtype}")


def dtype_of(name):
    import ml_dtypes

    return getattr(ml_dtypes, name, name)


@over(WITH_BASE)
def test_base_and_head_load_into_each_other(backend, entry, checkpoint, written, tmp_path):
    table = table_of(entry[0])
    expected = checkpoint(*entry)[1]
    base = backend.load(table.base, written(backend.name, entry, "safetensors"))
    came = {f"{table.prefix}.{n}": v for n, v in shared_by_all(backend, base).items()}
    assert_same_bits(came, {name: expected[name] for name in came}, f"{backend} base")
    backend.save(base, tmp_path)
    head = backend.load(entry[2], tmp_path)
    again = backend.parameters(head)
    assert_same_bits({name: again[name] for name in came}, came, f"{backend} head")


def shared_by_all(backend, model):
    """Parameters of a model but for those that checkpoints of the family may lack."""
    rows = model.expected_parameters()
    return {n: v for n, v in backend.parameters(model).items() if not rows[n].optional}


# ---- what transformers wrote ----------------------------------------------------------------

THEIRS = sorted(path for name in FAMILIES for path in folder(name).glob("*_formats/*"))


@pytest.mark.parametrize("path", THEIRS, ids=lambda path: f"{path.parents[1].name}-{path.name}")
def test_the_reference_s_files(backend, path):
    plain = path.parents[1] / path.parent.name.removesuffix("_formats")
    architecture = json.loads((path / "config.json").read_text())["architectures"][0]
    head = architecture.removeprefix("TF").removeprefix("Flax")
    expected = shared_by_all(backend, backend.load(head, plain))
    came = shared_by_all(backend, backend.load(head, path))
    assert_same_bits(came, expected, f"{backend} {path.name} {architecture}")
