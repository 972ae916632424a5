"""glmkit against llama.cpp, chatglm.cpp and transformers on the same random weights: ratios with intervals; JSON last.

    python -m venv peers && peers/bin/pip install numpy gguf llama-cpp-python==0.3.36 chatglm-cpp==0.4.2
    python benchmarks/cpu_peers.py --peers-python peers/bin/python [--layers 28] [--rounds 5] [--only NAME]

Both packages are compiled by pip, 20 to 25 minutes each. Shapes of ChatGLM-6B and ChatGLM3-6B. All programs hold
the same weights (`peers/weights.py`): INT4 in groups of 32, INT8, bfloat16; word table and head are INT8, in
chatglm.cpp INT4 as the rest. A round is one process of ours, then one of theirs, with the same number of threads:
prefill of 512 tokens (of a peer the better of two), one row, eight rows where the peer has batches. Nothing else should
run. Ratios are ours / theirs of a round; the interval is that of the median, 90 %, by drawing rounds again. Greedy
answers to one prompt are compared too: the programs round activations in their own ways, so long answers may differ in
the end. Files take 4 GB (INT4), 7 (INT8) or 13 (bfloat16) for each program, in --folder; those that are there are used
again.

llama.cpp repacks weights while it loads them. Where its products with AMX tiles end the process, as on some virtual
machines, it runs without, and the result says so ("peer_repacks"); building it with
CMAKE_ARGS="-DGGML_NATIVE=OFF -DGGML_AVX512=ON -DGGML_AVX512_VNNI=ON -DGGML_AVX512_BF16=ON" leaves the tiles out.
"""

import argparse
import json
import math
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent / "peers"))
from weights import BITS, MATRICES, STEP, bias, numbers, prompt

import glmkit
from glmkit import threads
from glmkit.checkpoint.files.safetensors_file import write_safetensors
from glmkit.checkpoint.files.stream import Entry
from glmkit.checkpoint.native import FORMAT, write_json
from glmkit.checkpoint.weights import expected_tensors
from glmkit.config import GLMConfig, Quantization
from glmkit.diagnosis.speed import measure
from glmkit.families.family import preset
from glmkit.quant.panels import Panels

THEIRS = Path(__file__).parent / "peers" / "theirs.py"
PREFILL, BEFORE, ROWS, TOP, CHECKED = 512, 32, 8, 8, 16
# Name of a comparison: program, model, kind of weights.
PAIRS = {
    f"{program} {model} {kind}": (program, model, kind)
    for program, model, kinds in (
        ("llama.cpp", "chatglm3-6b", ("int4", "int8", "bf16")),
        ("chatglm.cpp", "chatglm-6b", ("int4", "int8")),
        ("chatglm.cpp", "chatglm3-6b", ("int4", "int8")),
        ("transformers", "chatglm3-6b", ("bf16",)),
    )
    for kind in kinds
}
_BYTE = 8  # the scale of every group
_NAMES = {"self_attn.o_proj": "dense", "mlp.down_proj": "down"}


def shape(model: str, kind: str, layers: int) -> GLMConfig:
    """The config of a preset with so many layers."""
    quantization = None if kind == "bf16" else Quantization.usual(BITS[kind])
    return replace(preset(model), num_layers=layers, deepnorm_alpha=None, quantization=quantization)


def write_ours(folder: Path, model: str, kind: str, layers: int) -> None:
    """A directory in our own layout, a tensor at a time."""
    config = shape(model, kind, layers)
    folder.mkdir(parents=True)
    tensors = expected_tensors(config, torch.bfloat16)
    entries = [
        Entry(name, info, partial(_tensor, name, info.shape, info.dtype, config, kind))
        for name, info in tensors.items()
    ]
    write_safetensors(folder / "model.safetensors", entries)
    write_json(folder / "config.json", {"glmkit_format": FORMAT, **config.to_dict()})


