"""Run xlmfam and transformers side by side and compare: ``make bench``, or see README.md.

Every measurement is a fresh process in its side's own interpreter. Within a round the sides take
turns task by task, so that a slow minute of the machine hits all of them.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from harness import SHAPES, TASKS

from xlmfam.cli.charts import Bar, BarGroup, bar_chart, format_number, standalone

HERE = Path(__file__).resolve().parent
METRICS = {
    "load": "Load: time",
    "load_peak_memory": "Load: peak memory",
    "prefill": "Prefill of {prefill} tokens, to the next token's logits",
    "decode1": "Greedy decoding, batch 1",
    "decode8": "Greedy decoding, batch 8",
    "train": "Training step, 1 x {train} tokens, SGD",
    "prefill_first_call": "Prefill: first call, compiling included",
    "decode1_first_call": "Decoding, batch 1: first call, compiling included",
    "decode8_first_call": "Decoding, batch 8: first call, compiling included",
    "train_first_call": "Training step: first call, compiling included",
}


@dataclass(frozen=True)
class Side:
    """One competitor: an interpreter, a worker script and a backend."""

    name: str
    backend: str
    python: Path
    script: str
    ours: bool


@dataclass
class Series:
    """All values of one metric of one side, or why there are none."""

    unit: str = ""
    values: list[float] = field(default_factory=list)
    error: str = ""

    @property
    def median(self) -> float:
        return statistics.median(self.values) if self.values else float("nan")


Results = dict[str, dict[str, Series]]  # metric, then side


def main() -> int:
    """Run what the command line asks for; the status is 1 when a worker failed."""
    options = parse_options()
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    sides = [side for side in all_sides(options) if is_there(side)]
    checkpoint = make_checkpoint(out, options.shape)
    results: Results = {}
    started = time.time()
    for number in range(options.rounds):
        for task in options.tasks:
            for side in sides:
                note = f"[{time.time() - started:5.0f} s] round {number + 1}, {task}: {side.name}"
                print(note, file=sys.stderr, flush=True)
                collect(results, task, side, run_worker(side, task, checkpoint, options))
                write_results(out, results, sides, options)
    print((out / "results.md").read_text(encoding="utf-8"))
    return int(any(s.error for by_side in results.values() for s in by_side.values()))


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ours", default=sys.executable, help="interpreter that has xlmfam")
    parser.add_argument("--peer4", help="interpreter that has transformers 4.37.2, TF and Flax")
    parser.add_argument("--peer5", help="interpreter that has transformers 5")
    parser.add_argument("--shape", choices=tuple(SHAPES), default="564m")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--sides", nargs="+", help="only those whose name contains one of these")
    parser.add_argument("--rounds", type=int, default=3, help="times that every side gets its turn")
    parser.add_argument("--repeats", type=int, default=5, help="timed calls per process")
    parser.add_argument("--seconds", type=float, default=30.0, help="stop repeating after this")
    parser.add_argument("--timeout", type=float, default=900.0, help="seconds per process")
    parser.add_argument("--out", default=str(HERE / "out"), help="folder for the results")
    return parser.parse_args()


def all_sides(options: argparse.Namespace) -> list[Side]:
    ours, four, five = options.ours, options.peer4, options.peer5
    sides = []
    for name, python, script, backends in (
        ("xlmfam", ours, "worker_xlmfam.py", ("pt", "tf", "flax")),
        ("transformers 4", four, "worker_transformers.py", ("pt", "tf", "flax")),
        ("transformers 5", five, "worker_transformers.py", ("pt",)),
    ):
        for backend in backends:
            # Not resolved: following the link out of a virtual environment would leave it.
            path = Path(python).absolute() if python else Path("not given")
            side = Side(f"{name} {backend}", backend, path, script, name == "xlmfam")
            if not options.sides or any(part in side.name for part in options.sides):
                sides.append(side)
    # Backend by backend, so that those to be compared follow each other directly.
    return sorted(sides, key=lambda side: ("pt", "tf", "flax").index(side.backend))


def is_there(side: Side) -> bool:
    if side.python.is_file():
        return True
    print(f"skipped: {side.name} (no interpreter: {side.python})", file=sys.stderr)
    return False


def make_checkpoint(out: Path, shape: str) -> Path:
    """Write random weights once; every side reads the same folder."""
    from safetensors.numpy import save_file

    from xlmfam.common.configs import XGLMConfig
    from xlmfam.common.parameters import table_of

    folder = out / f"checkpoint-{shape}"
    if (folder / "config.json").is_file():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    config = XGLMConfig(**SHAPES[shape].config)
    random = np.random.default_rng(0)
    arrays = {}
    for name, parameter in table_of("xglm").expand(config, "XGLMForCausalLM").items():
        if parameter.tied_to is None:
            noise = random.standard_normal(parameter.shape, dtype=np.float32)
            noise *= np.float32(0.02)
            arrays[name] = noise + np.float32(parameter.init == "ones")
    save_file(arrays, folder / "model.safetensors", metadata={"format": "pt"})
    # Last: a folder with a config is a complete one.
    known = config.to_dict() | {"architectures": ["XGLMForCausalLM"]}
    (folder / "config.json").write_text(json.dumps(known, indent=2))
    return folder


def run_worker(
    side: Side, task: str, checkpoint: Path, options: argparse.Namespace
) -> list[dict[str, object]]:
    """Run one task in a fresh process and return the lines it printed."""
    command = [str(side.python), str(HERE / side.script), "--backend", side.backend]
    command += ["--task", task, "--checkpoint", str(checkpoint), "--shape", options.shape]
    command += ["--repeats", str(options.repeats), "--seconds", str(options.seconds)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TF_CPP_MIN_LOG_LEVEL": "2"}
    log = Path(options.out) / f"{side.name.replace(' ', '-')}-{task}.log"
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=options.timeout, env=environment
        )
    except subprocess.TimeoutExpired:
        return [{"error": f"took more than {options.timeout:g} seconds"}]
    log.write_text(done.stderr, encoding="utf-8")
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode and not any("error" in line for line in lines):
        lines.append({"error": f"ended with status {done.returncode}, see {log.name}"})
    return lines


def collect(results: Results, task: str, side: Side, lines: Iterable[dict[str, object]]) -> None:
    for line in lines:
        metric = str(line.get("metric", task))
        series = results.setdefault(metric, {}).setdefault(side.name, Series())
        if "error" in line:
            series.error = str(line["error"])
            print(f"  failed: {series.error}", file=sys.stderr)
        else:
            series.unit = str(line["unit"])
            series.values += line["values"]  # type: ignore[operator]


def best_peer(
    by_side: dict[str, Series], sides: list[Side], backend: str | None = None
) -> tuple[str, float]:
    """Name and median of the best peer, among those of one backend if it is given."""
    medians = [
        (by_side[s.name].median, s.name)
        for s in sides
        if not s.ours and s.name in by_side and backend in (None, s.backend)
    ]
    known = [pair for pair in medians if pair[0] == pair[0]]
    median, name = min(known, default=(float("nan"), "-"))
    return name, median


def write_results(
    out: Path, results: Results, sides: list[Side], options: argparse.Namespace
) -> None:
    """Write results.json, results.md and results.svg as they stand; a long run can be watched."""
    ordered = {metric: results[metric] for metric in METRICS if metric in results}
    titles = {m: METRICS[m].format(**vars(SHAPES[options.shape])) for m in ordered}
    record = {
        "shape": options.shape,
        "rounds": options.rounds,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
        "metrics": {
            metric: {
                name: {**vars(series), "median": series.median if series.values else None}
                for name, series in by_side.items()
            }
            for metric, by_side in ordered.items()
        },
    }
    (out / "results.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    (out / "results.md").write_text(markdown(record, ordered, titles, sides), encoding="utf-8")
    chart = draw({m: ordered[m] for m in ordered if "first" not in m}, titles, sides)
    (out / "results.svg").write_text(standalone(chart), encoding="utf-8")


def markdown(
    record: dict[str, object], results: Results, titles: dict[str, str], sides: list[Side]
) -> str:
    """A table per metric: median, range, and how many times better than the best peer."""
    lines = [f"Shape {record['shape']}, float32, {record['machine']}. Smaller is better.", ""]
    for metric, by_side in results.items():
        lines += [f"### {titles[metric]}", ""]
        lines += ["| side | median | min to max | vs peer, same framework | vs best peer |"]
        lines += ["|---|---:|---:|---:|---:|"]
        lines += [_row(by_side, side, sides) for side in sides if side.name in by_side] + [""]
    return "\n".join(lines)


def _row(by_side: dict[str, Series], side: Side, sides: list[Side]) -> str:
    series = by_side[side.name]
    if not series.values:
        return f"| {side.name} | failed: {series.error.replace('|', '/')} | | | |"
    span = f"{format_number(min(series.values))} to {format_number(max(series.values))}"
    ratios = ["", ""]
    if side.ours:
        for i, backend in enumerate((side.backend, None)):
            median = best_peer(by_side, sides, backend)[1]
            ratios[i] = f"{median / series.median:.2f} x" if median == median else "-"
    name = f"**{side.name}**" if side.ours else side.name
    cells = [name, f"{format_number(series.median)} {series.unit}", span, *ratios]
    return "| " + " | ".join(cells) + " |"


def draw(results: Results, titles: dict[str, str], sides: list[Side]) -> str:
    """The bars of all metrics, ours in the strong colour."""
    groups = []
    for metric, by_side in results.items():
        present = [side for side in sides if side.name in by_side]
        bars = [_bar(side, by_side[side.name]) for side in present]
        unit = next((by_side[s.name].unit for s in present if by_side[s.name].values), "")
        groups.append(BarGroup(titles[metric], bars, unit))
    return bar_chart(groups, title="xlmfam and transformers side by side; smaller is better")


def _bar(side: Side, series: Series) -> Bar:
    low, high = (min(series.values), max(series.values)) if series.values else (None, None)
    return Bar(side.name, series.median, low, high, side.ours, "" if series.values else "failed")


if __name__ == "__main__":
    sys.exit(main())
