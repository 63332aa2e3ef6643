import json
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from matalign.data import inputs

# Micrographs


def wave(n, *, pixel_A, period_A):
    """An image that varies along its columns with this period, symmetric about its centre."""
    x = (np.arange(n) - (n - 1) / 2) * pixel_A
    return np.tile(np.cos(2 * np.pi * x / period_A), (n, 1))


@pytest.mark.parametrize(("pixel_A", "n"), [(0.1, 400), (0.37, 120), (0.2, 64), (0.4, 40)])
def test_a_micrograph_comes_to_the_models_scale(pixel_A, n):
    found = inputs.micrograph(wave(n, pixel_A=pixel_A, period_A=4.0), pixel_A=pixel_A, to_pixel_A=0.2, px=64)
    assert found.shape == (64, 64)
    assert found.dtype == np.float32
    np.testing.assert_allclose([found.mean(), found.std()], [0, 1], atol=1e-5)
    expected = wave(64, pixel_A=0.2, period_A=4.0)
    np.testing.assert_allclose(found, (expected - expected.mean()) / expected.std(), atol=0.06)


def test_what_a_coarser_picture_cannot_show_is_averaged_out():
    fine = wave(800, pixel_A=0.05, period_A=0.21)
    coarse = wave(800, pixel_A=0.05, period_A=4.0)
    found = inputs.micrograph(fine + coarse, pixel_A=0.05, to_pixel_A=0.2, px=32)
    alone = inputs.micrograph(coarse, pixel_A=0.05, to_pixel_A=0.2, px=32)
    assert np.abs(found - alone).max() < 0.1


def test_an_image_smaller_than_the_view_is_padded_with_its_mean():
    image = np.random.default_rng(0).random((20, 30))
    found = inputs.micrograph(image, pixel_A=0.2, to_pixel_A=0.2, px=40)
    assert np.abs(found[:10]).max() < 1e-6
    assert np.abs(found[:, 35:]).max() < 1e-6
    inside = image - image.mean()
    np.testing.assert_allclose(found[10:30, 5:35] / found.max(), inside / inside.max(), atol=1e-6)


def test_files_give_what_their_arrays_give(tmp_path):
    rng = np.random.default_rng(0)
    grey, counts = rng.integers(0, 256, (50, 60), np.uint8), rng.integers(0, 65536, (50, 60), np.uint16)
    Image.fromarray(grey).save(tmp_path / "grey.png")
    Image.fromarray(counts).save(tmp_path / "counts.tif")
    Image.fromarray(counts).save(tmp_path / "counts.png")
    Image.fromarray(counts.astype(np.float32)).save(tmp_path / "float.tif")
    Image.fromarray(np.stack([grey] * 3, 2)).save(tmp_path / "colour.png")
    Image.fromarray(grey).convert("LA").save(tmp_path / "alpha.png")
    Image.fromarray(grey).convert("P").save(tmp_path / "palette.png")
    scale = {"pixel_A": 0.3, "to_pixel_A": 0.2, "px": 48}
    expected = {"counts.tif": counts, "counts.png": counts, "float.tif": counts}
    for file in tmp_path.iterdir():
        found = inputs.micrograph(file, **scale)
        np.testing.assert_allclose(
            found, inputs.micrograph(expected.get(file.name, grey), **scale), atol=1e-5, err_msg=file.name
        )


def png_header(width, height):
    """A PNG of which only the header is there: whoever decodes it fails."""
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + body + struct.pack(">II", zlib.crc32(body), 99) + b"IDAT"


@pytest.mark.parametrize(("width", "height", "said"), [(8000, 5000, "40 megapixels"), (30000, 30000, "more than 16")])
def test_a_huge_image_is_refused_before_it_is_decoded(width, height, said, tmp_path):
    (tmp_path / "huge.png").write_bytes(png_header(width, height))
    with pytest.raises(ValueError, match=rf"^huge\.png: .*{said}"):
        inputs.micrograph(tmp_path / "huge.png", pixel_A=0.1, to_pixel_A=0.2, px=64)


@pytest.mark.parametrize("pixel_A", [None, 0.0, -0.2, float("nan"), float("inf")])
def test_an_image_needs_a_scale(pixel_A):
    with pytest.raises(ValueError, match=r"^image: no scale: the pixel size is"):
        inputs.micrograph(np.eye(64), pixel_A=pixel_A, to_pixel_A=0.2, px=64)


def test_an_image_that_shows_nothing_is_refused(tmp_path):
    scale = {"pixel_A": 0.2, "to_pixel_A": 0.2, "px": 64}
    with pytest.raises(ValueError, match="no contrast"):
        inputs.micrograph(np.full((80, 80), 7.0), **scale)
    with pytest.raises(ValueError, match=r"too coarse: the 12\.8 Å that the model sees are 1\.3 pixels of 10 Å"):
        inputs.micrograph(np.eye(64), **scale | {"pixel_A": 10.0})
    with pytest.raises(ValueError, match=r"array \(8, 8, 3\)"):
        inputs.micrograph(np.zeros((8, 8, 3)), **scale)
    with pytest.raises(ValueError, match="not finite"):
        inputs.micrograph(np.full((80, 80), np.nan), **scale)
    with pytest.raises(FileNotFoundError, match=r"none\.png: no such file"):
        inputs.micrograph(tmp_path / "none.png", **scale)
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(ValueError, match=r"^text\.png: unreadable; expected an image of the kinds PNG, TIFF, JPEG"):
        inputs.micrograph(tmp_path / "text.png", **scale)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 90), np.uint8)).save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:3000])
    with pytest.raises(ValueError, match=r"^cut\.png: unreadable"):
        inputs.micrograph(tmp_path / "cut.png", **scale)
    frame = Image.fromarray(np.eye(70, dtype=np.uint8))
    frame.save(tmp_path / "stack.tif", save_all=True, append_images=[frame])
    with pytest.raises(ValueError, match=r"^stack\.tif: 2 frames"):
        inputs.micrograph(tmp_path / "stack.tif", **scale)


