"""The right job for a request."""

from glmkit.config import GLMConfig
from glmkit.generate.events import Listener
from glmkit.generate.params import GenerationParams
from glmkit.generate.prompt import Prompt

from .answers import AnswersJob
from .beam_job import BeamsJob
from .writing import MakeReader


def make_job(
    prompt: Prompt,
    params: GenerationParams,
    config: GLMConfig,
    *,
    reader: MakeReader | None = None,
    listener: Listener | None = None,
) -> AnswersJob | BeamsJob:
    """What writes the answers to a prompt: beams where `num_beams` asks for them. Errors as of the jobs."""
    kind = BeamsJob if params.num_beams > 1 else AnswersJob
    return kind(prompt, params, config, reader=reader, listener=listener)
