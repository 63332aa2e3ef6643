"""Crystals in JSON: OPTIMADE records and answers, and what pymatgen, ASE and JARVIS write."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from matalign.data.readers import unit_cell
from matalign.data.readers.unit_cell import Cell
from matalign.elements import NUMBER, SYMBOLS

Arrays = tuple[np.ndarray, np.ndarray, np.ndarray]
FULL = 0.999999  # a concentration
UNSURE = {"disorder", "implicit_atoms", "site_attachments", "unknown_positions"}
SAME_A = 0.01  # lengths and places that are stated twice agree within this


def load(text: str) -> Any:
    """JSON's content.

    Raises:
        ValueError: no JSON, or too deep.
    """
    try:
        return json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"unreadable: not JSON ({error})") from None


def read(record: Any, *, frame: int | None = None) -> Cell:
    """The crystal of a record, or of an answer with one.

    Args:
        record: OPTIMADE structure (with `attributes`, or these alone), an answer (`data`), a list; pymatgen's, ASE's or
            JARVIS's dictionary of a structure.
        frame: which of several.

    Raises:
        ValueError: naming the field; see `unit_cell.checked`.
    """
    try:
        return unit_cell.checked(*_arrays(one_of(record, frame)))
    except (TypeError, KeyError, AttributeError, IndexError, OverflowError, RecursionError) as error:
        raise ValueError(f"unreadable: {type(error).__name__} {str(error)[:80]}") from None


def name(record: Any) -> str:
    """What a message calls the record."""
    while isinstance(record, Mapping) and isinstance(record.get("data"), Mapping | list):
        record = record["data"]
    record = record[0] if isinstance(record, list) and len(record) == 1 else record
    if isinstance(record, Mapping) and ("attributes" in record or "lattice_vectors" in record):
        return f"OPTIMADE record {record.get('id', '')!r}"
    return "JSON"


def holds_structure(record: Any) -> bool:
    """Whether a JSON's content is a structure, or an answer with some, as `read` knows them by their fields."""
    for _ in range(5):
        if isinstance(record, list) and record:
            record = record[0]
        elif isinstance(record, Mapping) and isinstance(record.get("data"), Mapping | list):
            record = record["data"]
        else:
            break
    known = ({"attributes"}, {"lattice_vectors"}, {"lattice", "sites"}, {"numbers", "cell"}, {"lattice_mat"},
             {"ids", "nextid"}, {"structure"}, {"atoms"})  # fmt: skip
    return isinstance(record, Mapping) and any(fields <= record.keys() for fields in known)


def one_of(record: Any, frame: int | None) -> Mapping[str, Any]:
    """The record among those of an answer, a list or a database of ASE.

    Raises:
        ValueError: none or several, and no frame chosen.
    """
    for _ in range(5):
        if isinstance(record, Mapping) and "ids" in record and "nextid" in record:
            record = [record[str(number)] for number in _unpacked(record["ids"])]
        elif isinstance(record, Mapping) and isinstance(record.get("data"), Mapping | list):
            record = record["data"]
        elif isinstance(record, list | tuple):
            if not record:
                raise ValueError("no structures: an empty list")
            if frame is None and len(record) > 1:
                ids = ", ".join(str(each.get("id", "?")) if isinstance(each, Mapping) else "?" for each in record[:3])
                raise ValueError(f"several structures: {len(record)} records ({ids} …); choose one by `frame`, from 0")
            if not -len(record) <= (frame or 0) < len(record):
                raise ValueError(f"no frame {frame}: there are {len(record)}")
            record, frame = record[frame or 0], None
        else:
            break
    if not isinstance(record, Mapping):
        raise ValueError(f"unreadable: a JSON {type(record).__name__}; expected a structure")
    if frame not in (None, 0, -1):
        raise ValueError(f"no frame {frame}: there is one")
    return record


def _arrays(record: Mapping[str, Any]) -> Arrays:
    if "attributes" in record or "lattice_vectors" in record or "cartesian_site_positions" in record:
        return _optimade(record.get("attributes", record))
    if "lattice" in record and "sites" in record:
        return _pymatgen(record)
    if "numbers" in record and ("cell" in record or "positions" in record):
        return _ase(record)
    if "lattice_mat" in record:
        return _jarvis(record)
    for key in ("structure", "atoms"):
        if isinstance(record.get(key), Mapping):
            return _arrays(record[key])
    fields = ", ".join(str(key) for key in list(record)[:5])
    if "species" in record or "type" in record or "id" in record:
        raise ValueError("no lattice: lattice_vectors is missing or has gaps")
    raise ValueError(f"unreadable: a JSON object of {fields or 'nothing'}; expected a structure")


