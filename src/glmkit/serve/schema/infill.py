"""Types of `/v1/infill`: a text with blanks, each of which is answered."""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field
from pydantic.config import JsonDict

from .common import MODEL, Count, Reply, Usage, Writing

LENGTH = 64  # tokens of an answer to a blank where nothing is said
EXAMPLE: JsonDict = {"text": "从前有座山，山上有座[MASK]，庙里有个老和尚在讲[gMASK]", "max_tokens": 16}


class InfillRequest(Writing):
    """A text with [MASK], [sMASK] or [gMASK] where something is missing. Greedy unless a temperature is given."""

    model_config = ConfigDict(json_schema_extra={"examples": [EXAMPLE]})

    text: Annotated[str, Field(min_length=1)]
    model: str | None = Field(None, description=MODEL)
    max_tokens: Count | None = Field(
        None, description=f"The longest answer to one blank, in tokens; {LENGTH} when absent."
    )
    order: Literal["shared", "inserted"] | None = Field(
        None, description="One part B for all blanks, or one blank after the other; the family's way when absent."
    )


class Blank(Reply):
    """The answer to the blank number `index`, from 0 in the order of the text."""

    index: int
    text: str
    tokens: list[int]
    finish_reason: Literal["stop", "length"]


class Infill(Reply):
    """The filled text and its answers; in a stream the last event."""

    id: str
    object: Literal["infill"] = "infill"
    created: int
    model: str
    text: str
    blanks: list[Blank]
    usage: Usage
    system_fingerprint: str


class InfillChunk(Reply):
    """More of the answer to one blank."""

    id: str
    object: Literal["infill.chunk"] = "infill.chunk"
    created: int
    model: str
    index: int
    delta: str
    finish_reason: Literal["stop", "length"] | None = None
    system_fingerprint: str
