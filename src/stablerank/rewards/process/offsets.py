"""Where in the text the tokens of a completion end, for sampled ids and any tokenizer.

Legend: T tokens.

Contract: the text grows token by token, and a character belongs to the token that completes it. Nothing is tokenised
again: a policy may sample ids that no encoder would choose for the same text.

Method: each token is decoded behind the token before it, so that what decoders do at the start of a text (a leading
space dropped, as SentencePiece does) falls on what is known already; while the window ends in U+FFFD, a character is
waiting for its other bytes and the window stays open. A UTF-8 character has four bytes, so a window that is still open
after four tokens holds bytes that are no text and is closed. The cost is linear in T.

Validity: for ids that spell valid UTF-8 the text is the tokenizer's own decode of the whole. For others the number of
U+FFFD may differ, and where the decoder judges a whole run of byte tokens (SentencePiece's byte fallback), a newline
inside a broken run is lost, as it is in the decode of the whole.

Left out on purpose: reading bytes out of the vocabulary, which every kind of tokenizer spells in its own way.
"""

from collections.abc import Callable

Decode = Callable[[tuple[int, ...]], str]

UNFINISHED = "\ufffd"
LONGEST_CHARACTER = 4
"""Bytes of a UTF-8 character, and so the most tokens that one can be spread over."""


def token_ends(ids_T: tuple[int, ...], decode: Decode) -> tuple[str, list[int]]:
    """The text of ``ids_T``, and for each token the number of characters known once it is there.

    ``decode`` turns a few neighbouring ids into text, without cleaning it up. The ends never fall, and the last one is
    the length of the text.
    """
    pieces: list[str] = []
    ends_T: list[int] = []
    start = clean = known = written = 0  # ids_T[start:clean] is context: its `known` characters are written
    waiting = 0
    for after in range(1, len(ids_T) + 1):
        window = decode(ids_T[start:after])
        waiting = waiting + 1 if window.endswith(UNFINISHED) else 0
        is_closed = waiting in (0, LONGEST_CHARACTER) or after == len(ids_T)
        settled = window if is_closed else window.rstrip(UNFINISHED)
        fresh = settled[known:]
        pieces.append(fresh)
        written += len(fresh)
        ends_T.append(written)
        known = max(known, len(settled))
        # A token without text cannot be context: a decoder may drop the space of the token behind it.
        if is_closed and (fresh or after - clean >= LONGEST_CHARACTER):
            start, clean, waiting = clean, after, 0
            known = len(decode(ids_T[start:clean]))
    return "".join(pieces), ends_T
