"""Options of decoding as arguments of a verb, from the table in `generate.params`."""

from argparse import ArgumentParser, Namespace

from glmkit.generate.params import OPTIONS, Face, Values, options_of


def add_generation_arguments(parser: ArgumentParser, face: Face) -> None:
    """Add the options of decoding that a verb has.

    Options with a default of their own in a conversation are None there unless given, as are those that may be
    repeated; all others have the defaults of `GenerationParams`.
    """
    for option in options_of(face):
        name, default = f"--{option.name}", option.default
        shown = (
            option.unset if default in (None, ()) else str(default).lower() if isinstance(default, bool) else default
        )
        if face == "chat" and option.chat_default:
            default, shown = None, option.chat_default
        limits = f"; {option.limits}" if option.high is not None else ""
        text = f"{option.help}{limits}{'; may be given again' if option.item else ''} (default: {shown})"
        if option.words:
            choices = [*(["true", "false"] if option.kind is bool else []), *option.words]
            parser.add_argument(name, choices=choices, default=str(shown), help=text)
        elif option.item:
            parser.add_argument(name, type=option.kind, action="append", metavar=option.item.upper(), help=text)
        else:
            metavar = "X" if option.kind is float else "N"
            parser.add_argument(name, type=option.kind, metavar=metavar, default=default, help=text)


def generation_options(args: Namespace) -> Values:
    """The options that have a value, as `LM.generate` takes them."""
    values = {name: getattr(args, name, None) for name in OPTIONS}
    options = {name: value for name, value in values.items() if value is not None}
    for name in options:
        if OPTIONS[name].kind is bool:
            options[name] = {"true": True, "false": False}.get(options[name], options[name])
    if options.get("num_beams", 1) > 1 and options.get("n", 1) > 1 and args.num_return_sequences == 1:
        options["num_return_sequences"] = options.pop("n")
    return options
