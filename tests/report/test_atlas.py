"""The page of the atlas: what is in it and what must not be, and the page itself in a headless Chromium."""

import base64
import dataclasses
import io
import json
import re
import zlib

import numpy as np
import pandas as pd
import pytest
import tiny
import torch.nn.functional as F
from browser import browsing, chromium
from PIL import Image

from matalign import config, paths
from matalign.data.dataset import Curated, Structures
from matalign.pretrain import align, encode
from matalign.report.atlas import build

CFG = dataclasses.replace(config.load("atlas", "tiny"), neighbours=3, iterations=60)
needs_chromium = pytest.mark.skipif(chromium() is None, reason="no Chromium on the path")
FRAME_MS = 60.0  # at 1600 x 1000; on two idle cores without a GPU it is a fifth of this
PICK_MS = 2.0
SEARCH_MS = 200.0


@pytest.fixture(autouse=True, scope="module")
def _scratch(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paths, "SCRATCH", tmp_path_factory.mktemp("scratch"))
        yield


def curated(source="mp"):
    """Alkali halides with labels that are easy to find in a page."""
    made = tiny.curated()
    materials = made.materials.assign(source=source, formation_energy_eV_atom=np.arange(24) / 7 - 3, band_gap_eV=4.25)
    return dataclasses.replace(made, materials=materials)


def space(made, *, seed=0, dim=16):
    """Vectors of a model that knows each material's protocols and images, each modality with a mean of its own."""
    rng = np.random.default_rng(seed)
    n = len(made.materials)
    of = {"crystal": np.arange(n), "image": np.arange(n)}
    of["text"] = made.materials.mp_id.searchsorted(made.protocols.mp_id)
    base = rng.normal(size=(n, dim))
    shift = {"crystal": 0.0, "text": 12.0, "image": -12.0}
    vectors = {m: base[of[m]] + shift[m] * np.eye(dim)[0] + 0.1 * rng.normal(size=(len(of[m]), dim)) for m in shift}
    vectors = {m: (v / np.linalg.norm(v, axis=1, keepdims=True)).astype(np.float32) for m, v in vectors.items()}
    return build.Space(vectors, of, rng.integers(0, 255, (n, build.THUMBNAIL_PX, build.THUMBNAIL_PX)).astype(np.uint8))


def content(source="mp", *, predictions=None, local=False):
    made = curated(source)
    found = space(made)
    told = pd.DataFrame(index=range(24)) if predictions is None else predictions
    return build.Content("laptop", made, found, build.place(CFG, found), told, local)


def data_of(page):
    (text,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, flags=re.S)
    return json.loads(text)


def decoded(array):
    data = zlib.decompress(base64.b64decode(array["data"]))
    return np.frombuffer(data, np.dtype(array["type"])).reshape(array["shape"])


def lines_of(array):
    return decoded(array).tobytes().decode().split("\n")


def test_the_page_loads_nothing_from_elsewhere():
    for page in (build.page(build.payload(content("sample"))), build.page(build.payload(content()))):
        assert not re.search(
            r"https?:|//\w|@import|\bfetch\(|XMLHttpRequest|WebSocket|EventSource", strip_comments(page)
        )
        assert set(re.findall(r"\b(?:src|href)=\"?([^\s\">]*)", page)) == {"data:,"}
        assert "url(" not in page
        assert not re.search(r"@[A-Z]+@", page)
        assert page.count("<script") == 2


def strip_comments(page):
    return re.sub(
        r"(?m)^\s*// .*$|(?<=[;{},)]) // .*$", "", re.sub(r'"data":"[^"]*"|data:image/jpeg;base64,[^"]*', "", page)
    )


