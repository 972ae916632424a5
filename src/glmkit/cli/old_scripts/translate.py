"""The one translator: an original command -> native commands, by the plan of its script."""

from collections.abc import Callable, Mapping

from .alpaca_files import cover, tokenize
from .command_line import Given
from .prediction import demonstrate, export, predict
from .script_table import Plan
from .translation import Machine, Translation, say_unused
from .tuning import tune

_PLANS: Mapping[Plan, Callable[[Given, Machine], Translation]] = {
    "tune": tune,
    "predict": predict,
    "export": export,
    "cover": cover,
    "tokenize": tokenize,
    "chat": demonstrate,
    "page": demonstrate,
    "api": demonstrate,
}


def translate(given: Given, machine: Machine) -> Translation:
    """Raise RequestError for a command that asks for nothing, or for what is not here."""
    translation = _PLANS[given.script.plan](given, machine)
    say_unused(given, translation)
    return translation
