"""`read_micrograph` against files written by hand (`microscopy_files`), by tifffile and by Pillow, and their arrays."""

import os
import tracemalloc
import zlib

import microscopy_files as files
import numpy as np
import pytest
import tifffile
from PIL import Image, ImageOps

from matalign.data.readers.micrographs import model_image, read_micrograph

RNG = np.random.default_rng(0)
COUNTS = RNG.integers(0, 65536, (40, 56), np.uint16)
BYTES = RNG.integers(0, 256, (40, 56), np.uint8)
COLOURS = RNG.integers(0, 65536, (40, 56, 3), np.uint16)
LUMINANCE = np.array([0.299, 0.587, 0.114])  # ITU-R 601


def of(dtype):
    """`COUNTS` or `BYTES` in another type."""
    return (BYTES if np.dtype(dtype).itemsize == 1 else COUNTS // 2).astype(dtype)


# Microscopes' files


@pytest.mark.parametrize("version", [3, 4])
@pytest.mark.parametrize("dtype", sorted(files.DM_TYPES))
def test_gatan_files_hold_their_counts_and_scale(version, dtype, tmp_path):
    (tmp_path / f"a.dm{version}").write_bytes(files.dm(of(dtype), version=version, scale=0.02))
    found = read_micrograph(tmp_path / f"a.dm{version}")
    np.testing.assert_array_equal(found.counts, of(dtype))
    assert found.pixel_A == pytest.approx(0.2)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("dtype", ["int8", "int16", "uint16", "float32", "float16"])
def test_mrc_files_hold_their_counts_and_scale(order, dtype, tmp_path):
    counts = of(dtype) if dtype != "float16" else BYTES.astype(dtype)
    (tmp_path / "a.mrc").write_bytes(files.mrc(counts, cell_A=(56 * 0.3, 40 * 0.3), order=order))
    found = read_micrograph(tmp_path / "a.mrc")
    np.testing.assert_array_equal(found.counts, counts)
    assert found.pixel_A == pytest.approx(0.3)


@pytest.mark.parametrize(("flags", "dtype"), [(0, np.uint8), (1, np.int8)])
def test_imods_flag_tells_whether_bytes_of_an_mrc_are_signed(flags, dtype, tmp_path):
    (tmp_path / "a.mrc").write_bytes(files.mrc(BYTES, cell_A=(56, 40), imod=flags))
    np.testing.assert_array_equal(read_micrograph(tmp_path / "a.mrc").counts, BYTES.view(dtype))


@pytest.mark.parametrize("dtype", ["uint16", "int32"])
def test_ser_files_hold_their_counts_and_scale(dtype, tmp_path):
    (tmp_path / "a.ser").write_bytes(files.ser(of(dtype), scale_m=2.5e-11))
    found = read_micrograph(tmp_path / "a.ser")
    np.testing.assert_array_equal(found.counts, of(dtype))
    assert found.pixel_A == pytest.approx(0.25)


def test_emd_files_of_berkeley_and_velox_hold_their_counts_and_scale(tmp_path):
    files.berkeley_emd(tmp_path / "a.emd", COUNTS, scale=0.04, unit="[n_m]")
    files.velox_emd(tmp_path / "b.emd", COUNTS, scale_m=4e-11)
    files.velox_emd(tmp_path / "c.emd", COUNTS, scale_m=4e-11, chunks=(40, 56, 1))
    for name in ("a", "b", "c"):
        found = read_micrograph(tmp_path / f"{name}.emd")
        np.testing.assert_array_equal(found.counts, COUNTS)
        assert found.pixel_A == pytest.approx(0.4)


# TIFF, PNG, JPEG


@pytest.mark.parametrize("layout", [{}, {"tile": (16, 16)}, {"compression": "zlib"}, {"rowsperstrip": 7}])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "float64"])
def test_tiffs_hold_their_counts(dtype, order, layout, tmp_path):
    counts = of(dtype)
    if dtype == "uint32":
        counts = counts + np.uint32(4_000_000_000)
    tifffile.imwrite(tmp_path / "a.tif", counts, byteorder=order, photometric="minisblack", metadata=None, **layout)
    np.testing.assert_array_equal(read_micrograph(tmp_path / "a.tif").counts, counts)


