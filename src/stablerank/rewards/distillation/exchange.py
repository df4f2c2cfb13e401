"""One question to a server and its answer, as JSON over HTTP, with bounded patience.

Contract: only the address that was given is contacted, directly: no proxy, no redirect. A question has ``timeout``
seconds to be answered; whatever else happens than a JSON answer is a `Failure` that says what.

Left out on purpose: keys and passwords (a recipe is no place for them), kept connections, streaming.
"""

import json
import time
from contextlib import closing
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from typing import Any
from urllib.parse import urlsplit

WORTH_REPEATING = frozenset({408, 425, 429})
"""Refusals (4xx) that pass; the other ones are final."""


class Failure(Exception):
    """A question without a usable answer; ``final`` where asking again cannot help."""

    def __init__(self, reason: str, final: bool = False) -> None:
        super().__init__(reason)
        self.final = final


def post_json(url: str, question: dict[str, Any], timeout: float) -> Any:
    """The server's answer, parsed. Raises Failure; takes at most twice ``timeout`` seconds."""
    parts = urlsplit(url)
    connect = HTTPSConnection if parts.scheme == "https" else HTTPConnection
    deadline = time.monotonic() + timeout
    try:
        with closing(connect(parts.hostname or "", parts.port, timeout=timeout)) as connection:
            connection.request("POST", parts.path, json.dumps(question), {"Content-Type": "application/json"})
            response = connection.getresponse()
            body = _body(response, deadline)
    except TimeoutError:
        raise Failure(f"no answer within {timeout:g} s") from None
    except (OSError, HTTPException, ValueError) as error:  # ValueError: an address that is none
        raise Failure(f"{type(error).__name__}: {one_line(str(error))}") from None
    if response.status != 200:
        final = 300 <= response.status < 500 and response.status not in WORTH_REPEATING
        raise Failure(f"HTTP {response.status}: {one_line(body.decode(errors='replace'))}", final)
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        raise Failure(f"not JSON: {one_line(body.decode(errors='replace'))}") from None


def one_line(text: str) -> str:
    """Foreign text for a message: one printable line, 200 characters at most."""
    return "".join(character if character.isprintable() else " " for character in text[:200]).strip()


def _body(response: HTTPResponse, deadline: float) -> bytes:
    """Read to the end; the socket's own timeout begins anew with every byte of a server that drips."""
    chunks = []
    while chunk := response.read1(2**16):
        chunks.append(chunk)
        if time.monotonic() > deadline:
            raise TimeoutError
    return b"".join(chunks)
