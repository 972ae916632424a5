"""The words around a user's text in prompts, as the model or the adapter was tuned to read it."""

import warnings
from collections.abc import Sequence
from dataclasses import replace

from glmkit.checkpoint.taught import Taught
from glmkit.data.dialogues.templates import NO_TEMPLATE, TextTemplate, find_templates, recorded_templates
from glmkit.errors import ConfigError, GuessWarning, shorten
from glmkit.tokenizer.chat_template import Message

_EXAMPLE = "…"


class Wording:
    """The text template of one model or adapter: the recorded one, or another that was given.

    A text becomes the question of a training row that had nothing else; one that is worded already stays. Where rows
    had several fields in one sentence, a text alone cannot be worded: it stays, with one warning. Of several templates
    the first that can is taken.
    """

    def __init__(self, taught: Taught, given: str | None = None) -> None:
        """given: names or files, divided by commas, in place of the recorded ones; "none": texts stay as they are."""
        name = taught.template if given is None else given
        self.name = "" if name is None or name == NO_TEMPLATE else name
        self._templates: tuple[TextTemplate, ...] = ()
        self._trouble, self._origin = "", "as in training" if given is None else "as given"
        self._told = False
        try:
            if given is None and taught.wordings:
                self._templates = recorded_templates(taught.wordings, "the record")
            elif self.name:
                self._templates = find_templates(self.name.split(","), param="template")
        except ConfigError as error:  # of a record: what is given was checked on loading
            self._trouble = f"of the template {self.name} the words are not known ({error.what})"
        if self._templates and all(template.question(_EXAMPLE) is None for template in self._templates):
            asked = shorten("".join(self._templates[0].prompt))
            self._trouble = f"the template {self.name} puts several texts into one ({asked})"

    def text(self, text: str) -> str:
        """The text as tuning had it. Blank texts stay. A GuessWarning, once, for a text that cannot be worded."""
        if not text.strip() or not self.name:
            return text
        worded = (template.worded(text) for template in self._templates)
        asked = (template.question(text) for template in self._templates)
        found = next((one for one in (*worded, *asked) if one is not None), None)
        if found is None:
            self._warn()
        return text if found is None else found

    def messages(self, messages: Sequence[Message]) -> list[Message]:
        """A conversation with its last question worded, as rows with a history have it; the template's system text
        stands in front of one without any.
        """
        last = max((i for i, message in enumerate(messages) if message.role == "user"), default=None)
        if last is None or not self.name:
            return list(messages)
        system, content = self._system(), messages[last].content
        opening = [Message("system", system)] if system and messages[0].role != "system" else []
        changed = replace(messages[last], content=self.text(content))
        return [*opening, *messages[:last], changed, *messages[last + 1 :]]

    def about(self) -> str:
        """One line on the template in use; "" where there is none."""
        if self._trouble or not self.name:
            return f"{self._trouble}: texts are read as they are" if self._trouble else ""
        question = self.text(_EXAMPLE)
        words = (
            "texts are read as they are" if question == _EXAMPLE else f"a text becomes {shorten(repr(question), 160)}"
        )
        return f"template {self.name}, {self._origin}: {words}"

    def _system(self) -> str:
        template = next((one for one in self._templates if one.question(_EXAMPLE) is not None), None)
        return "" if template is None else template.render({})[2]

    def _warn(self) -> None:
        if self._told:
            return
        self._told = True
        warnings.warn(
            f"{self._trouble}; a text is read as it is: write the whole wording, answer rows with glm generate --input "
            '--task predict, or name another template (template="none" for none)',
            GuessWarning,
            stacklevel=4,
        )
