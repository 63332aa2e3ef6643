"""PNG and JPEG -> frames by Pillow; PNGs of 16-bit colours, of which it takes the upper byte, by torchvision."""

import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from matalign.data.readers import frames
from matalign.data.readers.frames import Frame, Piece, check_decoded, luminance


def read(path: Path) -> list[Frame]:
    """The images of a PNG, JPEG or TIFF; colours are luminance of 8 bits."""
    from PIL import Image

    with Image.open(path, formats=("PNG", "JPEG", "TIFF")) as image:
        grey = _grey(image.mode)
        dtype = _pillow_dtype(image.mode)
        notes = () if grey else ("colours made luminance",)
        orientation = 1 if image.format == "TIFF" else Image.Image.getexif(image).get(0x0112, 1)  # PNG's own decodes
        shape = (image.size[1], image.size[0])
        return [
            Frame(shape, dtype, lambda k=k: _pillow_pieces(path, k), (), orientation, notes)
            for k in range(getattr(image, "n_frames", 1))
        ]


def _grey(mode: str) -> bool:
    return mode in ("1", "L", "I", "F") or mode.startswith("I;16")


def _pillow_dtype(mode: str) -> np.dtype:
    return np.dtype({"I": np.int32, "F": np.float32}.get(mode, np.uint16 if mode.startswith("I;16") else np.uint8))


def _pillow_pieces(path: Path, number: int) -> Iterator[Piece]:
    from PIL import Image

    with Image.open(path, formats=("PNG", "JPEG", "TIFF")) as image:
        image.seek(number)
        width, height = image.size
        step = max(1, frames.PIECE_BYTES // (4 * width))
        for top in range(0, height, step):
            part = image.crop((0, top, width, min(height, top + step)))
            block = np.asarray(part if _grey(image.mode) else part.convert("L"))
            yield (slice(top, top + len(block)), slice(0, width)), block


def read_png16(path: Path) -> list[Frame]:
    """A PNG of 16-bit colours, or of grey with alpha."""
    with open(path, "rb") as stream:
        width, height, _, colour = struct.unpack(">IIBB", stream.read(26)[16:])
    samples = {2: 3, 4: 2, 6: 4}[colour]
    check_decoded(height * width * samples * 2)
    notes = ("colours made luminance",) if samples > 2 else ()
    return [Frame((height, width), np.dtype(np.float32), lambda: _png16_pieces(path, samples), (), 1, notes)]


def _png16_pieces(path: Path, samples: int) -> Iterator[Piece]:
    import torch
    from torchvision.io import decode_png

    found = decode_png(torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.uint8)).numpy()
    step = max(1, frames.PIECE_BYTES // (16 * found.shape[2]))
    for top in range(0, found.shape[1], step):
        block = np.moveaxis(found[:, top : top + step], 0, -1)
        yield (
            (slice(top, top + len(block)), slice(0, block.shape[1])),
            luminance(block[..., :3]) if samples > 2 else block[..., 0],
        )
