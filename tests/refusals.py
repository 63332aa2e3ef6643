"""Bad input of every kind, as a user would give it, and what is said of it: the table docs/refusals.md.

    python tests/refusals.py    writes the table anew

Variants that one reader alone tells apart are in that reader's tests.
"""

import contextlib
import io
import json
import shlex
import shutil
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import microscopy_files as microscopes
import numpy as np
import torch
import yaml
from safetensors.torch import save_file
from salt import CIF

from matalign import cache, paths
from matalign.data import dataset, sources
from matalign.pipeline import run
from matalign.pretrain import checkpoint, encode
from matalign.release import cli, integrity

REPOSITORY = Path(__file__).parents[1]
TABLE = REPOSITORY / "docs" / "refusals.md"
MODEL = "model"  # the folder of a copy of the released model
COUNTS = np.random.default_rng(0).integers(0, 60_000, (40, 56)).astype(np.uint16)
POSCAR = "salt\n1.0\n4 0 0\n0 4 0\n0 0 4\nCs Cl\n1 1\nDirect\n0 0 0\n0.5 0.5 0.5\n"
RECORD = {
    "lattice_vectors": [[4, 0, 0], [0, 4, 0], [0, 0, 4]],
    "cartesian_site_positions": [[0, 0, 0], [2, 2, 2]],
    "species_at_sites": ["Cs", "Cl"],
}
RECIPE = {"target": "BaTiO3", "precursors": ["BaCO3", "TiO2"]}


@dataclass(frozen=True)
class Kind:
    """One kind of bad input.

    Attributes:
        area: heading of the table.
        what: is wrong.
        ask: words of the command line; `run` starts a stage of the pipeline; or a call.
        said: part of the message.
        files: name -> content, written where the command runs.
        edit: is done there then.
    """

    area: str
    what: str
    ask: str | Callable[[], object]
    said: str
    files: Mapping[str, str | bytes] = field(default_factory=dict)
    edit: Callable[[], object] = lambda: None

    @property
    def named(self) -> str:
        """For pytest."""
        return f"{self.area}: {self.what}"


def told(kind: Kind) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of the command in the working directory; a call's error is 1."""
    for name, content in kind.files.items():
        Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())
    kind.edit()
    out, err = io.StringIO(), io.StringIO()
    main, code = {"run": run.main}.get(str(kind.ask).partition(" ")[0], cli.main), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            if callable(kind.ask):
                kind.ask()
            else:
                words = shlex.split(kind.ask)
                sys.argv = words if main is run.main else ["matalign", *words]
                main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
            err.write("" if isinstance(end.code, int | None) else end.code)
        except (OSError, ValueError) as error:  # of a call; of a command it would be a traceback
            if not callable(kind.ask):
                raise
            code = 1
            err.write(str(error))
    return code, out.getvalue(), err.getvalue()


# Answers of an OPTIMADE provider

ANSWERS = {
    "html": (200, "<html>Service unavailable</html>"),
    "cut": (200, json.dumps({"data": [{"id": "x", "attributes": RECORD}]})[:60]),
    "list": (200, "[1, 2]"),
    "null": (200, '{"data": null}'),
    "refused": (400, '{"errors": [{"title": "Bad Request", "detail": "unknown property elments"}]}'),
    "broken": (500, "{}"),
    "empty": (200, '{"data": [], "meta": {"data_returned": 0}}'),
    "bare": (200, '{"data": [{"id": "x-1", "attributes": null}, "x-2"]}'),
    "loop": (200, json.dumps({"data": [{"id": "x", "attributes": RECORD}], "links": {"next": "?page_offset=1"}})),
    "odd": (200, '{"data": [{"id": "x"}], "links": {"next": 7}, "meta": {"data_returned": "many"}}'),
    "page": (200, '{"data": [{"id": "x"}], "links": 7}'),
}


class Answers(BaseHTTPRequestHandler):
    """The path's first part names the answer."""

    def log_message(self, *_: object) -> None:
        """Be silent."""

    def do_GET(self) -> None:
        """Answer."""
        status, text = ANSWERS[self.path.split("/")[1]]
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())


