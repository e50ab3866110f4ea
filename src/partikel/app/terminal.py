"""What a terminal cannot write is written in other letters: σ as sigma, λ² as lambda^2."""

from __future__ import annotations

import codecs
import unicodedata
from typing import Any

_NAMES = {"−": "-", "–": "-", "—": "-", "×": "x", "·": ".", "±": "+-", "…": "...", "→": "->"}
_NAMES |= {"≥": ">=", "≤": "<=", "≠": "!=", "∞": "inf", "′": "'", "’": "'", "‖": "||", "½": "1/2"}
_NAMES |= {"∇": "grad ", "∫": "integral ", "√": "sqrt", "ᵀ": "^T", "∘": " o ", "∂": "d", "∈": "in"}
_NAMES |= {"λ": "lambda", "Λ": "Lambda"}


def degrade(*streams: Any) -> None:
    """Let text streams write what their encoding has not in other letters, instead of failing."""
    for stream in streams:
        if getattr(stream, "errors", None) in ("strict", "backslashreplace"):
            stream.reconfigure(errors="partikel")


def _other_letters(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    letter, after = error.object[error.start], error.start + 1
    if "\udc80" <= letter <= "\udcff":  # a byte of a file's name that is no text
        return f"\\x{ord(letter) - 0xDC00:02x}", after
    return _plain(letter), after


def _plain(letter: str) -> str:
    """A letter in ASCII."""
    if letter in _NAMES or unicodedata.combining(letter):
        return _NAMES.get(letter, "")
    name = unicodedata.name(letter, "")
    if name.startswith("GREEK SMALL LETTER "):
        return name.split()[3].lower()
    if name.startswith("GREEK CAPITAL LETTER "):
        return name.split()[3].capitalize()
    if name.startswith("BOX DRAWINGS"):
        return "|" if "VERTICAL" in name else "-"
    raised = {"<super>": "^", "<sub>": "_"}.get(unicodedata.decomposition(letter).split(" ")[0], "")
    written = unicodedata.normalize("NFKD", letter).encode("ascii", "ignore").decode()
    return f"{raised}{written}" if written else "?"


codecs.register_error("partikel", _other_letters)
