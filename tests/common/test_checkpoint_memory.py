"""Reading a checkpoint holds one tensor, not the file."""

import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from xlmfam.common.checkpoints.files import save_checkpoint
from xlmfam.common.checkpoints.source import TensorSpec

pytestmark = pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="needs Linux")

MIB = 2**20
ROWS = 3 * 2**10

# The high-water mark counts mapped pages of the file too; "5" sets it back to what is held now.
MEASURE = """
import sys
from xlmfam.common.checkpoints.files import open_checkpoint

def status(field):
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith(field)) * 1024

def run(source):
    for name in source.specs():
        array = source.read(name)
        assert array[0].all() and array[-1].all()
        del array

with open_checkpoint(sys.argv[1]) as source:
    name = min(source.specs(), key=lambda name: source.specs()[name].nbytes)
    source.read(name)
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    before = status("VmRSS")
    run(source)
    print(status("VmHWM") - before)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("format", "allowed"), [("safetensors", 1.15), ("flax", 1.15), ("tf", 1.15), ("pt", 1.5)]
)
def test_reading_tensor_by_tensor(tmp_path, format, allowed):
    if format == "pt":
        pytest.importorskip("torch")
    biggest = ROWS * 10_240 * 4  # 120 MiB; the file has 360
    specs = {f"m/{i}": TensorSpec((ROWS, 10_240), np.dtype(np.float32)) for i in range(3)}
    specs["m/small"] = TensorSpec((4,), np.dtype(np.float32))
    ones = np.ones((ROWS, 10_240), np.float32)
    save_checkpoint(
        tmp_path,
        specs,
        lambda name: ones if specs[name].nbytes > 100 else ones[0, :4],
        format=format,
        architecture="XGLMModel",
    )
    command = [sys.executable, "-c", textwrap.dedent(MEASURE), str(tmp_path)]
    done = subprocess.run(command, timeout=300, capture_output=True, text=True, check=True)
    assert biggest * 0.9 < int(done.stdout) < biggest * allowed
