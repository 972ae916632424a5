"""The kinds of values in requests: JSON has numbers, texts and lists, and none is turned into another.

Unknown fields, numbers as text, booleans as numbers, NaN and infinities are refused. A whole number may be written
1.0, for JSON has one kind of number.
"""

import math
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

# Far beyond every use, and within 64 bits for all who read the document of the interface.
LARGEST = 2**31 - 1


class Body(BaseModel):
    """A JSON object in a request; fields that it does not have are refused."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)


class Reply(BaseModel):
    """A JSON object in a response."""

    model_config = ConfigDict(extra="forbid")


def whole(value: Any) -> Any:
    """A whole number written as 1.0 as one; anything else as it is."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _plain(value: Any) -> Any:
    """Raises ValueError for what JSON cannot hold, wherever it is: NaN, infinities, lone surrogates."""
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            raise ValueError("a text in it is not valid Unicode") from None
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"a number in it is {value}, which JSON does not have")
    elif isinstance(value, Mapping):
        for key, item in value.items():
            _plain(key)
            _plain(item)
    elif isinstance(value, list):
        for item in value:
            _plain(item)
    return value


def by_kind(kinds: Mapping[type, str]) -> Callable[[Any], str | None]:
    """A discriminator that tells values apart by their JSON type; None where none fits."""

    def kind(value: Any) -> str | None:
        return next((tag for type_, tag in kinds.items() if isinstance(value, type_)), None)

    return kind


def _off(value: Any) -> Any:
    if value is not False:  # 0 is equal to it, too
        raise PydanticCustomError("literal_error", "give false", {"expected": "false"})
    return value


Off = Annotated[Literal[False], BeforeValidator(_off)]
# Stands behind the limits of a whole number, which are then in the schema, too.
WHOLE = BeforeValidator(whole)
Count = Annotated[int, Field(ge=1, le=LARGEST), WHOLE]
CountOrNone = Annotated[int, Field(ge=0, le=LARGEST), WHOLE]
JsonObject = Annotated[dict[str, Any], BeforeValidator(_plain)]
Empty = Annotated[dict[str, Any], Field(max_length=0), BeforeValidator(_plain)]
