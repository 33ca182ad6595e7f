"""What loading leaves alone."""

import subprocess
import sys

from tiny_checkpoints import make

CODE = """
import sys
from xlmfam import pt
for name, folder in zip(sys.argv[1::2], sys.argv[2::2]):
    getattr(pt, name).from_pretrained(folder)
    assert "torch._dynamo" not in sys.modules, name
"""


def test_loading_does_not_import_the_compiler(tmp_path):
    """It takes longer than most checkpoints; drawing values on the meta device would do it."""
    arguments = []
    for head in ("XGLMForCausalLM", "XLMWithLMHeadModel", "XmodForMaskedLM"):
        arguments += [head, str(make(tmp_path / head, head))]
    subprocess.run([sys.executable, "-c", CODE, *arguments], check=True)
