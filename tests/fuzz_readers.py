"""Mutated texts of crystals, outside `make test`: python tests/fuzz_readers.py [COUNT] [SEED].

Counts texts that were read, refused (ValueError) and crashed (anything else), the slowest and the peak of memory; exits
with 1 if one crashed, took over 10 s of processor time or over 2 GB.
"""

import collections
import resource
import signal
import sys
import time
import traceback

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from matalign.data.crystals import read_structure

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
TEXTS = [HEAD + ATOMS, MONOCLINIC + ATOMS, HEAD + ATOMS + MONOCLINIC + ATOMS, POSCAR, JSON, PDB]
NUMBERS = ["0", "-1", "1e300", "1e-300", "nan", "inf", "1e9", "90", "120", "0.3333", "1/3", "9" * 12, "166", "14", "-5"]
SYMBOLS = ["?", ".", "''", "loop_", "data_", "'", ";", '"', "_", "x,y,z", "-y,x,z+1/4", "Vac", "D", "OH", "[]", "{}",
           "null", "[[", "save_", "global_", "stop_", "$", "#", "\ufeff", "é"]  # fmt: skip
WORDS = [*NUMBERS, *SYMBOLS, "\n", "\r", "\0", "P 1", "R -3 m", "F d -3 m :1", "1 1 1"]
KINDS = ("replace", "insert", "delete", "double", "swap", "line", "character")


@st.composite
def mutated(draw: st.DrawFn) -> str:
    """A text with a few of its words or lines replaced, inserted, left out, doubled or swapped."""
    text = draw(st.sampled_from(TEXTS))
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


def _over(*_: object) -> None:
    raise TimeoutError(f"over {LIMIT_S} s")


def main(count: int, start: int) -> int:
    """Print the figures; 1 if a limit was passed."""
    tally: collections.Counter[str] = collections.Counter()
    slowest, faults = 0.0, []
    signal.signal(signal.SIGPROF, _over)

    @seed(start)
    @settings(max_examples=count, database=None, deadline=None, phases=[Phase.generate],
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(mutated())
    def run(text: str) -> None:
        nonlocal slowest
        begun = time.process_time()
        signal.setitimer(signal.ITIMER_PROF, LIMIT_S)
        try:
            read_structure(text if "\n" in text else text + "\n")
            tally["read"] += 1
        except ValueError:
            tally["refused"] += 1
        except Exception as error:  # what is looked for
            tally[f"crashed: {type(error).__name__}"] += 1
            faults.append((text, traceback.format_exc()))
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
        slowest = max(slowest, time.process_time() - begun)

    run()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{sum(tally.values())} texts: {dict(tally)}; slowest {slowest:.2f} s, peak memory {peak:.2f} GB")
    for text, trace in faults[:3]:
        print(f"{text}\n{trace}")
    return int(bool(faults) or slowest > LIMIT_S or peak > LIMIT_GB)


if __name__ == "__main__":
    sys.exit(main(*(int(word) for word in (sys.argv[1:] + ["5000", "0"][len(sys.argv) - 1 :]))))
