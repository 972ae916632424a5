"""The engine that runs jobs together: rows join and leave at any step, and share what they have in common."""

from .engine import Engine, Ticket
from .limits import EngineCounters, EngineLimits

__all__ = ["Engine", "EngineCounters", "EngineLimits", "Ticket"]
