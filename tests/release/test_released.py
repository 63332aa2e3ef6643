"""A released model, made by the stage's own code and asked as a user would."""

import hashlib
import json
import pathlib
import pickle
import shutil

import ase
import numpy as np
import pandas as pd
import published
import pytest
import torch
import yaml
from projects import REPOSITORY
from pymatgen.core import Lattice, Structure
from safetensors.torch import load_file

import matalign
from matalign import cache, config, paths
from matalign.data import curate, library
from matalign.pretrain import encode
from matalign.release import build, cli, integrity, recipes, released, weights
from matalign.tasks.properties import fits, networks
from matalign.tasks.properties.task import graphs, rows, task


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    with published.model(tmp_path_factory.mktemp("released")) as made:
        yield made


@pytest.fixture(scope="module")
def folder(made):
    return made[0]


@pytest.fixture(scope="module")
def model(folder):
    return matalign.load(folder)


@pytest.fixture(scope="module")
def full(made):
    return encode.load("tiny")


CURATED = published.curated()
NACL = Structure.from_spacegroup("Fm-3m", Lattice.cubic(5.64), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])


# What the folder holds


def test_the_folder_is_small_whole_and_tells_no_source(folder, made):
    about = json.loads((folder / "config.json").read_text())
    files = {f.name for f in folder.iterdir()}
    assert files == {*about["files"], "config.json", "README.md"}
    assert all(f.stat().st_size <= weights.SHARD_BYTES + 10_000 for f in folder.iterdir())
    size = sum(f.stat().st_size for f in folder.iterdir()) / 1e6
    assert size < 26  # ResNet-50 as int8, and little else
    assert sum(row["MB"] for row in made[1]["files"]) == pytest.approx(size, abs=0.1)
    assert list(pd.read_parquet(folder / "protocols.parquet")) == ["protocol_id"]
    held = {"mp_id", "formula", "chemsys", "metal_probability", *published.LABELS}
    table = pd.read_parquet(folder / "crystals.parquet")
    assert set(table) == held
    told = table.formation_energy_eV_atom.to_numpy()
    assert not np.isclose(told, CURATED.materials.formation_energy_eV_atom, atol=1e-6).any()  # predictions, not labels
    everything = b"".join(f.read_bytes() for f in folder.iterdir())
    for text in (*CURATED.protocols.doi, *CURATED.protocols.text_L1, "frac_coords", "_cell_length"):
        assert text.encode() not in everything


def test_the_text_model_is_left_out(folder):
    tensors = {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}
    assert not any(name.startswith("towers.text") for name in tensors)
    kept = {tensor.dtype for name, tensor in tensors.items() if name.startswith("towers.image") and tensor.ndim == 4}
    assert kept == {torch.int8}


def test_the_card_says_what_was_measured(folder, made):
    card, metrics = (folder / "README.md").read_text(), made[1]
    assert "members of the arm `scratch`" in card
    assert "members of the arm `cgconv`" in card
    row = next(r for r in metrics["results"] if (r["target"], r["metric"]) == ("bulk_modulus_GPa", "MAE"))
    assert f"| bulk_modulus_GPa | all | MAE | {row['value']:.3f} [{row['low']:.3f}, {row['high']:.3f}] |" in card
    assert f"{metrics['image']['cosine_min']:.4f} at least" in card
    assert json.loads((folder / "config.json").read_text())["text_model_hash"] in card
    assert "licence" in card
    error, held = (metrics["foreign"][name][0] for name in ("results", "coverage"))
    assert f"| formation_energy_eV_atom | left out | MAE | {error['value']:.3f} [" in card
    assert f"| formation_energy_eV_atom | left out | {held['value']:.3f} [" in card
    front = yaml.safe_load(card.split("---\n")[1])  # as the Hugging Face Hub reads it
    assert (front["license"], front["library_name"]) == ("mit", "matalign")


