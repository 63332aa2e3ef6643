"""Image files -> frames: electron microscopes' formats by rosettasciio, PNG and JPEG by Pillow, TIFF by `tiff_files`.

RosettaSciIO 0.15 takes the signed bytes of MRC (mode 0) for unsigned, and numbers of whatever byte order for those of
this machine; both are mended here. Of PNGs with 16-bit colours Pillow takes the upper byte: torchvision decodes them.
"""

import importlib
import math
import struct
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

KINDS = "PNG, JPEG, TIFF, dm3, dm4, emd, mrc, ser"
MAX_FRAMES = 100_000  # that are counted
MAX_EAGER_BYTES = 2**29  # of a file that can only be read at once
LUMINANCE = np.array([0.299, 0.587, 0.114], np.float32)  # of red, green and blue, ITU-R 601
COLOURED = ("colours made luminance",)
Scale = tuple[float, str]  # length of a pixel's side, its unit


@dataclass(frozen=True)
class Frame:
    """One image of a file, not yet decoded."""

    shape: tuple[int, int]  # (height, width) as stored
    dtype: np.dtype  # of the numbers that `decode` gives
    decode: Callable[[], np.ndarray]  # gives the pixels, (height, width)
    scales: tuple[Scale, ...] = ()  # of rows and columns by the file; () where it states none
    orientation: int = 1  # TIFF's number, 1: the first row is the top, the first column the left
    notes: tuple[str, ...] = ()  # what is done to the numbers
    samples: int = 1  # numbers that are decoded for each pixel


def read(path: Path) -> list[Frame]:
    """The images in a file, by first bytes and suffix; ValueError if it is of no kind that is read, or broken."""
    with open(path, "rb") as stream:
        head = stream.read(1024)
    reader = _reader(head, path.suffix.lower())
    if reader is None:
        raise ValueError(f"unreadable; expected an image of the kinds {KINDS}")
    with reading():
        found = reader(path)
    if not found:
        raise ValueError("no image in it: spectra and curves are not taken")
    return found


