"""Converting against copying, loading against reading, memory against size. Random weights, real names and shapes.

    python benchmarks/convert.py copy [--layers 2 | --full]   fp16 .bin shards -> safetensors, beside cp + sync
    python benchmarks/convert.py load [--layers 2 | --full]   reading files once, glmkit.load, own bf16 directory
    python benchmarks/convert.py ranks                        GLM-130B's cuts, 8 ranks -> 4 and -> 1, two sizes

ChatGLM-6B's tensors; --full is all 28 layers in eight shards, 13.7 GB. Rounds alternate, caches are cold (the files'
pages are dropped by posix_fadvise after a sync), fsync is inside our time. Peak memory is RssAnon of a process of its
own, sampled every 10 ms. Work happens under --dir. The last line is JSON.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from glmkit.families.common.layout import Extras

BLOCK = 16 << 20


# --- measuring --------------------------------------------------------------------------------------------------------


class PeakAnonymous(threading.Thread):
    """The largest RssAnon of this process while it runs, in bytes."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak = 0
        self._stop_asked = threading.Event()

    def run(self) -> None:
        while not self._stop_asked.wait(0.01):
            with open("/proc/self/status") as file:
                line = next(line for line in file if line.startswith("RssAnon"))
            self.peak = max(self.peak, int(line.split()[1]) * 1024)

    def finish(self) -> int:
        self._stop_asked.set()
        self.join()
        return self.peak


@contextmanager
def timed() -> Iterator[list[float]]:
    result = [0.0]
    start = time.perf_counter()
    yield result
    result[0] = time.perf_counter() - start


def files_of(directory: Path) -> list[Path]:
    return [path for path in sorted(directory.rglob("*")) if path.is_file()]


def size_of(directory: Path) -> int:
    return sum(path.stat().st_size for path in files_of(directory))


