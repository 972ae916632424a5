"""Texts of users in the template of the training: ids as in its rows, by adapter, in one batch, given otherwise."""

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import glmkit
from data.dialogues.opened import encoded, write
from families.tuned import of_family
from glmkit.checkpoint.taught import Taught
from glmkit.data.dialogues.templates import TEMPLATES, TextTemplate, find_templates, plain_templates
from glmkit.errors import CheckpointError, ConfigError, GuessWarning, MismatchWarning
from glmkit.families.family import family_named
from glmkit.generate.conversation import Turn
from glmkit.generate.truncation import Shortener
from glmkit.generate.wording import Wording
from glmkit.session import LM
from glmkit.tokenizer.chat_template import Message
from glmkit.tokenizer.dialogue import Dialogue
from support.chat import VOCABULARIES, real_chat_model
from support.saved_adapters import record_taught, save_base, save_lora
from support.served_models import small_base, small_chat

ALPACA = Taught("chatglm_tuning")
ROW = {"instruction": "翻译", "input": "", "output": "Hi"}
# "翻译" as a row of ChatGLM-Tuning, and as it is.
WORDED, BARE = [37010, 12, 5, 67769, 4, 13049, 12, 130001, 130004], [5, 67769, 130001, 130004]


def taught(lm: LM, what: Taught, template: str | None = None) -> LM:
    return LM(replace(lm.parts, taught=what, template=template))


def asked(lm: LM, query: str, history: Sequence[Any] = (), **options: Any) -> list[int]:
    """The ids of a chat's prompt."""
    return list(Turn.asked(lm.prompts, query, list(history), options).prompt.ids)


def test_worked_values() -> None:
    lm = real_chat_model("chatglm")
    assert asked(lm, "翻译") == [*lm.prompts.continuation("翻译").ids] == BARE
    tuned = taught(lm, ALPACA)
    for text in ("翻译", "Instruction: 翻译\nAnswer: ", "Instruction: 翻译\nAnswer:"):
        assert asked(tuned, text) == [*tuned.prompts.continuation(text).ids] == WORDED
    assert [*tuned.prompts.continuation(BARE).ids] == BARE, "ids are read as they are"
    assert [*tuned.prompts.continuation(BARE[:2], whole=False).ids] == BARE
    assert asked(taught(lm, ALPACA, "none"), "翻译") == BARE


@pytest.mark.parametrize("family", VOCABULARIES)
@pytest.mark.parametrize("template", ["chatglm_tuning", "belle", "FILE"])
def test_a_chat_asks_as_rows_did(family: str, template: str, tmp_path: Path) -> None:
    """Also behind a history, which rows have as it was said, and with the system text of a template."""
    own = {"system": "Be brief.", "prompt": ["问：{instruction}\n", "见：{input}\n", "答："], "answer": "{output}"}
    (tmp_path / "own.yaml").write_text(json.dumps(own))
    template = template.replace("FILE", str(tmp_path / "own.yaml"))
    history = [["你好", "在"]]
    path = write(tmp_path / "x.jsonl", [ROW, ROW | {"history": history}])
    rows = encoded(path, of_family(family), family, template=[template])
    lm = taught(real_chat_model(family), Taught(template, wordings=tuple(plain_templates(find_templates([template])))))
    for row, before in zip(rows, ([], [tuple(history[0])]), strict=True):
        start = row.counted.index(True)
        ids = asked(lm, ROW["instruction"], before)
        assert row.ids[: len(ids)] == ids
        assert len(ids) in (start, start + 1)  # the id that opens an answer is a label of ChatGLM-6B
        if family == "chatglm" and not before:
            assert [*lm.prompts.continuation(ROW["instruction"]).ids] == ids
    (tmp_path / "own.yaml").unlink(missing_ok=True)
    assert asked(taught(lm, lm.parts.taught), ROW["instruction"]) == asked(lm, ROW["instruction"])
    said = Turn.asked(lm.prompts, ROW["instruction"], [], {})
    assert [message.content for message in said.messages] == [ROW["instruction"]], "the history has what was said"


@pytest.mark.parametrize("quirks", [(), ("content_prompt",)])
def test_a_model_of_spans_asks_as_rows_did(quirks: tuple[str, ...]) -> None:
    lm = small_base()
    tuning = family_named("glm").tuning
    assert tuning is not None
    tuned = taught(lm, Taught("chatglm_tuning", quirks, source_length=64))
    question = TEMPLATES["chatglm_tuning"].question("fox")
    assert question == "Instruction: fox\nAnswer: "
    dialogue = Dialogue((Message("user", question), Message("assistant", "a")), (False, True), "here")
    (row,) = tuning.rows(lm.tokenizer, dialogue, tuning.limits, frozenset(quirks))
    prompt = tuned.prompts.continuation("fox")
    assert [*prompt.ids] == row.ids[: row.layout.prefix + 1]
    assert prompt.part_a == row.layout.prefix
    if not quirks:
        ids = lm.tokenizer.encode(question)
        assert tuned.prompts.continuation(ids, whole=False).ids == prompt.ids
        assert [*lm.prompts.continuation(question).ids] == [i for i in prompt.ids if i != lm.special.eos]
        cut, over = Shortener(tuned.prompts, len(prompt.ids) - 2, "right").cut("fox")
        assert cut is not None
        assert (over, cut.ids) == (2, (*prompt.ids[: len(ids) - 1], *prompt.ids[len(ids) + 1 :]))


