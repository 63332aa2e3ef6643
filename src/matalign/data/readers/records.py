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
    """JSON's content. Raises ValueError: no JSON, or too deep."""
    try:
        return json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"unreadable: not JSON ({error})") from None


def read(record: Any, *, frame: int | None = None) -> Cell:
    """The crystal of a record, or of an answer with one; ValueError naming the field, or as `unit_cell.checked`.

    It is an OPTIMADE structure (with `attributes`, or these alone), an answer (`data`), a list; or pymatgen's, ASE's or
    JARVIS's dictionary of a structure.
    """
    try:
        if isinstance(record, Mapping) and {"ids", "nextid"} <= record.keys():  # a database of ASE
            record = [record[str(number)] for number in _unpacked(record["ids"])]
        return unit_cell.checked(*_arrays(_one_of(_listed(record), frame)))
    except (TypeError, KeyError, AttributeError, IndexError, OverflowError, RecursionError) as error:
        raise ValueError(f"unreadable: {type(error).__name__} {str(error)[:80]}") from None


def name(record: Any) -> str:
    """What a message calls the record."""
    first, *others = _listed(record) or [None]
    if isinstance(first, Mapping) and ("attributes" in first or "lattice_vectors" in first) and not others:
        return f"OPTIMADE record {first.get('id', '')!r}"
    return "JSON"


def holds_structure(record: Any) -> bool:
    """Whether a JSON's content is a structure, or an answer with some, as `read` knows them by their fields."""
    first = next(iter(_listed(record)), None)
    known = ({"attributes"}, {"lattice_vectors"}, {"lattice", "sites"}, {"numbers", "cell"}, {"lattice_mat"},
             {"ids", "nextid"}, {"structure"}, {"atoms"})  # fmt: skip
    return isinstance(first, Mapping) and any(fields <= first.keys() for fields in known)


def _listed(record: Any) -> Sequence[Any]:
    """The records of an answer or a list."""
    for _ in range(5):
        if isinstance(record, Mapping) and isinstance(record.get("data"), Mapping | list):
            record = record["data"]
        elif isinstance(record, list | tuple) and len(record) == 1:
            record = record[0]
    return record if isinstance(record, list | tuple) else [record]


def _one_of(listed: Sequence[Any], frame: int | None) -> Mapping[str, Any]:
    if not listed:
        raise ValueError("no structures: an empty list")
    ids = ", ".join(str(each.get("id", "?")) if isinstance(each, Mapping) else "?" for each in listed[:3])
    record = unit_cell.chosen(listed, frame, f" records ({ids} …)")
    if not isinstance(record, Mapping):
        raise ValueError(f"unreadable: a JSON {type(record).__name__}; expected a structure")
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
    vectors, sites = about.get("lattice_vectors"), about.get("cartesian_site_positions")
    listed, names = about.get("species") or (), about.get("species_at_sites") or []
    if not vectors or any(x is None for vector in vectors for x in vector or [None]):
        raise ValueError("no lattice: lattice_vectors is missing or has gaps")
    for field, periodic in (("dimension_types", [1, 1, 1]), ("nperiodic_dimensions", 3)):
        if about.get(field) not in (None, [], periodic):
            raise ValueError(f"not periodic in three directions: {field} is {about[field]}")
    if about.get("assemblies"):
        raise ValueError(f"disordered: assemblies is {str(about['assemblies'])[:60]}; expected each site full")
    if unsure := set(about.get("structure_features") or ()) & UNSURE:
        raise ValueError(f"disordered: structure_features has {sorted(unsure)[0]}; expected each site full")
    species = {kind["name"]: kind for kind in listed}
    if not sites or len(sites) != len(names):
        raise ValueError(f"incomplete: {len(names)} species_at_sites for {len(sites or [])} cartesian_site_positions")
    numbers = {kind: _species(kind, species.get(kind)) for kind in dict.fromkeys(names)}
    if len(species) != len(listed) or (species and not species.keys() >= numbers.keys()):
        raise ValueError(f"incomplete: species names {', '.join(species)} once each, sites are {', '.join(numbers)}")
    atoms, lattice = np.array([numbers[kind] for kind in names]), _matrix(vectors)
    _check_summary(about, atoms)
    return atoms, _places(sites, lattice, atoms, "species_at_sites cartesian_site_positions"), lattice


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
    about = about or {"chemical_symbols": [kind]}
    symbols, stated = about["chemical_symbols"], about.get("concentration", [1.0])
    attached = any(about.get("nattached") or about.get("attached") or ())
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
    about, sites = record["lattice"], record["sites"]
    _check_periodic(about.get("pbc") or [True])
    if "matrix" in about:
        lattice = _matrix(about["matrix"], lengths=[about.get(key) for key in "abc"])
    else:
        lengths, angles = [about[key] for key in "abc"], [about[key] for key in ("alpha", "beta", "gamma")]
        lattice = unit_cell.lattice_vectors(lengths, angles)
    numbers, places = [], []
    for site in sites:
        species = site["species"]
        if len(species) != 1 or not FULL <= species[0].get("occu", 1) <= 2 - FULL:
            parts = ", ".join(f"{each['element']} {each.get('occu', 1):g}" for each in species)
            raise ValueError(f"disordered: a site of {parts}; expected each site full, of one element")
        numbers.append(_number("H" if species[0]["element"] == "D" else species[0]["element"]))
        if "abc" in site and "xyz" in site and np.abs(np.array(site["abc"]) @ lattice - site["xyz"]).max() > SAME_A:
            raise ValueError(f"unreadable: a site's abc {site['abc']} and xyz {site['xyz']} are different places")
        places.append(site["abc"] if "abc" in site else np.array(site["xyz"], dtype=float) @ np.linalg.inv(lattice))
    return np.array(numbers), _places(places, lattice, numbers, "species sites", cartesian=False), lattice


