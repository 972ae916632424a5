"""The options of decoding that all verbs share: one argument for each field of `GenerationParams`."""

from argparse import ArgumentParser
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields
from typing import Any

from glmkit.errors import RequestError
from glmkit.generate.params import GenerationParams


@dataclass(frozen=True)
class _Option:
    """One argument: its type, what it does and in which unit, and whether it may be given several times."""

    kind: type[int] | type[float] | type[str]
    help: str
    many: bool = False
    choices: tuple[str, ...] | None = None
    metavar: str | None = None


_OPTIONS: dict[str, _Option] = {
    "max_new_tokens": _Option(int, "longest answer, in tokens"),
    "min_new_tokens": _Option(int, "no id ends an answer before so many tokens"),
    "temperature": _Option(float, "what logits are divided by before a token is drawn, 0 = always the likeliest"),
    "top_k": _Option(int, "draw from so many of the likeliest tokens, 0 = all"),
    "top_p": _Option(float, "draw from the likeliest tokens with this share of probability in all, 1 = all"),
    "min_p": _Option(float, "drop tokens less likely than this share of the likeliest one, 0 = none"),
    "repetition_penalty": _Option(float, "above 1: tokens of the prompt and the answer become less likely, 1 = off"),
    "presence_penalty": _Option(float, "from -2 to 2, taken from the logit of each token that the answer has, 0 = off"),
    "frequency_penalty": _Option(float, "the same, times how often the answer has it, 0 = off"),
    "no_repeat_ngram_size": _Option(int, "no run of so many tokens comes twice, 0 = off"),
    "stop": _Option(
        str, "text that ends an answer and is no part of it; may be given again", many=True, metavar="TEXT"
    ),
    "stop_ids": _Option(int, "token id that ends an answer; may be given again", many=True, metavar="ID"),
    "forbidden": _Option(int, "token id that never comes; may be given again", many=True, metavar="ID"),
    "seed": _Option(int, "seed of the sampling noise"),
    "logprobs": _Option(int, "with --json: log-probability of each token and of so many alternatives"),
    "n": _Option(int, "how many answers; with --num_beams the best beams"),
    "num_beams": _Option(int, "beams to search with, 1 = no search"),
    "length_penalty": _Option(float, "power of the length in tokens that a beam's score is divided by"),
    "early_stopping": _Option(
        str,
        "when a search with enough finished beams ends; true: at once, false: when no open one can become better at "
        "its present length, never: at any length",
        choices=("true", "false", "never"),
    ),
    "num_return_sequences": _Option(int, "how many of the best beams to give"),
    "beam_length": _Option(
        str,
        "the length that a beam's score is divided by: row counts the prompt, too, answer its own tokens",
        choices=("row", "answer"),
    ),
    "prompt_lookup": _Option(
        int, "so many tokens at a time are looked up in the prompt and checked at once, 0 = off; same answers, faster"
    ),
    "prompt_lookup_ngram": _Option(int, "longest run that is looked up, in tokens"),
}

# What goes with several answers to one prompt, and not with a text's blanks or one turn of a conversation.
SEVERAL = ("n", "num_beams", "length_penalty", "early_stopping", "num_return_sequences", "beam_length")

# Those with a number for a value.
NUMBERS = {name: option.kind for name, option in _OPTIONS.items() if option.kind is not str and not option.many}


def add_generation_arguments(
    parser: ArgumentParser, *, without: Collection[str] = (), unset: Mapping[str, str] | None = None
) -> None:
    """Add the options of decoding to a verb.

    without: fields of `GenerationParams` that the verb does not have. unset: options that are None unless given, and
    what the help says of that; all others have the defaults of `GenerationParams`.
    """
    unset = unset or {}
    for field in fields(GenerationParams):
        if field.name in without:
            continue
        option = _OPTIONS[field.name]
        settings: dict[str, Any] = {"choices": list(option.choices)} if option.choices else {"type": option.kind}
        if option.many:  # jsonargparse checks a list with the type of its items, so the items are read later
            settings = {"action": "append"}
        if not option.choices:
            settings["metavar"] = option.metavar or ("X" if option.kind is float else "N")
        default = None if field.name in unset or option.many else field.default
        if isinstance(default, bool):
            default = str(default).lower()
        named = unset.get(field.name, "none" if default is None else default)
        parser.add_argument(f"--{field.name}", default=default, help=f"{option.help} (default: {named})", **settings)


def generation_options(args: Any) -> dict[str, Any]:
    """The options that have a value, as `LM.generate` takes them. Raises RequestError for an id that is no number."""
    options: dict[str, Any] = {}
    for field in fields(GenerationParams):
        value = getattr(args, field.name, None)
        if value is not None:
            options[field.name] = _items(field.name, value) if _OPTIONS[field.name].many else value
    if options.get("early_stopping") in ("true", "false"):
        options["early_stopping"] = options["early_stopping"] == "true"
    if options.get("num_beams", 1) > 1 and options.get("n", 1) > 1 and options.get("num_return_sequences", 1) == 1:
        options["num_return_sequences"] = options.pop("n")
    return options


def _items(name: str, values: list[Any]) -> list[Any]:
    """The items of an option that may be given several times. Raises RequestError naming one that is no number."""
    kind = _OPTIONS[name].kind
    try:
        return [kind(value) for value in values]
    except ValueError:
        raise RequestError(f"{name} has {values!r}; give whole numbers") from None
