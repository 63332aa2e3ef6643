"""A frame: one image of a file, which says its size and the file's own scale before a pixel is decoded."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

MAX_DECODED_BYTES = 2**29  # of what a decoder gives in one piece
PIECE_BYTES = 2**26
INDEXED_FRAMES = 100_000
# Of red, green and blue in ITU-R 601 luminance, in 1/65536, as Pillow has them.
LUMINANCE = np.array([19595, 38470, 7471]) / 65536
Piece = tuple[tuple[slice, slice], np.ndarray]  # where in the stored image, (rows, columns) of counts
Scale = tuple[float, str]  # length of a pixel's side, its unit


@dataclass(frozen=True)
class Frame:
    """One image of a file, not yet decoded.

    Attributes:
        shape: (height, width) as stored.
        dtype: of the stored numbers.
        pieces: gives the pixels, piece after piece.
        scales: of rows and columns by the file; () where it states none.
        orientation: TIFF's number, 1: the first row is the top, the first column the left.
        notes: what was done to the numbers.
    """

    shape: tuple[int, int]
    dtype: np.dtype
    pieces: Callable[[], Iterator[Piece]]
    scales: tuple[Scale, ...] = ()
    orientation: int = 1
    notes: tuple[str, ...] = ()


@contextmanager
def reading() -> Iterator[None]:
    """Whatever a parser raises of a broken file is a ValueError; its warnings are not ours."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        except Exception as error:
            reason = _line(error)
            raise ValueError(reason if reason.startswith("unreadable") else f"unreadable: {reason}") from None


def _line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]


def luminance(colours: np.ndarray) -> np.ndarray:
    """(…, 3) red, green, blue -> (…); of bytes in whole numbers, as Pillow makes them."""
    grey = colours.astype(np.float64) @ LUMINANCE
    return np.floor(grey + 0.5).astype(np.uint8) if colours.dtype == np.uint8 else grey


def check_decoded(size: int) -> None:
    """Raise a ValueError if so many bytes would come in one piece."""
    if size > MAX_DECODED_BYTES:
        raise ValueError(f"{size / 2**20:.0f} MB in one piece; at most {MAX_DECODED_BYTES // 2**20} MB: crop or bin it")
