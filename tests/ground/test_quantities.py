import pytest

from matalign import quantities
from matalign.data import dataset


def test_every_label_of_the_materials_has_its_row():
    labels = [column for column in dataset.MATERIALS if column.endswith(("_eV_atom", "_eV", "_GPa", "is_metal"))]
    assert [quantity.column for quantity in quantities.TARGETS] == labels
    looks = {(quantity.colour, quantity.marker) for quantity in quantities.TARGETS}
    assert len(looks) == len(labels)  # none is drawn as another


def test_a_column_names_the_first_of_its_units():
    for quantity in quantities.TABLE.values():
        first = next(iter(quantity.units), "")
        assert quantity.column == quantity.base + (f"_{first}" if first else "")
        if first:
            assert quantity.units[first] == (1, 0)


def test_units_by_hand():
    assert quantities.of("bulk_modulus_GPa").fitted_unit == "log10(GPa)"
    assert quantities.of("formation_energy_eV_atom").fitted_unit == "eV/atom"
    assert quantities.of("is_metal").fitted_unit == ""
    factor, offset = quantities.of("temperature_C").units["K"]
    assert factor * 300 + offset == pytest.approx(26.85)
    assert quantities.of("time_h").units["min"][0] * 90 == pytest.approx(1.5)


def test_a_column_that_the_table_lacks_has_no_unit():
    assert (quantities.of("n_atoms").name, quantities.of("n_atoms").unit) == ("n atoms", "")
