"""What merges cost against a plain pass over the same bytes.

    python scripts/bench/merging.py [--experts 8] [--size 1.0] [--methods task_arithmetic ties] [--rounds 3]
    python scripts/bench/merging.py --memory 0.1 1 8      # peak memory against the size of the model

Writes a base and experts of GPT-2 shapes (124 M float32 values at --size 1) with random values to a folder of its own,
which is deleted afterwards: 4.5 GB at the defaults. The bound is one process that reads every input byte into a fixed
buffer and writes and syncs as many bytes as a merge does, with as many threads. Bound and merges take turns; figures
are medians and ratios of medians. "work" is inside the process, after imports; "whole" is the command from the shell.
Memory is the peak of anonymous pages (files that are mapped do not count).

Bars: task_arithmetic at most 1.3 x bound (work), 500 MB; ties at most 4 x task_arithmetic, 1 GB; start-up at most 2 s
(a merge of a tiny model, from the shell).
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

BUFFER = 1 << 22


def shapes(size: float) -> dict[str, tuple[int, ...]]:
    """GPT-2 small; `size` scales the number of layers beyond the embeddings, and below 1 the vocabulary too."""
    width, layers = 768, max(1, round(12 * size + 5.5 * max(0.0, size - 1.0)))
    found: dict[str, tuple[int, ...]] = {
        "wte.weight": (round(50257 * min(1.0, size)), width),
        "wpe.weight": (1024, width),
    }
    for n in range(layers):
        found |= {
            f"h.{n}.ln_1.weight": (width,),
            f"h.{n}.ln_1.bias": (width,),
            f"h.{n}.attn.c_attn.weight": (width, 3 * width),
            f"h.{n}.attn.c_attn.bias": (3 * width,),
            f"h.{n}.attn.c_proj.weight": (width, width),
            f"h.{n}.attn.c_proj.bias": (width,),
            f"h.{n}.ln_2.weight": (width,),
            f"h.{n}.ln_2.bias": (width,),
            f"h.{n}.mlp.c_fc.weight": (width, 4 * width),
            f"h.{n}.mlp.c_fc.bias": (4 * width,),
            f"h.{n}.mlp.c_proj.weight": (4 * width, width),
            f"h.{n}.mlp.c_proj.bias": (width,),
        }
    return found | {"ln_f.weight": (width,), "ln_f.bias": (width,)}


def make(folder: Path, experts: int, size: float) -> None:
    """The models: the base, and experts that lie near it."""
    import torch
    from safetensors.torch import save_file

    found = shapes(size)
    base = {name: torch.randn(shape) * 0.02 for name, shape in found.items()}
    for label in ("base", *(f"expert{t}" for t in range(experts))):
        (folder / label).mkdir()
        tensors = base
        if label != "base":
            tensors = {name: t + torch.randn(t.shape) * 0.002 for name, t in base.items()}
        save_file(tensors, folder / label / "model.safetensors")


def bound(folder: Path, out: Path, threads: int) -> float:
    """Seconds to read all inputs and write as much as one of them."""
    files = sorted(folder.glob("*/model.safetensors"))
    size = files[0].stat().st_size
    began = time.perf_counter()
    jobs = [(f, at) for f in files for at in range(0, f.stat().st_size, 64 * BUFFER)]
    local = threading.local()

    def read(job: tuple[Path, int]) -> None:
        buffer = local.__dict__.setdefault("buffer", memoryview(bytearray(BUFFER)))
        with open(job[0], "rb", buffering=0) as file:
            file.seek(job[1])
            for _ in range(64):
                if not file.readinto(buffer):
                    break

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(read, jobs))
        descriptor = os.open(out, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        block = os.urandom(BUFFER)
        list(pool.map(lambda at: os.pwrite(descriptor, block, at), range(0, size, BUFFER)))
    os.fsync(descriptor)
    os.close(descriptor)
    seconds = time.perf_counter() - began
    out.unlink()
    return seconds


def merge(folder: Path, method: str, threads: int) -> tuple[float, float, float, float]:
    """Seconds inside, seconds of the whole command, peak anonymous MB, CPU seconds of all its processes."""
    out = folder / "out"
    models = ",".join(str(p) for p in sorted(folder.glob("expert*")))
    command = [sys.executable, "-m", "runner", "merge", f"merge={method}", f"models=[{models}]", f"out={out}"]
    command += [f"threads={threads}"] + ([] if method == "average" else [f"base={folder / 'base'}"])
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.perf_counter()
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    peak = [0.0]
    watcher = threading.Thread(target=watch, args=(child.pid, peak))
    watcher.start()
    output, _ = child.communicate()
    whole = time.perf_counter() - began
    watcher.join()
    shutil.rmtree(out, ignore_errors=True)
    found = re.search(r"in ([\d.]+) s", output)
    if child.returncode or found is None:
        raise SystemExit(f"{method} failed: {output}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return float(found[1]), whole, peak[0], cpu


def watch(pid: int, peak: list[float]) -> None:
    """Sample the anonymous memory of a process and its children until it ends (Linux)."""
    while True:
        total = 0
        try:
            children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
            for process in (str(pid), *children):
                status = Path(f"/proc/{process}/status").read_text()
                if match := re.search(r"RssAnon:\s+(\d+)", status):
                    total += int(match[1])
                elif process == str(pid):
                    return  # a zombie has no memory
        except (FileNotFoundError, ProcessLookupError):
            if not Path(f"/proc/{pid}").exists():
                return
            continue
        peak[0] = max(peak[0], total / 1024)
        time.sleep(0.005)


def startup(folder: Path) -> float:
    """Seconds of a whole merge of models of a few bytes."""
    import torch
    from safetensors.torch import save_file

    for label in ("tiny0", "tiny1", "tiny2"):
        (folder / label).mkdir(exist_ok=True)
        save_file({"w": torch.randn(8, 8)}, folder / label / "model.safetensors")
    times = []
    for _ in range(3):
        command = [sys.executable, "-m", "runner", "merge", "merge=task_arithmetic", f"base={folder / 'tiny0'}"]
        command += [f"models=[{folder / 'tiny1'},{folder / 'tiny2'}]", f"out={folder / 'tinyout'}"]
        began = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        times.append(time.perf_counter() - began)
        shutil.rmtree(folder / "tinyout")
    return min(times)


def speed(options: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory(prefix="runner-bench-", dir=options.where) as name:
        folder = Path(name)
        make(folder, options.experts, options.size)
        print(f"start-up {startup(folder):.2f} s (bar 2)")
        times: dict[str, list[tuple[float, ...]]] = {m: [] for m in options.methods}
        bounds = [bound(folder, folder / "copy", options.threads)]  # warms the page cache; not counted
        bounds.clear()
        for _ in range(options.rounds):
            began = time.process_time()
            bounds.append(bound(folder, folder / "copy", options.threads))
            cpu_bound = time.process_time() - began
            for method in options.methods:
                times[method].append(merge(folder, method, options.threads))
        least = statistics.median(bounds)
        print(f"bound {least:.2f} s with {options.threads} threads, cpu {cpu_bound:.1f} s")
        first = statistics.median(t[0] for t in times[options.methods[0]])
        for method, rows in times.items():
            work, whole, peak, cpu = (statistics.median(column) for column in zip(*rows, strict=True))
            print(
                f"  {method:18} work {work:6.2f} s = {work / least:5.2f} x bound, {work / first:5.2f} x "
                f"{options.methods[0]}   whole {whole:6.2f} s   {peak:5.0f} MB   cpu {cpu:5.1f} s"
            )


def memory(options: argparse.Namespace) -> None:
    print("peak anonymous MB by size of one model, 2 experts and a base")
    for gigabytes in options.memory:
        with tempfile.TemporaryDirectory(prefix="runner-bench-", dir=options.where) as name:
            folder = Path(name)
            make_large(folder, gigabytes)
            found = {method: merge(folder, method, options.threads)[2] for method in options.methods}
            print(f"  {gigabytes:5.1f} GB  " + "   ".join(f"{m} {peak:.0f}" for m, peak in found.items()))


def make_large(folder: Path, gigabytes: float) -> None:
    """Base and two experts of many equal layers, in shards of up to 1 GB, made without holding them."""
    import torch
    from safetensors.torch import save_file

    layer = 4 * 768 * 3072
    layers = max(1, round(gigabytes * 1e9 / layer))
    per_file = max(1, int(1e9 / layer))
    for label in ("base", "expert0", "expert1"):
        (folder / label).mkdir()
        weight_map = {}
        for n, begin in enumerate(range(0, layers, per_file)):
            noise = torch.randn(768, 3072) * 0.02
            numbers = range(begin, min(begin + per_file, layers))
            tensors = {f"h.{i}.weight": noise.roll(i * 977).clone() for i in numbers}
            save_file(tensors, folder / label / f"model-{n}.safetensors")
            weight_map |= dict.fromkeys(tensors, f"model-{n}.safetensors")
        (folder / label / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experts", type=int, default=8)
    parser.add_argument("--size", type=float, default=1.0, help="1: GPT-2 small")
    parser.add_argument("--methods", nargs="*", default=["task_arithmetic", "ties"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--where", default=None, help="folder for the models; default: where temporary files go")
    parser.add_argument("--memory", nargs="*", type=float, metavar="GB", help="measure memory at these sizes instead")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the models are deleted then too
    if options.memory is not None:
        memory(options)
    else:
        speed(options)


if __name__ == "__main__":
    main()
