"""The engine of a loaded model: made at first use, told when weights change, with the adapters that requests choose."""

import os
import threading
from collections.abc import Mapping

from glmkit.adapters.adapter import AdapterInfo
from glmkit.adapters.named import NamedAdapters, unknown_adapter
from glmkit.errors import RequestError
from glmkit.loading import Parts, adapted, warn_of_use
from glmkit.model.parameters import Fingerprint

from .engine import Engine, EngineLimits
from .engine.ticket import check_process
from .job_maker import JobMaker
from .params import MAX_BEAMS


class ModelEngine:
    """Engine, named adapters and jobs of one model. May be used from several threads."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        family = parts.family
        layouts = () if family is None else family.layouts
        layout = next((layout for layout in layouts if layout.name == parts.layout), None)
        self._adapters = NamedAdapters(parts.model, family, layout)
        self._makers: dict[str | None, JobMaker] = {None: JobMaker(parts)}  # replaced, never changed: read unlocked
        self._engine: Engine | None = None
        self._weights: Fingerprint | None = None  # of the weights that filled the engine's cache
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._changes = threading.Lock()  # of adapters, whose files may take long to read

    def current(self) -> Engine:
        """The engine. After a change of the weights it has forgotten what it read.

        Raises RequestError while the model is in training mode, in a process that was forked from the one that loaded
        it, and when tensors were replaced for which adapters were read.
        """
        check_process(self._process)
        if any(module.training for module in self._parts.model.modules()):
            raise RequestError("the model is in training mode, in which dropout may be on; call lm.model.eval() first")
        with self._lock:
            self._adapters.check_base()
            weights = Fingerprint.of(self._adapters.joined)
            if self._engine is None or self._engine.ended:
                self._engine = Engine(self._adapters.joined, EngineLimits(rows=MAX_BEAMS))
            elif weights != self._weights:
                self._engine.reread()
            self._weights = weights
            return self._engine

    def start(self, limits: EngineLimits | None, *, allocate: bool) -> Engine:
        """Replace the engine by one with these limits; see `LM.start_engine`."""
        check_process(self._process)
        with self._lock:
            engine = self._engine
            if engine is not None:
                if engine.open_tickets:
                    raise RequestError(
                        f"{engine.open_tickets} requests run on the engine; replace it when they are done"
                    )
                engine.close()
            self._engine = engine = None  # its memory is free for the new one
            self._engine = Engine(self._adapters.joined, limits, allocate=allocate)
            self._weights = Fingerprint.of(self._adapters.joined)
            return self._engine

    @property
    def adapters(self) -> Mapping[str, AdapterInfo]:
        """Facts about the adapters, by name."""
        return self._adapters.infos

    def jobs(self, adapter: str | None) -> JobMaker:
        """Maker of jobs for an adapter, None for the model alone. Raises RequestError for an unknown name."""
        maker = self._makers.get(adapter)
        if maker is None:
            raise unknown_adapter(str(adapter), filter(None, self._makers))
        return maker

    def add(self, name: str, directory: str | os.PathLike[str], alpha: float | None) -> AdapterInfo:
        """Read one more adapter; see `LM.add_adapter`."""
        check_process(self._process)
        with self._changes:
            adapters = self._adapters.added(name, directory, alpha=alpha)
            parts = adapted(self._parts, adapters.adapter(name))
            warn_of_use(parts, str(directory))
            self._exchange(adapters, {**self._makers, name: JobMaker(parts, name)})
            return adapters.infos[name]

    def remove(self, name: str) -> None:
        """Take an adapter away; see `LM.remove_adapter`."""
        check_process(self._process)
        with self._changes:
            adapters = self._adapters.removed(name)
            self._exchange(adapters, {other: maker for other, maker in self._makers.items() if other != name})

    def _exchange(self, adapters: NamedAdapters, makers: dict[str | None, JobMaker]) -> None:
        with self._lock:
            if self._engine is not None and not self._engine.ended:
                self._engine.exchange(adapters.joined)
                self._weights = Fingerprint.of(adapters.joined)
            self._adapters, self._makers = adapters, makers
