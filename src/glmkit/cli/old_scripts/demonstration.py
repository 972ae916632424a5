"""The demos as verbs: a conversation in the terminal, or a server with its page and the original's HTTP interface."""

from .command_line import Given
from .prediction import quantize_option
from .prefix_flags import check_prefix_flags
from .translation import Machine, Options, Step, Translation, plain_options

GREETING = "欢迎使用 {0} 模型，输入内容即可进行对话，clear 清空对话历史，stop 终止程序"
_HOME = "the page is at http://127.0.0.1:{0}"
_POST = 'clients post {{"prompt": ..., "history": []}} to http://127.0.0.1:{0}'


def demonstrate(given: Given, machine: Machine) -> Translation:
    """`glm chat` or `glm serve`, by the plan of the script."""
    translation = Translation()
    verb = "chat" if given.script.plan == "chat" else "serve"
    options = plain_options(given, verb)
    options.set("adapter", given.text("ptuning_checkpoint"))
    quantize_option(given, options)
    check_prefix_flags(given, given.text("ptuning_checkpoint"))
    if verb == "chat":
        translation.note(GREETING.format(str(given.values["model_name_or_path"]).rpartition("/")[2]))
    else:
        sentence = _POST if given.script.plan == "api" else _HOME
        translation.note(sentence.format(_port(options)))
    translation.steps.append(Step((verb, str(given.values["model_name_or_path"]), *options.words())))
    return translation


def _port(options: Options) -> str:
    return options.values.get("port") or "8000"
