"""Text that Unicode does not allow: half of a surrogate pair, which no encoding for the wire or a file knows."""

from __future__ import annotations

from typing import Any


def readable(text: str) -> str:
    """Return `text` with U+FFFD in the place of every lone surrogate; two that make a pair become its character."""
    if text.isascii() or lone_surrogate(text) is None:
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def lone_surrogate(text: str) -> int | None:
    """Return the place of the first surrogate in `text`, None if there is none."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return error.start
    return None


def readable_tree(value: Any) -> Any:
    """Return a JSON value with `readable` texts and names. Raises RecursionError for one that nests too deep."""
    if isinstance(value, str):
        return readable(value)
    if isinstance(value, dict):
        return {readable_tree(key): readable_tree(each) for key, each in value.items()}
    if isinstance(value, list):
        return [readable_tree(each) for each in value]
    return value


class PairedText:
    """Makes the pieces of one text readable. A piece may end within a surrogate pair; that half waits for the next."""

    def __init__(self) -> None:
        self._half = ""

    def add(self, piece: str) -> str:
        """Return what is readable now."""
        if piece.isascii() and not self._half:
            return piece
        text, self._half = self._half + piece, ""
        if "\ud800" <= text[-1:] <= "\udbff":
            text, self._half = text[:-1], text[-1]
        return readable(text)

    def rest(self) -> str:
        """Return the half that waited in vain."""
        return readable(self._half)