@contextmanager
def reading() -> Iterator[None]:
    """Whatever a parser raises of a broken file is a ValueError; its warnings are not ours."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        except Exception as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
            raise ValueError(reason if reason.startswith("unreadable") else f"unreadable: {reason}") from None


def _reader(head: bytes, suffix: str) -> Callable[[Path], list[Frame]] | None:
    if head.startswith((b"\x89PNG\r\n", b"\xff\xd8\xff")):
        deep = head[:1] == b"\x89" and head[24:25] == b"\x10" and head[25:26] in b"\2\4\6"
        return _png16 if deep else pillow
    if head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        from matalign.data.readers import tiff_files

        return tiff_files.read
    if head[:4] == b"II\x97\x01":
        return lambda path: _rosetta(path, "tia")
    if (head[:4], head[8:12]) == (b"\0\0\0\3", b"\0\0\0\1") or (head[:4], head[12:16]) == (b"\0\0\0\4", b"\0\0\0\1"):
        return lambda path: _rosetta(path, "digitalmicrograph")
    if head[:8] == b"\x89HDF\r\n\x1a\n":
        return lambda path: _rosetta(path, "emd", select_type="images")
    if len(head) == 1024 and (head[208:212] == b"MAP " or suffix == ".mrc"):
        return _mrc
    return None


def luminance(colours: np.ndarray) -> np.ndarray:
    """(…, 3) red, green, blue -> (…); of bytes in whole numbers, as Pillow makes them."""
    from PIL import Image

    if colours.dtype == np.uint8:
        return np.asarray(Image.fromarray(np.ascontiguousarray(colours)).convert("L"))
    return colours.astype(np.result_type(colours.dtype, np.float32)) @ LUMINANCE


def pillow(path: Path) -> list[Frame]:
    """The images of a PNG, JPEG or TIFF; colours are luminance of 8 bits."""
    from PIL import Image

    def decode(number: int) -> np.ndarray:
        with Image.open(path, formats=("PNG", "JPEG", "TIFF")) as image:
            image.seek(number)
            return np.asarray(image if grey else image.convert("L"))

    with Image.open(path, formats=("PNG", "JPEG", "TIFF")) as image:
        deep = "uint16" if image.mode.startswith("I;16") else {"I": "int32", "F": "float32"}.get(image.mode)
        grey = deep or image.mode in ("1", "L")
        orientation = 1 if image.format == "TIFF" else Image.Image.getexif(image).get(0x0112, 1)  # PNG's own decodes
        about = {"orientation": orientation, "notes": () if grey else COLOURED}
        dtype, count = np.dtype(deep or "uint8"), getattr(image, "n_frames", 1)
        return [Frame(image.size[::-1], dtype, lambda k=k: decode(k), **about) for k in range(count)]


def _png16(path: Path) -> list[Frame]:
    """A PNG of 16-bit colours, or of grey with alpha."""
    with open(path, "rb") as stream:
        width, height, _, colour = struct.unpack(">IIBB", stream.read(26)[16:])

    def decode() -> np.ndarray:
        import torch
        from torchvision.io import decode_png

        found = decode_png(torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.uint8)).numpy()
        return luminance(np.moveaxis(found[:3], 0, -1)) if coloured else found[0]

    coloured, samples = colour != 4, {2: 3, 4: 2, 6: 4}[colour]
    dtype, notes = np.dtype(np.float32), COLOURED if coloured else ()
    return [Frame((height, width), dtype, decode, notes=notes, samples=samples)]


def _rosetta(path: Path, kind: str, **options: Any) -> list[Frame]:
    reader = importlib.import_module(f"rsciio.{kind}").file_reader
    try:
        signals = reader(str(path), lazy=True, **options)
    except (ValueError, NotImplementedError):  # of colours, and of what has no chunks, it makes none lazily
        if path.stat().st_size > MAX_EAGER_BYTES:
            raise ValueError(f"over {MAX_EAGER_BYTES >> 20} MB in one piece: crop or bin it") from None
        signals = reader(str(path), lazy=False, **options)
    return [frame for signal in signals for frame in _planes(signal["data"], signal["axes"])]


def _planes(data: Any, axes: list[dict[str, Any]]) -> Iterator[Frame]:
    """The images of a signal; none if it is a spectrum or a map of spectra."""
    image = [0, 1] if data.ndim == 2 else [i for i, axis in enumerate(axes) if not axis.get("navigate")]
    if len(image) != 2 or any(str(axes[i].get("units")) == "eV" for i in image):
        return
    stack = [n for i, n in enumerate(data.shape) if i not in image]
    check_count(math.prod(stack))
    data = np.moveaxis(data, image, (-2, -1)) if image != [data.ndim - 2, data.ndim - 1] else data
    scales = tuple((float(axes[i].get("scale", 0)), str(axes[i].get("units") or "")) for i in image)
    dtype = np.dtype(np.uint8) if data.dtype.names else data.dtype  # colours of the microscopes' files are bytes
    for index in np.ndindex(*stack):
        yield Frame(data.shape[-2:], dtype, lambda plane=data[index]: _decoded(plane), scales)


def _decoded(plane: Any) -> np.ndarray:
    plane = plane.compute(scheduler="synchronous") if hasattr(plane, "compute") else np.asarray(plane)
    return luminance(np.stack([plane[name] for name in "RGB"], -1)) if plane.dtype.names else plane


def check_count(frames: int) -> None:
    """Raise a ValueError if they are too many to be counted."""
    if frames > MAX_FRAMES:
        raise ValueError(f"{frames} frames; at most {MAX_FRAMES} are counted")


def _mrc(path: Path) -> list[Frame]:
    """By https://www.ccpem.ac.uk/mrc-format/mrc2014/: bytes are signed, unless IMOD's flag says otherwise."""
    with open(path, "rb") as stream:
        head = stream.read(1024)
    order = ">" if head[212:214] == b"\x11\x11" else "<"
    *sides, mode, mx, my = struct.unpack_from(f"{order}4i12x2I", head)
    size = math.prod(sides) * {1: 2, 2: 4, 3: 4, 4: 8, 6: 2, 12: 2}.get(mode, 1)
    if min(sides) < 1 or size > path.stat().st_size:  # of which RosettaSciIO counts pieces without end
        raise ValueError(f"{' × '.join(map(str, sides))} pixels in {path.stat().st_size} bytes")
    stamp, flags = struct.unpack_from(f"{order}2i", head, 152)
    signed = mode == 0 and (stamp != 1146047817 or flags & 1)

    def mended(frame: Frame) -> Frame:
        dtype = np.dtype(np.int8) if signed else frame.dtype.newbyteorder(order)
        scales = frame.scales if mx and my else ()
        return replace(
            frame, dtype=dtype, decode=lambda: np.ascontiguousarray(frame.decode()).view(dtype), scales=scales
        )

    return [mended(frame) for frame in _rosetta(path, "mrc", endianness=order, metadata_file=None)]