def test_crystals_that_the_profile_left_out_are_measured(made, model, monkeypatch):
    measured = made[1]["foreign"]
    monkeypatch.setattr(paths, "ROOT", REPOSITORY)
    materials, structures = curate.left_out(config.load("curate", "tiny"), CURATED, 40)
    found = model.predict(structures)
    assert not set(materials.mp_id) & set(CURATED.materials.mp_id)
    trained = set(CURATED.materials.chemsys[(CURATED.splits.random == "train").to_numpy()])
    sizes = {r["materials"]: r["n_test"] for r in measured["results"] if r["target"] == "formation_energy_eV_atom"}
    assert sizes == {"left out": 40, f"left out, {build.NEW}": int((~materials.chemsys.isin(trained)).sum())}
    assert measured["atoms"] == [min(materials.n_atoms), sorted(materials.n_atoms)[19], max(materials.n_atoms)]
    for target in ("formation_energy_eV_atom", "bulk_modulus_GPa"):
        table = pd.DataFrame({"true": materials[target], **{c: found[target + c] for c in ("", "_low", "_high")}})
        table = table.dropna()
        held = (table._low <= table.true) & (table.true <= table._high)
        table = np.log10(table) if target.endswith("GPa") else table
        error, share = (next(r for r in measured[name] if r["target"] == target) for name in ("results", "coverage"))
        assert error["value"] == pytest.approx((table[""] - table.true).abs().mean())
        assert share["value"] == pytest.approx(held.mean())
        assert share["half_width"] == pytest.approx(((table._high - table._low) / 2).median())
        assert error["n_test"] == len(table) >= build.FEWEST


# Embeddings


def test_embeddings_are_those_of_the_full_model_but_for_rounding(model, full):
    structures = CURATED.structures
    texts = ["mix the salt", "grind the salt and fire"]
    images = torch.randn(3, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    images = (images - images.mean((2, 3), keepdim=True)) / images.std((2, 3), keepdim=True, correction=0)
    pairs = [(image.numpy(), model.model.config.pixel_A) for image in images[:, 0]]
    for z, expected, cosine in (
        (model.embed(structures=structures), full.embed_structures(structures), 0.99999),
        (model.embed(protocols=texts), full.embed_texts(texts), 0.99999),
        (model.embed(images=pairs), full.embed_images(images), 0.999),
    ):
        assert z.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(z, axis=1), 1, rtol=1e-5)
        assert (z * expected).sum(1).min() > cosine
        assert np.abs(z - expected).max() > 0


def test_the_error_of_int8_is_measured_on_unseen_materials(made, model, full):
    metrics, cfg = made[1], made[2]
    rows = np.flatnonzero(CURATED.splits.pretrain == "excluded")
    assert metrics["image"]["n"] == len(rows) == 6
    images = full.micrographs(CURATED, rows, seed=cfg.seed, epoch=encode.EVALUATION)
    cosine = (full.embed_images(images) * model.model.embed_images(images)).sum(1)
    assert metrics["image"]["cosine_min"] == pytest.approx(cosine.min(), abs=1e-5)
    assert 0.998 < metrics["image"]["cosine_min"] <= metrics["image"]["cosine_mean"] <= 1.00001


def test_every_form_of_a_structure_is_the_same_crystal(model, tmp_path):
    primitive = NACL.get_primitive_structure()
    primitive.to(filename=str(tmp_path / "nacl.cif"))
    primitive.to(filename=str(tmp_path / "POSCAR"), fmt="poscar")
    atoms = ase.Atoms(
        numbers=primitive.atomic_numbers,
        scaled_positions=primitive.frac_coords,
        cell=primitive.lattice.matrix,
        pbc=True,
    )
    record = {
        "id": "x",
        "attributes": {
            "lattice_vectors": primitive.lattice.matrix.tolist(),
            "cartesian_site_positions": primitive.cart_coords.tolist(),
            "species_at_sites": [site.specie.symbol for site in primitive],
        },
    }
    z = model.embed(structures=[NACL, primitive, atoms, tmp_path / "nacl.cif", tmp_path / "POSCAR", record])
    assert z.shape == (6, 8)
    np.testing.assert_allclose(z, np.repeat(z[:1], 6, 0), atol=1e-4)
    assert (model.predict([primitive, record]).formula == "NaCl").all()