def _matrix(value: Any, *, lengths: Sequence[Any] = (None,)) -> np.ndarray:
    """(3, 3) lattice vectors, which have the lengths that stand beside them, if any do."""
    lattice = np.array(value, dtype=float)
    lattice = np.diag(lattice) if lattice.shape == (3,) else lattice
    if lattice.size != 9:
        raise ValueError(f"no lattice: a cell of shape {lattice.shape}; expected (3, 3)")
    lattice = lattice.reshape(3, 3)
    unit_cell.check_volume(lattice)
    if None not in lengths and np.abs(np.linalg.norm(lattice, axis=1) - np.array(lengths, float)).max() > SAME_A:
        raise ValueError(f"no lattice: the vectors have other lengths than a, b, c, {list(lengths)}")
    return lattice


def _places(value: Any, lattice: np.ndarray, atoms: Sequence[int], names: str, *, cartesian: bool = True) -> np.ndarray:
    """(n, 3) fractional coordinates."""
    found = np.array(value, dtype=float)
    if found.shape != (len(atoms), 3):
        raise ValueError(
            f"incomplete: {len(atoms)} {names.partition(' ')[0]} for {len(value)} {names.partition(' ')[2]}"
        )
    return found @ np.linalg.inv(lattice) if cartesian else found


def _check_periodic(pbc: Any) -> None:
    if not np.all(pbc):
        raise ValueError(f"not periodic in three directions: pbc is {np.asarray(pbc).tolist()}")


def check_full(occupancy: Any) -> None:
    """Refuse partial sites, as ASE notes them."""
    sites = occupancy.values() if isinstance(occupancy, Mapping) else ()
    for site in sites:
        if isinstance(site, Mapping) and site and (len(site) > 1 or min(site.values()) < FULL):
            raise ValueError(f"disordered: {site}; expected each site full, of one element")


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
    _check_periodic(_unpacked(record.get("pbc", False)))
    check_full((record.get("info") or {}).get("occupancy"))
    numbers = np.array(_unpacked(record["numbers"]), dtype=int)
    return numbers, _places(_unpacked(record["positions"]), lattice, numbers, "numbers positions"), lattice


def _jarvis(record: Mapping[str, Any]) -> Arrays:
    lattice = _matrix(record["lattice_mat"], lengths=record.get("abc") or [None])
    numbers = np.array([_number(str(symbol).strip()) for symbol in record["elements"]])
    cartesian = bool(record.get("cartesian"))
    return numbers, _places(record["coords"], lattice, numbers, "elements coords", cartesian=cartesian), lattice
