"""Small files of electron microscopes' formats, written by hand from the formats' descriptions."""

import json
import struct
import zlib

import h5py
import numpy as np

DM_TYPES = {"int16": (1, 2), "float32": (2, 6), "uint8": (6, 8), "int32": (7, 3), "int8": (9, 9), "uint16": (10, 4),
            "uint32": (11, 5), "float64": (12, 7)}  # fmt: skip


def dm(counts, *, version=3, scale=0.02, unit="nm", kind=None):
    """Bytes of a .dm3 or .dm4 with one image, or a stack (frames, height, width)."""
    number = "q" if version == 4 else "l"
    number = f">{'q' if number == 'q' else 'i'}"
    image_type, element = DM_TYPES[str(counts.dtype)]

    def ints(*values):
        return b"".join(struct.pack(number, value) for value in values)

    def group(entries, *, root=False):
        body = b"".join(entries)
        size = ints(len(body)) if version == 4 and not root else b""
        return b"\1\0" + size + ints(len(entries)) + body

    def named(tag, name, content):
        return bytes([tag]) + struct.pack(">h", len(name)) + name.encode() + content

    def subgroup(name, entries):
        return named(20, name, group(entries))

    def data(name, infos, content):
        size = b"\0" * 8 if version == 4 else b""
        return named(21, name, size + b"%%%%" + ints(len(infos), *infos) + content)

    def ulong(name, value):
        return data(name, [5], struct.pack("<I", value))

    def real(name, value):
        return data(name, [6], struct.pack("<f", value))

    def text(name, value):
        return data(name, [20, 4, len(value)], value.encode("utf-16-le"))

    calibration = [real("Origin", 0), real("Scale", scale), text("Units", unit)]
    sizes = counts.shape[::-1]
    image = [
        subgroup(
            "Calibrations",
            [subgroup("Brightness", calibration), subgroup("Dimension", [subgroup("", calibration) for _ in sizes])],
        ),
        data("Data", [20, element, counts.size], counts.astype(counts.dtype.newbyteorder("<")).tobytes()),
        ulong("DataType", kind or image_type),
        subgroup("Dimensions", [ulong("", n) for n in sizes]),
    ]
    images = [subgroup("", [subgroup("ImageData", image), subgroup("ImageTags", []), text("Name", "test")])]
    root = group([subgroup("ImageList", images)], root=True)
    return struct.pack(">i", version) + ints(len(root)) + struct.pack(">i", 1) + root + b"\0" * 8


def mrc(counts, *, cell_A=(1.0, 1.0), order="<", imod=None):
    """Bytes of an .mrc; cell_A: of width and height, in Å; the frames are the leading axis."""
    stack = counts if counts.ndim == 3 else counts[None]
    mode = {"int8": 0, "uint8": 0, "int16": 1, "float32": 2, "complex64": 4, "uint16": 6, "float16": 12}
    depth, height, width = stack.shape
    head = bytearray(1024)
    struct.pack_into(f"{order}10i", head, 0, width, height, depth, mode[str(counts.dtype)], 0, 0, 0, width, height, 1)
    struct.pack_into(f"{order}6f3i", head, 40, *cell_A, 1.0, 90, 90, 90, 1, 2, 3)
    if imod is not None:
        struct.pack_into(f"{order}2i", head, 152, 1146047817, imod)
    head[208:216] = b"MAP " + (b"\x44\x44\0\0" if order == "<" else b"\x11\x11\0\0")
    return bytes(head) + stack.astype(counts.dtype.newbyteorder(order)).tobytes()


def ser(counts, *, scale_m, frames=1):
    """Bytes of a .ser with images; the file's first row is the lowest."""
    height, width = counts.shape
    element = struct.pack(
        "<ddIddIHII", 0, scale_m, 0, 0, scale_m, 0, {"uint16": 2, "int32": 6}[str(counts.dtype)], width, height
    )
    element += counts[::-1].astype(counts.dtype.newbyteorder("<")).tobytes() + struct.pack("<HHI", 16722, 0, 0)
    dimension = struct.pack("<IddII0sI0s", frames, 0, 1, 0, 0, b"", 0, b"")
    start = 30 + len(dimension)
    offsets = [start + 8 * frames + i * len(element) for i in range(frames)]
    head = struct.pack("<HHHIIIIII", 0x4949, 0x0197, 0x0210, 0x4122, 0x4152, frames, frames, start, 1)
    return head + dimension + struct.pack(f"<{2 * frames}I", *offsets, *offsets) + element * frames


def berkeley_emd(path, counts, *, scale, unit):
    """Write an .emd as the National Center for Electron Microscopy defines it: the first axis is x."""
    with h5py.File(path, "w") as file:
        file.attrs["version_major"], file.attrs["version_minor"] = 0, 2
        group = file.create_group("data/image")
        group.attrs["emd_group_type"] = 1
        group.create_dataset("data", data=counts.T, chunks=True, compression="gzip")
        for number, n in enumerate(counts.shape[::-1], start=1):
            dim = group.create_dataset(f"dim{number}", data=np.arange(n) * scale)
            dim.attrs["name"], dim.attrs["units"] = "xy"[number - 1], unit


def velox_emd(path, counts, *, scale_m, unit="m", chunks=None):
    """Write an .emd as Velox does: (height, width, frames), its metadata as the bytes of a JSON text."""
    about = {
        "BinaryResult": {
            "PixelSize": {"width": str(scale_m), "height": str(scale_m)}, "Offset": {"x": "0", "y": "0"},
            "PixelUnitX": unit, "PixelUnitY": unit, "Detector": "HAADF", "DetectorIndex": "0",
        },
        "Detectors": {"Detector-0": {"DetectorName": "HAADF", "DetectorType": "ScanningDetector"}},
        "Core": {"MetadataDefinitionVersion": "7.9"}, "Scan": {"FrameTime": "1.0"}, "Acquisition": {},
        "Instrument": {}, "Optics": {}, "CustomProperties": {}, "Stage": {},
    }  # fmt: skip
    stack = counts[..., None] if counts.ndim == 2 else np.moveaxis(counts, 0, -1)
    text = np.zeros((4096, stack.shape[2]), np.uint8)
    content = json.dumps(about).encode()
    text[: len(content)] = np.frombuffer(content, np.uint8)[:, None]
    with h5py.File(path, "w") as file:
        file.create_dataset("Version", data=np.array([b'{"format": "Velox", "version": "1.0"}']))
        group = file.create_group("Data/Image/0123456789abcdef")
        group.create_dataset("Data", data=stack, chunks=chunks)
        group.create_dataset("Metadata", data=text)


def png(samples):
    """Bytes of a PNG of (height, width, 1 to 4) uint8 or uint16: grey, grey and alpha, colours, colours and alpha."""
    height, width, channels = samples.shape
    rows = b"".join(b"\0" + row.astype(samples.dtype.newbyteorder(">")).tobytes() for row in samples)
    head = struct.pack(">IIBBBBB", width, height, 8 * samples.itemsize, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    chunks = ((b"IHDR", head), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    parts = (struct.pack(">I", len(b)) + t + b + struct.pack(">I", zlib.crc32(t + b)) for t, b in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)
