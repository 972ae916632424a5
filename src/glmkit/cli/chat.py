"""`glm chat MODEL`: a conversation in the terminal, or one turn for each line of a pipe."""

import sys
from argparse import ArgumentParser, Namespace

from glmkit.cli.chat_dialogue import Dialogue, HistoryFile, Lines, read_tools, reason_of
from glmkit.cli.generation_options import add_generation_arguments, generation_options
from glmkit.cli.printing import print_json
from glmkit.cli.text_input import add_load_arguments, add_template_argument, open_model
from glmkit.errors import GLMKitError, RequestError


def add_arguments(parser: ArgumentParser) -> None:
    """Options of the verb."""
    parser.add_argument("model", metavar="MODEL", help="model directory, or a hub name (org/name)")
    parser.add_argument("--system", metavar="TEXT", help="system message")
    parser.add_argument("--history", metavar="FILE", help="JSON file to go on from and to keep the history in")
    parser.add_argument(
        "--tools", metavar="FILE", help="JSON list of tools in the family's form; only these are called"
    )
    specials_help = (
        "read special strings in messages as ids, as the published chat of ChatGLM-6B does (default: as text)"
    )
    parser.add_argument("--specials", action="store_true", help=specials_help)
    parser.add_argument("--no_stream", action="store_true", help="print each reply when it is complete")
    json_help = 'one JSON object a reply; a line {"query": TEXT, "role": ROLE} gives the role, too'
    parser.add_argument("--json", action="store_true", help=json_help)
    add_load_arguments(parser)
    add_template_argument(parser)
    add_generation_arguments(parser, "chat")


def run(args: Namespace) -> int:
    """Talk until `stop` or the end of the input. Status 2 when a line of a pipe could not be answered."""
    lm = open_model(args)
    template = lm.chat_template
    file = None if args.history is None else HistoryFile(args.history)
    tools = None if args.tools is None else read_tools(args.tools)
    dialogue = Dialogue(
        lm, generation_options(args), system=args.system, tools=tools, file=file, as_json=args.json,
        stream=not args.no_stream, specials=args.specials,
    )  # fmt: skip
    lines = Lines(name=template.name, prompts=not args.json)
    if lines.shown:
        print(f"{template.name}: clear forgets, stop ends, Ctrl-C stops an answer, /help", file=sys.stderr)
        if about := lm.wording_for(None).about():
            print(about, file=sys.stderr)
    try:
        failed = _talk(dialogue, lines, args.json)
    except KeyboardInterrupt as error:
        if type(error) is not KeyboardInterrupt:  # SIGTERM
            raise
        return 0  # the second one came while the first was being answered
    if failed and not lines.shown:
        raise RequestError(f"{failed} of the lines could not be answered")
    return 0


def _talk(dialogue: Dialogue, lines: Lines, as_json: bool) -> int:
    """Take lines until one ends it; how many could not be answered."""
    failed = 0
    interrupted = False
    while True:
        try:
            line = lines.read()
            if line is None:
                return failed
            interrupted = False
            lines.begin_reply(dialogue.is_command(line))
            if not dialogue.take(line):
                return failed
        except KeyboardInterrupt as error:
            if type(error) is not KeyboardInterrupt or interrupted:
                raise
            interrupted = True
            print("\n(Ctrl-C once more ends)", file=sys.stderr)
        except (GLMKitError, UnicodeDecodeError) as error:
            failed += 1
            if as_json:
                print_json({"error": reason_of(error)})
            print(f"glm chat: {reason_of(error)}", file=sys.stderr, flush=True)
