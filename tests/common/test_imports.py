"""What importing costs, what it brings along, and who may import whom."""

import ast
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FRAMEWORKS = {"pt": ("torch",), "tf": ("tensorflow", "keras"), "flax": ("jax", "flax", "optax")}
EVERY_FRAMEWORK = {"torch", "tensorflow", "keras", "jax", "jaxlib", "flax", "optax"}


def run(code, *arguments, **environment):
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(code), *arguments],
        cwd=ROOT,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_importing_xlmfam_is_quick_and_brings_no_framework():
    code = """
        import sys, time
        start = time.perf_counter()
        import xlmfam
        taken = time.perf_counter() - start
        found = sorted(set(sys.argv[1:]) & {name.partition(".")[0] for name in sys.modules})
        print(taken)
        assert not found, found
        assert not {"numpy", "huggingface_hub", "tokenizers"} & set(sys.modules), "not lazy"
    """
    times = []
    for _ in range(3):  # the machine may be busy; the code is no slower for it
        done = run(code, *EVERY_FRAMEWORK)
        assert done.returncode == 0, done.stderr
        times.append(float(done.stdout))
    assert min(times) < 0.3


def test_configs_and_tables_need_no_framework():
    code = """
        import sys
        import xlmfam
        from xlmfam.common.parameters import table_of
        config = xlmfam.XGLMConfig(d_model=8, attention_heads=2, ffn_dim=6, num_layers=1)
        table_of("xglm").expand(config, "XGLMForCausalLM")
        [getattr(xlmfam, name) for name in xlmfam.__all__]
        found = set(sys.argv[1:]) & {name.partition(".")[0] for name in sys.modules}
        assert not found, found
    """
    done = run(code, *EVERY_FRAMEWORK)
    assert done.returncode == 0, done.stderr


ALONE = """
    import sys

    class Blocker:
        def find_spec(self, name, path=None, target=None):
            if name.partition(".")[0] in sys.argv[2:]:
                raise ModuleNotFoundError(f"{name} is blocked", name=name)

    sys.meta_path.insert(0, Blocker())
    import importlib
    import numpy as np
    import xlmfam
    package = importlib.import_module(f"xlmfam.{sys.argv[1]}")
    for name in package.__all__:
        getattr(package, name)
    config = xlmfam.XGLMConfig(
        vocab_size=13, d_model=8, attention_heads=2, ffn_dim=6, num_layers=1
    )
    model = package.XGLMForCausalLM.from_config(config)
    ids = np.array([[5, 6, 7], [8, 9, 10]])
    if sys.argv[1] == "pt":
        import torch
        ids = torch.from_numpy(ids)
    assert tuple(model(input_ids=ids).logits.shape) == (2, 3, 13)
    ids = model.generate(ids, max_new_tokens=2, do_sample=False, eos_token_id=None)
    ids = getattr(ids, "sequences", ids)
    assert tuple(ids.shape) == (2, 5), ids.shape
    blocked = set(sys.argv[2:]) & set(sys.modules)
    assert not blocked, blocked
"""


@pytest.mark.parametrize("name", FRAMEWORKS)
def test_a_backend_works_with_the_others_blocked(name):
    pytest.importorskip(FRAMEWORKS[name][0])
    # Keras itself looks for torch and jax; a blocked import is like one not installed.
    blocked = [p for other, ps in FRAMEWORKS.items() if other != name for p in ps]
    done = run(ALONE, name, *blocked, KERAS_BACKEND="tensorflow")
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize(("name", "package"), [(n, ps[0]) for n, ps in FRAMEWORKS.items()])
def test_a_missing_framework_is_named_with_its_install_line(name, package):
    code = """
        import sys
        sys.modules[sys.argv[2]] = None
        try:
            __import__(f"xlmfam.{sys.argv[1]}")
        except ImportError as error:
            print(error)
    """
    done = run(code, name, package)
    assert f"pip install 'xlmfam[{name}]'" in done.stdout, done.stderr


# ---- who may import whom --------------------------------------------------------------------

# A package may import what stands left of it, and itself.
ALLOWED = {
    "common": {"common"},
    "pt": {"common", "pt"},
    "tf": {"common", "tf"},
    "flax": {"common", "flax"},
    "conversion": {"common", "pt", "tf", "flax", "conversion"},
    "cli": {"common", "pt", "tf", "flax", "conversion", "cli"},
    "": {"common"},
}
# The one exception, explained where it stands: file formats by name, imported when used.
EXCEPTIONS = {("common/checkpoints/files.py", "conversion")}
SOURCES = sorted([*(ROOT / "xlmfam").rglob("*.py"), *(ROOT / "conversion").rglob("*.py")])


def package_of(path):
    parts = path.relative_to(ROOT).parts
    if parts[0] == "conversion":
        return "conversion"
    return parts[1] if len(parts) > 2 else ""


def is_dotted_name(value):
    is_text = isinstance(value, str) and value.startswith("xlmfam.")
    return is_text and value.replace(".", "_").isidentifier()


def imported_by(tree):
    """Dotted names that a file imports or names in a string to import."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level == 0:  # a relative import stays in its package
                yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif is_dotted_name(getattr(node, "value", None)):
            yield node.value


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_dependencies_point_one_way(path):
    package = package_of(path)
    short = str(path.relative_to(ROOT)).removeprefix("xlmfam/")
    for name in imported_by(ast.parse(path.read_text(encoding="utf-8"))):
        parts = name.split(".")
        if parts[0] != "xlmfam" or len(parts) < 2 or parts[1] not in {*ALLOWED} - {""}:
            continue
        allowed = parts[1] in ALLOWED[package] or (short, parts[1]) in EXCEPTIONS
        assert allowed, f"{short} imports {name}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_backend_s_files_import_its_own_framework_only(path):
    package = package_of(path)
    foreign = {p for name, ps in FRAMEWORKS.items() if name != package for p in ps}
    if package in ("cli", "conversion"):
        foreign = set()  # they import what they need inside functions; see the next test
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        found = {name.partition(".")[0] for name in names} & foreign
        if package == "common" and "tokenizers" in path.parts:
            continue  # return_tensors imports a framework when asked for its tensors
        assert not found, f"{path} imports {found}"


# Classes of torch's: the exporter imports it when it exports.
TORCH_ITSELF = ROOT / "conversion" / "targets" / "torch_graph.py"


@pytest.mark.parametrize(
    "path",
    [
        path
        for path in SOURCES
        if package_of(path) not in FRAMEWORKS and path.resolve() != TORCH_ITSELF
    ],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_nothing_else_imports_a_framework_at_its_top(path):
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = (
                [a.name for a in node.names]
                if isinstance(node, ast.Import)
                else [node.module or ""]
            )
            found = {name.partition(".")[0] for name in names} & EVERY_FRAMEWORK
            assert not found, f"{path} imports {found}"