@pytest.mark.parametrize(
    ("pieces", "text", "question"),
    [
        (("{q}",), "a", "a"),
        (("Q: {q}\n",), "a", "Q: a\n"),
        (("Q: {q}\n",), "Q: a", "Q: a\n"),
        (("{q}\n",), "a\n", "a\n"),
        (("Be brief.\n", "{q}", "\nHint: {h}"), "a", "Be brief.\na"),
        (("Be brief.\n", "{q}", "\nHint: {h}"), "Be brief.\na\nHint: b", "Be brief.\na\nHint: b"),
        (("{{{q}}}",), "a", "{a}"),
        (("{{{q}}}",), "{a}", "{a}"),
        (("A{q}A",), "A", "AAA"),
        (("{q} {h}",), "a b", "a b"),
        (("{q} {h}",), "a", None),
        (("{q}: {h}.",), "a b: c.", "a b: c."),
        (("{q}: {h}.",), "a: c", None),
        (("What now?",), "What now?", "What now?"),
        (("What now?",), "a", None),
    ],
)
def test_a_text_in_a_template(pieces: tuple[str, ...], text: str, question: str | None) -> None:
    template = TextTemplate("own", pieces, ("{a}",))
    assert template.question(text) == question
    assert question is None or template.question(question) == question, "once is enough"


def test_several_fields_are_told_once() -> None:
    wording = Wording(Taught("dureader_qg"))
    own = "答案：甲，上下文：乙"
    with pytest.warns(
        GuessWarning, match=r"dureader_qg puts several .*答案：\{answer\}.*--task predict, or name"
    ) as told:
        assert [wording.text(text) for text in ("甲", "乙", own, "")] == ["甲", "乙", own, ""]
    assert len(told) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Wording(Taught("dureader_qg"), "none").text("甲") == "甲"
        assert Wording(Taught("qa")).text("甲") == "甲"
        assert Wording(Taught("dureader_qg,chatglm_tuning")).text("a") == "Instruction: a\nAnswer: "
        assert Wording(Taught("dureader_qg,chatglm_tuning")).text(own) == own
    with pytest.warns(GuessWarning, match="of the template gone.yaml the words are not known"):
        assert Wording(Taught("gone.yaml")).text("a") == "a"


def test_the_last_question_of_a_conversation_is_worded() -> None:
    """Not an outcome of a tool behind it, nor an answer that is begun; a system text of the user's own stays."""
    said = [Message("system", "s"), Message("user", "a"), Message("assistant", "b"), Message("user", "c")]
    after = [Message("assistant", "{}", "tool"), Message("observation", "4")]
    worded = Message("user", "Instruction: c\nAnswer: ")
    for end in ([], after):
        assert Wording(ALPACA).messages([*said, *end]) == [*said[:3], worded, *end]
    assert Wording(ALPACA).messages(after) == after
    own = Taught("own", wordings=({"name": "own", "system": "Be brief.", "prompt": "Q: {q}", "answer": "{a}"},))
    asked = [Message("user", "a"), Message("assistant", "b"), Message("user", "Q: c")]
    assert Wording(own).messages(said[1:]) == [Message("system", "Be brief."), *asked]
    assert Wording(own).messages(said) == [said[0], *asked]


def test_words_about_it() -> None:
    assert Wording(Taught()).about() == Wording(ALPACA, "none").about() == ""
    assert Wording(ALPACA).about() == (
        "template chatglm_tuning, as in training: a text becomes 'Instruction: …\\nAnswer: '"
    )
    assert Wording(Taught(), "belle").about() == "template belle, as given: texts are read as they are"
    assert "puts several texts into one" in Wording(Taught("dureader_qg")).about()


def test_only_what_was_recorded_is_taken() -> None:
    found = Taught.from_dict(Taught("x", wordings=({"name": "belle"},)).to_dict(), "here")
    assert found == Taught("x", wordings=({"name": "belle"},))
    assert "wordings" not in ALPACA.to_dict()
    for wrong in ("belle", [3], [{"prompt": "x"}]):
        with pytest.raises(CheckpointError, match="wordings"):
            Taught.from_dict({"wordings": wrong}, "here")
    with pytest.warns(GuessWarning, match="words are not known"):
        assert Wording(Taught("x", wordings=({"name": "x", "prompt": 3},))).text("a") == "a"


