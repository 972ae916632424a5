"""Scores of given texts: how likely a model finds a continuation of a context, an answer to a blank, a whole text."""

from collections.abc import Iterable, Sequence
from itertools import chain

from glmkit.errors import RequestError
from glmkit.tokenizer.protocol import Tokenizer

from .job_maker import list_of
from .jobs.score_job import ScoreJob
from .model_engine import ModelEngine
from .outputs import Score
from .params import check_type
from .prompt import Prompt
from .prompt_builder import Prompts, whole_numbers

TextOrIds = str | Sequence[int]

# What a continuation stands behind where its tokens cannot be told from those of its context.
_LINE_END = "\n"


class ScoreCalls:
    """The methods of `LM` that score given texts."""

    _runtime: ModelEngine

    def score(
        self,
        context: TextOrIds,
        continuations: Iterable[TextOrIds],
        *,
        end: bool = False,
        blank: bool | None = None,
        unidirectional: bool = False,
        adapter: str | None = None,
    ) -> list[Score]:
        """Log-probability of each continuation behind one context, which is read once for all of them.

        context: a text, which becomes the very prompt that `generate` makes of it: part A with a generation mask behind
        it, or `[gMASK] sop` and the text, as the family has it. Where it has one blank that the model fills,
        continuations are answers to that blank; blank False: a mask in the text is ordinary text, True: there must be
        one. unidirectional: models of spans read the context in part B, from left to right. Or the ids of a whole
        prompt, as `continue_job` takes them.
        continuations: texts as they are written, a space before a word included; or token ids. Behind a context that
        ends the prompt a text has the tokens that it has there, else its own. end: the token that ends an answer is
        scored, too. The numbers are those of one pass over the whole row, whatever else is scored beside it.
        Raises RequestError for nothing to score, a text without tokens, more tokens than the model's positions, a blank
        that is missing or not the only one, ids that the model lacks, and an unknown adapter.
        """
        job = self.score_job(
            context, continuations, end=end, blank=blank, unidirectional=unidirectional, adapter=adapter
        )
        self._runtime.current().submit(job).wait()
        return job.scores

    def score_many(
        self,
        pairs: Iterable[tuple[TextOrIds, Iterable[TextOrIds]]],
        *,
        end: bool = False,
        blank: bool | None = None,
        unidirectional: bool = False,
        adapter: str | None = None,
    ) -> list[list[Score]]:
        """`score` for several (context, continuations) in one batch; each result is the same as alone."""
        jobs = []
        for number, pair in enumerate(list_of(pairs, "score")):
            if not isinstance(pair, tuple | list) or len(pair) != 2:
                raise RequestError(f"pair {number} is a {type(pair).__name__}; give (context, continuations)")
            name = f" of pair {number}"
            jobs.append(self._score_job(*pair, end, blank, unidirectional, adapter, name))
        self._runtime.current().run_all(jobs)
        return [job.scores for job in jobs]

    def score_job(
        self,
        context: TextOrIds,
        continuations: Iterable[TextOrIds],
        *,
        end: bool = False,
        blank: bool | None = None,
        unidirectional: bool = False,
        adapter: str | None = None,
    ) -> ScoreJob:
        """The job of `score`, for `engine.submit`; its `scores` are there once it is over."""
        return self._score_job(context, continuations, end, blank, unidirectional, adapter, "")

    def score_text(
        self,
        text: TextOrIds,
        *,
        window: int | None = None,
        stride: int | None = None,
        unidirectional: bool = False,
        adapter: str | None = None,
    ) -> Score:
        """Log-probability of every token of a text, each once, for its perplexity.

        A text longer than `window` tokens (the model's positions) is read in windows: the first one from its beginning,
        each other one has `stride` new tokens (window - 1) at its end and is as full as the first, the last one too.
        The first window stands in part B behind an empty part A; of the others the old tokens are part A, or with
        `unidirectional`, and in causal models, stand in front of the new ones. text: or its ids, without any that is
        added. Raises RequestError for no tokens, and for a window or a stride out of range.
        """
        return self.score_texts([text], window=window, stride=stride, unidirectional=unidirectional, adapter=adapter)[0]

    def score_texts(
        self,
        texts: Iterable[TextOrIds],
        *,
        window: int | None = None,
        stride: int | None = None,
        unidirectional: bool = False,
        adapter: str | None = None,
    ) -> list[Score]:
        """`score_text` for several texts in one batch; each result is the same as alone."""
        prompts, limits = self._runtime.jobs(adapter).prompts, self._runtime.current().limits
        empty = prompts.left_to_right([])
        most = prompts.config.max_positions + 1 - len(empty.ids)
        window = _within("window", window, min(most, limits.longest() + 1 - len(empty.ids)), most)
        stride = _within("stride", stride, max(1, window - 1), window)
        jobs: list[list[ScoreJob]] = []
        for number, text in enumerate(list_of(texts, "score_text")):
            name = f"text {number}"
            ids = prompts.tokenizer.encode(text) if isinstance(text, str) else whole_numbers(text, name)
            rows = [(empty, ids[:window])]
            for done in range(window, len(ids), stride):
                stop = min(done + stride, len(ids))
                seen = ids[stop - window : done]
                bidirectional = seen and not unidirectional
                prompt = prompts.window(seen, name=name) if bidirectional else prompts.left_to_right(seen, name=name)
                rows.append((prompt, ids[done:stop]))
            jobs.append([ScoreJob(prompt, [new], prompts.config, limits, names=[name]) for prompt, new in rows])
        self._runtime.current().run_all([*chain(*jobs)])
        return [_joined([job.scores[0] for job in own]) for own in jobs]

    def _score_job(
        self,
        context: TextOrIds,
        continuations: Iterable[TextOrIds],
        end: bool,
        blank: bool | None,
        unidirectional: bool,
        adapter: str | None,
        name: str,
    ) -> ScoreJob:
        prompts = self._runtime.jobs(adapter).prompts
        check_type("continuations", continuations, Iterable, "a list of texts or of lists of ids")
        if isinstance(continuations, str | bytes):
            raise RequestError("continuations is one text; give a list of texts", param="continuations")
        texts = [*continuations]
        if not texts:
            raise RequestError(f"the context{name} has no continuations; give at least 1", param="continuations")
        prompt = _prompt(prompts, context, blank, unidirectional, f"the context{name}")
        names = [f"continuation {number}{name}" for number in range(len(texts))]
        rows = [
            _after(prompts, context, prompt, text) if isinstance(text, str) else whole_numbers(text, called)
            for text, called in zip(texts, names, strict=True)
        ]
        if end:
            special = prompts.special
            last = special.eos if prompts.config.mask == "causal" else special.eop
            rows = [[*row, last] for row in rows]
        return ScoreJob(prompt, rows, prompts.config, self._runtime.current().limits, names=names)


