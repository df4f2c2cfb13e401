"""Seals: a SHA-256 over what JSON says, kept beside it, so that a later edit shows.

Contract: two values that JSON tells apart have different canonical bytes, and equal ones the same, whatever the order
of their keys or the layout of the file they came from. A number is its shortest decimal that reads back to it, so that
1 and 1.0 differ. Not finite numbers have no JSON and are refused: write None.

A seal holds against accident and against editing by hand. It is no signature: who recomputes it is not detected.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

SEAL = "sha256"
_encode = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False).encode


def canonical_json(value: Any) -> bytes:
    """The one way to write a value as JSON: ASCII, keys sorted, no spaces.

    Raises:
        ValueError: NaN or an infinity.
        TypeError: something that JSON has no form for.
    """
    return _encode(value).encode("ascii")


def digest(value: Any) -> str:
    """Hexadecimal SHA-256 of the canonical JSON; raises like `canonical_json`."""
    return hashlib.sha256(canonical_json(value)).hexdigest()


def seal(result: dict[str, Any]) -> dict[str, Any]:
    """The result as a file will give it back, with the digest of all its other keys under ``sha256``.

    A number that is not finite becomes None; an earlier seal is replaced.

    Raises:
        TypeError: something that JSON has no form for.
    """
    # Through JSON first: a tuple, or a key that is a number, would come back from the file as something else.
    plain = json.loads(json.dumps(_unsealed(result)), parse_constant=lambda name: None)
    return {**plain, SEAL: digest(plain)}


def is_sealed(result: Mapping[str, Any]) -> bool:
    """Whether a result, as parsed from its file, is what its seal was computed over."""
    try:
        return result.get(SEAL) == digest(_unsealed(result))
    except ValueError:  # a number that is not finite was never sealed
        return False


def _unsealed(result: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in result.items() if key != SEAL}
