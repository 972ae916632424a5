"""The server's throughput: eight streaming clients against one, with the same prompts.

Models with random weights: `demo`, the network of `glm demo`; `wide`, ChatGLM-6B's width (4096, vocabulary of 130,528)
with 4 of its 28 layers, in bfloat16 where the processor has it, as `glm serve` would load it; `wide32`, the same in
float32, for the comparison of answers. Each is served by the project's own server in a process of its own; the clients
are another, light process. In every round eight clients send new prompts at once, then one client sends the same
prompts one after the other, which finds them in the cache and so is favoured. Every text must be the same both ways,
unless the two likeliest tokens were nearly equal somewhere (1e-3 in float32, 0.05 in bfloat16), which is counted. Mean
batch: answers that got a token in a step, from /metrics.

    python benchmarks/serve.py [--models demo wide wide32] [--clients 8] [--rounds 3] [--threads 2]

The last line is JSON.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

import torch  # noqa: E402

from glmkit.families.family import family_named, preset  # noqa: E402
from glmkit.loading import Parts, cpu_has_bfloat16  # noqa: E402
from glmkit.model import GLM  # noqa: E402
from glmkit.serve.app import create_app  # noqa: E402
from glmkit.serve.listener import bind  # noqa: E402
from glmkit.serve.server import run  # noqa: E402
from glmkit.serve.settings import ServeSettings  # noqa: E402
from glmkit.session import LM  # noqa: E402
from glmkit.tokenizer.protocol import Tokenizer  # noqa: E402
from support import load_client  # noqa: E402
from support.served_models import demo_size  # noqa: E402
from support.server import ProcessServer, process_server  # noqa: E402
from support.watching import metrics  # noqa: E402

LAYERS = 4
# Tokens of a prompt and of an answer.
SIZES = {"demo": (24, 96), "wide": (24, 32), "wide32": (12, 8)}
MARGINS = {torch.float32: 1e-3, torch.bfloat16: 0.05}


def dtype_of(name: str) -> torch.dtype:
    return torch.bfloat16 if name == "wide" and cpu_has_bfloat16() else torch.float32


def model_named(name: str) -> LM:
    """One of the models. All read texts with the vocabulary of `demo_size`; the other rows are computed, too."""
    demo = demo_size(seed=1)
    if name == "demo":
        return demo
    special = demo.tokenizer.special
    config = replace(preset("chatglm-6b"), num_layers=LAYERS, special=special, family="glm", blank_order="each")
    with torch.device("meta"):
        model = GLM(config)
    model = model.to(dtype_of(name)).to_empty(device="cpu")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if "norm" in parameter_name:
                parameter.fill_(1.0 if parameter_name.endswith("weight") else 0.0)
            else:
                parameter.uniform_(-0.035, 0.035, generator=generator)
    return LM(Parts(Path(name), config, model.eval(), demo.tokenizer, family=family_named("glm")))


def serve(name: str) -> int:
    """The server process."""
    lm = model_named(name)
    settings = ServeSettings(port=0, page=False, model_id="m", log_level="warning", tokens=4096)
    listening = bind(settings)
    address = f"serving at http://127.0.0.1:{listening[0].getsockname()[1]}"
    ready = partial(print, address, file=sys.stderr, flush=True)
    return run(create_app(lm, settings), settings, listening, ready)


def prompts(tokenizer: Tokenizer, count: int, length: int, seed: int) -> list[str]:
    """Pieces of Python's own code of about so many tokens, no two alike."""
    ids = tokenizer.encode(Path(argparse.__file__).read_text())
    draw = torch.Generator().manual_seed(seed)
    starts = torch.randperm(len(ids) - length, generator=draw)[:count].tolist()
    return [f"{number}: {tokenizer.decode(ids[start : start + length])}" for number, start in enumerate(starts)]


def load(server: ProcessServer, clients: int, requests: list[dict[str, Any]]) -> dict[str, Any]:
    plan = {
        "port": int(server.url.rpartition(":")[2]),
        "clients": clients,
        "rounds": len(requests) // clients,
        "requests": requests,
    }
    done = subprocess.run(
        [sys.executable, load_client.__file__], input=json.dumps(plan), capture_output=True, text=True, check=True
    )
    tally: dict[str, Any] = json.loads(done.stdout)
    if tally["faults"]:
        raise SystemExit(f"the load met errors: {tally['details']}")
    return tally