# --- adapters of one model --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wording")
    lm = small_base()
    save_base(lm, folder / "base")
    for number, (name, what) in enumerate({"alpaca": ALPACA, "belle": Taught("belle"), "plain": Taught()}.items()):
        record_taught(save_lora(lm.model, folder / name, seed=number), what)
    return folder


QUERY = "the fox"
ASKED = "Instruction: the fox\nAnswer: "


def in_one_batch(lm: LM, texts: Mapping[str | None, str]) -> dict[str | None, tuple[int, list[int]]]:
    """Tokens of each prompt and its answer, by adapter."""
    jobs = {name: lm.continue_job(text, {"max_new_tokens": 6}, adapter=name) for name, text in texts.items()}
    lm.engine.run_all([*jobs.values()])
    return {name: (job.prompt_tokens, list(job.answers[0].ids)) for name, job in jobs.items()}


def test_each_adapter_has_its_own(saved: Path) -> None:
    """In one batch: the adapter's template, the model alone as ever."""
    names = ("alpaca", "belle", "plain")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lm = glmkit.load(saved / "base", adapters={name: saved / name for name in names})
        found = in_one_batch(lm, dict.fromkeys((None, *names), QUERY))
    with pytest.warns(MismatchWarning):
        raw = glmkit.load(saved / "base", adapters={name: saved / name for name in names}, template="none")
    assert found == in_one_batch(raw, dict.fromkeys((None, *names), QUERY) | {"alpaca": ASKED})
    assert found["alpaca"][0] - found[None][0] == len(lm.tokenizer.encode(ASKED)) - len(lm.tokenizer.encode(QUERY)) > 0
    assert in_one_batch(raw, {"alpaca": QUERY}) != {"alpaca": found["alpaca"]}
    assert lm.generate(QUERY, adapter="alpaca", max_new_tokens=6) == "".join(
        lm.stream(ASKED, adapter="alpaca", max_new_tokens=6)
    )
    alone = glmkit.load(saved / "base", adapter=saved / "alpaca")
    assert alone.answers([QUERY], max_new_tokens=6)[0][0].ids == found["alpaca"][1]


def test_another_template_is_told_once(saved: Path, tmp_path: Path) -> None:
    alpaca, base = saved / "alpaca", saved / "base"
    for given, asked in (("none", QUERY), ("belle", QUERY)):
        with pytest.warns(
            MismatchWarning, match=f"with the template chatglm_tuning, and is asked with {given}"
        ) as told:
            lm = glmkit.load(base, adapter=alpaca, template=given)
        assert [*lm.prompts.continuation(QUERY).ids] == [
            *LM(replace(lm.parts, template="none")).prompts.continuation(asked).ids
        ]
        assert len(told) == 1
        assert any("is asked with" in note for note in lm.parts.notes)
    (tmp_path / "own.yaml").write_text('{prompt: "Q: {q}", answer: "{a}"}')
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for adapter, given, asked in (
            (alpaca, "chatglm_tuning", ASKED),
            (saved / "plain", "chatglm_tuning", ASKED),
            (None, "chatglm_tuning", ASKED),
            (None, None, QUERY),
            (None, str(tmp_path / "own.yaml"), f"Q: {QUERY}"),
        ):
            lm = glmkit.load(base, adapter=adapter, template=given)
            assert lm.prompts.continuation(QUERY).ids == lm.prompts.continuation(asked, worded=True).ids
    for wrong in ("bele", "own.yaml"):
        with pytest.raises(ConfigError, match=wrong) as refused:
            glmkit.load(base, template=wrong)
        assert refused.value.param == "template"


def test_a_reply_by_an_adapter_is_to_its_wording(tmp_path: Path) -> None:
    lm = small_chat("chatglm")
    record_taught(save_lora(lm.model, tmp_path / "a"), ALPACA)
    lm.add_adapter("a", tmp_path / "a")
    said: dict[str, Any] = {"max_new_tokens": 8, "temperature": 0}
    worded = lm.chat("the fox", adapter="a", **said)
    assert worded[0] == lm.chat(ASKED, adapter="a", **said)[0]
    assert worded[1] == [("the fox", worded[0])]
    jobs = [lm.chat_job([{"role": "user", "content": "the fox"}], said, adapter=name) for name in (None, "a")]
    lm.engine.run_all(jobs)
    assert [job.reply()[0] for job in jobs] == [lm.chat("the fox", **said)[0], worded[0]]
    assert jobs[1].prompt_tokens > jobs[0].prompt_tokens
