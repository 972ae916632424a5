"""Taking fields out of a serialised SentencePiece model, without its schema."""

from collections.abc import Iterator


def fields(data: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """(number, first byte, end, payload) of each top-level field; varints and fixed sizes have no payload."""
    at = 0
    while at < len(data):
        start = at
        key, at = _varint(data, at)
        kind = key & 7
        payload = b""
        if kind == 0:
            _, at = _varint(data, at)
        elif kind == 1:
            at += 8
        elif kind == 2:
            size, at = _varint(data, at)
            payload, at = data[at : at + size], at + size
        else:
            assert kind == 5
            at += 4
        yield key >> 3, start, at, payload


def without_fields(model: bytes, *, keep_pieces: int, trainer_fields: set[int]) -> bytes:
    """The model with its first `keep_pieces` pieces, and without some fields of its trainer's settings."""
    parts, pieces = [], 0
    for number, start, end, payload in fields(model):
        if number == 1:
            pieces += 1
            if pieces <= keep_pieces:
                parts.append(model[start:end])
        elif number == 2:
            kept = b"".join(payload[a:b] for field, a, b, _ in fields(payload) if field not in trainer_fields)
            parts.append(b"\x12" + _written(len(kept)) + kept)
        else:
            parts.append(model[start:end])
    return b"".join(parts)


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, at


def _written(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])