def near_tie(server: ProcessServer, body: dict[str, Any], margin: float) -> bool:
    """Whether two tokens were about equally likely anywhere in a greedy answer."""
    asked = json.dumps({**body, "stream": False, "stream_options": None, "logprobs": 2}).encode()
    request = urllib.request.Request(f"{server.url}/v1/completions", asked, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=600) as response:
        tops = json.load(response)["choices"][0]["logprobs"]["top_logprobs"]
    pairs = (sorted(top.values(), reverse=True) for top in tops)
    return any(len(pair) > 1 and pair[0] - pair[1] < margin for pair in pairs)


def measure(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Rounds on one model."""
    command = [__file__, "--serve", name]
    # A second thread does not help so small a model, and takes a core from the clients.
    threads = args.threads or (1 if name == "demo" else torch.get_num_threads())
    length, answer = SIZES[name]
    tokenizer = demo_size().tokenizer
    many, one = [], []
    rows = steps = differ = ties = 0.0
    with process_server(command, env={"OMP_NUM_THREADS": str(threads)}) as server:
        for number in range(args.rounds + 1):
            requests: list[dict[str, Any]] = []
            for index, text in enumerate(prompts(tokenizer, args.clients, length, seed=number)):
                body = {
                    "model": "m",
                    "prompt": text,
                    "max_tokens": answer if number else 4,
                    "temperature": 0,
                    "stream": True,
                }
                body |= {"stream_options": {"include_usage": True}}
                requests.append({"path": "/v1/completions", "body": body, "key": str(index)})
            before = metrics(server.url)
            together = load(server, args.clients, requests)
            after = metrics(server.url)
            alone = load(server, 1, requests)
            for index, request in enumerate(requests):
                if together["texts"][str(index)] != alone["texts"][str(index)]:
                    tie = near_tie(server, request["body"], MARGINS[dtype_of(name)])
                    ties, differ = ties + tie, differ + (not tie)
            if not number:  # the first round warms everything up
                continue
            rows += after["glm_step_rows_sum"] - before["glm_step_rows_sum"]
            steps += after["glm_step_rows_count"] - before["glm_step_rows_count"]
            many.append(together)
            one.append(alone)
            speeds = [tally["tokens"] / tally["seconds"] for tally in (together, alone)]
            print(
                f"{name} {number}: {speeds[0]:.1f} tokens/s with {args.clients}, {speeds[1]:.1f} with one", flush=True
            )
    ratios = [a["tokens"] / a["seconds"] / (b["tokens"] / b["seconds"]) for a, b in zip(many, one, strict=True)]
    return {
        "threads": threads,
        "dtype": str(dtype_of(name)).removeprefix("torch."),
        "clients": args.clients,
        "tokens_per_second": [median(t["tokens"] / t["seconds"] for t in tallies) for tallies in (one, many)],
        "ratio": round(statistics.median(ratios), 2),
        "ratios": [round(ratio, 2) for ratio in ratios],
        "mean_batch": round(rows / steps, 2),
        "first_token_ms": [median(1e3 * x for t in tallies for x in t["first"]) for tallies in (one, many)],
        "answers_compared": len(many[0]["texts"]) * args.rounds,
        "differ_at_near_ties": int(ties),
        "differ": int(differ),
    }


def median(values: Iterable[float]) -> float:
    return round(statistics.median(values), 1)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(SIZES), choices=list(SIZES))
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3, help="after one to warm up (default: %(default)s)")
    parser.add_argument("--threads", type=int, help="of the server (default: 1 for demo, else all)")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        return serve(args.serve)
    start = time.monotonic()
    models = {name: measure(name, args) for name in args.models}
    passed = all(result["differ"] == 0 for result in models.values())
    seconds = round(time.monotonic() - start)
    print(json.dumps({"benchmark": "serve", "passed": passed, "seconds": seconds, **models}))
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
