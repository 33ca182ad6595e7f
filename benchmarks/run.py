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
from typing import Any

import numpy as np
from harness import MODELS, Model

from xlmfam.cli.charts import Bar, BarGroup, bar_chart, format_number, standalone

HERE = Path(__file__).resolve().parent
METRICS = {
    "load": "Load: time",
    "load_peak_memory": "Load: peak memory",
    "prefill": "Prefill of {prefill} tokens, to the next token's logits",
    "decode1": "Greedy decoding, batch 1",
    "decode8": "Greedy decoding, batch 8",
    "train": "Training step, 1 x {train} tokens, SGD",
    "encode": "Encoding of {rows} x {length} tokens",
    "mlm": "Masked-LM training step, {rows} x {length} tokens, {labelled} labels, SGD",
    "one": "Encoding of {rows} x {length} tokens, one language",
    "two": "Encoding of {rows} x {length} tokens, two languages alternating",
    "sixteen": "Encoding of {rows} x {length} tokens, sixteen languages",
    "decode": "Greedy decoding behind the whole memory, batch 1",
    "segment": "Loss of a segment of {length} tokens",
    "train_segment": "Training step on a segment of {length} tokens, SGD",
    "prefill_first_call": "Prefill: first call, compiling included",
    "decode1_first_call": "Decoding, batch 1: first call, compiling included",
    "decode8_first_call": "Decoding, batch 8: first call, compiling included",
    "train_first_call": "Training step: first call, compiling included",
    "encode_first_call": "Encoding: first call, compiling included",
    "one_first_call": "One language: first call, compiling included",
    "two_first_call": "Two languages: first call, compiling included",
    "sixteen_first_call": "Sixteen languages: first call, compiling included",
    "decode_first_call": "Decoding: first call, compiling included",
    "segment_first_call": "Segment: first call, compiling included",
    "train_segment_first_call": "Training step: first call, compiling included",
    "mlm_first_call": "Masked-LM training step: first call, compiling included",
}
TOLERANCE = 1e-4  # relative, of what all sides have to agree on


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
Checks = dict[str, dict[str, list[float]]]  # task, then side


def main() -> int:
    """Run what the command line asks for; the status is 1 when a worker failed."""
    options = parse_options()
    model, out = MODELS[options.model], Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    sides = [side for side in all_sides(options, model) if is_there(side)]
    checkpoint = make_checkpoint(out, model, options.shape)
    results: Results = {}
    checks: Checks = {}
    started = time.time()
    for number in range(options.rounds):
        for task in options.tasks:
            for side in sides:
                note = f"[{time.time() - started:5.0f} s] round {number + 1}, {task}: {side.name}"
                print(note, file=sys.stderr, flush=True)
                lines = run_worker(side, task, checkpoint, options)
                collect(results, checks, task, side, lines)
                write_results(out, results, checks, sides, options)
    print((out / "results.md").read_text(encoding="utf-8"))
    failed = any(s.error for by_side in results.values() for s in by_side.values())
    return int(failed or not all(spread(checks[task]) <= TOLERANCE for task in checks))


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ours", default=sys.executable, help="interpreter that has xlmfam")
    parser.add_argument("--peer4", help="interpreter that has transformers 4.37.2, TF and Flax")
    parser.add_argument("--peer5", help="interpreter that has transformers 5")
    parser.add_argument("--model", choices=tuple(MODELS), default="xglm-564m")
    parser.add_argument("--shape", choices=("full", "small"), default="full")
    parser.add_argument("--tasks", nargs="+", help="by default all that the model has")
    parser.add_argument("--sides", nargs="+", help="only those whose name contains one of these")
    parser.add_argument("--rounds", type=int, default=3, help="times that every side gets its turn")
    parser.add_argument("--repeats", type=int, help="timed calls per process")
    parser.add_argument("--seconds", type=float, default=30.0, help="stop repeating after this")
    parser.add_argument("--timeout", type=float, default=900.0, help="seconds per process")
    parser.add_argument("--out", help="folder for the results")
    options = parser.parse_args()
    model = MODELS[options.model]
    options.tasks = options.tasks or list(model.tasks)
    if unknown := set(options.tasks) - set(model.tasks):
        parser.error(f"{options.model} has no task {', '.join(sorted(unknown))}")
    options.repeats = options.repeats or model.repeats
    options.out = options.out or str(HERE / "out" / options.model)
    return options


def all_sides(options: argparse.Namespace, model: Model) -> list[Side]:
    ours, four, five = options.ours, options.peer4, options.peer5
    sides = []
    for name, python, script, backends in (
        ("xlmfam", ours, "worker_xlmfam", ("pt", "tf", "flax")),
        ("transformers 4", four, "worker_transformers", model.peer_backends),
        ("transformers 5", five, "worker_transformers", ("pt",)),
    ):
        for backend in backends:
            # Not resolved: following the link out of a virtual environment would leave it.
            path = Path(python).absolute() if python else Path("not given")
            script_name = f"{script}{model.suffix}.py"
            side = Side(f"{name} {backend}", backend, path, script_name, name == "xlmfam")
            if not options.sides or any(part in side.name for part in options.sides):
                sides.append(side)
    # Backend by backend, so that those to be compared follow each other directly.
    return sorted(sides, key=lambda side: ("pt", "tf", "flax").index(side.backend))


def is_there(side: Side) -> bool:
    if side.python.is_file():
        return True
    print(f"skipped: {side.name} (no interpreter: {side.python})", file=sys.stderr)
    return False


