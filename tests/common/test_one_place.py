"""No weight name and no transpose of weights stands outside the parameter tables."""

import ast
import re
from pathlib import Path

import pytest

from xlmfam import AutoConfig
from xlmfam.common.parameters import TABLES, table_of
from xlmfam.common.parameters.spelling import LEAVES

ROOT = Path(__file__).parents[2]
SOURCES = [
    path
    for path in sorted([*(ROOT / "xlmfam").rglob("*.py"), *(ROOT / "conversion").rglob("*.py")])
    if path.parent != ROOT / "xlmfam" / "common" / "parameters"
    # What the authors of the original releases call parameters is theirs, and no table has it.
    and path.parent != ROOT / "conversion" / "originals"
]
# Files that load, save or convert weights; arithmetic elsewhere may transpose activations.
LOADING = [
    path
    for path in SOURCES
    if path.name in ("base.py", "models.py", "convert.py", "verify.py")
    or {"checkpoints", "formats"} & set(path.parts)
]
LEAF_NAMES = {"weight", "bias"} | {leaf for leaves in LEAVES.values() for leaf in leaves.values()}


# Names of modules that mean something else as well.
EVERYDAY = {"model", "layers", "embeddings", "self", "key"}


def module_names():
    """Names of modules that own parameters: q_proj, layer_norm, embed_tokens ..."""
    names = set()
    for family in TABLES:
        config = AutoConfig.for_model(family)
        table = table_of(family)
        for head in (table.base, *table.heads):
            for name in table.expand(config, head):
                names |= set(re.split(r"[./]", name)[:-1])
    return {name for name in names if not name.isdigit()} - EVERYDAY


MODULES = module_names()


def looks_like_a_parameter(text):
    """Whether a string names a parameter, a template of some, or the end of one."""
    parts = [part for part in re.split(r"[./]", text.removesuffix(":0")) if part]
    if len(parts) < 2 or " " in text:
        return text.lstrip("._/") in LEAF_NAMES and text[:1] in "./" and len(text) > 1
    return parts[-1] in LEAF_NAMES


def docstrings(tree):
    """Ids of the nodes that are documentation."""
    kinds = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    return {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, kinds) and node.body and isinstance(node.body[0], ast.Expr)
    }


def strings_of(tree):
    documentation = docstrings(tree)
    for node in ast.walk(tree):
        is_text = isinstance(node, ast.Constant) and isinstance(node.value, str)
        if is_text and id(node) not in documentation:
            yield node


# A ready embedding that is passed in keeps its values: its own name, in the base model.
ALLOWED_NAMES = {("pt", "embed_tokens.weight")}


def names_in(tree):
    return [node.value for node in strings_of(tree) if looks_like_a_parameter(node.value)]


def transposes_in(tree):
    """Transposes in a syntax tree: ``.T``, ``.mT``, ``transpose``, ``swapaxes``, ``permute``."""
    verbs = {"transpose", "swapaxes", "permute", "moveaxis", "t", "matrix_transpose"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr in ("T", "mT"):
            yield f"line {node.lineno}: .{node.attr}"
        called = node.func if isinstance(node, ast.Call) else None
        name = getattr(called, "attr", getattr(called, "id", None))
        if name in verbs:
            yield f"line {node.lineno}: {name}()"


def short(path):
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", SOURCES, ids=short)
def test_no_weight_name(path):
    found = names_in(ast.parse(path.read_text(encoding="utf-8")))
    found = [name for name in found if (path.parent.name, name) not in ALLOWED_NAMES]
    assert not found, f"{short(path)} spells parameters: {found}"


@pytest.mark.parametrize("path", LOADING, ids=short)
def test_no_transpose_where_weights_are_loaded(path):
    found = list(transposes_in(ast.parse(path.read_text(encoding="utf-8"))))
    assert not found, f"{short(path)} transposes: {found}"


@pytest.mark.parametrize(
    "text",
    [
        "self_attn.q_proj.weight",
        "q_proj.weight",
        "model.layers.{layer}.fc1.bias",
        "model/layers/0/fc1/kernel",
        "lm_head/kernel:0",
        ".kernel",
        "/gamma",
        "layer_norm/scale",
        "embed_tokens.embedding",
        "transformer.attentions.{layer}.q_lin.weight",
        "pred_layer_._proj/bias",
    ],
)
def test_the_scan_sees_names(text):
    code = ast.parse(f"def f():\n    '''Docs: {text}'''\n    return {text!r}")
    assert names_in(code) == [text]


@pytest.mark.parametrize("text", ["weight", "a sentence with q_proj.weight in it", "model", "a.b"])
def test_the_scan_leaves_other_strings(text):
    assert not names_in(ast.parse(f"x = {text!r}"))


def test_the_scan_sees_parts_of_formatted_names():
    assert names_in(ast.parse("x = f'{prefix}.q_proj.weight'")) == [".q_proj.weight"]


@pytest.mark.parametrize("code", ["x.T", "x.transpose(1, 0)", "np.swapaxes(x, 0, 1)", "x.t()"])
def test_the_scan_sees_transposes(code):
    assert len(list(transposes_in(ast.parse(code)))) == 1


def test_module_names_are_those_of_every_family():
    assert {"q_proj", "lm_head", "q_lin", "pred_layer", "qa_outputs"} <= MODULES


def test_module_names_do_not_stand_in_loading_code():
    for path in LOADING:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        found = {node.value for node in strings_of(tree)} & MODULES
        assert not found, f"{short(path)} names modules: {found}"