@pytest.mark.parametrize("layout", [{}, {"compression": "zlib"}, {"tile": (16, 16)}])
@pytest.mark.parametrize(("dtype", "top"), [("uint8", 255), ("uint16", 65535), ("uint32", 2**32 - 1)])
def test_white_that_is_zero_is_turned_over(dtype, top, layout, tmp_path):
    stored = (top - of(dtype).astype(np.int64)).astype(dtype)
    tifffile.imwrite(tmp_path / "a.tif", stored, photometric="miniswhite", metadata=None, **layout)
    found = read_micrograph(tmp_path / "a.tif")
    np.testing.assert_array_equal(found.counts, of(dtype))
    assert found.notes == ("white is zero: turned over",)


def lzw(path, counts, *, white_is_zero):
    """A TIFF whose compression tifffile alone cannot undo, by Pillow; sign and sense of its grey are set by hand."""
    unsigned = counts.dtype == np.uint32
    Image.fromarray(counts.view(np.int32) if unsigned else counts).save(path, compression="tiff_lzw")
    content = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as tiff:
        tags = tiff.pages[0].tags
        content[tags["PhotometricInterpretation"].valueoffset] = 0 if white_is_zero else 1
        if unsigned:
            content[tags["SampleFormat"].valueoffset] = 1
    path.write_bytes(content)


@pytest.mark.parametrize(("dtype", "top"), [("uint8", 255), ("uint16", 65535)])
def test_lzw_tiffs_hold_their_counts(dtype, top, tmp_path):
    lzw(tmp_path / "a.tif", of(dtype), white_is_zero=False)
    np.testing.assert_array_equal(read_micrograph(tmp_path / "a.tif").counts, of(dtype))
    lzw(tmp_path / "b.tif", of(dtype), white_is_zero=True)
    np.testing.assert_array_equal(read_micrograph(tmp_path / "b.tif").counts, top - of(dtype).astype(int))


@pytest.mark.parametrize("dtype", ["uint32", "int32", "float32"])
def test_lzw_tiffs_of_32_bits_hold_their_counts(dtype, tmp_path):
    counts = of(dtype) + (np.uint32(4_000_000_000) if dtype == "uint32" else of(dtype))
    lzw(tmp_path / "a.tif", counts, white_is_zero=False)
    np.testing.assert_array_equal(read_micrograph(tmp_path / "a.tif").counts, counts)
    if dtype == "float32":
        lzw(tmp_path / "b.tif", counts, white_is_zero=True)
        np.testing.assert_array_equal(read_micrograph(tmp_path / "b.tif").counts, -counts)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientations_are_those_of_pillow(orientation, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(BYTES).save(tmp_path / "a.png", exif=exif)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(tmp_path / "a.png")))
    np.testing.assert_array_equal(read_micrograph(tmp_path / "a.png").counts, expected)
    tag = [(274, "H", 1, orientation, True)]
    tifffile.imwrite(tmp_path / "a.tif", BYTES, photometric="minisblack", metadata=None, extratags=tag)
    np.testing.assert_array_equal(read_micrograph(tmp_path / "a.tif").counts, expected)
    lzw(tmp_path / "b.tif", BYTES, white_is_zero=False)
    Image.open(tmp_path / "b.tif").save(tmp_path / "c.tif", compression="tiff_lzw", tiffinfo={274: orientation})
    np.testing.assert_array_equal(read_micrograph(tmp_path / "c.tif").counts, expected)


@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_colours_of_16_bits_become_luminance(planar, compression, tmp_path):
    stored = COLOURS if planar == "contig" else np.moveaxis(COLOURS, -1, 0)
    how = {"photometric": "rgb", "planarconfig": planar, "compression": compression, "metadata": None}
    tifffile.imwrite(tmp_path / "a.tif", stored, **how)
    (tmp_path / "a.png").write_bytes(files.png(COLOURS))
    (tmp_path / "b.png").write_bytes(files.png(np.concatenate([COLOURS, COLOURS[..., :1]], 2)))
    for name in ("a.tif", "a.png", "b.png"):
        found = read_micrograph(tmp_path / name)
        np.testing.assert_allclose(found.counts, COLOURS @ LUMINANCE, atol=1)
        assert found.notes == ("colours made luminance",)


