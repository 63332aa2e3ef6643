"""Mutated inputs, outside `make test`: python tests/fuzz_readers.py [COUNT] [SEED] [crystals|manifests|images].

Crystals are texts of CIF, POSCAR, JSON and PDB; manifests are tables with protocols, and JSON protocols; images are
files of microscopes, TIFF and PNG with bytes changed, mostly of their heads. Counts inputs that were read, refused
(ValueError) and crashed (anything else), the slowest and the peak of memory; exits with 1 if one crashed, took over
10 s of processor time or over 2 GB.
"""

import collections
import io
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import microscopy_files as files
import numpy as np
import tifffile
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from matalign.data import manifest
from matalign.data.readers.crystals import read_structure
from matalign.data.readers.micrographs import read_micrograph
from matalign.data.readers.recipe_texts import read_protocol

LIMIT_S, LIMIT_GB = 10, 2
HEAD = """data_x
_chemical_formula_sum 'Al2 Mg O4'
_cell_formula_units_Z 8
_cell_length_a 8.08
_cell_length_b 8.08
_cell_length_c 8.08
_cell_angle_alpha 90
_cell_angle_beta 90
_cell_angle_gamma 90
_symmetry_space_group_name_H-M 'F d -3 m'
_space_group_name_Hall '-F 4vw 2vw 3'
_space_group_IT_number 227
"""
ATOMS = """loop_
_atom_site_label
_atom_site_type_symbol
_atom_site_fract_x
_atom_site_fract_y
_atom_site_fract_z
_atom_site_occupancy
Mg1 Mg2+ 0.125 0.125 0.125 1
Al1 Al3+ 0.5 0.5 0.5 1.0
O1 O2- 0.2624 0.2624 0.2624 .
"""
MONOCLINIC = """data_y
_cell_length_a 7.1
_cell_length_b 9.3(1)
_cell_length_c 11.2
_cell_angle_beta 98.0
_symmetry_space_group_name_H-M 'P 1 21/c 1'
loop_
_symmetry_equiv_pos_as_xyz
'x,y,z'
'-x,y+1/2,-z+1/2'
'-x,-y,-z'
'x,-y+1/2,z+1/2'
"""
POSCAR = """Sr Ti O
-59.319
1.0 0.0 0.0
0.0 1.0 0.0
0.0 0.0 1.0
Sr_sv/1a2b Ti O
1 1 3
Selective dynamics
Cartesian
0.0 0.0 0.0 T T F
0.5 0.5 0.5 T T F
0.5 0.5 0.0 T T F
0.5 0.0 0.5 T T F
0.0 0.5 0.5 T T F
"""
JSON = """{"data": [{"id": "x", "type": "structures", "attributes": {
"lattice_vectors": [[4, 0, 0], [0, 4, 0], [0, 0, 4]], "cartesian_site_positions": [[0, 0, 0], [2, 2, 2]],
"species": [{"name": "Cs", "chemical_symbols": ["Cs"], "concentration": [1.0]},
{"name": "Br", "chemical_symbols": ["Br"], "concentration": [1.0]}],
"species_at_sites": ["Cs", "Br"], "dimension_types": [1, 1, 1]}}], "meta": {}}
"""
PDB = """CRYST1    5.640    5.640    5.640  90.00  90.00  90.00 F m -3 m      4
HETATM    1 NA   MOL     1       0.000   0.000   0.000  1.00  0.00          NA
HETATM    2 CL   MOL     1       2.820   2.820   2.820  1.00  0.00          CL
END
"""
MANIFEST = """id,structure,target,precursors,action,temperature_C,time_h,atmosphere,bulk_modulus_GPa
a,,SrTiO3,SrCO3; TiO2,calcined,1100,12,air,180
b,,Mg(NO3)2 6H2O,Zn(OAc)2; Ti(OPr)4,heated,,,N₂; O2,
"""
FREE = 'id,protocol\na,"SrCO3 and TiO2 were mixed, then calcined at 1100 °C for 12 h in N₂."\n'
PROTOCOL = """{"target": "SrTiO3", "precursors": ["SrCO3", "TiO2"], "method": "solid-state", "doi": "10.1/x",
"operations": [{"action": "mixed", "medium": "ethanol"}, {"action": "calcined", "temperature_K": 1400, "time_min": 90,
"atmosphere": ["air", "N₂"]}]}"""
COUNTS = np.arange(24 * 32, dtype=np.uint16).reshape(24, 32)
TEXTS = [HEAD + ATOMS, MONOCLINIC + ATOMS, HEAD + ATOMS + MONOCLINIC + ATOMS, POSCAR, JSON, PDB]
NUMBERS = ["0", "-1", "1e300", "1e-300", "nan", "inf", "1e9", "90", "120", "0.3333", "1/3", "9" * 12, "166", "14", "-5"]
SYMBOLS = ["?", ".", "''", "loop_", "data_", "'", ";", '"', "_", "x,y,z", "-y,x,z+1/4", "Vac", "D", "OH", "[]", "{}",
           "null", "[[", "save_", "global_", "stop_", "$", "#", "\ufeff", "é"]  # fmt: skip
WORDS = [*NUMBERS, *SYMBOLS, "\n", "\r", "\0", "P 1", "R -3 m", "F d -3 m :1", "1 1 1"]
KINDS = ("replace", "insert", "delete", "double", "swap", "line", "character")


