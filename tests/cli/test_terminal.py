"""Orders to a terminal in what a stranger wrote: escaped there, kept to the letter in a file."""

import io
import sys
from argparse import Namespace
from pathlib import Path

import pytest

from glmkit.cli import fill
from glmkit.cli.info import open_console, plain_grid
from glmkit.cli.main import main
from glmkit.cli.printing import shown
from glmkit.cli.show_print import SampleView, print_sample
from glmkit.config import GLMConfig
from glmkit.errors import ConfigError
from glmkit.progress import Progress
from glmkit.session import Filled

ORDERS = ["\x1b[2J", "\x1b]0;title\x07", "\x9b31m", "a\rb", "\u202eabc", "\x00", "\x7f"]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def harmless(text: str) -> bool:
    return not any(c in text for c in "\x1b\x9b\x07\r\u202e\x00\x7f")


@pytest.mark.parametrize("text", ORDERS)
def test_a_models_text(text: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert harmless(shown(text, Terminal()))
    assert shown(text, io.StringIO()) == text
    assert shown("行\n\t👩‍💻", Terminal()) == "行\n\t👩‍💻"

    class Model:
        def fill(self, text: str, **options: object) -> object:
            return Filled(text, [text], [[1]], ["stop"], [text, text])

    monkeypatch.setenv("NO_COLOR", "1")  # no colours of ours
    monkeypatch.setattr(fill, "open_model", lambda args: Model())
    monkeypatch.setattr(fill, "read_text", lambda args: text)
    monkeypatch.setattr(fill, "generation_options", lambda args: {})
    arguments = Namespace(max_tokens=1, order=None, json=False)
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    fill.run(arguments)
    assert harmless(terminal.getvalue())


@pytest.mark.parametrize("text", ORDERS)
def test_names_in_tables_progress_and_samples(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stdout", stream)
    open_console().print(plain_grid({"directory": text}))
    view = SampleView(0, 0, "token", 1, [1], [text], [1], [text], [0], [0], [0], [0], [(text, 1)], [text])
    print_sample(open_console(), view, columns=0)
    progress = Progress(stream=stream, eager=True)
    progress.start(text, 2)
    progress.update(1, label=text)
    progress.say(text)
    assert harmless(stream.getvalue())
    Progress(stream=stream, eager=True).start("[/x] a file [bold]", 1)


def test_arguments_and_files_that_are_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", f"{tmp_path}/\x1b[31m"]) == 2
    assert main(["pretrain", f"{tmp_path}/\x1b[31m.yaml"]) == 2
    printed = capsys.readouterr().err
    assert "\\x1b[31m" in printed
    assert harmless(printed)


@pytest.mark.parametrize("family", ["\x1b[31m", "", "a\nb", "x" * 200, 7])
def test_the_family_of_a_config_is_a_name(family: object) -> None:
    with pytest.raises(ConfigError, match="family is"):
        GLMConfig(vocab_size=8, hidden_size=8, num_layers=1, num_heads=1, family=family)  # type: ignore[arg-type]