def _optimade(about: Mapping[str, Any]) -> Arrays:
    lattice, sites = about.get("lattice_vectors"), about.get("cartesian_site_positions")
    if not lattice or any(x is None for vector in lattice for x in vector or [None]):
        raise ValueError("no lattice: lattice_vectors is missing or has gaps")
    if list(about.get("dimension_types") or [1, 1, 1]) != [1, 1, 1]:
        raise ValueError(f"not periodic in three directions: dimension_types is {about['dimension_types']}")
    if about.get("assemblies"):
        raise ValueError(f"disordered: assemblies is {str(about['assemblies'])[:60]}; expected each site full")
    if about.get("nperiodic_dimensions") not in (None, 3):
        raise ValueError(f"not periodic in three directions: nperiodic_dimensions is {about['nperiodic_dimensions']}")
    if unsure := set(about.get("structure_features") or ()) & UNSURE:
        raise ValueError(f"disordered: structure_features has {sorted(unsure)[0]}; expected each site full")
    species = {kind["name"]: kind for kind in about.get("species") or ()}
    names = about.get("species_at_sites") or []
    if not sites or len(sites) != len(names):
        raise ValueError(f"incomplete: {len(names)} species_at_sites for {len(sites or [])} cartesian_site_positions")
    numbers = {kind: _species(kind, species.get(kind)) for kind in dict.fromkeys(names)}
    if len(species) != len(about.get("species") or ()) or (species and not species.keys() >= numbers.keys()):
        raise ValueError(f"incomplete: species names {', '.join(species)} once each, sites are {', '.join(numbers)}")
    lattice, sites = np.array(lattice, dtype=float), np.array(sites, dtype=float)
    if lattice.shape != (3, 3) or sites.shape != (len(names), 3):
        raise ValueError(
            f"incomplete: lattice_vectors {lattice.shape} and sites {sites.shape}; expected (3, 3) and (n, 3)"
        )
    unit_cell.check_volume(lattice)
    atoms = np.array([numbers[kind] for kind in names])
    _check_summary(about, atoms)
    return atoms, sites @ np.linalg.inv(lattice), lattice


def _check_summary(about: Mapping[str, Any], atoms: np.ndarray) -> None:
    """Refuse a record whose sites are not those that it counts."""
    elements = {SYMBOLS[z] for z in atoms}
    for field, found in (("nsites", len(atoms)), ("nelements", len(elements)), ("elements", sorted(elements))):
        stated = about.get(field)
        stated = sorted({"D": "H"}.get(each, each) for each in set(stated)) if isinstance(stated, list) else stated
        if stated is not None and stated != found:
            raise ValueError(f"incomplete: {field} is {about[field]}, the sites are {len(atoms)} of {sorted(elements)}")
    known = unit_cell.Formula.read(str(about.get("chemical_formula_reduced") or ""))
    if known and (mismatch := known.mismatch(atoms)):
        raise ValueError(mismatch.replace("_chemical_formula_sum", "chemical_formula_reduced"))


def _species(kind: str, about: Mapping[str, Any] | None) -> int:
    """Atomic number of an OPTIMADE species; one of a record without `species` is named by its element."""
    symbols = about["chemical_symbols"] if about else [kind]
    stated = (about or {}).get("concentration", [1.0])
    attached = [n for n in (about or {}).get("nattached") or (about or {}).get("attached") or () if n]
    if not isinstance(stated, Sequence) or len(stated) != len(symbols):
        raise ValueError(f"incomplete: species {kind} has concentration {stated} of {'/'.join(symbols)}")
    if len(symbols) != 1 or attached or not FULL <= stated[0] <= 2 - FULL:
        raise ValueError(f"disordered: species {kind} is {'/'.join(symbols)}; expected each site full, of one element")
    return _number(symbols[0])


def _number(symbol: str) -> int:
    if symbol not in NUMBER:
        raise ValueError(f"unknown element: {symbol}")
    return NUMBER[symbol]