@st.composite
def mutated(draw: st.DrawFn, texts: list[str]) -> str:
    """A text with a few of its words or lines replaced, inserted, left out, doubled or swapped."""
    text = draw(st.sampled_from(texts))
    for _ in range(draw(st.integers(1, 3))):
        kind = draw(st.sampled_from(KINDS))
        separator = "\n" if kind in ("line", "swap") else " "
        parts = text.split(separator)
        at, other = (draw(st.integers(0, max(len(parts) - 1, 0))) for _ in range(2))
        word = draw(
            st.one_of(st.sampled_from(WORDS), st.text(max_size=6), st.floats().map(str), st.integers().map(str))
        )
        if kind == "replace":
            parts[at] = word
        elif kind == "insert":
            parts.insert(at, word)
        elif kind == "delete":
            del parts[at]
        elif kind == "double":
            parts[at:at] = parts[at : at + 1] * draw(st.sampled_from([1, 2, 50]))
        elif kind == "character":
            start = draw(st.integers(0, max(len(text) - 1, 0)))
            parts = [text[:start] + word + text[start + draw(st.integers(0, 3)) :]]
        else:
            parts[at], parts[other] = parts[other], parts[at]
        text = separator.join(parts)
    return text


@st.composite
def broken(draw: st.DrawFn, images: list[tuple[str, bytes]]) -> tuple[str, bytes]:
    """A file of which a few bytes, mostly of its head, are others, or which is cut."""
    suffix, content = draw(st.sampled_from(images))
    for _ in range(draw(st.integers(1, 4))):
        end = draw(st.sampled_from([16, 64, 512, 1024, len(content)]))
        at = draw(st.integers(0, max(min(end, len(content)) - 1, 0)))
        new = draw(st.one_of(st.binary(min_size=1, max_size=8), st.sampled_from([b"\xff" * 4, b"\0" * 4, b"\x7f\xff"])))
        content = content[:at] + new + content[at + len(new) :]
    return suffix, content[: draw(st.one_of(st.just(len(content)), st.integers(0, len(content))))]


def _images() -> list[tuple[str, bytes]]:
    found = [(".mrc", files.mrc(COUNTS, cell_A=(32, 24))), (".ser", files.ser(COUNTS, scale_m=1e-10, frames=2))]
    found += [(f".dm{version}", files.dm(COUNTS, version=version)) for version in (3, 4)]
    found.append((".png", files.png(np.stack([COUNTS] * 3, -1))))
    for options in ({}, {"compression": "zlib"}, {"tile": (16, 16)}, {"imagej": True}, {"photometric": "miniswhite"}):
        stream = io.BytesIO()
        tifffile.imwrite(stream, COUNTS, **options)
        found.append((".tif", stream.getvalue()))
    with tempfile.TemporaryDirectory() as folder:
        files.berkeley_emd(Path(folder, "a.emd"), COUNTS, scale=0.02, unit="[n_m]")
        found.append((".emd", Path(folder, "a.emd").read_bytes()))
    return found


def _crystal(text: str) -> None:
    read_structure(text if "\n" in text else text + "\n")


def _table(text: str, folder: Path) -> None:
    name = "manifest.csv" if text.lstrip("\ufeff")[:1] != "{" else "protocol.json"
    (folder / name).write_bytes(text.encode("utf-8", errors="surrogatepass"))
    if name == "manifest.csv":
        manifest.read(folder)
    else:
        read_protocol(folder / name)


def _image(file: tuple[str, bytes], folder: Path) -> None:
    path = folder / f"image{file[0]}"
    path.write_bytes(file[1])
    read_micrograph(path, frame=0)


def _kinds(folder: Path) -> dict[str, tuple[st.SearchStrategy, Callable[[object], None]]]:
    """What is mutated, and what reads it."""
    return {
        "crystals": (mutated(TEXTS), _crystal),
        "manifests": (mutated([MANIFEST, FREE, PROTOCOL]), lambda text: _table(text, folder)),
        "images": (broken(_images()), lambda file: _image(file, folder)),
    }


def _over(*_: object) -> None:
    raise TimeoutError(f"over {LIMIT_S} s")


def main(count: int, start: int, kind: str) -> int:
    """Print the figures; 1 if a limit was passed."""
    tally: collections.Counter[str] = collections.Counter()
    slowest, faults = 0.0, []
    folder = tempfile.TemporaryDirectory()
    inputs, read = _kinds(Path(folder.name))[kind]
    signal.signal(signal.SIGPROF, _over)

    @seed(start)
    @settings(max_examples=count, database=None, deadline=None, phases=[Phase.generate],
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(inputs)
    def run(item: object) -> None:
        nonlocal slowest
        begun = time.process_time()
        signal.setitimer(signal.ITIMER_PROF, LIMIT_S)
        try:
            read(item)
            tally["read"] += 1
        except ValueError:
            tally["refused"] += 1
        except Exception as error:  # what is looked for
            tally[f"crashed: {type(error).__name__}"] += 1
            faults.append((item, traceback.format_exc()))
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
        slowest = max(slowest, time.process_time() - begun)

    run()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{sum(tally.values())} {kind}: {dict(tally)}; slowest {slowest:.2f} s, peak memory {peak:.2f} GB")
    for item, trace in faults[:3]:
        print(f"{item if isinstance(item, str) else repr(item)[:2000]}\n{trace}")
    return int(bool(faults) or slowest > LIMIT_S or peak > LIMIT_GB)


if __name__ == "__main__":
    words = sys.argv[1:] + ["5000", "0", "crystals"][len(sys.argv) - 1 :]
    sys.exit(main(int(words[0]), int(words[1]), words[2]))