def make_checkpoint(out: Path, model: Model, shape: str) -> Path:
    """Write random weights once; every side reads the same folder."""
    from safetensors.numpy import save_file

    from xlmfam.common.configs.auto import config_class
    from xlmfam.common.parameters import table_of

    folder = out / f"checkpoint-{shape}"
    if (folder / "config.json").is_file():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    config = config_class(model.family)(**model.shapes[shape].config)
    random = np.random.default_rng(0)
    arrays = {}
    for name, parameter in table_of(model.family).expand(config, model.head).items():
        if parameter.tied_to is None:
            noise = random.standard_normal(parameter.shape, dtype=np.float32)
            noise *= np.float32(0.02)
            arrays[name] = noise + np.float32(parameter.init == "ones")
    save_file(arrays, folder / "model.safetensors", metadata={"format": "pt"})
    # Last: a folder with a config is a complete one.
    known = config.to_dict() | {"architectures": [model.head]}
    (folder / "config.json").write_text(json.dumps(known, indent=2))
    return folder


def run_worker(
    side: Side, task: str, checkpoint: Path, options: argparse.Namespace
) -> list[dict[str, Any]]:
    """Run one task in a fresh process and return the lines it printed."""
    command = [str(side.python), str(HERE / side.script), "--backend", side.backend]
    command += ["--task", task, "--checkpoint", str(checkpoint)]
    command += ["--model", options.model, "--shape", options.shape]
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


def collect(
    results: Results, checks: Checks, task: str, side: Side, lines: Iterable[dict[str, Any]]
) -> None:
    for line in lines:
        if "check" in line:
            checks.setdefault(task, {})[side.name] = line["check"]
            continue
        metric = str(line.get("metric", task))
        series = results.setdefault(metric, {}).setdefault(side.name, Series())
        if "error" in line:
            series.error = str(line["error"])
            print(f"  failed: {series.error}", file=sys.stderr)
        else:
            series.unit = str(line["unit"])
            series.values += line["values"]


def spread(by_side: dict[str, list[float]]) -> float:
    """The largest relative difference between two sides in the numbers they have to agree on."""
    columns = np.array(list(by_side.values()))
    return float((np.ptp(columns, axis=0) / np.abs(columns).min(axis=0)).max())


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


def ratios(by_side: dict[str, Series], side: Side, sides: list[Side]) -> dict[str, float]:
    """How many times better a side of ours is than the best peer of several kinds."""
    kinds = {"same framework": side.backend, "PyTorch": "pt", "any": None}
    ours = by_side[side.name].median
    found = {kind: best_peer(by_side, sides, kinds[kind])[1] / ours for kind in kinds}
    return {kind: ratio for kind, ratio in found.items() if ratio == ratio}


def write_results(
    out: Path, results: Results, checks: Checks, sides: list[Side], options: argparse.Namespace
) -> None:
    """Write results.json, results.md and results.svg as they stand; a long run can be watched."""
    shape = MODELS[options.model].shapes[options.shape]
    sizes = {**vars(shape), "labelled": shape.labelled}
    ordered = {metric: results[metric] for metric in METRICS if metric in results}
    titles = {m: METRICS[m].format(**sizes) for m in ordered}
    record = {
        "model": options.model,
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
        "ratios": {
            metric: {
                side.name: ratios(by_side, side, sides)
                for side in sides
                if side.ours and side.name in by_side
            }
            for metric, by_side in ordered.items()
        },
        "checks": {
            task: {"spread": spread(by_side), "tolerance": TOLERANCE, "values": by_side}
            for task, by_side in checks.items()
        },
    }
    (out / "results.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    (out / "results.md").write_text(
        markdown(record, ordered, titles, checks, sides), encoding="utf-8"
    )
    chart = draw({m: ordered[m] for m in ordered if "first" not in m}, titles, sides)
    (out / "results.svg").write_text(standalone(chart), encoding="utf-8")


def markdown(
    record: dict[str, object],
    results: Results,
    titles: dict[str, str],
    checks: Checks,
    sides: list[Side],
) -> str:
    """A table per metric: median, range, and how many times better than the best peer."""
    name = f"{record['model']}, {record['shape']} size"
    lines = [f"{name}, float32, {record['machine']}. Smaller is better.", ""]
    for task, by_side in checks.items():
        found = spread(by_side)
        verdict = "agree" if found <= TOLERANCE else f"DISAGREE: {by_side}; they differ"
        lines += [f"{task}: the results of {len(by_side)} sides {verdict} to {found:.0e}.", ""]
    for metric, series in results.items():
        lines += [f"### {titles[metric]}", ""]
        lines += ["| side | median | min to max | vs same framework | vs PyTorch | vs best peer |"]
        lines += ["|---|---:|---:|---:|---:|---:|"]
        lines += [_row(series, side, sides) for side in sides if side.name in series] + [""]
    return "\n".join(lines)


def _row(by_side: dict[str, Series], side: Side, sides: list[Side]) -> str:
    series = by_side[side.name]
    if not series.values:
        return f"| {side.name} | failed: {series.error.replace('|', '/')} | | | | |"
    span = f"{format_number(min(series.values))} to {format_number(max(series.values))}"
    versus = [""] * 3
    if side.ours:
        known = ratios(by_side, side, sides)
        kinds = ("same framework", "PyTorch", "any")
        versus = [f"{known[kind]:.2f} x" if kind in known else "-" for kind in kinds]
    name = f"**{side.name}**" if side.ours else side.name
    cells = [name, f"{format_number(series.median)} {series.unit}", span, *versus]
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