def test_the_arrays_are_the_maps():
    made = content("sample")
    data = data_of(build.page(build.payload(made)))
    arrays = {name: decoded(array) for name, array in data["arrays"].items()}
    points = made.map.points
    low = min(xy.min() for xy in points.values())
    step = (max(xy.max() for xy in points.values()) - low) / 65535
    for name, plural in build.NAMES.items():
        np.testing.assert_allclose(arrays[f"{plural}/xy"] * step + low, points[name], atol=0.51 * step)
        np.testing.assert_array_equal(arrays[f"{plural}/of"], made.space.of[name])
        for other, others in build.NAMES.items():
            index, cosine = made.map.nearest[name, other]
            assert index.shape == (len(points[name]), 3)
            np.testing.assert_array_equal(arrays[f"{plural}/{others}"], index)
            np.testing.assert_allclose(arrays[f"{plural}/{others}/cosine"] / 127, cosine, atol=0.5 / 127 + 1e-6)
    np.testing.assert_array_equal(
        arrays["property/formation_energy_eV_atom"], made.curated.materials.formation_energy_eV_atom.astype(np.float32)
    )
    structures = made.curated.structures
    np.testing.assert_array_equal(arrays["cell/number"], structures.numbers)
    np.testing.assert_array_equal(arrays["cell/first"], structures.ptr)
    np.testing.assert_allclose(arrays["cell/lattice"], structures.lattice, rtol=1e-6)
    np.testing.assert_allclose(arrays["cell/fraction"] / 256, structures.frac_coords, atol=1 / 512)
    assert lines_of(data["arrays"]["ids"]) == made.curated.materials.mp_id.tolist()
    assert lines_of(data["arrays"]["formulas"]) == made.curated.materials.formula.tolist()
    assert data["recipes"][0] == made.curated.protocols.loc[0, ["text_L0", "method", "doi"]].tolist()
    assert data["synthetic"]
    assert not data["local"]


def test_neighbours_are_the_exact_ones_and_never_oneself(monkeypatch):
    monkeypatch.setattr(build, "TOP", 1)
    made = curated()
    found = space(made)
    placed = build.place(CFG, found)
    z = found.vectors["crystal"].astype(float)
    product = z @ z.T - 9 * np.eye(24)
    np.testing.assert_array_equal(placed.nearest["crystal", "crystal"][0], np.argsort(-product, axis=1)[:, :3])
    a, b = found.vectors["image"], found.vectors["crystal"]
    np.testing.assert_array_equal(placed.nearest["image", "crystal"][0], np.argsort(-a @ b.T, axis=1)[:, :3])
    recall = {(r["of"], r["centred"]): r["recall"] for r in placed.scores["own_crystal"]}
    assert recall["micrographs", True] == recall["protocols", True] == 1.0
    assert recall["micrographs", False] < 1.0  # the means stand in the way
    assert placed.scores["counts"] == {"crystals": 24, "protocols": 24, "micrographs": 24}


PREDICTED = pd.DataFrame({"mp_id": [f"mp-{100 + i}" for i in range(24)], "band_gap_eV": 1.5 + np.arange(24)})


@pytest.mark.parametrize("predictions", [None, PREDICTED])
def test_the_published_page_of_real_data_has_nothing_out_of_the_sources(predictions):
    made = content(predictions=predictions)
    page = build.page(build.payload(made))
    data = data_of(page)
    allowed = {
        "profile",
        "synthetic",
        "local",
        "scores",
        "classes",
        "properties",
        "labelled",
        "arrays",
    }
    assert set(data) == allowed
    assert not any(name.startswith("cell") for name in data["arrays"])
    for name, column in {"ids": made.curated.materials.mp_id, "formulas": made.curated.materials.formula}.items():
        assert lines_of(data["arrays"][name]) == column.tolist()
    texts = {name for name, array in data["arrays"].items() if array["type"] == "uint8"}
    assert texts == {"ids", "formulas", "class"}  # no other bytes hide a text
    for row in made.curated.protocols.itertuples():
        for secret in (row.doi, row.protocol_id, row.text_L0, row.text_L1):
            assert secret not in page
    assert "data:image" not in page
    floats = [decoded(a) for a in data["arrays"].values() if a["type"].startswith("float")]
    if predictions is None:
        assert floats == []
        assert data["properties"] == []
    else:
        (values,) = floats
        np.testing.assert_array_equal(values, PREDICTED.band_gap_eV.astype(np.float32))  # and not the labels, 4.25
        assert data["labelled"] == "predicted"
    json.dumps(data["scores"])


def test_a_local_page_has_everything_and_lies_where_git_does_not_look(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "DATA", tmp_path / "data")
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    file = build.write(content(local=True))
    assert file == tmp_path / "data" / "index" / "atlas-laptop.html"
    data = data_of(file.read_text())
    assert data["local"]
    assert data["labelled"] == "labelled"
    assert len(data["recipes"]) == 24
    assert data["micrographs"]["image"].startswith("data:image/jpeg;base64,")
    assert build.write(content()) == tmp_path / "results" / "laptop" / "atlas.html"