# Protocols


FIELDS = {
    "target": "BaTiO3",
    "precursors": ["TiO2", "BaCO3"],
    "operations": [
        {"action": "milling", "time_min": 90, "medium": "ethanol"},
        {"action": "Calcined", "temperature_K": 1373.15, "time_h": 12, "atmosphere": "air"},
    ],
}


def test_a_structured_protocol_is_rendered_as_those_of_the_curated_sets():
    expected = (
        "solid-state synthesis. from BaCO3 (barium), TiO2 (titanium). milled for 1.5 hours in ethanol. "
        "calcined at 1100 celsius for 12 hours in air."
    )
    assert inputs.protocol(FIELDS) == expected
    assert "of BaTiO3 (barium titanium)" in inputs.protocol(FIELDS, level=0)
    assert "a carbonate, an oxide" in inputs.protocol(FIELDS, level=2)
    assert inputs.protocol({k: v for k, v in FIELDS.items() if k != "target"}) == expected


def test_a_protocol_of_one_step_is_flat():
    flat = {"precursors": "Li2CO3; Co3O4", "temperature": 850, "temperature_unit": "°C", "method": "sol-gel"}
    assert inputs.protocol(flat) == "sol-gel synthesis. from Co3O4 (cobalt), Li2CO3 (lithium). heated at 850 celsius."
    assert inputs.protocol({"precursors": "Li2CO3"}) == "solid-state synthesis. from Li2CO3 (lithium)."


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"precursors": []}, "no precursors"),
        ({"precursors": ["BaTiO3", "TiO2"]}, "the target BaTiO3 is among its precursors"),
        ({"target": "BaXx3"}, "'BaXx3': cannot read 'Xx'"),
        ({"method": "magic"}, "unknown method 'magic'; one of solid-state, sol-gel"),
        ({"temprature": 3}, "unknown field 'temprature'; known are target"),
        ({"operations": [{"heat": 3}]}, "unknown field 'heat' of an operation"),
        ({"operations": ["heat"]}, "operation 'heat' is no dict"),
        ({"operations": "heat"}, "operations 'heat' are no list of steps"),
        ({"precursors": 5}, "5 is no list of words"),
        ({"operations": [{"temperature_C": 10**400}]}, "expected a number"),
        ({"operations": [{"action": "wished"}]}, "unknown action 'wished'; one of calcined"),
        ({"operations": [{"temperature": 3}]}, "temperature 3 has no unit; one of C, K"),
        ({"operations": [{"temperature": 3, "temperature_unit": "F"}]}, "unknown unit 'F'"),
        ({"operations": [{"temperature_C": 3, "temperature_K": 276}]}, "temperature stands there 2 times"),
        ({"operations": [{"temperature_C": "hot"}]}, "temperature_C is 'hot'; expected a number"),
        ({"operations": [{"temperature_C": 9000}]}, "a temperature of 9000 °C; expected at most 3500"),
        ({"operations": [{"temperature_K": -1}]}, "a temperature of -274"),
        ({"operations": [{"time_h": 0}]}, "a time of 0 h"),
    ],
)
def test_a_bad_field_is_named(changed, said):
    with pytest.raises(ValueError, match=said):
        inputs.protocol(FIELDS | changed)


def test_free_text_stays_but_for_blanks_and_is_limited():
    assert inputs.protocol(" BaCO3 and\n TiO2\twere fired. ") == "BaCO3 and TiO2 were fired."
    assert len(inputs.protocol("x" * 20_000)) == 20_000
    with pytest.raises(ValueError, match="a text of 100,000 characters; at most 20,000"):
        inputs.protocol("x" * 100_000)
    for text in ("", " \n", "a\0b"):
        with pytest.raises(ValueError, match="is no readable text"):
            inputs.protocol(text)


def test_a_file_of_text_or_fields(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps(FIELDS))
    assert inputs.protocol(tmp_path / "a.json") == inputs.protocol(FIELDS)
    (tmp_path / "a.txt").write_text("Fired  at 900 °C.")
    assert inputs.protocol(tmp_path / "a.txt") == "Fired at 900 °C."
    for name, content, said in [
        ("b.json", b"{", "not JSON"),
        ("deep.json", b"[" * 70_000, "not JSON"),
        ("c.json", b"[1]", "a JSON list; expected an object"),
        ("d.txt", b"\xff\xfe900", "not UTF-8"),
        ("e.txt", b"x" * 100_000, "a text of 100,000 bytes"),
    ]:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=f"^{name}: {said}"):
            inputs.protocol(tmp_path / name)
    with pytest.raises(FileNotFoundError, match=r"none\.txt: no such file"):
        inputs.protocol(tmp_path / "none.txt")
