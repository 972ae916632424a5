"""The engine that runs jobs together: rows join and leave at any step, and share what they have in common."""

from .counters import EngineCounters
from .engine import Engine, Ticket
from .limits import EngineLimits

__all__ = ["Engine", "EngineCounters", "EngineLimits", "Ticket"]