def test_grey_with_alpha_of_16_bits_is_grey(tmp_path):
    (tmp_path / "a.png").write_bytes(files.png(np.stack([COUNTS, COUNTS[::-1]], -1)))
    np.testing.assert_array_equal(read_micrograph(tmp_path / "a.png").counts, COUNTS)


def test_what_pillow_reads_is_as_pillow_reads_it(tmp_path):
    rgb = Image.fromarray((COLOURS >> 8).astype(np.uint8))
    rgb.save(tmp_path / "a.png")
    rgb.save(tmp_path / "a.jpg")
    rgb.save(tmp_path / "a.tif")
    rgb.save(tmp_path / "jpeg.tif", compression="jpeg")
    rgb.convert("CMYK").save(tmp_path / "cmyk.tif")
    rgb.quantize(16).save(tmp_path / "palette.tif")
    rgb.quantize(16).save(tmp_path / "palette.png")
    Image.fromarray(BYTES).save(tmp_path / "grey.jpg")
    for file in tmp_path.iterdir():
        expected = np.asarray(Image.open(file).convert("L"))
        np.testing.assert_array_equal(read_micrograph(file).counts, expected, err_msg=file.name)


# Frames


def test_a_frame_is_chosen_by_its_number(tmp_path):
    stack = np.stack([COUNTS, COUNTS[::-1], COUNTS[:, ::-1]])
    (tmp_path / "a.dm4").write_bytes(files.dm(stack, version=4))
    (tmp_path / "a.mrc").write_bytes(files.mrc(stack, cell_A=(56, 40)))
    (tmp_path / "a.ser").write_bytes(files.ser(COUNTS, scale_m=1e-10, frames=3))
    files.velox_emd(tmp_path / "a.emd", stack, scale_m=1e-10)
    virtual = "ImageJ=1.54f\nimages=3\nslices=3\nloop=false\n"  # one directory, three images
    tifffile.imwrite(tmp_path / "virtual.tif", stack[0], description=virtual, metadata=None)
    with open(tmp_path / "virtual.tif", "ab") as file:
        file.write(stack[1:].tobytes())
    tifffile.imwrite(tmp_path / "hyperstack.tif", stack, imagej=True)
    tifffile.imwrite(tmp_path / "pages.tif", stack, photometric="minisblack", compression="zlib", metadata=None)
    pages = [Image.fromarray(image) for image in stack]
    pages[0].save(tmp_path / "lzw.tif", save_all=True, append_images=pages[1:], compression="tiff_lzw")
    with tifffile.TiffFile(tmp_path / "virtual.tif") as tiff:
        assert len(tiff.pages) == 1
    for file in tmp_path.iterdir():
        with pytest.raises(ValueError, match=rf"^{file.name}: 3 frames; expected one image, or .* frame 0 to 2"):
            read_micrograph(file)
        with pytest.raises(ValueError, match=rf"^{file.name}: no frame 3; it has 3, from 0"):
            read_micrograph(file, frame=3)
        if file.suffix != ".ser":
            np.testing.assert_array_equal(read_micrograph(file, frame=1).counts, stack[1], err_msg=file.name)
            np.testing.assert_array_equal(read_micrograph(file, frame=-1).counts, stack[2], err_msg=file.name)
    Image.fromarray(BYTES).save(tmp_path / "one.png")
    np.testing.assert_array_equal(read_micrograph(tmp_path / "one.png", frame=0).counts, BYTES)


# Scales


@pytest.mark.parametrize(
    ("unit", "scale", "pixel_A"),
    [("nm", 0.02, 0.2), ("µm", 2e-5, 0.2), ("Å", 0.2, 0.2), ("pm", 20, 0.2), ("A", 0.2, 0.2), ("Angstroms", 0.2, 0.2)],
)
def test_a_files_scale_is_read_with_its_unit(unit, scale, pixel_A, tmp_path):
    (tmp_path / "a.dm3").write_bytes(files.dm(COUNTS, scale=scale, unit=unit))
    assert read_micrograph(tmp_path / "a.dm3").pixel_A == pytest.approx(pixel_A)
    assert read_micrograph(tmp_path / "a.dm3", pixel_A=0.205).pixel_A == 0.205