def _tensor(name: str, size: Sequence[int], dtype: torch.dtype, config: GLMConfig, kind: str) -> Iterable[Tensor]:
    stem, _, last = name.rpartition(".")
    step = STEP[BITS[kind]]
    if last == "group_scale":
        return (torch.full(tuple(size), _BYTE, dtype=dtype),)
    if last == "row_scale":
        groups = kind == "int4" and ".layers." in name
        return (torch.full(tuple(size), step / _BYTE if groups else step, dtype=dtype),)
    if "norm" in stem:
        return (torch.full(tuple(size), float(last == "weight"), dtype=dtype),)
    made = matrix(stem, config, BITS[kind], last)
    if last == "bias" or kind == "bf16":
        return ((made * step if last == "weight" else made).to(dtype),)
    bits = 4 if kind == "int4" and ".layers." in name else 8
    return (Panels.pack(made, torch.ones(len(made)), bits).weight,)


def matrix(stem: str, config: GLMConfig, bits: int, last: str = "weight") -> Tensor:
    """Integers (rows, columns) of one of our matrices, or its bias, cut from the fused ones as published."""
    model = "chatglm-6b" if config.family == "chatglm" else "chatglm3-6b"
    if ".layers." not in stem:
        return torch.from_numpy(numbers(model, "embed" if "embed_tokens" in stem else "head", bits))
    _, _, layer, part, short = stem.split(".")
    width = config.num_heads * config.head_dim
    fused = _NAMES.get(f"{part}.{short}", "qkv" if part == "self_attn" else "up")
    name = f"{layer}.{fused}"
    if last == "bias":
        whole = torch.from_numpy(bias(name, MATRICES[model][fused][0]))[:, None]
    else:
        whole = torch.from_numpy(numbers(model, name, bits))
    if fused == "qkv" and config.family == "chatglm":  # head by head
        whole = torch.unflatten(whole, 0, (config.num_heads, 3, -1))[:, "qkv".index(short[0])].flatten(0, 1)
    elif fused == "qkv":
        places = [width, config.kv_heads * config.head_dim, config.kv_heads * config.head_dim]
        whole = torch.split(whole, places)["qkv".index(short[0])]
    elif fused == "up" and config.mlp == "swiglu":
        whole = whole.chunk(2)[short == "up_proj"]
    return whole[:, 0] if last == "bias" else whole


def measure_ours(folder: Path, model: str, tokens: int) -> dict[str, Any]:
    """As `glm bench`, and answers to the fixed prompt."""
    lm = glmkit.load(folder, dtype="bfloat16")
    ids = prompt(model, CHECKED)
    with torch.inference_mode():
        logits = lm.model(torch.tensor([ids]), logits_at="last")[0].flatten().float()
    (answers,) = lm.answers([ids], own_stops=False, max_new_tokens=CHECKED, temperature=0.0)
    top = torch.topk(logits, 4 * TOP).indices.tolist()
    speed = measure(lambda: lm, model, prompts=[PREFILL], rows=[1, ROWS], new_tokens=tokens, repetitions=1)
    one, many = speed.decode
    found = {
        "prefill": speed.prefill[0].tokens_per_second,
        "one": one.tokens_per_second,
        "eight": many.tokens_per_second,
    }
    return {
        **found,
        "ids": answers[0].ids,
        "top": {index: float(logits[index]) for index in top},
        "share": one.read_share,
        "kernels": speed.kernels,
        "compute": speed.compute,
    }


