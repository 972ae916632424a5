"""The engine that runs jobs together: sequences join and leave at any step, and share what they have in common."""

from .core import EngineCore
from .engine import Engine
from .limits import EngineCounters, EngineLimits, Snapshot
from .ticket import Batch, Ticket

__all__ = ["Batch", "Engine", "EngineCore", "EngineCounters", "EngineLimits", "Snapshot", "Ticket"]
