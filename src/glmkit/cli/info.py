"""`glm info`: the shape of a published size or of a model directory, counted without loading a weight."""

import shlex
import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from glmkit.checkpoint.hub import local_directory
from glmkit.cli.parser import add_hub_argument
from glmkit.cli.printing import print_json
from glmkit.config import GLMConfig
from glmkit.diagnosis.config_alone import config_of_directory
from glmkit.diagnosis.sizes import Sizes, decimal_text, sizes
from glmkit.errors import ConfigError, did_you_mean, printable, size_text
from glmkit.families.family import all_families, first_command, preset, preset_names
from glmkit.hub.names import existing_directory
from glmkit.quant import compute_text


def add_arguments(parser: ArgumentParser) -> None:
    """Options of the verb."""
    add = parser.add_argument
    add("source", metavar="DIR", nargs="?", help="model directory, preset or hub name; none: list presets")
    add_hub_argument(parser.add_argument)
    add("--preset", metavar="NAME", help="a published size, such as glm-10b")
    add("--config", metavar="NAME_OR_FILE", help="preset or config file, for a DIR that ships none")
    add("--family", metavar="F", help="family of DIR, where several share its layout (chatglm2, chatglm3)")
    add("--json", action="store_true", help="print one JSON object; sizes in bytes")


def run(args: Namespace) -> int:
    """Print shape, parameter counts and bytes. No weight is read."""
    if args.source is not None and args.preset is not None:
        raise ConfigError(f"{args.source} and --preset {args.preset} are both given; leave one out")
    if args.family and args.source is None:
        raise ConfigError(f"--family {args.family} goes with a directory; give DIR, or --preset alone")
    if args.config is not None and args.source is None:
        raise ConfigError(f"--config {args.config} goes with a directory; give DIR, or --preset alone")
    if args.source is None and args.preset is None:
        return _list(as_json=args.json)
    if args.source is None:
        name, config = args.preset, preset(args.preset)
    else:
        name, config = find_config(args.source, hub=args.hub, config=args.config, family=args.family)
    counted = sizes(config)
    facts = _facts(config)
    if args.json:
        print_json({"name": name, **facts, **counted.to_dict()})
        return 0
    console = open_console()
    console.print(plain_grid({"name": name, **{key: _text(value) for key, value in facts.items()}}))
    console.print()
    console.print(plain_grid(_parameter_lines(counted)))
    console.print()
    console.print(plain_grid(_byte_lines(config, counted)))
    if name not in preset_names():
        command = first_command(config.family, shlex.quote(name), causal=config.mask == "causal")
        console.print(f"\nnext  {command}", style="bold", soft_wrap=True)
    return 0


def find_config(
    source: str, *, hub: str | None = None, config: str | None = None, family: str | None = None
) -> tuple[str, GLMConfig]:
    """The name and shape of a preset, a model directory or a hub name; no weight is read. Raises ConfigError."""
    if existing_directory(source) is None and source in preset_names():
        return source, preset(source)
    if "/" in source or Path(source).exists():
        directory = local_directory(source, hub=hub, need="config")
        return source, config_of_directory(directory, config, family)
    raise ConfigError(
        f"{source} is no directory, and no preset is called that", step=did_you_mean(source, preset_names())
    )


def _facts(config: GLMConfig) -> dict[str, object]:
    """Stable keys: the fields of the config under short names, what is implied made plain."""
    family = all_families().get(config.family)
    facts: dict[str, object] = {
        "family": config.family,
        "title": family.title if family is not None else config.family,
        "layers": config.num_layers,
        "width": config.hidden_size,
        "heads": config.num_heads,
        "kv_heads": config.kv_heads,
        "head_size": config.head_dim,
        "ffn": config.inner_size,
        "vocabulary": config.vocab_size,
        "max_positions": config.max_positions,
        "positions": config.positions,
    }
    if config.positions != "learned_2d":
        facts |= {
            "rope_base": config.rope_base,
            "rope_interpolation": config.rope_interpolation,
            "rope_fraction": config.rope_fraction,
            "rope_pairs": config.rope_pairs,
            "rope_frequencies": config.rope_frequencies,
        }
    facts |= {"norm": config.norm, "norm_eps": config.norm_eps, "residual": config.residual}
    facts |= {"mlp": config.mlp} | ({"gelu": config.gelu} if config.mlp != "swiglu" else {})
    facts |= {
        "bias": config.bias,
        "mask": config.mask,
        "head": "tied" if config.tie_embeddings else "separate",
        "quantization": None if config.quantization is None else f"int{config.quantization.bits}",
    }
    if config.quantization is not None:
        facts |= {"scales": config.quantization.about, "compute": compute_text()}
    return facts


def _text(value: object) -> str:
    if value is None:
        return "none"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _parameter_lines(counted: Sizes) -> dict[str, str]:
    counts = {
        "parameters": counted.total,
        "in tables of vectors": counted.embedding,
        "in the head": counted.head,
        "in each layer": counted.per_layer,
        "without tables and head": counted.non_embedding,
    }
    return {name: f"{count:,} ({decimal_text(count)})" if count else "0 (tied)" for name, count in counts.items()}


_QUANTISED = {"int8": "a scale per row", "int4": "groups of 32, tables and head in INT8"}


def _byte_lines(config: GLMConfig, counted: Sizes) -> dict[str, str]:
    lines = {f"weights in {name}": size_text(getattr(counted, name)) for name in ("float32", "bfloat16")}
    for name in ("int8", "int4"):
        size = getattr(counted, name)
        if size is not None:
            lines[f"weights in {name}"] = f"{size_text(size)} ({_QUANTISED[name]})"
    whole = counted.cache_per_token * config.max_positions
    lines["cache of a token"] = size_text(counted.cache_per_token)
    lines[f"cache of {config.max_positions:,}"] = size_text(whole)
    return lines


def open_console() -> Console:
    """A console for results: plain text, and wide where no terminal sets the width."""
    width = None if sys.stdout.isatty() else 120
    return Console(file=sys.stdout, highlight=False, markup=False, emoji=False, width=width)


def plain_grid(lines: dict[str, str]) -> Table:
    """Names and values in two columns."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in lines.items():
        table.add_row(name, printable(value))
    return table


def _list(*, as_json: bool) -> int:
    rows = [(name, preset(name)) for name in preset_names()]
    if as_json:
        listed = [{"name": name, **_facts(config), **sizes(config).to_dict()} for name, config in rows]
        print_json({"presets": listed})
        return 0
    table = Table(box=None, header_style="dim", pad_edge=False)
    table.add_column("preset", no_wrap=True)
    for title in ("parameters", "layers", "width", "heads", "vocabulary", "positions", "16-bit weights"):
        table.add_column(title, justify="right", no_wrap=True)
    for name, config in rows:
        counted = sizes(config)
        numbers = [config.num_layers, config.hidden_size, config.num_heads, config.vocab_size, config.max_positions]
        table.add_row(name, decimal_text(counted.total), *(f"{n:,}" for n in numbers), size_text(counted.bfloat16))
    console = open_console()
    console.print(table)
    console.print("\nglm info --preset NAME shows one; glm info DIR a model directory", style="dim", soft_wrap=True)
    return 0