def _pymatgen(record: Mapping[str, Any]) -> Arrays:
    about = record["lattice"]
    if not all(about.get("pbc") or [True]):
        raise ValueError(f"not periodic in three directions: pbc is {about['pbc']}")
    if "matrix" in about:
        lattice = _matrix(about["matrix"])
        _check_lengths(lattice, [about.get(key) for key in "abc"])
    else:
        lengths, angles = [about[key] for key in "abc"], [about[key] for key in ("alpha", "beta", "gamma")]
        lattice = unit_cell.lattice_vectors(lengths, angles)
    numbers, sites = [], []
    for site in record["sites"]:
        species = site["species"]
        if len(species) != 1 or not FULL <= species[0].get("occu", 1) <= 2 - FULL:
            parts = ", ".join(f"{each['element']} {each.get('occu', 1):g}" for each in species)
            raise ValueError(f"disordered: a site of {parts}; expected each site full, of one element")
        numbers.append(_number("H" if species[0]["element"] == "D" else species[0]["element"]))
        if "abc" in site and "xyz" in site and np.abs(np.array(site["abc"]) @ lattice - site["xyz"]).max() > SAME_A:
            raise ValueError(f"unreadable: a site's abc {site['abc']} and xyz {site['xyz']} are different places")
        sites.append(site["abc"] if "abc" in site else np.array(site["xyz"], dtype=float) @ np.linalg.inv(lattice))
    return np.array(numbers), _rows(sites, len(numbers), "species sites"), lattice


def _matrix(value: Any) -> np.ndarray:
    """(3, 3) lattice vectors."""
    lattice = np.array(value, dtype=float)
    if lattice.shape == (3,):
        lattice = np.diag(lattice)
    if lattice.size != 9:
        raise ValueError(f"no lattice: a cell of shape {lattice.shape}; expected (3, 3)")
    unit_cell.check_volume(lattice.reshape(3, 3))
    return lattice.reshape(3, 3)


def _check_lengths(lattice: np.ndarray, stated: Sequence[Any]) -> None:
    """Refuse a cell whose vectors have other lengths than those that stand beside them."""
    if None not in stated and np.abs(np.linalg.norm(lattice, axis=1) - np.array(stated, dtype=float)).max() > SAME_A:
        raise ValueError(f"no lattice: the vectors have other lengths than a, b, c, {list(stated)}")


def check_full(occupancy: Any) -> None:
    """Refuse partial sites, as ASE notes them."""
    sites = occupancy.values() if isinstance(occupancy, Mapping) else ()
    for site in sites:
        if isinstance(site, Mapping) and site and (len(site) > 1 or min(site.values()) < FULL):
            raise ValueError(f"disordered: {site}; expected each site full, of one element")


def _rows(value: Any, count: int, names: str) -> np.ndarray:
    """(count, 3) coordinates."""
    found = np.array(value, dtype=float)
    if found.shape != (count, 3):
        raise ValueError(f"incomplete: {count} {names.partition(' ')[0]} for {len(value)} {names.partition(' ')[2]}")
    return found


def _unpacked(value: Any) -> Any:
    """An array as ASE's JSON has it."""
    if isinstance(value, Mapping) and "__ndarray__" in value:
        shape, _, flat = value["__ndarray__"]
        return np.array(flat).reshape(shape)
    if isinstance(value, Mapping) and ("array" in value or "cell" in value):
        return _unpacked(value.get("array", value.get("cell")))
    return value


def _ase(record: Mapping[str, Any]) -> Arrays:
    lattice = _matrix(_unpacked(record.get("cell", np.zeros((3, 3)))))
    pbc = np.broadcast_to(np.array(_unpacked(record.get("pbc", False)), dtype=bool), 3)
    if not pbc.all():
        raise ValueError(f"not periodic in three directions: pbc is {pbc.tolist()}")
    check_full((record.get("info") or {}).get("occupancy"))
    numbers = np.array(_unpacked(record["numbers"]), dtype=int)
    positions = _rows(_unpacked(record["positions"]), len(numbers), "numbers positions")
    return numbers, positions @ np.linalg.inv(lattice), lattice


def _jarvis(record: Mapping[str, Any]) -> Arrays:
    lattice = _matrix(record["lattice_mat"])
    _check_lengths(lattice, record.get("abc") or [None])
    numbers = np.array([_number(str(symbol).strip()) for symbol in record["elements"]])
    positions = _rows(record["coords"], len(numbers), "elements coords")
    return numbers, positions @ np.linalg.inv(lattice) if record.get("cartesian") else positions, lattice