@pytest.mark.parametrize(
    ("scale", "unit", "said"),
    [
        (0.02, "", r"no unit: the file's scale is 0\.02, .*; give pixel_A .--pixel-A., in Å"),
        (0.02, "parsec", r"unknown unit: the file's scale is 0\.02 parsec; give pixel_A"),
        (0, "nm", "no scale: the file says 0 nm per pixel; give pixel_A"),
    ],
)
def test_a_scale_that_says_nothing_is_asked_for(scale, unit, said, tmp_path):
    (tmp_path / "a.dm3").write_bytes(files.dm(COUNTS, scale=scale, unit=unit))
    with pytest.raises(ValueError, match=rf"^a\.dm3: {said}"):
        read_micrograph(tmp_path / "a.dm3")
    assert read_micrograph(tmp_path / "a.dm3", pixel_A=0.2).pixel_A == 0.2


@pytest.mark.parametrize("given", [None, 0.2])
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (files.mrc(COUNTS, cell_A=(-56, -40)), r"absurd scale: the file says -0\.1 nm per pixel"),
        (files.ser(COUNTS, scale_m=1e8), r"absurd scale: the file says 1e\+17 nm per pixel"),
        (files.mrc(COUNTS, cell_A=(56, 80)), r"pixels are not square: the file says 0\.2 × 0\.1 nm"),
        (files.dm(COUNTS, unit="1/nm"), r"a diffraction pattern: the file's pixels are 0\.02 1/nm"),
        (files.dm(COUNTS, unit="mrad"), "a diffraction pattern"),
        (files.dm(COUNTS, scale=float("nan")), "absurd scale"),
    ],
)
def test_an_absurd_scale_is_refused(content, said, given, tmp_path):
    suffix = {b"\0\0": ".dm3", b"II": ".ser"}.get(content[:2], ".mrc")
    (tmp_path / f"a{suffix}").write_bytes(content)
    with pytest.raises(ValueError, match=rf"^a{suffix}: {said}"):
        read_micrograph(tmp_path / f"a{suffix}", pixel_A=given)


def test_a_contradiction_is_told_with_both_scales(tmp_path):
    (tmp_path / "a.dm3").write_bytes(files.dm(COUNTS, scale=0.02, unit="nm"))
    said = r"^a\.dm3: contradicting scales: the file says 0\.02 nm per pixel, which is 0\.2 Å, and pixel_A is 0\.02 Å"
    with pytest.raises(ValueError, match=said):
        read_micrograph(tmp_path / "a.dm3", pixel_A=0.02)


def test_a_tiffs_scale_is_that_of_its_software(tmp_path):
    write = {"photometric": "minisblack"}
    side = {"resolution": (1 / 0.02, 1 / 0.02)}
    tifffile.imwrite(tmp_path / "imagej.tif", COUNTS, imagej=True, metadata={"unit": "nm"}, **side)
    tifffile.imwrite(
        tmp_path / "escaped.tif", COUNTS, imagej=True, metadata={"unit": "\\u00B5m"}, resolution=(5e4, 5e4)
    )
    ome = {"PhysicalSizeX": 0.02, "PhysicalSizeXUnit": "nm", "PhysicalSizeY": 0.02, "PhysicalSizeYUnit": "nm"}
    tifffile.imwrite(tmp_path / "a.ome.tif", COUNTS, metadata=ome, **write)
    gatan = [(65003, "s", 0, "nm", True), (65004, "s", 0, "nm", True)]
    gatan += [(65009, "d", 1, 0.02, True), (65010, "d", 1, 0.02, True)]
    tifffile.imwrite(tmp_path / "gatan.tif", COUNTS, metadata=None, extratags=gatan, **write)
    fei = [(34682, "s", 0, "[Scan]\nPixelWidth=2e-11\nPixelHeight=2e-11\n", True)]
    tifffile.imwrite(tmp_path / "fei.tif", COUNTS, metadata=None, extratags=fei, **write)
    centimetre = {"resolution": (1e7 / 0.02, 1e7 / 0.02), "resolutionunit": "centimeter"}
    tifffile.imwrite(tmp_path / "resolution.tif", COUNTS, metadata=None, **centimetre, **write)
    for file in tmp_path.iterdir():
        assert read_micrograph(file).pixel_A == pytest.approx(0.2), file.name
    printed = {"resolution": (300, 300), "resolutionunit": "inch"}
    tifffile.imwrite(tmp_path / "printed.tif", COUNTS, metadata=None, **printed, **write)
    assert read_micrograph(tmp_path / "printed.tif").pixel_A is None
    tifffile.imwrite(tmp_path / "unitless.tif", COUNTS, imagej=True, **side)
    with pytest.raises(ValueError, match=r"^unitless\.tif: no unit: the file's scale is 0\.02"):
        read_micrograph(tmp_path / "unitless.tif")