def _prompt(prompts: Prompts, context: TextOrIds, blank: bool | None, unidirectional: bool, name: str) -> Prompt:
    if not isinstance(context, str):
        if blank or unidirectional:
            option = "blank" if blank else "unidirectional"
            raise RequestError(f"{option} is for a text; ids are a whole prompt, with its masks", param=option)
        return prompts.continuation(context, name=name)
    if blank or (blank is None and prompts.has_blank(context)):
        if unidirectional:
            raise RequestError(f"{name} has a blank, whose answer sees all of it", step="leave out unidirectional")
        return prompts.blank(context, name=name)
    causal = prompts.config.mask == "causal"
    if unidirectional and not causal:
        return prompts.left_to_right(prompts.tokenizer.encode(context), name=name)
    return prompts.continuation(context, name=name) if context or not causal else prompts.left_to_right([], name=name)


def _after(prompts: Prompts, context: TextOrIds, prompt: Prompt, text: str) -> list[int]:
    """The tokens of a continuation: those that it has behind the context, where nothing stands between the two."""
    tokenizer = prompts.tokenizer
    if not isinstance(context, str):
        return tokenizer.encode(text)
    before = tokenizer.encode(context)
    if prompt.ids[len(prompt.ids) - len(before) :] != tuple(before):
        return tokenizer.encode(text)
    # A token may reach over the place where they meet; behind a line end none does.
    for front in (context, _LINE_END):
        found = _rest(tokenizer, front, text)
        if found:
            return found
    return tokenizer.encode(text)


def _rest(tokenizer: Tokenizer, front: str, text: str) -> list[int]:
    """The tokens of front + text behind those of front; none where these are not its beginning."""
    before, whole = tokenizer.encode(front), tokenizer.encode(front + text)
    return whole[len(before) :] if whole[: len(before)] == before else []


def _within(name: str, value: int | None, default: int, most: int) -> int:
    """A number of tokens from 1 to `most`. Raises RequestError for others."""
    if value is None:
        return default
    check_type(name, value, int, "a whole number of tokens")
    if not 1 <= value <= most:
        raise RequestError(f"{name} is {value}; give 1 to {most} tokens", param=name)
    return value


def _joined(parts: Sequence[Score]) -> Score:
    return Score(
        [token for part in parts for token in part.ids],
        [log_p for part in parts for log_p in part.token_logprobs],
        all(part.greedy for part in parts),
    )