def test_nothing_in_nothing_out_and_one_kind_at_a_time(model):
    for kind in ("structures", "protocols", "images"):
        assert model.embed(**{kind: []}).shape == (0, 8)
    assert len(model.predict([])) == 0
    with pytest.raises(ValueError, match="got none"):
        model.embed()
    with pytest.raises(ValueError, match="got structures and images"):
        model.embed(structures=[], images=[])
    with pytest.raises(ValueError, match=r"item 1: .*no crystal"):
        model.embed(structures=[NACL, 3])


# Predictions


def test_predictions_are_the_mean_of_the_fitted_networks(made, model):
    """Each network as `networks.train` left it predicts what `predict` says, but for rounding to half precision."""
    cfg = made[2]
    properties, planned = build.plan(cfg)
    fitted = fits.fit_all(properties, planned)
    t = task(properties)
    found = model.predict(CURATED.structures)
    for targets, _ in published.GROUPS:
        same = [fit for fit in planned if fit.weights == targets]
        assert [fit.seed for fit in same] == [0, 1]
        said = []
        for fit in same:
            network = fits.network(t, fit)
            start = {k.removeprefix("weight."): torch.from_numpy(w) for k, w in fitted[fit].items() if "weight." in k}
            network.load_state_dict(start)
            inputs = networks.Inputs(graphs(properties))
            said.append(networks.predict(network, inputs, np.arange(24)).double().numpy())
        labels = t.labels[list(same[0].weights)].to_numpy()[rows(t, same[0])["train"]]
        mean, std = np.nanmean(labels, 0), np.nanstd(labels, 0)
        for i, target in enumerate(same[0].weights):
            each = np.stack(said)[:, :, i]
            if target == "is_metal":
                np.testing.assert_allclose(found.metal_probability, (1 / (1 + np.exp(-each))).mean(0), atol=2e-3)
                assert (found.metal_probability_low <= found.metal_probability).all()
                continue
            value = (each * std[i] + mean[i]).mean(0)
            value = 10**value if "_GPa" in target else value.clip(min=0) if target == "band_gap_eV" else value
            np.testing.assert_allclose(found[target], value, rtol=5e-3, atol=2e-3)
            assert (found[f"{target}_low"] <= found[target]).all()
            assert (found[target] <= found[f"{target}_high"]).all()
    assert (found.band_gap_eV_low >= 0).all()
    assert found.formula.tolist() == CURATED.materials.formula.tolist()


def test_coverage_and_errors_are_those_of_the_model_as_released(made, model):
    metrics, found = made[1], model.predict(CURATED.structures)
    test = (CURATED.splits.random == "test").to_numpy()
    for target in ("formation_energy_eV_atom", "bulk_modulus_GPa"):
        true, rows = CURATED.materials[target].to_numpy()[test], found[test]
        held = (rows[f"{target}_low"] <= true) & (true <= rows[f"{target}_high"])
        row = next(
            r for r in metrics["coverage"] if (r["target"], r["nominal"], r["materials"]) == (target, 0.9, "all")
        )
        assert row["value"] == pytest.approx(held.mean())
        assert row["n_test"] == 6
    error = np.abs(found.formation_energy_eV_atom - CURATED.materials.formation_energy_eV_atom)[test].mean()
    row = next(r for r in metrics["results"] if r["target"] == "formation_energy_eV_atom" and r["materials"] == "all")
    assert row["value"] == pytest.approx(error, rel=1e-4)
    metal = [r for r in metrics["results"] if r["target"] == "is_metal" and r["materials"] == "all"]
    assert {r["metric"] for r in metal} == {"accuracy", "ECE"}
    assert sum(r["n"] for r in metrics["reliability"]) == 6
    # every salt is a chemical system of its own
    assert {r["n_test"] for r in metrics["results"] if r["materials"] == build.NEW} == {6, 4}


def test_predictions_do_not_depend_on_company(model):
    alone = model.predict(CURATED.structures.take([5]))
    together = model.predict(CURATED.structures).iloc[[5]].reset_index(drop=True)
    pd.testing.assert_frame_equal(alone, together, rtol=1e-4, atol=1e-5)


# Neighbours and recipes