# What is refused


def test_what_is_no_image_is_refused(tmp_path):
    for name, content, said in [
        ("text.png", b"no image", "unreadable; expected an image of the kinds PNG, JPEG, TIFF, dm3"),
        ("cut.png", files.png(COUNTS[..., None])[:900], "unreadable"),
        ("cut.dm4", files.dm(COUNTS, version=4)[:2000], "unreadable"),
        ("cut.mrc", files.mrc(COUNTS, cell_A=(56, 40))[:2000], "unreadable"),
        (
            "wide.mrc",
            b"\xff\xff\xff\x7f" + files.mrc(COUNTS, cell_A=(56, 40))[4:],
            "unreadable: 2147483647 × 40 × 1 pixels in 5504",
        ),
        ("cut.ser", files.ser(COUNTS, scale_m=1e-10)[:300], "unreadable"),
        ("fourier.mrc", files.mrc(COUNTS.astype(np.complex64), cell_A=(56, 40)), r"pixels \(40, 56\) of complex64"),
        ("nan.mrc", files.mrc(np.full((8, 8), np.nan, np.float32), cell_A=(8, 8)), "some pixels are not finite"),
    ]:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=rf"^{name}: {said}"):
            read_micrograph(tmp_path / name)
    with pytest.raises(FileNotFoundError, match=r"none\.png: no such file"):
        read_micrograph(tmp_path / "none.png")
    for array, said in [(np.zeros((8, 8, 3)), r"pixels \(8, 8, 3\)"), (np.full((8, 8), np.inf), "not finite")]:
        with pytest.raises(ValueError, match=f"^image: .*{said}"):
            read_micrograph(array)
    for pixel_A in (0.0, -0.2, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=r"^image: no scale: the pixel size is"):
            read_micrograph(COUNTS, pixel_A=pixel_A)


def test_a_tiff_of_unknown_numbers_is_refused(tmp_path):
    tifffile.imwrite(tmp_path / "odd.tif", COUNTS, photometric="minisblack", metadata=None)
    with tifffile.TiffFile(tmp_path / "odd.tif", mode="r+b") as tiff:
        tiff.pages[0].tags["BitsPerSample"].overwrite(77)
    with pytest.raises(ValueError, match=r"^odd\.tif: unreadable: pixels of 77 bits"):
        read_micrograph(tmp_path / "odd.tif")


def test_a_huge_image_is_refused_before_it_is_decoded(tmp_path):
    (tmp_path / "a.png").write_bytes(files.png(BYTES[..., None]))
    content = bytearray((tmp_path / "a.png").read_bytes())
    content[16:24] = (20_000).to_bytes(4, "big") * 2
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    (tmp_path / "huge.png").write_bytes(content)
    with pytest.raises(ValueError, match=r"^huge\.png: .*(megapixels|exceeds limit)"):
        read_micrograph(tmp_path / "huge.png")
    head = bytearray(files.mrc(COUNTS, cell_A=(56, 40)))
    head[:8] = (60_000).to_bytes(4, "little") * 2
    (tmp_path / "huge.mrc").write_bytes(head)
    os.truncate(tmp_path / "huge.mrc", 1024 + 2 * 60_000**2)  # sparse: it takes no room
    with pytest.raises(ValueError, match=r"^huge\.mrc: 60000 × 60000 pixels \(3600 megapixels, 13733 MB of counts\)"):
        read_micrograph(tmp_path / "huge.mrc")


