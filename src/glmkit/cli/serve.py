"""`glm serve MODEL`: one model for many clients, over HTTP."""

import importlib.util
import os
import sys
from argparse import ArgumentParser, Namespace
from dataclasses import fields
from typing import Any

from glmkit.cli.text_input import add_load_arguments, add_template_argument, open_with_adapters
from glmkit.errors import RequestError, size_text
from glmkit.hub.names import existing_directory, read_name
from glmkit.serve.settings import KEYS_VARIABLE, ServeSettings, read_keys

# Packages of the extra [serve] by the module that is imported.
_PACKAGES = {
    "fastapi": "fastapi",
    "uvicorn": "uvicorn",
    "pydantic": "pydantic",
    "prometheus_client": "prometheus-client",
    "gradio": "gradio",
    "httpx": "httpx",
}
_LISTS = {
    "api_keys": ("api_key", "KEY"),
    "cors_origins": ("cors_origin", "ORIGIN"),
    "allowed_hosts": ("allowed_host", "NAME"),
    "trusted_proxies": ("trusted_proxy", "ADDRESS"),
}
_METAVARS = {int: "N", float: "SECONDS", str: "TEXT", int | None: "N", str | None: "TEXT"}


def add_arguments(parser: ArgumentParser) -> None:
    """Options of the verb."""
    parser.add_argument("model", metavar="MODEL", help="model directory, or a hub name (org/name)")
    for item in fields(ServeSettings):
        about = item.metadata["help"]
        if item.name in _LISTS:
            name, metavar = _LISTS[item.name]
            parser.add_argument(f"--{name}", metavar=metavar, action="append", type=str, default=[], help=about)
        elif item.name == "page":
            parser.add_argument("--no_page", action="store_true", help=f"leave out {about}")
        else:
            kind: Any = item.type
            unit = "" if item.default in (None, "") else " (default: %(default)s)"
            parser.add_argument(
                f"--{item.name}",
                metavar=_METAVARS[kind],
                type=str if kind in (str, str | None) else float if kind is float else int,
                default=item.default,
                help=about + unit,
            )
    parser.add_argument(
        "--api_key_file", metavar="FILE", type=str, default=None, help="a file with a key of clients on each line"
    )
    add_load_arguments(
        parser,
        adapter="directory of a LoRA or P-Tuning v2: DIR for all requests, or NAME=DIR, which may "
        "be repeated, for those that ask for model MODEL:NAME",
    )
    add_template_argument(parser, ", for every model and adapter")


def run(args: Namespace) -> int:
    """Serve until SIGTERM or Ctrl-C; accepted requests are finished first."""
    settings = _settings(args)
    _check_packages(settings.page)
    from glmkit.serve.log import patient_stderr

    with patient_stderr():
        status = _serve(args, settings)
    if status > 128:  # a second signal: whatever still computes is not waited for
        os._exit(status)
    return status


def _serve(args: Namespace, settings: ServeSettings) -> int:
    from glmkit.serve.app import create_app
    from glmkit.serve.listener import bind
    from glmkit.serve.server import run as run_server

    listening = bind(settings)
    try:
        lm = open_with_adapters(args)
        app = create_app(lm, settings)
        host, port = listening[0].getsockname()[:2]
        url = f"http://{f'[{host}]' if ':' in host else host}:{port}{settings.root_path}"
        engine = lm.engine
        line = (
            f"glm serve: {url}  model {', '.join(app.state.glm.models)}, cache {size_text(engine.cache_bytes)} for "
            f"{engine.limits.tokens:,} tokens, {engine.limits.rows} answers at once"
        )
        for name, adapter in app.state.glm.models.items():
            if about := lm.wording_for(adapter).about():
                print(f"glm serve: {name}: {about}", file=sys.stderr)
        if args.api_key:
            print(
                "glm serve: warning: other users of this machine can see a key of --api_key in its list of processes; "
                f"use --api_key_file or the variable {KEYS_VARIABLE}",
                file=sys.stderr,
            )
        if not settings.loopback and not settings.api_keys:
            print(
                f"glm serve: warning: everybody who reaches {settings.host} may use this server; "
                "ask for a key with --api_key_file",
                file=sys.stderr,
            )
        return run_server(app, settings, listening, lambda: print(line, file=sys.stderr, flush=True))
    finally:
        for one in listening:
            one.close()


def _settings(args: Namespace) -> ServeSettings:
    values = {item.name: getattr(args, item.name) for item in fields(ServeSettings) if item.name in vars(args)}
    name = read_name(args.model) if existing_directory(args.model) is None else None
    if values["model_id"] is None and name is not None:  # the directory in a hub's cache is called by its commit
        values["model_id"] = name.repository
    return ServeSettings(
        **values,
        page=not args.no_page,
        api_keys=read_keys(args.api_key, args.api_key_file),
        cors_origins=tuple(args.cors_origin),
        allowed_hosts=tuple(args.allowed_host),
        trusted_proxies=tuple(args.trusted_proxy),
    )


def _check_packages(page: bool) -> None:
    needed = {module: name for module, name in _PACKAGES.items() if page or module != "gradio"}
    missing = [name for module, name in needed.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise RequestError(f"glm serve needs {', '.join(missing)}; run: pip install 'glmkit[serve]'")