@torch.inference_mode()
def measure_transformers(folder: Path, model: str, layers: int, tokens: int) -> dict[str, Any]:
    """Transformers' own Glm in bfloat16, with its cache."""
    from transformers import GlmConfig, GlmForCausalLM

    config = shape(model, "bf16", layers)
    theirs = GlmConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.inner_size,
        num_hidden_layers=layers,
        num_attention_heads=config.num_heads,
        num_key_value_heads=config.kv_heads,
        head_dim=config.head_dim,
        rms_norm_eps=config.norm_eps,
        attention_bias=True,
        tie_word_embeddings=False,
        max_position_embeddings=config.max_positions,
        pad_token_id=None,
    )
    with torch.device("meta"):
        net = GlmForCausalLM(theirs).to(torch.bfloat16)
    state = load_file(folder / "model.safetensors")
    for layer in range(layers):
        halves = [state.pop(f"model.layers.{layer}.mlp.{half}_proj.weight") for half in ("gate", "up")]
        state[f"model.layers.{layer}.mlp.gate_up_proj.weight"] = torch.cat(halves)
    net.load_state_dict(state, strict=True, assign=True)
    net.model.rotary_emb = type(net.model.rotary_emb)(theirs)
    net.eval()

    def answer(rows: int, count: int, ids: list[int]) -> tuple[list[int], float, float, Tensor]:
        """Greedy ids of the first row, seconds of the prompts, seconds of the steps, logits behind the prompt."""
        begun = time.perf_counter()
        read_ids = net.model(torch.tensor([ids] * rows), use_cache=True)
        # Not by `logits_to_keep`: on a slice of a prompt's vectors PyTorch's product copies the whole head first.
        logits = net.lm_head(read_ids.last_hidden_state[:, -1])
        cache, first, chosen, read = read_ids.past_key_values, logits[0].float(), [], time.perf_counter()
        for _ in range(count):
            best = logits.argmax(-1)
            chosen.append(int(best[0]))
            logits = net(best[:, None], past_key_values=cache, use_cache=True).logits[:, -1]
        return chosen, read - begun, time.perf_counter() - read, first

    checked, _, _, logits = answer(1, CHECKED, prompt(model, CHECKED))
    seconds = min(answer(1, 0, prompt(model, PREFILL, seed))[1] for seed in (1, 3))
    one, many = (rows * tokens / answer(rows, tokens, prompt(model, BEFORE, 2))[2] for rows in (1, ROWS))
    top = {index: float(logits[index]) for index in torch.topk(logits, TOP).indices.tolist()}
    return {"prefill": PREFILL / seconds, "one": one, "eight": many, "ids": checked, "top": top}


def agreement(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, Any]:
    """Equal tokens at the start of both answers; the largest difference of the peer's top logits, over their spread."""
    pairs = zip(ours["ids"], theirs["ids"], strict=True)
    equal = next((place for place, (mine, other) in enumerate(pairs) if mine != other), CHECKED)
    found: dict[str, Any] = {"equal_tokens": equal, "of": CHECKED}
    if theirs["top"] is not None:
        shared = [(ours["top"][index], value) for index, value in theirs["top"].items() if index in ours["top"]]
        found["top_shared"] = len(shared)
        found["top_difference"] = max((abs(a - b) / abs(b) for a, b in shared), default=math.nan)
    return found


def interval(ratios: Sequence[float]) -> list[float]:
    """5 % and 95 % of the medians of rounds drawn again."""
    rng = random.Random(0)
    medians = sorted(statistics.median(rng.choices(ratios, k=len(ratios))) for _ in range(2000))
    return [medians[100], medians[1899]]


