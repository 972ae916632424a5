"""Options of decoding as arguments of a verb, from the table in `generate.params`."""

from argparse import ArgumentParser, Namespace

from glmkit.errors import RequestError
from glmkit.generate.params import OPTIONS, Face, Option, Values, options_of


def add_generation_arguments(parser: ArgumentParser, face: Face) -> None:
    """Add the options of decoding that a verb has.

    Options with a default of their own in a conversation are None there unless given, as are those that may be
    repeated; all others have the defaults of `GenerationParams`.
    """
    for option in options_of(face):
        name, default = f"--{option.name}", option.default
        shown = "none" if default in (None, ()) else str(default).lower() if isinstance(default, bool) else default
        if face == "chat" and option.chat_default:
            default, shown = None, option.chat_default
        limits = f"; {option.limits}" if option.high is not None else ""
        text = f"{option.help}{limits}{'; may be given again' if option.item else ''} (default: {shown})"
        if option.words:
            choices = [*(["true", "false"] if option.kind is bool else []), *option.words]
            parser.add_argument(name, choices=choices, default=str(shown), help=text)
        elif option.item:  # read later: a wrong item is named with its option
            parser.add_argument(name, action="append", metavar=option.item.upper(), default=None, help=text)
        else:
            metavar = "X" if option.kind is float else "N"
            parser.add_argument(name, type=option.kind, metavar=metavar, default=default, help=text)


def generation_options(args: Namespace) -> Values:
    """The options that have a value, as `LM.generate` takes them. Raises RequestError for an id that is no number."""
    values = {name: getattr(args, name, None) for name in OPTIONS}
    options = {name: _read(OPTIONS[name], value) for name, value in values.items() if value is not None}
    if getattr(args, "num_beams", 1) > 1 and args.n > 1 and args.num_return_sequences == 1:
        options["num_return_sequences"] = options.pop("n")
    return options


def _read(option: Option, value: object) -> object:
    """A value as its option takes it. Raises RequestError for an item that is no number."""
    if option.kind is bool and value in ("true", "false"):
        return value == "true"
    if not isinstance(value, list):
        return value
    try:
        return [option.kind(item) for item in value]
    except ValueError:
        raise RequestError(f"{option.name} has {value!r}; give whole numbers", param=option.name) from None
