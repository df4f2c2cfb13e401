"""Values between the code under test and its judge: plain data as tagged JSON, anything else by number.

What arrives is made of exact built-in types, whatever the sender did: no ``__eq__`` of the code under test can be
among it. Standard library only.
"""

import json
from collections.abc import Callable
from typing import Any

Keep = Callable[[Any], int]
Find = Callable[[int], Any]
_Sequence = type[list[Any]] | type[tuple[Any, ...]] | type[set[Any]] | type[frozenset[Any]]
_SEQUENCES: dict[str, _Sequence] = {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset}


def dumps(value: Any, keep: Keep) -> bytes:
    """One line. ``keep`` numbers what is no plain data, or raises TypeError."""
    return json.dumps(_encoded(value, keep)).encode() + b"\n"


def loads(line: bytes, find: Find) -> Any:
    """The value of one line; ``find`` gives the object of a number. Raises ValueError or RecursionError."""
    return _decoded(json.loads(line), find)


def _encoded(value: Any, keep: Keep) -> Any:
    for plain in (bool, int, float, str):
        if isinstance(value, plain):
            return plain(value)
    if value is None:
        return None
    for tag, sequence in _SEQUENCES.items():
        if isinstance(value, sequence):
            return {tag: [_encoded(item, keep) for item in value]}
    if isinstance(value, dict):
        return {"dict": [[_encoded(key, keep), _encoded(item, keep)] for key, item in value.items()]}
    if isinstance(value, bytes | bytearray):
        return {"bytes": value.hex()}
    if isinstance(value, complex):
        return {"complex": [value.real, value.imag]}
    return {"object": keep(value)}


def _decoded(value: Any, find: Find) -> Any:
    if not isinstance(value, dict):
        if isinstance(value, list):
            raise ValueError("a list without a tag")
        return value
    [(tag, content)] = value.items()
    if tag in _SEQUENCES:
        return _SEQUENCES[tag](_decoded(item, find) for item in content)
    if tag == "dict":
        return {_decoded(key, find): _decoded(item, find) for key, item in content}
    if tag == "bytes":
        return bytes.fromhex(content)
    if tag == "complex":
        return complex(*content)
    if tag == "object":
        return find(int(content))
    raise ValueError(f"unknown tag {tag!r:.20}")