@pytest.mark.parametrize("name", ["a.tif", "tiled.tif", "a.mrc", "a.dm4", "a.emd"])
def test_of_a_large_image_no_copies_are_made(name, tmp_path):
    n = 2048
    counts = (np.arange(n * n, dtype=np.uint32) % 65521).astype(np.uint16).reshape(n, n)
    if name == "a.emd":
        files.berkeley_emd(tmp_path / name, counts, scale=0.02, unit="nm")
    elif name.endswith("tif"):
        how = {"compression": "zlib", "tile": (256, 256)} if name == "tiled.tif" else {}
        tifffile.imwrite(tmp_path / name, counts, photometric="minisblack", metadata=None, **how)
    else:
        content = files.mrc(counts, cell_A=(n, n)) if name == "a.mrc" else files.dm(counts, version=4)
        (tmp_path / name).write_bytes(content)
    read_micrograph(tmp_path / name)  # imports
    tracemalloc.start()
    found = read_micrograph(tmp_path / name)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    np.testing.assert_array_equal(found.counts, counts)
    assert peak < found.counts.nbytes + counts.nbytes + 2**22  # memory maps are not counted


# At a model's scale


def wave(n, *, pixel_A, period_A):
    """An image that varies along its columns with this period, symmetric about its centre."""
    x = (np.arange(n) - (n - 1) / 2) * pixel_A
    return np.tile(np.cos(2 * np.pi * x / period_A), (n, 1))


@pytest.mark.parametrize(("pixel_A", "n"), [(0.1, 400), (0.37, 120), (0.2, 64), (0.4, 40)])
def test_a_micrograph_comes_to_the_models_scale(pixel_A, n):
    found = model_image(wave(n, pixel_A=pixel_A, period_A=4.0), pixel_A=pixel_A, to_pixel_A=0.2, px=64)
    assert found.shape == (64, 64)
    assert found.dtype == np.float32
    np.testing.assert_allclose([found.mean(), found.std()], [0, 1], atol=1e-5)
    expected = wave(64, pixel_A=0.2, period_A=4.0)
    np.testing.assert_allclose(found, (expected - expected.mean()) / expected.std(), atol=0.06)


def test_what_a_coarser_picture_cannot_show_is_averaged_out():
    fine = wave(800, pixel_A=0.05, period_A=0.21)
    coarse = wave(800, pixel_A=0.05, period_A=4.0)
    found = model_image(fine + coarse, pixel_A=0.05, to_pixel_A=0.2, px=32)
    alone = model_image(coarse, pixel_A=0.05, to_pixel_A=0.2, px=32)
    assert np.abs(found - alone).max() < 0.1


def test_an_image_smaller_than_the_view_is_padded_with_its_mean():
    image = np.random.default_rng(0).random((20, 30))
    found = model_image(image, pixel_A=0.2, to_pixel_A=0.2, px=40)
    assert np.abs(found[:10]).max() < 1e-6
    assert np.abs(found[:, 35:]).max() < 1e-6
    inside = image - image.mean()
    np.testing.assert_allclose(found[10:30, 5:35] / found.max(), inside / inside.max(), atol=1e-6)


def test_an_image_that_shows_nothing_at_that_scale_is_refused():
    scale = {"to_pixel_A": 0.2, "px": 64}
    with pytest.raises(ValueError, match="no contrast"):
        model_image(np.full((80, 80), 7.0), pixel_A=0.2, **scale)
    with pytest.raises(ValueError, match=r"too coarse: the 12\.8 Å that the model sees are 1\.3 pixels of 10 Å"):
        model_image(np.eye(64), pixel_A=10.0, **scale)
    with pytest.raises(ValueError, match=r"^image: no scale: the file states none; give pixel_A"):
        model_image(np.eye(64), **scale)


def test_a_chosen_frame_at_the_files_scale(tmp_path):
    (tmp_path / "a.dm3").write_bytes(files.dm(np.stack([COUNTS, COUNTS[::-1]]), scale=0.03))
    found = model_image(tmp_path / "a.dm3", frame=1, to_pixel_A=0.2, px=40)
    np.testing.assert_allclose(found, model_image(COUNTS[::-1], pixel_A=0.3, to_pixel_A=0.2, px=40), atol=1e-5)
    again = model_image(read_micrograph(tmp_path / "a.dm3", frame=1), to_pixel_A=0.2, px=40)
    np.testing.assert_array_equal(found, again)