def make_cold(directory: Path) -> None:
    """Drop the page cache of a directory's files."""
    os.sync()
    for path in files_of(directory):
        with open(path, "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read_once(directory: Path) -> float:
    """Seconds to read all files once through one buffer."""
    buffer = bytearray(BLOCK)
    with timed() as seconds:
        for path in files_of(directory):
            with open(path, "rb", buffering=0) as file:
                while file.readinto(buffer):
                    pass
    return seconds[0]


def child(*words: str) -> dict[str, Any]:
    """Run this script's `child` command in a process of its own; its last line is JSON."""
    out = subprocess.run([sys.executable, __file__, "child", *words], check=True, capture_output=True, text=True)
    result: dict[str, Any] = json.loads(out.stdout.splitlines()[-1])
    return result


def run_child(words: list[str]) -> None:
    import torch  # noqa: F401  imported before the clock starts

    import glmkit
    from glmkit.checkpoint.conversion.conversion import convert

    sampler = PeakAnonymous()
    sampler.start()
    facts: dict[str, Any] = {}
    with timed() as seconds:
        if words[0] == "convert":
            options = json.loads(words[3])
            report = convert(words[1], words[2], **options)
            facts = {"write": report.write_seconds, "verify": report.verify_seconds, "bytes": report.bytes}
        else:
            lm = glmkit.load(words[1])
            facts = {"dtype": str(lm.model.head_weight.dtype)}
    print(json.dumps({**facts, "seconds": seconds[0], "rss_anon": sampler.finish()}))


# --- random checkpoints -----------------------------------------------------------------------------------------------


class RandomWeights:
    """Random fp16 weights of a config, made on the fly."""

    def __init__(self, config: Any) -> None:
        import torch

        from glmkit.checkpoint.weights import expected_tensors

        self._infos = expected_tensors(config, torch.float16)
        self._pool = (torch.randn(1 << 24, generator=torch.Generator().manual_seed(0)) * 0.02).half()

    def names(self) -> list[str]:
        return list(self._infos)

    def info(self, name: str) -> Any:
        return self._infos[name]

    def read(self, name: str) -> Any:
        shape = self._infos[name].shape
        return self.read_rows(name, 0, shape[0])

    def read_rows(self, name: str, start: int, stop: int) -> Any:
        import torch

        shape = (stop - start, *self._infos[name].shape[1:])
        count = stop - start if len(shape) == 1 else shape[0] * shape[1]
        at = (hash(name) + start * 7919) % (1 << 23)
        if count <= 1 << 23:
            return self._pool[at : at + count].view(shape)
        return torch.cat([self._pool[at : at + (1 << 23)]] * (count // (1 << 23) + 1))[:count].view(shape)

    def release(self, name: str) -> None:
        pass


def write_random(directory: Path, layout_name: str, config: Any, *, ranks: int = 1, shards: int = 1) -> int:
    """A checkpoint of random weights in a published layout; returns the bytes of its tensors."""
    from glmkit.checkpoint.conversion.outputs import output_files
    from glmkit.checkpoint.files.stream import Entry
    from glmkit.checkpoint.published_tensors import published_tensors
    from glmkit.families.family import family_named

    layout = next(layout for layout in family_named(config.family).layouts if layout.name == layout_name)
    weights = RandomWeights(config)
    tensors = published_tensors(layout, config, ranks, weights=weights)
    total = sum(tensor.info.nbytes for tensor in tensors[0])
    limit = max(total * 106 // 100 // shards, max(tensor.info.nbytes for tensor in tensors[0]))
    outputs = output_files(layout, tensors, weights="bin", shard_bytes=limit, tag=layout.tag or "release")
    for file in outputs.files:
        path = directory / file.name
        path.parent.mkdir(parents=True, exist_ok=True)
        file.write(path, [Entry(t.name, t.info, lambda t=t: t.pieces(weights)) for t in file.tensors])
    values = layout.write_config(config, Extras(dtype="float16", ranks=ranks))
    for name, data in {**outputs.small, layout.config_file: json.dumps(values, indent=2).encode()}.items():
        (directory / name).write_bytes(data)
    return outputs.nbytes


def chatglm(layers: int) -> Any:
    from glmkit.families.family import preset

    return replace(preset("chatglm-6b"), num_layers=layers)


# --- modes ------------------------------------------------------------------------------------------------------------


def copy_mode(work: Path, layers: int, rounds: int) -> dict[str, Any]:
    source, copied, converted = work / "source", work / "copied", work / "converted"
    write_random(source, "huggingface", chatglm(layers), shards=8)
    total = size_of(source)
    shards = len(list(source.glob("*.bin")))
    print(f"{shards} shards, {total / 1e9:.2f} GB")
    pairs = []
    rss, verify = 0, []
    for number in range(rounds):
        make_cold(source)
        with timed() as seconds:
            subprocess.run(["cp", "-r", str(source), str(copied)], check=True)
            subprocess.run(["sync"], check=True)
        copy_seconds = seconds[0]
        make_cold(copied)
        shutil.rmtree(copied)
        os.sync()
        make_cold(source)
        made = child(
            "convert", str(source), str(converted), json.dumps({"to": "huggingface", "weights": "safetensors"})
        )
        shutil.rmtree(converted)
        os.sync()
        pairs.append((copy_seconds, made["write"]))
        verify.append(made["verify"])
        rss = max(rss, made["rss_anon"])
        print(
            f"round {number + 1}: cp + sync {copy_seconds:.2f} s ({total / 1e9 / copy_seconds:.2f} GB/s), "
            f"convert {made['write']:.2f} s ({total / 1e9 / made['write']:.2f} GB/s), share "
            f"{copy_seconds / made['write']:.2f}, verify {made['verify']:.2f} s, "
            f"RssAnon {made['rss_anon'] / 1e9:.2f} GB",
            flush=True,
        )
    share = statistics.median(a / b for a, b in pairs)
    return {
        "mode": "copy", "layers": layers, "shards": shards, "bytes": total, "share_of_copy": round(share, 3),
        "copy_gb_s": round(total / 1e9 / statistics.median(a for a, _ in pairs), 3),
        "convert_gb_s": round(total / 1e9 / statistics.median(b for _, b in pairs), 3),
        "verify_s": round(statistics.median(verify), 2), "rss_anon_gb": round(rss / 1e9, 3), "pairs_s": pairs,
    }  # fmt: skip


def load_mode(work: Path, layers: int, rounds: int) -> dict[str, Any]:
    source, own = work / "source", work / "own"
    write_random(source, "huggingface", chatglm(layers), shards=8)
    child("convert", str(source), str(own), json.dumps({"to": "glmkit", "dtype": "bfloat16", "verify": False}))
    rows = []
    for number in range(rounds):
        make_cold(source)
        reading = read_once(source)
        make_cold(source)
        loading = child("load", str(source))
        read_once(own)  # warm
        own_load = child("load", str(own))
        rows.append((reading, loading["seconds"], own_load["seconds"]))
        print(
            f"round {number + 1}: read once {reading:.2f} s, load {loading['seconds']:.2f} s as {loading['dtype']} "
            f"({loading['seconds'] / reading:.2f} x, RssAnon {loading['rss_anon'] / 1e9:.2f} GB), own bf16 warm "
            f"{own_load['seconds']:.2f} s (RssAnon {own_load['rss_anon'] / 1e9:.2f} GB)",
            flush=True,
        )
    ratio = statistics.median(b / a for a, b, _ in rows)
    return {
        "mode": "load", "layers": layers, "bytes": size_of(source), "load_over_read": round(ratio, 3),
        "own_bf16_s": round(statistics.median(c for *_, c in rows), 3), "rows_s": rows,
    }  # fmt: skip


def ranks_mode(work: Path) -> dict[str, Any]:
    from glmkit.families.family import preset

    shape = {"hidden_size": 2048, "num_heads": 16, "ffn_size": 5504, "vocab_size": 25088, "special": None}
    result: dict[str, Any] = {"mode": "ranks", "sizes": []}
    for layers in (3, 12):
        source = work / f"sat-{layers}"
        nbytes = write_random(source, "sat", replace(preset("glm-130b"), num_layers=layers, **shape), ranks=8)
        row: dict[str, Any] = {"layers": layers, "bytes": nbytes}
        for name, options in (("4_ranks", {"to": "sat", "tensor_parallel": 4}), ("own_directory", {"to": "glmkit"})):
            made = child("convert", str(source), str(work / "made"), json.dumps(options))
            shutil.rmtree(work / "made")
            row[name] = {key: round(made[key], 3) for key in ("write", "verify")} | {
                "rss_anon_mb": made["rss_anon"] // 10**6
            }
        print(row, flush=True)
        result["sizes"].append(row)
        shutil.rmtree(source)
    return result


def main() -> None:
    if sys.argv[1:2] == ["child"]:
        run_child(sys.argv[2:])
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mode", choices=["copy", "load", "ranks"])
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--full", action="store_true", help="all 28 layers (needs 30 GB of disk)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dir", default=None, help="where to work (default: the system's temporary directory)")
    args = parser.parse_args()
    layers = 28 if args.full else args.layers
    with tempfile.TemporaryDirectory(dir=args.dir, prefix="glmkit-convert-") as folder:
        work = Path(folder)
        if args.mode == "ranks":
            result = ranks_mode(work)
        else:
            result = (copy_mode if args.mode == "copy" else load_mode)(work, layers, args.rounds)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
