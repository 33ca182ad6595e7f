"""Conversions against ``cp``: speed and peak memory, both in one run and both with a sync.

    python benchmarks/convert.py --folder SCRATCH                  # 2 GB in shards
    python benchmarks/convert.py --folder SCRATCH --size 7.5B      # 15 GB, none of them on the disk

The checkpoint is made first: of random numbers, or (7.5B) as files without content, of which the
disk has the headers only. Each round copies it with ``cp`` and converts it to each format in a
fresh process; what was written is on the disk before the clock stops, and is deleted then.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np

from xlmfam import AutoConfig
from xlmfam.common.checkpoints import safetensors_files
from xlmfam.common.checkpoints.files import FORMATS
from xlmfam.common.checkpoints.shards import deal, index_text, parse_size
from xlmfam.common.checkpoints.source import DTYPES, TensorSpec
from xlmfam.common.parameters import table_of
from xlmfam.conversion.report import text_table

# Layers are few in the small one, so that it is 2 GB with tensors of the large one's sizes.
SHAPES = {
    "2GB": {"d_model": 2048, "ffn_dim": 8192, "num_layers": 9, "attention_heads": 16},
    "7.5B": {"d_model": 4096, "ffn_dim": 16384, "num_layers": 32, "attention_heads": 32},
}
WORKER = """
import sys, time
from xlmfam.conversion import convert
started = time.perf_counter()
convert(sys.argv[1], sys.argv[2], sys.argv[3], max_shard_size=sys.argv[4])
seconds = time.perf_counter() - started
# Not getrusage, which counts what the process was forked from.
with open("/proc/self/status") as lines:
    peak = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
print(seconds, peak * 1024)
"""


def make(folder: Path, size: str, shard: str) -> int:
    """Write a checkpoint of XGLM's shape in float16; returns its bytes."""
    config = AutoConfig.for_model("xglm", **SHAPES[size])
    config.architectures = ["XGLMForCausalLM"]
    config.save_pretrained(folder)
    parameters = table_of("xglm").expand(config, "XGLMForCausalLM")
    specs = {
        name: TensorSpec(p.shape, DTYPES["float16"])
        for name, p in parameters.items()
        if p.tied_to is None
    }
    form, shards = FORMATS["safetensors"], deal(specs, parse_size(shard))
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 0.02, 2**24).astype(np.float16).view(np.uint8)
    weight_map: dict[str, str] = {}
    for number, part in enumerate(shards, start=1):
        name = form.single if len(shards) == 1 else form.shard(number, len(shards))
        weight_map |= dict.fromkeys(part, name)
        layout = safetensors_files.lay_out(folder / name, part)
        with open(folder / name, "wb") as file:
            file.write(layout.literals[0][1])
            left = sum(spec.nbytes for spec in part.values())
            if size == "7.5B":
                file.truncate(file.tell() + left)
                continue
            while left:
                left -= file.write(noise[: min(left, noise.size)])
    total = sum(spec.nbytes for spec in specs.values())
    if len(shards) > 1:
        (folder / form.index).write_text(index_text(weight_map, total))
    return total


def copy(source: Path, target: Path) -> float:
    """Seconds that ``cp`` and a sync of what it wrote take."""
    started = time.perf_counter()
    # Holes are copied as zeros, for a conversion has to write them too.
    subprocess.run(["cp", "-r", "--sparse=never", str(source), str(target)], check=True)
    for path in target.iterdir():
        with open(path, "rb") as file:
            os.fsync(file.fileno())
    return time.perf_counter() - started


def convert(source: Path, target: Path, to: str, shard: str) -> tuple[float, float]:
    """Seconds of a conversion in a process of its own, without its imports, and its peak memory."""
    command = [sys.executable, "-c", textwrap.dedent(WORKER)]
    command += [str(source), str(target), to, shard]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    seconds, peak = done.stdout.split()
    return float(seconds), float(peak)


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--folder", type=Path, required=True, help="where there is room")
    parser.add_argument("--size", choices=SHAPES, default="2GB")
    parser.add_argument("--shard", default="500MB", help="most bytes in a file")
    parser.add_argument("--to", nargs="+", default=["safetensors", "pt", "flax", "tf"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write every value here")
    args = parser.parse_args()
    room = args.folder / "xlmfam-benchmark"
    shutil.rmtree(room, ignore_errors=True)
    room.mkdir(parents=True)
    seconds: dict[str, list[float]] = {"cp": [], **{to: [] for to in args.to}}
    peaks: dict[str, float] = {}
    try:
        total = make(room / "source", args.size, args.shard)
        copy(room / "source", room / "out")  # the disk finds its blocks
        shutil.rmtree(room / "out")
        for _ in range(args.rounds):
            seconds["cp"].append(copy(room / "source", room / "out"))
            shutil.rmtree(room / "out")
            for to in args.to:
                taken, peak = convert(room / "source", room / "out", to, args.shard)
                shutil.rmtree(room / "out")
                seconds[to].append(taken)
                peaks[to] = max(peak, peaks.get(to, 0.0))
    finally:
        shutil.rmtree(room, ignore_errors=True)
    report(args, total, seconds, peaks)


def report(
    args: argparse.Namespace, total: int, seconds: dict[str, list[float]], peaks: dict[str, float]
) -> None:
    """Print medians and ranges."""
    cp = statistics.median(seconds["cp"])
    rows = [["to", "seconds", "range", "GB/s", "of cp", "peak memory"]]
    for name, values in seconds.items():
        median = statistics.median(values)
        rows.append(
            [
                name,
                f"{median:.2f}",
                f"{min(values):.2f} - {max(values):.2f}",
                f"{total / median / 1e9:.2f}",
                f"{cp / median:.0%}",
                f"{peaks[name] / 2**20:.0f} MiB" if name in peaks else "",
            ]
        )
    print(f"XGLM, {args.size}: {total / 1e9:.1f} GB in files of {args.shard}, with sync\n")
    print(text_table(rows))
    if args.json:
        args.json.write_text(json.dumps({"bytes": total, "seconds": seconds, "peaks": peaks}))


if __name__ == "__main__":
    main()
