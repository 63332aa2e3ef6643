"""Signs and abbreviations in chemical formulas: plain characters for typeset ones, atoms for groups (OAc, OPr, PVP)."""

import re
import unicodedata

# What chemists abbreviate -> atoms; polymers by their repeating unit. Ac and Pr are actinium and praseodymium but where
# they can only be acetate or propoxide: after oxygen at the end or in a bracket (NaOAc, Ti(OPr)4), alone in a bracket
# (Zn(Ac)2), or as many as a metal of that valence takes (NaAc, ZnAc2).
_END = r"(?=\d*(?:[)\]}·-]|$))"
GROUPS = (
    (r"(?<![A-Za-z\d)])PVP(?:[\s(-]*K-?\d+\)?)?(?![A-Za-z])", "C6H9NO"),
    (r"(?<![A-Za-z\d)])PVB(?![A-Za-z])", "C8H14O2"),
    (r"(?<![A-Za-z\d)])PVC(?![A-Za-z])", "C2H3Cl"),
    (r"(?<![A-Za-z\d)])PAN(?![A-Za-z])", "C3H3N"),
    (r"(?<![A-Za-z\d)])PAA(?![A-Za-z])", "C3H4O2"),
    (r"(?<![A-Za-z\d)])PSS(?![A-Za-z])", "C8H8O3S"),
    (r"(?<![A-Za-z\d)])(?:PVA|PEG|PEO)(?![A-Za-z])", "C2H4O"),
    (r"(?<![A-Za-z\d)])CTAB(?![A-Za-z])", "C19H42NBr"),
    (r"(?<![A-Za-z\d)])EDTA(?![A-Za-z])", "C10H16N2O8"),
    (r"^AcOH$", "C2H4O2"),
    (r"^Ac2O$", "C4H6O3"),
    (r"^i?-?PrOH$", "C3H8O"),
    (r"[aA]c[aA]c", "C5H7O2"),
    (r"OAc" + _END + r"|(?<=[(\[{])(?:AcO|Ac)(?=[)\]}])", "C2H3O2"),
    (r"(?<=^H)Ac(?=$|·)|(?<=^K)Ac(?=$|·)|(?<=^Li)Ac(?=$|·)|(?<=^Na)Ac(?=$|·)|(?<=^Ag)Ac(?=$|·)|(?<=^NH4)Ac(?=$|·)"
     r"|(?:(?<=^Mg)|(?<=^Ca)|(?<=^Sr)|(?<=^Ba)|(?<=^Mn)|(?<=^Co)|(?<=^Ni)|(?<=^Cu)|(?<=^Zn)|(?<=^Cd)|(?<=^Pb))Ac(?=2(?:$|·))"
     r"|(?:(?<=^La)|(?<=^Ce)|(?<=^Nd)|(?<=^Y)|(?<=^Al)|(?<=^In)|(?<=^Fe)|(?<=^Cr))Ac(?=3(?:$|·))", "C2H3O2"),
    (r"O-?(?:[nist]-?)?Me" + _END, "CH3O"),
    (r"O-?(?:[nist]-?)?Et" + _END, "C2H5O"),
    (r"O-?(?:[nist]-?)?Pr(?:-?[nist](?![a-z]))?" + _END, "C3H7O"),
    (r"O-?(?:[nist]-?)?Bu(?:-?[nist](?![a-z]))?" + _END, "C4H9O"),
    (r"OPh" + _END, "C6H5O"),
    (r"Me(?=OH|\d?N)", "CH3"),
    (r"Et(?![a-z])", "C2H5"),
    (r"Bu(?![a-z])", "C4H9"),
    (r"Ph(?![a-z])", "C6H5"),
    (r"Cp(?![a-z])", "C5H5"),
)  # fmt: skip


ABBREVIATED = re.compile("[aA]c|Me|Et|Pr|Bu|Ph|Cp|P[VAES]|CTAB|EDTA")  # sorts out most formulas at once


def plain(text: str) -> str:
    """Compatibility characters (subscripts, ligatures) as plain ones; unseen marks (soft hyphens) taken out."""
    return "".join(c for c in unicodedata.normalize("NFKC", text) if unicodedata.category(c) != "Cf")


def spelled_out(formula: str) -> str:
    """A normalised formula with the atoms of its abbreviated groups.

    >>> spelled_out("Zn(OAc)2·2H2O")
    'Zn((C2H3O2))2·2H2O'
    """
    for pattern, atoms in GROUPS if ABBREVIATED.search(formula) else ():
        formula = re.sub(pattern, f"({atoms})", formula)
    return formula
