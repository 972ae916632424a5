"""What an engine has done since it was made."""

from dataclasses import dataclass


@dataclass
class EngineCounters:
    """All count upwards. fed_tokens: through the model, of which read_tokens are prompts and rows read again.

    reused_tokens: of prompts, found in the cache. decode_rows: rows that went on, summed over steps. drafted: tokens
    that jobs fed ahead of the model's choice; accepted: those of them that stayed.
    """

    steps: int = 0
    fed_tokens: int = 0
    read_tokens: int = 0
    reused_tokens: int = 0
    decode_rows: int = 0
    preemptions: int = 0
    drafted: int = 0
    accepted: int = 0