def test_beside_a_micrograph_stands_what_its_crystal_explains_of_it():
    made, pretrain = tiny.curated(), config.load("pretrain", "sample")
    model = encode.Model(pretrain, align.build(dataclasses.replace(pretrain, modalities="crystal image")))
    rows = np.arange(len(made.materials))
    images = model.micrographs(made, rows, seed=pretrain.seed, epoch=encode.EVALUATION)
    small = F.adaptive_avg_pool2d(images, build.THUMBNAIL_PX)[:, 0]
    shown = (127.5 + 40 * small / small.std((1, 2), keepdim=True)).clamp(0, 255).round().byte().numpy()
    strips = build.beside(shown, made, pretrain)
    image, picture, left = np.split(strips.astype(float), 3, axis=2)
    np.testing.assert_array_equal(image, shown)
    explained = [np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(image, picture)]
    other = [np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(image, np.roll(picture, 5, axis=0))]
    assert np.median(explained) > 0.8
    assert np.median(other) < 0.3
    rest = np.sqrt(1 - np.square(explained))
    np.testing.assert_allclose(left.std((1, 2)) / image.std((1, 2)), rest, atol=0.1)
    across = build.sheet(strips)
    with Image.open(io.BytesIO(base64.b64decode(across["image"].partition(",")[2]))) as whole:
        assert whole.size == (across["across"] * 3 * build.THUMBNAIL_PX, across["across"] * build.THUMBNAIL_PX)


def test_local_pages_are_ignored_by_git():
    from matalign.pipeline import provenance

    assert provenance.git("check-ignore", "data/index/atlas-laptop.html")


def test_text_cannot_end_the_element_it_stands_in():
    made = content("sample")
    protocols = made.curated.protocols.assign(text_L0="</script><script>alert(1)</script><!--")
    made = dataclasses.replace(made, curated=dataclasses.replace(made.curated, protocols=protocols))
    page = build.page(build.payload(made))
    assert page.count("<script") == 2
    assert data_of(page)["recipes"][3][0] == "</script><script>alert(1)</script><!--"


def test_a_page_that_is_too_large_is_refused(monkeypatch):
    data = build.payload(content())
    monkeypatch.setattr(build, "MAX_BYTES", 20_000)
    with pytest.raises(ValueError, match=r"the page has [\d,]+ bytes, more than 20,000"):
        build.page(data)