def by_hand(model, z, among):
    """Similarities to every row of the index, and the rows from the most similar to the least."""
    product = np.minimum((z @ model.index.axes.T) @ model.index.vectors[among].T, 1)
    return product, np.argsort(-product, axis=1, kind="stable")


def test_neighbours_are_the_rows_of_largest_product(model):
    found = model.neighbours(CURATED.structures, 3)
    assert len(found) == 72
    assert found["rank"].tolist() == [1, 2, 3] * 24
    product, rows = by_hand(model, model.embed(structures=CURATED.structures), "crystal")
    np.testing.assert_allclose(found.similarity, np.take_along_axis(product, rows[:, :3], 1).ravel(), atol=1e-6)
    place = CURATED.materials.mp_id.searchsorted(found.mp_id)
    np.testing.assert_allclose(product[found["query"], place], found.similarity, atol=1e-6)
    assert (CURATED.materials.formula.to_numpy()[place] == found.formula).all()
    itself = product[np.arange(24), np.arange(24)]  # a crystal is as near to itself as int8 allows
    np.testing.assert_allclose(itself, 1, atol=0.02)
    one = model.neighbours(NACL, 1)
    assert one["query"].tolist() == [0]


def test_neighbours_across_modalities(model):
    z = model.embed(protocols=[CURATED.protocols.text_L1.iloc[3]])
    found = model.neighbours(z, 2, among="protocol")
    assert list(found) == ["query", "rank", "similarity", "protocol_id"]
    product, _ = by_hand(model, z, "protocol")
    place = CURATED.protocols.protocol_id.searchsorted(found.protocol_id)
    np.testing.assert_allclose(product[0, place], found.similarity, atol=1e-6)
    assert found.similarity[0] == pytest.approx(product.max(), abs=1e-6)
    assert len(model.neighbours(z[0], 4, among="crystal")) == 4
    with pytest.raises(ValueError, match="among must be one of crystal, protocol, got 'image'"):
        model.neighbours(NACL, 1, among="image")
    with pytest.raises(ValueError, match="8 columns, got"):
        model.neighbours(np.zeros((2, 5)), 1)
    with pytest.raises(ValueError, match="between 1 and the 24 vectors, got 25"):
        model.neighbours(NACL, 25)


def test_without_raw_files_recipes_are_the_samples_and_said_to_be(model):
    found = model.recommend(NACL, 3)
    assert found.synthetic
    assert "synthetic; run `matalign fetch`" in found.source
    assert found.formula == "NaCl"
    assert len(found.protocols) == 3
    assert found.protocols.similarity.is_monotonic_decreasing
    known = library.read(paths.SAMPLE).set_index("protocol_id")
    assert (known.doi.loc[found.protocols.protocol_id].to_numpy() == found.protocols.doi).all()
    heat = known.max_temperature_C.loc[found.protocols.protocol_id]
    assert found.temperature_C == (heat.min(), heat.max())
    assert 1 <= len(found.precursor_sets) <= 3
    assert {"precursors", "probability", "sintering_low_C", "sintering_high_C"} <= set(found.precursor_sets)


def test_the_scorer_is_trained_once_a_machine(folder, model, monkeypatch):
    model.recommend(NACL, 1)
    monkeypatch.setattr(recipes.precursors, "fit", lambda *args, **kwargs: pytest.fail("it is in scratch"))
    again = released.load(folder)
    for name, weight in again.cookbook._study.networks[0].state_dict().items():
        assert torch.equal(weight, model.cookbook._study.networks[0].state_dict()[name])


def test_recipes_come_from_the_ids_that_this_machine_can_look_up(folder, monkeypatch):
    """The raw files hold three of the model's protocols: their recipes alone are answered, in the space's order."""
    ids = CURATED.protocols.protocol_id.iloc[[2, 5, 9]].tolist()
    table = library.read(paths.SAMPLE).iloc[:5].assign(protocol_id=[*ids, "elsewhere-0", "elsewhere-1"])
    monkeypatch.setattr(library, "read", lambda raw: table)
    model = released.load(folder)
    found = model.recommend(CURATED.structures.take([3]), 10).protocols
    assert set(found.protocol_id) <= set(ids)
    z = model.embed(structures=CURATED.structures.take([3])) @ model.index.axes.T
    rows = CURATED.protocols.protocol_id.isin(ids).to_numpy()
    expected = np.sort((z @ model.index.vectors["protocol"][rows].T)[0])[::-1]
    np.testing.assert_allclose(found.similarity, expected[: len(found)], atol=1e-6)


