"""Every example of the README runs, in order, in one folder and one namespace.

A comment ``<!-- skip -->`` before a block leaves it out; ``<!-- run`` begins Python code that
readers do not see.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from xlmfam.cli.main import main
from xlmfam.conversion.runners import BACKENDS, installed_backends

README = Path(__file__).parent.parent / "README.md"
BLOCK = re.compile(
    r"<!-- run\n(?P<hidden>.*?)-->|"
    r"(?P<skip><!-- skip -->\s*)?^```(?P<language>\w*)\n(?P<code>.*?)^```",
    re.DOTALL | re.MULTILINE,
)


def blocks(text):
    """Line, language and code of everything that is to run, in order."""
    for match in BLOCK.finditer(text):
        line = text.count("\n", 0, match.start()) + 1
        if match["hidden"] is not None:
            yield line, "python", match["hidden"]
        elif not match["skip"]:
            yield line, match["language"], match["code"]


def run_python(code, line, names):
    # Lines are counted as in the README, for the traceback.
    exec(compile("\n" * line + code, str(README), "exec"), names)


def run_shell(code, line):
    for command in code.strip().splitlines():
        words = shlex.split(command, comments=True)
        assert words[0] == "xlmfam", f"line {line}: {command} is no xlmfam command: mark it skipped"
        assert main(words[1:]) == 0, f"line {line}: {command} failed"


@pytest.mark.slow
@pytest.mark.skipif(installed_backends() != BACKENDS, reason="needs the three frameworks")
def test_every_example_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "readme"}
    ran = []
    for line, language, code in blocks(README.read_text(encoding="utf-8")):
        assert language in {"python", "sh"}, f"line {line}: a block in {language or 'no language'}"
        if language == "python":
            run_python(code, line, names)
        else:
            run_shell(code, line)
        ran.append(language)
    assert ran.count("python") >= 9
    assert ran.count("sh") >= 1


def test_blocks_are_found():
    text = "<!-- run\na = 1\n-->\n\n<!-- skip -->\n```sh\nmake\n```\n\n```python\nb = a\n```\n"
    assert list(blocks(text)) == [(1, "python", "a = 1\n"), (10, "python", "b = a\n")]


def test_links_lead_somewhere():
    links = re.findall(r"\]\(([^)#]+)\)", README.read_text(encoding="utf-8"))
    assert links
    assert all((README.parent / link).exists() for link in links if "://" not in link)
