"""One clear error, with the name of the field, for a request that its types refuse."""

from collections.abc import Callable, Coroutine
from typing import Any, cast

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute

from ..errors import ApiError
from .base import Body
from .problems import first_problem


class JsonRoute(APIRoute):
    """A route whose request is one `Body`. Whatever is wrong with it becomes one `ApiError` that names the field."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """FastAPI's handler with other errors behind it."""
        handler = super().get_route_handler()
        field = self.body_field
        model = None if field is None else cast(type[Body], field.field_info.annotation)

        async def read(request: Request) -> Response:
            try:
                return await handler(request)
            except RequestValidationError as error:
                if model is None:
                    raise
                problem = first_problem(error.errors(), model, error.body)
                raise ApiError(400, problem.message, param=problem.param) from None

        return read
