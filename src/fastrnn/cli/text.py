"""Texts for the commands: read and checked, as codes of their characters."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .common import SHIPPED_TEXT, CliError

MAX_ALPHABET = 1000  # one-hot codes of more characters would be wasteful
MAX_HELD_OUT = 20_000


class Text(NamedTuple):
    """A text as integer codes: ``alphabet[code]`` is the character."""

    alphabet: list[str]
    training: NDArray[np.intp]
    held_out: NDArray[np.intp]


def load_text(path: Path | None, at_least: int) -> Text:
    """Read and encode the text at ``path``, or the one that is shipped: CliError if it is unusable or too short."""
    source = path or SHIPPED_TEXT
    try:
        data = source.read_bytes()
        text = data.decode("utf-8-sig").replace("\r\n", "\n")
    except OSError as error:
        raise CliError(f"--text: cannot read {source}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise CliError(f"--text: expected UTF-8 text, but {source} is not") from None
    if "\0" in text:
        raise CliError(f"--text: expected text, but {source} has NUL characters, as binary files do")
    if len(text) < at_least:
        raise CliError(
            f"--text: expected at least {at_least:,} characters for all steps of a batch, {source} has {len(text):,}"
        )
    points, codes = np.unique(np.frombuffer(text.encode("utf-32-le"), "<u4"), return_inverse=True)
    if points.size > MAX_ALPHABET:
        raise CliError(
            f"--text: expected at most {MAX_ALPHABET} different characters, but {source} has {points.size:,}"
        )
    held_out = min(codes.size // 20, MAX_HELD_OUT)
    return Text([chr(point) for point in points], codes[:-held_out], codes[-held_out:])