def compare(name: str, args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Files where they lack, then rounds."""
    program, model, kind = PAIRS[name]
    ours = folder / f"glmkit-{model}-{kind}-{args.layers}"
    theirs = folder / f"{program}-{model}-{kind}-{args.layers}"
    common = [program, model, kind, str(theirs), str(args.layers), str(args.threads)]
    own = [sys.executable, __file__, "--threads", str(args.threads), "--layers", str(args.layers)]
    if not (ours / "config.json").exists():
        write_ours(ours, model, kind, args.layers)
    if program != "transformers" and not theirs.exists():
        subprocess.run([args.peers_python, THEIRS, "write", *common], check=True, stderr=subprocess.DEVNULL)
    packing = "packed"
    runs: list[tuple[dict[str, Any], dict[str, Any]]] = []
    for turn in range(args.rounds):
        mine = run([*own, "--tokens", str(args.tokens), "--measure", "glmkit", model, kind, str(ours)])
        if program == "transformers":
            other = run([*own, "--tokens", str(args.tokens), "--measure", program, model, kind, str(ours)])
        else:
            command = [args.peers_python, THEIRS, "measure", *common, str(args.tokens)]
            other = run([*command, packing], may_crash=packing == "packed")
            if not other:  # llama.cpp's products with AMX tiles end the process on some virtual machines
                packing = "plain"
                other = run([*command, packing])
        runs.append((mine, other))
        print(f"{name}, round {turn + 1}: {show(mine)}; theirs {show(other)}", file=sys.stderr, flush=True)
    result: dict[str, Any] = {"name": name, "peer_repacks": packing == "packed", **agreement(*runs[0])}
    for what in ("prefill", "one", "eight"):
        if runs[0][1][what] is None:
            continue
        ratios = [mine[what] / other[what] for mine, other in runs]
        result[what] = {
            "ours": statistics.median(mine[what] for mine, _ in runs),
            "theirs": statistics.median(other[what] for _, other in runs),
            "ratio": statistics.median(ratios),
            "interval": interval(ratios),
        }
    result["read_share"] = statistics.median(mine["share"] or math.nan for mine, _ in runs)
    result["kernels"] = runs[0][0]["kernels"]
    result["eight_over_one"] = statistics.median(mine["eight"] / mine["one"] for mine, _ in runs)
    return result


def run(command: Sequence[str | Path], *, may_crash: bool = False) -> dict[str, Any]:
    """The last line of a process as JSON; nothing of one that a signal has ended, where it may."""
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if may_crash and done.returncode < 0:
        return {}
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))}: {done.stderr[-2000:]}")
    values: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    if values["top"] is not None:
        values["top"] = {int(index): value for index, value in values["top"].items()}
    return values


def show(values: dict[str, Any]) -> str:
    return " ".join(f"{what} {values[what]:.2f}" for what in ("prefill", "one", "eight") if values[what] is not None)


def print_table(results: Sequence[dict[str, Any]]) -> None:
    print("| | prefill of 512 | one row | eight rows | same tokens |\n|---|---|---|---|---|")
    for result in results:
        cells = []
        for what in ("prefill", "one", "eight"):
            if (found := result.get(what)) is None:
                cells.append("-")
                continue
            low, high = found["interval"]
            ratio = f"**{found['ratio']:.2f}** ({low:.2f}-{high:.2f})"
            cells.append(f"{found['ours']:.2f} / {found['theirs']:.2f} = {ratio}")
        print(f"| {result['name']} | {' | '.join(cells)} | {result['equal_tokens']} of {result['of']} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers-python", help="interpreter with llama_cpp, chatglm_cpp, gguf and numpy")
    parser.add_argument("--only", nargs="+", choices=list(PAIRS), default=None, metavar="NAME", help=", ".join(PAIRS))
    parser.add_argument("--layers", type=int, default=28)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=16, help="decoded tokens of a row")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--folder", type=Path, help="for the files, which stay (default: a temporary one)")
    parser.add_argument("--measure", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    threads.fix(args.threads)
    if args.measure:
        program, model, _, folder = args.measure
        if program == "glmkit":
            print(json.dumps(measure_ours(Path(folder), model, args.tokens)))
        else:
            print(json.dumps(measure_transformers(Path(folder), model, args.layers, args.tokens)))
        return
    chosen = args.only or list(PAIRS)
    if args.peers_python is None:
        chosen = [name for name in chosen if PAIRS[name][0] == "transformers"]
        print("without --peers-python there is transformers alone to compare with", file=sys.stderr)
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        results = [compare(name, args, folder) for name in chosen]
    print_table(results)
    facts = {"layers": args.layers, "threads": args.threads, "rounds": args.rounds, "tokens": args.tokens}
    print(json.dumps({**facts, "unit": "tokens per second", "results": results}))


if __name__ == "__main__":
    main()