# What is wrong is said


@pytest.fixture
def copy(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "model")


def edited(folder, **changes):
    about = json.loads((folder / "config.json").read_text())
    cache.write_json(folder / "config.json", integrity.sealed({**about, **changes}))
    return folder


def test_profile_names_the_folder_in_results(made):
    assert matalign.load("tiny").folder == made[0]
    with pytest.raises(FileNotFoundError, match=r"no model in .*results/laptop/model; set MATALIGN_HOME"):
        matalign.load("laptop")


def test_without_the_image_tower_all_but_images_is_answered(copy, model):
    for file in copy.glob("image-*.safetensors"):
        file.unlink()
    bare = released.load(copy)
    pd.testing.assert_frame_equal(bare.predict([NACL]), model.predict([NACL]))
    np.testing.assert_array_equal(bare.embed(structures=[NACL]), model.embed(structures=[NACL]))
    with pytest.raises(
        FileNotFoundError, match=r"image-00000.safetensors, .* are not in .*; copy them from results/tiny"
    ):
        bare.embed(images=[(np.eye(40), 0.4)])


def test_a_config_without_its_hash_is_read_with_a_note_and_an_edited_one_is_not(copy, capsys):
    assert cli.load(str(copy)).about["profile"] == "tiny"
    assert capsys.readouterr().err == ""
    about = json.loads((copy / "config.json").read_text())
    rest = {name: value for name, value in about.items() if name != "sha256"}
    said = hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()
    assert about["sha256"] == said
    cache.write_json(copy / "config.json", rest)
    assert cli.load(str(copy)).about == rest
    assert "config.json holds no hash of itself" in capsys.readouterr().err
    cache.write_json(copy / "config.json", {**about, "data": "0" * 16})
    with pytest.raises(ValueError, match=f"changed since it was written: expected sha256 {said}"):
        released.load(copy)


def test_the_committed_model_is_read():
    model = released.load(REPOSITORY / "results" / "laptop" / "model")
    assert model.about["format"] == integrity.FORMAT


class Harmless:
    """Would leave a file where it is unpickled."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return pathlib.Path.touch, (self.file,)


def test_nothing_in_the_folder_runs(copy, model, tmp_path):
    mark = tmp_path / "it ran"
    code = f"import pathlib; pathlib.Path({str(mark)!r}).touch()\n"
    for name in ("__init__.py", "conftest.py", "modeling_x.py", "sitecustomize.py"):
        (copy / name).write_text(code)
    for name in ("state.pt", "pytorch_model.bin", "crystal.pkl", "index.npy"):
        (copy / name).write_bytes(pickle.dumps(Harmless(mark)))
    loaded = released.load(copy)
    pd.testing.assert_frame_equal(loaded.predict([NACL]), model.predict([NACL]))
    assert len(loaded.neighbours(NACL, 2)) == 2
    loaded.embed(protocols=["mix"])
    assert not mark.exists()
    pickle.loads((copy / "state.pt").read_bytes())
    assert mark.exists()  # so it would have


def test_another_text_model_is_refused(copy):
    with pytest.raises(ValueError, match=r"has hash [0-9a-f]{32}; .*was trained with 0{32}"):
        released.load(edited(copy, text_model_hash="0" * 32)).embed(protocols=["mix"])


def test_weights_of_another_shape_are_refused(copy):
    about = json.loads((copy / "config.json").read_text())
    with pytest.raises(ValueError, match=r"weight 'towers.crystal.*' has shape .*, expected"):
        released.load(edited(copy, pretrain={**about["pretrain"], "width": 16})).tower("crystal")
    groups = [{**group, "tower": "ild"} for group in about["predictors"]]
    with pytest.raises(ValueError, match=r"member 0 for bulk_modulus_GPa, .*missing or unknown"):
        released.ensembles(copy, {**about, "predictors": groups})
