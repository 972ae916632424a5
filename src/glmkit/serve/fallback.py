"""What is said of paths and methods that do not exist."""

from collections.abc import Sequence

from fastapi import APIRouter, FastAPI
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from .error_responses import ApiError

_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE")


def add_fallbacks(app: FastAPI, routers: Sequence[APIRouter], *, page: bool) -> None:
    """404 for unknown paths, 405 with Allow for known ones, and OPTIONS, in our shape.

    To be called when the endpoints of `routers` are there and before the page is: the page takes every path that is
    left, and what lies under /v1 or is an endpoint's own is answered here all the same.
    """
    routes = [route for router in routers for route in router.routes if isinstance(route, Route)]
    routes += [route for route in app.router.routes if isinstance(route, Route)]  # the document's own

    async def answer(request: Request) -> Response:
        path = request.scope["path"].removeprefix(request.scope.get("root_path", "")) or "/"
        methods = {method for route in routes if route.path_regex.match(path) for method in route.methods or ()}
        if page and path == "/":
            methods.add("GET")
        if not methods:
            raise ApiError(404, "there is nothing at this path; see /openapi.json", code="not_found")
        methods |= {"HEAD", "OPTIONS"} if "GET" in methods else {"OPTIONS"}
        allow = {"allow": ", ".join(sorted(methods))}
        if request.method == "OPTIONS":
            return Response(status_code=204, headers=allow)
        message = f"this path takes {allow['allow']} only"
        raise ApiError(405, message, code="method_not_allowed", headers=allow)

    for path in sorted({route.path for route in routes}):
        taken = {method for route in routes if route.path == path for method in route.methods or ()}
        taken |= {"GET", "HEAD"} if page and path == "/" else set()
        others = [method for method in _METHODS if method not in taken]
        app.router.routes.append(Route(path, answer, methods=others, include_in_schema=False))
    for path in ("/v1", "/v1/{rest:path}") if page else ("/{rest:path}",):
        app.router.routes.append(Route(path, answer, methods=_METHODS, include_in_schema=False))