@contextlib.contextmanager
def provider() -> Iterator[int]:
    """The port where it answers."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


# Edits


def about(resealed: bool = True, **changes: object) -> Callable[[], object]:
    """Edit the model's `config.json`; a value may be a function of the old one. With the hash of itself made anew."""

    def edit() -> None:
        old = cache.read_json(Path(MODEL, "config.json"))
        new = old | {name: value(old[name]) if callable(value) else value for name, value in changes.items()}
        cache.write_json(Path(MODEL, "config.json"), integrity.sealed(new) if resealed else new)

    return edit


def replaced(name: str, make: Callable[[Path], object]) -> Callable[[], object]:
    """Change a file of the model and make all hashes anew, as one would who knows of them."""

    def edit() -> None:
        make(Path(MODEL, name))
        about(files=lambda old: old | {name: sources.file_hash(Path(MODEL, name))})()

    return edit


def damaged(name: str) -> Callable[[], object]:
    """Flip the last byte of a file of the model."""

    def edit() -> None:
        content = bytearray(Path(MODEL, name).read_bytes())
        content[-1] ^= 1
        Path(MODEL, name).write_bytes(content)

    return edit


def cut(file: str) -> Callable[[], object]:
    """Leave the first half of a file."""
    return lambda: Path(file).write_bytes(Path(file).read_bytes()[: Path(file).stat().st_size // 2])


def linked(name: str) -> Callable[[], object]:
    """Move a file of the model out of its folder and leave a link."""

    def edit() -> None:
        shutil.move(Path(MODEL, name), "elsewhere.safetensors")
        Path(MODEL, name).symlink_to(Path("elsewhere.safetensors").resolve())

    return edit


def params(edit: Callable[[dict], object]) -> Callable[[], object]:
    """Edit a copy of params.yaml."""

    def write() -> None:
        values = yaml.safe_load((REPOSITORY / "params.yaml").read_text())
        edit(values)
        Path("params.yaml").write_text(yaml.safe_dump(values, sort_keys=False))

    return write


def pretrained(edit: Callable[[], object]) -> Callable[[], object]:
    """Edit a copy of the pretrained model."""

    def write() -> None:
        shutil.copytree(paths.results("tiny") / "pretrained", "pretrained")
        edit()

    return write


def state(value: object) -> Callable[[], object]:
    """Write a training state."""
    return lambda: torch.save(value, "state.pt")


def curated(edit: Callable[[], object]) -> Callable[[], object]:
    """Edit a copy of the curated set."""

    def write() -> None:
        shutil.copytree(paths.curated("tiny"), "curated")
        edit()

    return write


def kinds_of_structures() -> list[Kind]:
    """Files that `predict` is given."""
    half = json.dumps(
        {
            "id": "x-1",
            "attributes": RECORD
            | {
                "species": [
                    {"name": "Cs", "chemical_symbols": ["Cs", "Rb"], "concentration": [0.5, 0.5]},
                    {"name": "Cl", "chemical_symbols": ["Cl"], "concentration": [1]},
                ]
            },
        }
    )
    flat = json.dumps({"id": "x-1", "attributes": RECORD | {"dimension_types": [1, 1, 0]}})
    rows = [
        ("not there", "x.cif", None, "x.cif: no such file"),
        ("an empty file", "x.cif", "", "x.cif: unreadable CIF"),
        ("prose under the name of a CIF", "x.cif", "Dear colleague,\n", "x.cif: unreadable CIF"),
        ("bytes that are no text", "x.cif", bytes(range(256)), "x.cif: unreadable"),
        ("a CIF cut within its last row", "x.cif", CIF[:-8], "x.cif: unreadable CIF"),
        ("a packed file that is damaged", "x.cif.gz", b"\x1f\x8b\x08\x00" + b"\0" * 20, "x.cif.gz: unreadable"),
        ("a site that is half full", "x.cif", CIF.replace("0 0 0 1", "0 0 0 0.5"), "x.cif: disordered: site Na1"),
        ("a site without a place", "x.cif", CIF.replace("0 0 0 1", "0 ? 0 1"), "unreadable: _atom_site_fract_y of Na1"),
        ("an unknown element", "x.cif", CIF.replace("Na Na1", "Xx Xx1"), "x.cif: unknown element: site Xx1"),
        ("two atoms in one place", "x.cif", CIF.replace("0.5 0.5 0.5", "0 0 0.01"), "x.cif: overlapping atoms: "),
        ("a cell without volume", "x.cif", CIF.replace("alpha 60", "alpha 0"), "x.cif: no lattice: a, b, c 3.99"),
        (
            "sites that contradict the formula",
            "x.cif",
            CIF + "_chemical_formula_sum 'Na2 Cl'\n",
            "x.cif: formula mismatch: _chemical_formula_sum is Na2 Cl",
        ),
        (
            "two crystals in one file",
            "x.cif",
            CIF + CIF.replace("nacl", "b").replace("3.99", "4.2"),
            "x.cif: several structures: 2 (nacl, b …)",
        ),
        (
            "a modulated structure",
            "x.cif",
            CIF + "_cell_modulation_dimension 1\n",
            "x.cif: symmetry: a modulated structure (_cell_modulation_dimension 1)",
        ),
        (
            "a POSCAR with too few rows",
            "POSCAR",
            POSCAR.replace("1 1\n", "1 2\n"),
            "2 lines of coordinates for 3 atoms",
        ),
        ("a POSCAR of too many atoms", "POSCAR", POSCAR.replace("1 1\n", "1 9999\n"), "POSCAR: too many atoms: 10000"),
        ("a molecule without a cell", "x.xyz", "2\n\nO 0 0 0\nH 0 0 0.9\n", "x.xyz: no lattice"),
        ("JSON that is none", "x.json", "{", "x.json: unreadable: not JSON"),
        ("JSON of something else", "x.json", '{"a": 1}', "x.json: unreadable: a JSON object of a"),
        ("a mixed site in an OPTIMADE record", "x.json", half, "x.json: disordered: species Cs is Cs/Rb"),
        (
            "a layer in an OPTIMADE record",
            "x.json",
            flat,
            "x.json: not periodic in three directions: dimension_types is [1, 1, 0]",
        ),
        (
            "a PDB without a cell",
            "x.pdb",
            f"HETATM    1 NA   MOL     1    {'0.000'.rjust(8) * 3}  1.00  0.00          NA\n",
            "x.pdb: no lattice: no CRYST1",
        ),
    ]
    return [
        Kind("Structures", what, f"predict {name} --model {MODEL}", said, {} if content is None else {name: content})
        for what, name, content, said in rows
    ] + [
        Kind("Structures", "a folder", f"predict . --model {MODEL}", "is a folder"),
        Kind(
            "Structures",
            "a block that is not there",
            f"predict x.cif --block b --model {MODEL}",
            "x.cif: no block 'b' with atoms; there are nacl",
            {"x.cif": CIF},
        ),
        Kind(
            "Structures",
            "a frame that is not there",
            f"predict POSCAR --frame 7 --model {MODEL}",
            "POSCAR: no frame 7: there are 1",
            {"POSCAR": POSCAR},
        ),
        Kind(
            "Structures",
            "a block of a file that has none",
            f"predict POSCAR --block b --model {MODEL}",
            "POSCAR: no block 'b': a CIF alone has blocks",
            {"POSCAR": POSCAR},
        ),
    ]


def kinds_of_micrographs() -> list[Kind]:
    """Files that `embed` is given."""
    dm, mrc, png = microscopes.dm, microscopes.mrc, microscopes.png
    grey = png(COUNTS[..., None])
    rows = [
        ("no scale", "x.png", grey, "", "x.png: no scale: the file states none; give pixel_A"),
        ("not an image", "x.png", b"no image", "", "x.png: unreadable; expected an image of the kinds PNG"),
        ("cut", "x.png", grey[:900], "--pixel-A 0.2", "x.png: unreadable"),
        ("one grey all over", "x.png", png(np.full((40, 40, 1), 7, np.uint8)), "--pixel-A 0.2", "x.png: no contrast"),
        ("too coarse", "x.png", grey, "--pixel-A 10", "x.png: too coarse: the "),
        ("a negative scale", "x.png", grey, "--pixel-A -1", "x.png: no scale: the pixel size is -1"),
        ("a diffraction pattern", "x.dm3", dm(COUNTS, unit="1/nm"), "", "x.dm3: a diffraction pattern"),
        (
            "an unknown unit",
            "x.dm3",
            dm(COUNTS, unit="parsec"),
            "",
            "x.dm3: unknown unit: the file's scale is 0.02 parsec",
        ),
        (
            "another scale than the file's",
            "x.dm3",
            dm(COUNTS),
            "--pixel-A 0.02",
            "x.dm3: contradicting scales: the file says",
        ),
        ("several frames", "x.mrc", mrc(np.stack([COUNTS] * 3), cell_A=(56, 40)), "", "x.mrc: 3 frames; expected one"),
        ("pixels that are not square", "x.mrc", mrc(COUNTS, cell_A=(56, 80)), "", "x.mrc: pixels are not square"),
        (
            "pixels that are not finite",
            "x.mrc",
            mrc(np.full((8, 8), np.nan, np.float32), cell_A=(8, 8)),
            "",
            "x.mrc: some pixels are not finite",
        ),
    ]
    return [
        Kind("Micrographs", what, f"embed {name} --csv {more} --model {MODEL}", said, {name: content})
        for what, name, content, more, said in rows
    ]


def kinds_of_protocols() -> list[Kind]:
    """Files that `embed` is given."""

    def step(**fields: object) -> str:
        return json.dumps(RECIPE | {"operations": [fields]})

    rows = [
        ("not there", "x.txt", None, "x.txt: no such file"),
        ("empty", "x.txt", " \n", "x.txt: an empty text"),
        ("not UTF-8", "x.txt", b"Fired at 900 \xb0C", "x.txt: not UTF-8 text: byte b0 in line 1"),
        ("a whole paper", "x.txt", "x" * 100_000, "x.txt: a text of 100,000 bytes; at most"),
        ("a sign of one font alone", "x.txt", "Fired at 900 \uf0b0C", "x.txt: no readable text: U+F0B0"),
        ("JSON that is none", "x.json", "{", "x.json: not JSON"),
        ("JSON that is too deep", "x.json", "[" * 70_000, "x.json: not JSON"),
        ("a misspelt field", "x.json", json.dumps(RECIPE | {"precursor": []}), "x.json: unknown field 'precursor'"),
        ("no precursors", "x.json", json.dumps(RECIPE | {"precursors": []}), "x.json: no precursors"),
        (
            "the target among its precursors",
            "x.json",
            json.dumps(RECIPE | {"precursors": ["BaTiO3"]}),
            "x.json: the target BaTiO3 is among its precursors",
        ),
        (
            "a formula that is none",
            "x.json",
            json.dumps(RECIPE | {"target": "BaXx3"}),
            "cannot read 'Xx' (character 3)",
        ),
        ("a temperature without a unit", "x.json", step(temperature=900), "x.json: temperature 900 has no unit"),
        (
            "a temperature in °F",
            "x.json",
            step(temperature=900, temperature_unit="F"),
            "x.json: temperature 900 has the unknown unit 'F'",
        ),
        ("a temperature of 9000 °C", "x.json", step(temperature_C=9000), "x.json: a temperature of 9000 °C"),
    ]
    return [
        Kind("Protocols", what, f"embed {name} --csv --model {MODEL}", said, {} if content is None else {name: content})
        for what, name, content, said in rows
    ]


def kinds_of_sets() -> list[Kind]:
    """One's own folders and tables, and answers of OPTIMADE providers, that `import` is given."""
    other = json.dumps(RECIPE)
    rows = [
        ("no manifest", None, "manifest.csv: no such file; expected a table with the columns id, structure"),
        ("a header alone", "id,structure\n", "manifest.csv: no rows"),
        ("not UTF-8", "id,structure\nné,x.cif\n".encode("latin-1"), "manifest.csv: not UTF-8"),
        ("a misspelt column", "id,strcture\na,x.cif\n", "row 1: unknown column 'strcture'; is it 'structure'?"),
        ("an unknown unit", "id,temperature_F\na,3\n", "row 1: unknown unit 'F' in the column 'temperature_F'"),
        ("no column of ids", "structure\nx.cif\n", "row 1: no column 'id'"),
        ("more cells than columns", "id,structure\na,x.cif,b\n", "row 2: 3 cells for 2 columns"),
        ("an id twice", "id,structure\na,x.cif\na,x.cif\n", "row 3: the id 'a' is that of row 2 already"),
        ("a file that is not there", "id,structure\na,y.cif\n", "row 2: y.cif: no such file"),
        (
            "a path that leaves the folder",
            "id,structure\na,../x.cif\n",
            "row 2: ../x.cif: leaves the manifest's folder",
        ),
        ("an absolute path", "id,structure\na,/etc/hostname\n", "row 2: /etc/hostname: an absolute path"),
        (
            "a recipe of another material",
            "id,structure,protocol\na,x.cif,other.json\n",
            "row 2: the protocol's target is BaTiO3, the structure NaCl",
        ),
        ("a negative gap", "id,structure,band_gap_eV\na,x.cif,-1\n", "row 2: band_gap is -1; expected at least 0"),
        ("rows without any structure", "id,protocol\na,Fired.\n", "none of 1 rows has a structure"),
    ]
    files = {"x.cif": CIF, "other.json": other}
    made = [
        Kind("Manifests and tables", what, "import . lab", said, files | ({"manifest.csv": text} if text else {}))
        for what, text, said in rows
    ]
    made += [
        Kind("Manifests and tables", "the name of a profile", "import . laptop", "that is no profile of params.yaml"),
        Kind(
            "Manifests and tables",
            "a CSV without CIFs",
            "import t.csv lab",
            "t.csv: no column 'cif'",
            {"t.csv": "id\na\n"},
        ),
        Kind(
            "Manifests and tables",
            "a CSV of which no CIF can be read",
            "import t.csv lab",
            "none of 1 materials has a readable structure",
            {"t.csv": "id,cif\na,nothing\n"},
        ),
        Kind("OPTIMADE answers", "no such provider", "import mpp lab", "no provider 'mpp'; providers: mp, oqmd"),
        Kind(
            "OPTIMADE answers", "a query that is none", "import mp lab --filter 'elements HAS'", "is no OPTIMADE filter"
        ),
        Kind("OPTIMADE answers", "nobody there", "import http://127.0.0.1:9 lab", "Connection refused"),
    ]
    rows = [
        ("a page of HTML", "html", "Could not decode response as JSON: '<html>"),
        ("an answer that is cut", "cut", "Could not decode response as JSON"),
        ("JSON of another shape", "list", "200: [1, 2]"),
        ("no data", "null", "200: {'data': None}"),
        ("a link that is a number", "odd", "1 of more structures came: the link to the next page is 7"),
        ("links of another shape", "page", "200: {'data': [{'id': 'x'}], 'links': 7}"),
        ("an error document", "refused", "400: [{'title': 'Bad Request', 'detail': 'unknown property elments'}]"),
        ("errors of the server without end", "broken", "500 error responses"),
        ("no structure that answers", "empty", "has no structure that answers to ''"),
        ("records without a structure", "bare", "none of 1 materials has a readable structure"),
        ("pages that repeat", "loop", "1 of more structures came: pages repeat"),
    ]
    asked = "import http://127.0.0.1:{port}/{answer} lab"
    return made + [
        Kind("OPTIMADE answers", what, asked.replace("{answer}", answer), said) for what, answer, said in rows
    ]


def kinds_of_params() -> list[Kind]:
    """Files params.yaml that a stage is started with."""
    rows = [
        (
            "an unknown parameter",
            params(lambda p: p["tiny"]["pretrain"].update(epoch=1)),
            "params.yaml: tiny.pretrain: unknown parameter 'epoch', the nearest is 'epochs'",
        ),
        (
            "a missing parameter",
            params(lambda p: p["base"]["curate"].pop("max_temperature_C")),
            "params.yaml: tiny.curate: missing parameter 'max_temperature_C'",
        ),
        (
            "a number without a dot",
            params(lambda p: p["tiny"]["pretrain"].update(learning_rate="3e-4")),
            "params.yaml: tiny.pretrain: learning_rate must be float, got '3e-4' (str)",
        ),
        (
            "a list where a map is expected",
            params(lambda p: p["tiny"].update(properties={"runs": []})),
            "params.yaml: tiny.properties: runs must be a map, got []",
        ),
        ("an unknown stage", params(lambda p: p["tiny"].update(train={})), "params.yaml: tiny: unknown stage 'train'"),
        (
            "a stage that is a list",
            params(lambda p: p["tiny"].update(pretrain=[1])),
            "params.yaml: tiny.pretrain must be a map, got [1]",
        ),
        ("no base", params(lambda p: p.pop("base")), "params.yaml: base must be a map of stages"),
        ("no such profile", params(lambda p: p.pop("tiny")), "params.yaml: no profile 'tiny', the nearest is"),
        ("not YAML", lambda: Path("params.yaml").write_text("base: {\n"), "params.yaml: not YAML: "),
        ("empty", lambda: Path("params.yaml").write_text(""), "params.yaml: base must be a map of stages"),
        ("not there", lambda: None, "params.yaml: no such file; start in the project, or set MATALIGN_ROOT"),
    ]
    return [Kind("params.yaml", what, "run curate --profile tiny", said, edit=edit) for what, edit, said in rows]


def kinds_of_checkpoints() -> list[Kind]:
    """Training states, results in scratch, pretrained models and curated sets that stages read."""
    file, whole = Path("state.pt"), {"model": {}, "progress": {}}

    def unknown_state() -> None:
        from matalign.pretrain import train

        train._resumed(file, encode.load("tiny").aligned)

    def scratch() -> None:
        cache.save(Path("result.safetensors"), {"x": np.zeros(9)})
        cut("result.safetensors")()

    trained = Path("pretrained")
    rows = [
        (
            "a training state that is cut",
            lambda: checkpoint.load(file),
            "state.pt: no training state (PytorchStreamReader",
            lambda: (state(whole)(), cut("state.pt")()),
        ),
        ("an empty training state", lambda: checkpoint.load(file), "state.pt: no training state", file.touch),
        (
            "a training state that holds code",
            lambda: checkpoint.load(file),
            "state.pt: no training state (Weights only load",
            state({"progress": shutil.rmtree}),
        ),
        ("a training state of another version", unknown_state, "state.pt: a state of another version (", state(whole)),
        (
            "a result in scratch that is cut",
            lambda: cache.load(Path("result.safetensors")),
            "result.safetensors: unreadable (",
            scratch,
        ),
        ("a pretrained model that is not there", lambda: encode.load("pretrained"), "the stage `pretrain` makes it"),
        (
            "a pretrained model's config that is cut",
            lambda: encode.load(trained),
            "config.json: not JSON",
            pretrained(cut("pretrained/config.json")),
        ),
        (
            "a released model for a pretrained one",
            lambda: encode.load(MODEL),
            "weights are missing or unknown, first 'towers.image.",
            about(),
        ),
        (
            "a pretrained model's weights that are cut",
            lambda: encode.load(trained),
            "crystal.safetensors: unreadable (",
            pretrained(cut("pretrained/crystal.safetensors")),
        ),
        (
            "a pretrained model without a tower",
            lambda: encode.load(trained),
            "weights are missing or unknown, first 'towers.crystal",
            pretrained(lambda: (trained / "crystal.safetensors").unlink()),
        ),
        (
            "a curated set without a table",
            lambda: dataset.read(Path("curated")),
            "splits.parquet: no curated set here",
            curated(lambda: Path("curated/splits.parquet").unlink()),
        ),
        (
            "a curated set with a table that is cut",
            lambda: dataset.read(Path("curated")),
            "curated: not a whole curated set (",
            curated(cut("curated/splits.parquet")),
        ),
    ]
    return [Kind("Checkpoints and sets", what, ask, said, {}, *edit) for what, ask, said, *edit in rows]


def kinds_of_models() -> list[Kind]:
    """Folders of a released model that `predict` is given."""
    config = Path(MODEL, "config.json")
    rows = [
        ("not there", lambda: shutil.rmtree(MODEL), "no model in "),
        ("a config that is cut", cut(config), "model/config.json: not JSON"),
        (
            "a config that is a list",
            lambda: config.write_text("[]"),
            "model/config.json: a JSON list; expected an object",
        ),
        (
            "a config of something else",
            lambda: config.write_text("{}"),
            "not a released model, its config.json has no format",
        ),
        ("a newer format", about(format=99), "format 99, but this matalign reads 3; update it or the model"),
        (
            "a config that was edited",
            about(False, synthetic=True),
            "config.json: changed since it was written: expected sha256",
        ),
        ("no list of files", about(files=None), "config.json: files must be a map, got None"),
        (
            "an unknown parameter",
            about(pretrain=lambda old: old | {"heads": 3}),
            "config.json: pretrain: unknown parameter 'heads'",
        ),
        (
            "a parameter of another type",
            about(pretrain=lambda old: old | {"width": "8"}),
            "config.json: pretrain: width must be int",
        ),
        (
            "a tower that does not exist",
            about(predictors=lambda old: [group | {"tower": "magic"} for group in old]),
            "crystal_tower must be ild or cgconv, got 'magic'",
        ),
        ("no calibration of a target", about(calibrations={}), "config.json: no calibration of band_gap_eV"),
        (
            "a shard that is missing",
            lambda: Path(MODEL, "predictors.safetensors").unlink(),
            "predictors.safetensors is missing",
        ),
        ("a shard that is cut", cut(f"{MODEL}/predictors.safetensors"), "predictors.safetensors: expected sha256"),
        ("a shard that is damaged", damaged("heads.safetensors"), "heads.safetensors: expected sha256"),
        ("an index that is damaged", damaged("index.safetensors"), "index.safetensors: expected sha256"),
        ("a table that is missing", lambda: Path(MODEL, "crystals.parquet").unlink(), "crystals.parquet is missing"),
        ("a table that was edited", damaged("crystals.parquet"), "crystals.parquet: expected sha256"),
        (
            "a file without a hash",
            about(files=lambda old: {k: v for k, v in old.items() if "index" not in k}),
            "config.json: no hash of index.safetensors in `files`",
        ),
        (
            "a file outside the folder",
            about(weights=["../x.safetensors"], files=lambda old: old | {"../x.safetensors": ""}),
            "config.json: '../x.safetensors' is no file of this folder",
        ),
        (
            "an absolute path",
            about(files=lambda old: old | {"/etc/hostname": ""}),
            "config.json: '/etc/hostname' is no file of this",
        ),
        (
            "a link that leaves the folder",
            linked("heads.safetensors"),
            "config.json: 'heads.safetensors' is no file of this folder",
        ),
        (
            "a pickle among the weights",
            about(files=lambda old: old | {"heads.pt": ""}),
            "config.json: 'heads.pt' is no file of this",
        ),
        (
            "recipes from outside the project",
            about(recommendation=lambda old: old | {"raw": "../../secret"}),
            "config.json: recommendation: raw is '../../secret', which leaves the project",
        ),
        (
            "weights that are no tensors, all hashes made anew",
            replaced("predictors.safetensors", lambda f: f.write_bytes(b"x" * 99)),
            "predictors.safetensors: unreadable (",
        ),
        (
            "weights of another model, all hashes made anew",
            replaced("predictors.safetensors", lambda f: save_file({"x": torch.zeros(1)}, f)),
            "weights are missing or unknown",
        ),
    ]
    return [
        Kind("Released models", what, f"predict good.cif --model {MODEL}", said, {"good.cif": CIF}, edit)
        for what, edit, said in rows
    ]


KINDS = [
    *kinds_of_structures(),
    *kinds_of_micrographs(),
    *kinds_of_protocols(),
    *kinds_of_sets(),
    *kinds_of_params(),
    *kinds_of_checkpoints(),
    *kinds_of_models(),
]


def table() -> str:
    """docs/refusals.md."""
    intro = f"""# What is refused, and what is said

{len(KINDS)} kinds of bad input. Each is given to the command, or to the function that a stage calls; the message names
the file, the row or the parameter. Made by `python tests/refusals.py`; `tests/project/test_refusals.py` gives each to
the program and compares. What one reader alone tells apart is in that reader's tests.

A released model's config.json holds the hash of every other file and one of itself. That finds damage and edits; who
makes the hashes anew too is found only by comparing `sha256` with the published one. A model without that hash (those
made before it) is read, and a note says so. Nothing that a model's folder holds can run code: it is JSON, safetensors
and Parquet, read by name from the folder itself.
"""
    parts = [intro]
    for area in dict.fromkeys(kind.area for kind in KINDS):
        rows = [kind for kind in KINDS if kind.area == area]
        parts.append(f"\n## {area}\n\n| what is wrong | the message has |\n|---|---|\n")
        said = {kind.what: kind.said.strip().replace("`", "'") for kind in rows}
        parts += [f"| {what} | `{message}` |\n" for what, message in said.items()]
    return "".join(parts)


if __name__ == "__main__":
    TABLE.write_text(table())
