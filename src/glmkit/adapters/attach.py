"""One adapter on one model: put on, switched off, trained, taken away or made permanent."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from glmkit.errors import RequestError
from glmkit.families.common.layout import Layout
from glmkit.families.family import Family
from glmkit.model import GLM
from glmkit.tokenizer.protocol import Tokenizer

from .adapter import Adapter, AdapterInfo, Base, NewAdapter
from .base_facts import base_facts


def find_attached(model: GLM) -> Adapter | None:
    """The adapter on a model, or None."""
    found = model.__dict__.get("_adapter")
    assert found is None or isinstance(found, Adapter)
    return found


def attached(model: GLM) -> Adapter:
    """The adapter on a model. Raises RequestError when there is none."""
    found = find_attached(model)
    if found is None:
        raise RequestError("the model carries no adapter", step="apply one first")
    return found


def refuse_second(model: GLM) -> None:
    """Raise RequestError when the model carries an adapter: one at a time."""
    old = find_attached(model)
    if old is not None:
        raise RequestError(
            f"the model carries an adapter already ({old.info.path or 'a new one'})", step="merge or detach it"
        )


def put_on(model: GLM, adapter: Adapter, *, trainable: bool) -> AdapterInfo:
    """Put an adapter on its base. trainable: see `set_trainable`. Raises RequestError when there is one already."""
    refuse_second(model)
    adapter.trained = trainable
    adapter.base = base_facts(Base(model))
    adapter.put_on(model)
    model.__dict__["_adapter"] = adapter
    set_trainable(model, trainable)
    return adapter.info


def new_adapter(
    model: GLM,
    options: NewAdapter,
    *,
    family: Family | None = None,
    layout: Layout | None = None,
    tokenizer: Tokenizer | None = None,
    seed: int | None = None,
) -> AdapterInfo:
    """Put an untrained adapter on the model, trainable, the rest frozen.

    options: those of a kind (`Adapter.options`). family, layout: whose module names they may use, see
    `naming.namings`. tokenizer: has the tokens that the options add (`composed.with_new_tokens`). seed: decides the
    first values, whatever was drawn before; without one torch's generator does. Raises ConfigError for options that do
    not fit, RequestError when there is an adapter already.
    """
    refuse_second(model)
    base = Base(model, family, layout, tokenizer)
    with torch.random.fork_rng(devices=[], enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        adapter = options.build(base)
    adapter.tokenizer = tokenizer
    return put_on(model, adapter, trainable=True)


def set_trainable(model: GLM, trainable: bool) -> None:
    """Give the adapter's parameters gradients and every other one of the model none, until it is taken away; or undo.

    Raises RequestError when there is no adapter.
    """
    adapter = attached(model)
    _release(adapter)
    if adapter.trained != trainable:
        adapter.take_off(model)
        adapter.trained = trainable
        adapter.put_on(model)
    own = {id(parameter): parameter for parameter in adapter.parameters()}
    for parameter in own.values():
        parameter.requires_grad_(trainable)
    if trainable:
        adapter.frozen = [p for p in model.parameters() if p.requires_grad and id(p) not in own]
        for parameter in adapter.frozen:
            parameter.requires_grad_(False)


def detach_adapter(model: GLM) -> AdapterInfo:
    """Take the adapter away: the model is what it was before, bit for bit. Raises RequestError when there is none."""
    adapter = attached(model)
    adapter.take_off(model)
    return _forget(model, adapter)


def merge_adapter(model: GLM) -> AdapterInfo:
    """Make the adapter permanent: what it does goes into the weights.

    Raises RequestError when there is none, and where that cannot be done (prefixes, quantised weights); then nothing
    has changed.
    """
    adapter = attached(model)
    adapter.merge(model)
    return _forget(model, adapter)


@contextmanager
def adapter_off(model: GLM) -> Iterator[None]:
    """Take the adapter off inside the block. Raises RequestError when there is none."""
    adapter = attached(model)
    adapter.take_off(model)
    try:
        yield
    finally:
        adapter.put_on(model)


def _release(adapter: Adapter) -> None:
    for parameter in adapter.frozen:
        parameter.requires_grad_(True)
    adapter.frozen = []


def _forget(model: GLM, adapter: Adapter) -> AdapterInfo:
    _release(adapter)
    del model.__dict__["_adapter"]
    return adapter.info