def test_predictions_are_those_of_the_released_model(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    assert build.predictions("laptop", ["mp-1", "mp-2"]).shape == (2, 0)
    folder = tmp_path / "results" / "laptop" / "model"
    folder.mkdir(parents=True)
    pd.DataFrame({"mp_id": ["mp-2", "mp-1"], "band_gap_eV": [2.0, 1.0]}).to_parquet(folder / "crystals.parquet")
    assert build.predictions("laptop", ["mp-1", "mp-2", "mp-3"]).band_gap_eV.tolist()[:2] == [1.0, 2.0]


def test_two_crystals_make_no_map():
    vectors = {"crystal": np.eye(2, 4, dtype=np.float32)}
    with pytest.raises(ValueError, match="three crystals or more, got 2"):
        build.place(CFG, build.Space(vectors, {"crystal": np.arange(2)}, np.zeros((0, 32, 32), np.uint8)))


@pytest.mark.parametrize(
    ("numbers", "name"),
    [
        ([56, 22, 8, 8, 8], "oxides"),
        ([20, 6, 8, 8, 8], "oxides with another non-metal"),
        ([8, 8], "intermetallics and elements"),
        ([11, 17], "halides"),
        ([57, 8, 9], "halides"),
        ([30, 16], "chalcogenides"),
        ([31, 33], "pnictides"),
        ([14, 6], "borides, carbides, silicides, hydrides"),
        ([29, 30], "intermetallics and elements"),
    ],
)
def test_chemistry_goes_by_the_most_electronegative_element(numbers, name):
    atoms = np.array(numbers)
    (row,) = build.classes(Structures.pack([(atoms, np.zeros((len(atoms), 3)), np.eye(3))]))
    assert build.CLASSES[row][0] == name


def many(n=40_000, protocols=12_000):
    """As many points as the largest profile has, at random."""
    rng = np.random.default_rng(0)
    symbols = np.array(["Li", "Na", "K", "Mg", "Ca", "Sr", "Ba", "Ti", "Zr", "Fe", "Co", "Ni", "O", "S", "F", "N"])
    pairs = rng.integers(0, len(symbols), (n, 2))
    counts = rng.integers(1, 9, (n, 2))
    formulas = [f"{a}{i}{b}{j}" for (a, b), (i, j) in zip(symbols[pairs].tolist(), counts.tolist())]
    ids = sorted(f"mp-{i}" for i in range(n))
    blank = dict.fromkeys(
        ["formation_energy_eV_atom", "band_gap_eV", "is_metal", "bulk_modulus_GPa", "shear_modulus_GPa"]
    )
    materials = pd.DataFrame(
        {"mp_id": ids, "formula": formulas, "chemsys": "", "n_atoms": 1, "space_group": 1, **blank}
    )
    materials["source"] = "mp"
    one = Structures(
        rng.choice([8, 9, 16, 7, 29], n).astype(np.int16),
        np.zeros((n, 3)),
        np.tile(np.eye(3), (n, 1, 1)),
        np.arange(n + 1),
    )
    splits = pd.DataFrame({"mp_id": ids, "random": "train", "chemsys": "train", "pretrain": "train"})
    made = Curated(materials, one, tiny.curated().protocols[:0], splits, {})
    of = {"crystal": np.arange(n), "text": rng.integers(0, n, protocols), "image": np.arange(n)}
    points = {name: rng.normal(size=(len(rows), 2)) for name, rows in of.items()}
    near = {
        (a, b): (rng.integers(0, len(of[b]), (len(of[a]), 6)), rng.uniform(0, 1, (len(of[a]), 6)))
        for a in of
        for b in of
    }
    scores = content().map.scores
    told = pd.DataFrame({name: rng.normal(size=n) for name in build.PROPERTIES})
    found = build.Space({}, of, np.zeros((0, 32, 32), np.uint8))
    return build.Content("many", made, found, build.Map(points, near, scores), told, False)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with browsing(tmp_path_factory.mktemp("chromium")) as page:
        page.prefer(prefers_color_scheme="light", prefers_reduced_motion="reduce")
        yield page


@pytest.fixture(scope="module")
def sample_file(tmp_path_factory):
    file = tmp_path_factory.mktemp("atlas") / "atlas.html"
    file.write_text(build.page(build.payload(content("sample"))))
    return file


@pytest.fixture
def atlas(browser, sample_file):
    """The synthetic page, freshly opened."""
    browser.window(1440, 900)
    browser.errors.clear()
    browser.requests.clear()
    browser.call("Page.navigate", url="about:blank")
    browser.open(sample_file, wait="window.atlas && document.readyState === 'complete'")
    yield browser
    assert browser.errors == []
    assert {url.partition(":")[0] for url in browser.requests} <= {"file", "data", "about"}
    assert sum(url.startswith("file") for url in browser.requests) == 1


BOX = "document.getElementById('map').getBoundingClientRect()"
MEDIAN = "(t => [...t].sort((a, b) => a - b)[Math.floor(t.length / 2)])"  # the median
FRAME = f"{MEDIAN}(Array.from({{length: 15}}, () => atlas.draw()))"
CLOCK = "(work => { const start = performance.now(); work(); return performance.now() - start; })"
PICK = "() => { for (let i = 0; i < 100; i++) atlas.pick(300 + 7 * i, 200 + 5 * i); }"
PICKS = f"{MEDIAN}(Array.from({{length: 15}}, () => {CLOCK}({PICK}) / 100))"
SEARCHES = f"{MEDIAN}(Array.from({{length: 5}}, () => {CLOCK}(() => atlas.search('Ba O'))))"
IS_NEAREST = """[[500, 400], [600, 500], [640, 300], [700, 480]].map(([x, y]) => {
  let best = null, far = 9 ** 2;
  for (let row = 0; row < atlas.layers.crystals.n; row++) {
    const [a, b] = atlas.where({name: "crystals", row}), d = (a - x) ** 2 + (b - y) ** 2;
    if (d < far) [far, best] = [d, row];
  }
  return best === (atlas.pick(x, y)?.row ?? null);
})"""
PIXELS = "(c => c.getContext('2d').getImageData(0, 0, c.width, c.height).data)(document.getElementById('%s'))"
INK = f"{PIXELS % 'overlay'}.reduce((sum, v) => sum + (v > 0), 0)"
COLOURS = f"(atlas.draw(), new Set(new Uint32Array({PIXELS % 'points'}.buffer)).size)"
LISTED = """[...document.querySelectorAll('#panel ol')].map(list =>
  [...list.querySelectorAll('.name .id')].map(id => id.textContent))"""


def heading(page):
    return page.evaluate("document.querySelector('#panel h2').textContent")


def place(page, name, row):
    """Where a point stands in the window."""
    point = json.dumps({"name": name, "row": row})
    return page.evaluate(f"(([x, y], box) => [x + box.left, y + box.top])(atlas.where({point}), {BOX})")


@needs_chromium
def test_search_by_keyboard_finds_a_crystal_and_lists_its_neighbours(atlas):
    made = content("sample")
    row = made.curated.materials.formula.tolist().index("AgBr")
    atlas.press("/")
    assert atlas.evaluate("document.activeElement.id") == "search"
    atlas.type("BrAg")  # the order of the elements does not matter
    assert atlas.evaluate("document.querySelectorAll('#results [role=option]').length") == 1
    assert atlas.evaluate("document.getElementById('search').getAttribute('aria-activedescendant')") == "result-0"
    atlas.press("Enter")
    assert heading(atlas) == "AgBr"
    assert atlas.evaluate("atlas.state.selected") == {"name": "crystals", "row": row}
    listed = atlas.evaluate(LISTED)
    assert len(listed) == 3
    assert listed[0] == [made.curated.materials.mp_id[i] for i in made.map.nearest["crystal", "crystal"][0][row]]
    assert "AgBr" in atlas.evaluate("document.getElementById('status').textContent")
    atlas.press("Escape")
    assert heading(atlas) == "Pick a point"
    assert atlas.evaluate("atlas.state.selected") is None


@needs_chromium
def test_arrows_walk_through_results(atlas):
    atlas.press("/")
    atlas.type("Li")
    found = atlas.evaluate("[...document.querySelectorAll('#results [role=option]')].map(o => Number(o.dataset.row))")
    assert len(found) == 4  # LiF, LiCl, LiBr, LiI
    atlas.press("ArrowDown")
    atlas.press("ArrowDown")
    atlas.press("ArrowUp")
    assert atlas.evaluate("document.querySelector('#results [aria-selected=true]').id") == "result-1"
    atlas.press("Enter")
    assert atlas.evaluate("atlas.state.selected.row") == found[1]
    assert atlas.evaluate("document.getElementById('results').hidden")


@needs_chromium
@pytest.mark.parametrize(
    ("query", "formulas"),
    [
        ("Na Cl", ["NaCl"]),
        ("Ag-I", ["AgI"]),
        ("kf", ["KF"]),
        ("mp-107", ["NaI"]),
        ("Xe", []),
        ("I", ["AgI", "CsI", "KI"]),
    ],
)
def test_what_answers_to_a_search(atlas, query, formulas):
    found = atlas.evaluate(f"atlas.search({query!r}).map(row => atlas.formulas[row])")
    assert sorted(found)[: len(formulas)] == formulas
    assert bool(found) == bool(formulas)


@needs_chromium
def test_hover_and_click_show_what_is_under_the_pointer(atlas):
    made = content("sample")
    x, y = place(atlas, "crystals", 5)
    atlas.mouse("mouseMoved", x, y)
    tip = atlas.evaluate("document.getElementById('tip').hidden ? '' : document.getElementById('tip').textContent")
    assert made.curated.materials.formula[5] in tip
    assert "−2.29 eV/atom" in tip  # 5/7 − 3
    assert atlas.evaluate("document.querySelectorAll('#tip canvas[aria-label^=\"unit cell\"]').length") == 1
    atlas.click(x, y)
    assert atlas.evaluate("atlas.state.selected.row") == 5
    assert atlas.evaluate("location.hash") == "#mp-105"
    with_lines = atlas.evaluate(INK)
    atlas.press("Escape")
    atlas.wait(f"{INK} < {with_lines / 4}")
    # a neighbour in the list is one key away
    atlas.click(x, y)
    atlas.evaluate("document.querySelector('#panel li button').focus()")
    other = int(made.map.nearest["crystal", "crystal"][0][5, 0])
    assert atlas.evaluate("atlas.state.pointed.row") == other
    atlas.press("Enter")
    assert atlas.evaluate("atlas.state.selected.row") == other


@needs_chromium
def test_the_map_is_moved_by_keys_wheel_and_drag(atlas):
    view = "JSON.stringify(atlas.state.view)"
    atlas.evaluate("document.getElementById('map').focus()")
    seen = [atlas.evaluate(view)]
    for key in ("ArrowLeft", "ArrowDown", "+", "-"):
        atlas.press(key)
        seen.append(atlas.evaluate(view))
        assert seen[-1] != seen[-2]
    atlas.press("0")
    assert json.loads(atlas.evaluate(view)) == pytest.approx(json.loads(seen[0]))
    x, y = place(atlas, "crystals", 3)
    atlas.mouse("mouseWheel", x, y, deltaX=0, deltaY=-300)
    atlas.wait(f"{view} !== {seen[0]!r}")
    np.testing.assert_allclose(place(atlas, "crystals", 3), [x, y], atol=1)  # what is under the pointer stays there
    atlas.mouse("mousePressed", 700, 700, button="left", clickCount=1)
    atlas.mouse("mouseMoved", 740, 720, button="left")
    atlas.mouse("mouseReleased", 740, 720, button="left", clickCount=1)
    np.testing.assert_allclose(place(atlas, "crystals", 3), [x + 40, y + 20], atol=1)
    atlas.press("0")
    atlas.press("Enter")  # what is nearest to the middle
    assert atlas.evaluate("atlas.state.selected !== null")


@needs_chromium
def test_colours_and_layers(atlas):
    lone = atlas.evaluate(COLOURS)  # one class, halides, and the shades of its rims
    atlas.evaluate("atlas.colourBy('formation_energy_eV_atom')")
    assert atlas.evaluate(COLOURS) > 3 * lone
    assert atlas.evaluate("document.querySelector('#legend .ends').textContent") == "−30.286 eV/atom"  # −3 and 0.286
    atlas.evaluate("atlas.colourBy('modality')")
    assert atlas.evaluate("Object.values(atlas.layers).every(layer => layer.shown)")
    atlas.evaluate("document.querySelectorAll('#layers input')[0].click()")  # crystals off
    assert atlas.evaluate("atlas.pick(...atlas.where({name: 'crystals', row: 5}), 1)?.name") != "crystals"


@needs_chromium
@pytest.mark.parametrize("width", [800, 1600])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_sticks_out_at_any_width(atlas, width, scheme):
    atlas.prefer(prefers_color_scheme=scheme, prefers_reduced_motion="reduce")
    atlas.window(width, 900)
    atlas.evaluate("atlas.select({name: 'protocols', row: 2})")
    assert atlas.evaluate(
        "document.documentElement.scrollWidth <= innerWidth && document.documentElement.scrollHeight <= innerHeight"
    )
    for part in ("#controls", "#panel", "#results"):
        assert atlas.evaluate(f"(e => e.scrollWidth <= e.clientWidth)(document.querySelector('{part}'))"), part
    back = atlas.evaluate("getComputedStyle(document.documentElement).backgroundColor")
    assert (max(map(int, re.findall(r"\d+", back))) < 60) == (scheme == "dark")
    atlas.prefer(prefers_color_scheme="light", prefers_reduced_motion="reduce")


@needs_chromium
def test_a_link_to_a_crystal_opens_with_it(browser, sample_file):
    browser.call("Page.navigate", url="about:blank")
    browser.open(sample_file, wait="window.atlas", fragment="#mp-107")
    assert heading(browser) == "NaI"


def test_a_page_of_the_largest_profile_is_small_enough():
    assert len(build.page(build.payload(many())).encode()) <= build.MAX_BYTES


@needs_chromium
def test_forty_thousand_crystals_are_fluid(browser, tmp_path):
    file = tmp_path / "many.html"
    file.write_text(build.page(build.payload(many())))
    browser.window(1600, 1000)
    browser.errors.clear()
    browser.open(file, wait="window.atlas && atlas.layers.crystals.n === 40000")
    assert browser.evaluate(FRAME) <= FRAME_MS
    browser.evaluate("atlas.colourBy('band_gap_eV')")
    assert browser.evaluate(FRAME) <= FRAME_MS
    browser.evaluate("Object.values(atlas.layers).forEach(layer => { layer.shown = true; })")  # 92,000 points
    assert browser.evaluate(FRAME) <= 2 * FRAME_MS
    assert browser.evaluate(PICKS) <= PICK_MS
    assert browser.evaluate(SEARCHES) <= SEARCH_MS
    browser.evaluate("Object.values(atlas.layers).forEach(layer => { layer.shown = layer.name === 'crystals'; })")
    assert browser.evaluate(IS_NEAREST) == [True] * 4
    assert browser.errors == []
