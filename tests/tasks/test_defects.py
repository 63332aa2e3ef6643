import dataclasses

import numpy as np
import pytest
import tiny
import torch

from matalign import cache, config, paths
from matalign.data import dataset
from matalign.data.structures import Structures
from matalign.pretrain import align, encode
from matalign.tasks import fit
from matalign.tasks.defects import defect_scores, defects, networks, pictures
from matalign.tasks.defects.defects import ARMS, PICTURES, TEXT_ARMS
from matalign.tasks.defects.hosts import DefectSet, Hosts, choose_hosts, render
from matalign.views import defect_images, draws
from matalign.views.defect_images import DEFECTS
from matalign.views.micrographs import ZONE_AXES, Optics


@pytest.fixture(scope="module")
def curated():
    """24 halides, split by chemical system as curation does."""
    made = tiny.curated()
    split = np.array(["train"] * 15 + ["val"] * 3 + ["test"] * 6)
    return dataclasses.replace(made, splits=made.splits.assign(chemsys=split))


@pytest.fixture(scope="module")
def cfg():
    values = {**vars(config.load("defects", "tiny")), "hosts": 10, "threads": 1, "head_epochs": 2, "seeds": 2}
    return config.build(config.Defects, values, where="test")


@pytest.fixture(scope="module")
def hosts(curated, cfg):
    return choose_hosts(curated, hosts=cfg.hosts, seed=0)


# Hosts and images


def test_hosts_are_shared_out_by_chemical_system(curated, hosts):
    assert {s: int((hosts.split == s).sum()) for s in ("train", "val", "test")} == {"train": 7, "val": 1, "test": 2}
    split = dict(zip(curated.materials.mp_id, curated.splits.chemsys))
    assert [split[i] for i in hosts.mp_id] == hosts.split.tolist()
    assert list(hosts.mp_id) == sorted(hosts.mp_id)
    numbers = dict(zip(curated.materials.mp_id, range(24)))
    for row, mp_id in enumerate(hosts.mp_id):
        np.testing.assert_array_equal(hosts.structures[row][0], curated.structures[numbers[mp_id]][0])


def test_more_hosts_keep_the_ones_there_are(curated, hosts):
    assert set(hosts.mp_id) <= set(choose_hosts(curated, hosts=20, seed=0).mp_id)
    assert set(choose_hosts(curated, hosts=10, seed=1).mp_id) != set(hosts.mp_id)


def test_no_test_host_stops_the_run(curated):
    none = dataclasses.replace(curated, splits=curated.splits.assign(chemsys="train"))
    with pytest.raises(ValueError, match="no test host among 24 materials"):
        choose_hosts(none, hosts=10, seed=0)


@pytest.fixture(scope="module")
def shots(hosts, cfg):
    return {s: render(hosts, s, cfg, epoch=0, seed=0) for s in ("train", "val", "test")}


def test_every_host_shows_every_class_equally(hosts, shots):
    for split, made in shots.items():
        table = np.zeros((len(hosts.mp_id), len(DEFECTS)))
        np.add.at(table, (made.host, made.kind), 1)
        np.testing.assert_array_equal(table, np.where(hosts.split == split, 1, 0)[:, None] * np.ones(5))
        assert made.images.shape == (table.sum(), 2, 32, 32)


def test_classes_of_a_view_share_dose_and_zone_axis(shots):
    for made in shots.values():
        for values in (made.dose_e_A2, made.axis):
            assert (values.reshape(-1, 5) == values.reshape(-1, 5)[:, :1]).all()


def test_extreme_doses_and_some_element_pairs_are_for_the_test(hosts, cfg, monkeypatch):
    many = dataclasses.replace(cfg, images_per_class=60, image_px=8)
    asked = []
    real = defect_images.substituents
    monkeypatch.setattr(
        defect_images, "substituents", lambda *, held_out: asked.append(held_out) or real(held_out=held_out)
    )
    dose = {s: render(hosts, s, many, epoch=0, seed=0).dose_e_A2 for s in ("val", "test")}
    assert 10**3.2 <= dose["val"].min() < dose["val"].max() <= 10**4.8
    assert dose["test"].min() < 10**3.2
    assert dose["test"].max() > 10**4.8
    assert set(asked[: len(asked) // 3]) == {False}
    assert asked[-1] is True


def test_another_epoch_shows_other_views(hosts, shots, cfg):
    again = render(hosts, "val", cfg, epoch=0, seed=0)
    other = render(hosts, "val", cfg, epoch=1, seed=0)
    assert torch.equal(again.images, shots["val"].images)
    assert not torch.equal(other.images, shots["val"].images)


# References beside the images


def test_wrong_structure_is_a_polymorph_or_the_cell_distorted(curated, cfg):
    """Materials 0, 1, 2 are of one formula, the first two of one space group."""
    formula, group = [f"X{i}" for i in range(24)], [1] * 24
    formula[:3], group[2] = ["X"] * 3, 2
    made = dataclasses.replace(curated, materials=curated.materials.assign(formula=formula, space_group=group))
    every = choose_hosts(made, hosts=24, seed=0)
    row = curated.materials.mp_id.searchsorted(every.mp_id)
    np.testing.assert_array_equal(every.polymorph, row < 3)
    for i, r in enumerate(row):
        numbers, frac_coords, lattice = every.wrong[i]
        expected = made.structures[{0: 2, 1: 2, 2: 0}.get(r, r)]
        np.testing.assert_array_equal(numbers, expected[0])
        np.testing.assert_array_equal(frac_coords, expected[1])
        assert np.linalg.det(lattice) == pytest.approx(np.linalg.det(expected[2]), rel=1e-3)
        longer = np.linalg.norm(lattice, axis=1) / np.linalg.norm(expected[2], axis=1)
        assert (abs(longer - 1).max() > 0.04) == (r >= 3)


def test_axes_of_a_cube_show_three_pictures(srtio3):
    kind = np.abs(ZONE_AXES).sum(1)  # of <100>, <110>, <111>
    np.testing.assert_array_equal(pictures.alike(Structures.pack([srtio3]))[0], kind[:, None] == kind)


@pytest.fixture(scope="module")
def cube():
    """SrTiO3 in all classes from four views along [001] or its like, at a dose that leaves no noise."""
    sites = np.array([[0, 0, 0], [0.5, 0.5, 0.5], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]])
    crystal = Structures.pack([(np.array([38, 22, 8, 8, 8]), sites, 3.905 * np.eye(3))])
    optics = Optics(image_px=48, pixel_A=0.25, axes=1, dose_e_A2=(1e6, 1e6))
    keys = [draws.view_seed(0, 0, "mp-1", view) for view in range(4) for _ in DEFECTS]
    kinds = np.tile(np.arange(5), 4)
    made = defect_images.render(crystal, 0 * kinds, kinds, keys, optics=optics, held_out=False)

    def beside(reference):
        six = dataclasses.replace(optics, axes=6)
        return pictures.beside(made, crystal, np.zeros(1, int), 0 * kinds, reference, optics=six)

    return made.images, kinds, beside


def test_own_reference_is_the_pristine_picture_and_leaves_the_defect(cube):
    images, kind, beside = cube
    shown, axis, right = beside("own")
    clean = images[kind == 0].repeat_interleave(5, 0)[:, 0]
    fit = (shown[:, 0] * clean).mean((1, 2))
    assert fit[kind < 4].min() > 0.97  # scan lines jitter
    assert (axis == beside("true_view")[1]).all()
    assert right.min() == 1
    # the class moves the reference by less than a pixel, and says nothing else
    first = shown[kind == 0, 0].repeat_interleave(5, 0)
    assert (shown[:, 0] * first).mean((1, 2))[kind < 4].min() > 0.97
    change = (images[:, 0] - clean)[kind == 1].abs().flatten(1)
    left = shown[kind == 1, 1].flatten(1)
    at, found = (torch.stack([i // 48, i % 48], dim=1).float() for i in (change.argmax(1), left.abs().argmax(1)))
    assert ((at - found).norm(dim=1) * 0.25).max() < 1  # Å
    assert (left.gather(1, left.abs().argmax(1, keepdim=True)) < 0).all()  # intensity is missing
    assert shown[kind == 0, 1].std() < shown[kind == 1, 1].std()


def test_the_true_view_shows_every_class_the_same_reference(cube):
    images, kind, beside = cube
    shown, _, right = beside("true_view")
    assert torch.equal(shown[:, 0], shown[kind == 0, 0].repeat_interleave(5, 0))
    assert (shown[kind == 0, 0] * images[kind == 0, 0]).mean((1, 2)).min() > 0.99
    assert right.min() == 1


def test_a_wrong_axis_is_wrong_and_an_unknown_one_found(cube):
    """Of a cube's six axes of shortest repeat three are <100>, so a guess is right in half of the views."""
    _, kind, beside = cube
    true = beside("own")[1]
    wrong, axis, right = beside("wrong_axis")
    assert set(np.abs(ZONE_AXES).sum(1)[axis]) == {2}  # the next longer repeat
    assert right[:, 0].max() == 0
    found, axis, right = beside("unknown_axis")
    assert set(np.abs(ZONE_AXES).sum(1)[axis[kind < 4]]) == {1} == set(np.abs(ZONE_AXES).sum(1)[true])
    assert right[kind < 4].tolist() == [[1.0, 0.5]] * 16
    left = [shown[kind < 4, 1].square().mean() for shown in (found, wrong)]
    assert left[0] < 0.2 * left[1]


def test_references_stand_beside_the_same_images(hosts, shots, cfg, monkeypatch):
    asked = {}
    real = pictures.beside

    def told(made, structures, row, host, reference, *, optics):
        asked[reference] = structures, row
        return real(made, structures, row, host, reference, optics=optics)

    monkeypatch.setattr(pictures, "beside", told)
    for reference in pictures.REFERENCES:
        made = render(hosts, "test", cfg, epoch=0, seed=0, reference=reference)
        assert made.images.shape == (10, 4, 32, 32)
        assert torch.equal(made.images[:, :2], shots["test"].images)
        assert (made.axis == shots["test"].axis).all() or reference in ("wrong_axis", "unknown_axis")
    assert not (asked["other"][1] == np.arange(10)).any()
    for reference, (structures, row) in asked.items():
        crystals = hosts.wrong if reference == "wrong_structure" else hosts.structures
        off = np.linalg.norm(structures.lattice, axis=2) / np.linalg.norm(crystals.lattice, axis=2) - 1
        assert (abs(off).max() == 0) == (reference == "true_view")
        assert abs(off).max() <= 0.03  # how well a pixel is known
        assert sorted(row) == list(range(10))


# Context


def test_contexts(hosts):
    embeddings = np.random.default_rng(0).normal(size=(len(hosts.mp_id), 4))
    known = defects.contexts(hosts, embeddings)
    assert set(known) == {*ARMS, *PICTURES} - {"majority", "reference_text"}
    assert known["image"].shape == known["image_reference"].shape == (len(hosts.mp_id), 0)
    np.testing.assert_array_equal(known["image_structure"], embeddings)
    assert not (known["image_other"] == embeddings).all(1).any()  # nobody keeps its own
    assert sorted(known["image_other"][:, 0]) == sorted(embeddings[:, 0])
    for row in range(len(hosts.mp_id)):
        fractions = known["image_composition"][row]
        assert {z: fractions[z] for z in np.flatnonzero(fractions)} == dict.fromkeys(hosts.structures[row][0], 0.5)


def test_text_arms_know_structure_and_protocol():
    """Four hosts, three with a protocol: each reads its own, in the control that of another of the three."""
    crystals = tiny.curated().structures.take(np.arange(4))
    four = Hosts(crystals, np.array(["a", "b", "c", "d"]), np.array(["train"] * 4), crystals, np.zeros(4, bool))
    embeddings = np.arange(8.0).reshape(4, 2)
    texts = np.array([[1.0, 2.0], [0.0, 0.0], [3.0, 4.0], [5.0, 6.0]])
    known = defects.contexts(four, embeddings, texts)
    assert set(known) == {*ARMS, *PICTURES, *TEXT_ARMS} - {"majority"}
    flag = [[1.0], [0.0], [1.0], [1.0]]
    np.testing.assert_array_equal(known["image_text"], np.hstack([embeddings, texts, flag]))
    np.testing.assert_array_equal(known["image_text_other"], np.hstack([embeddings, texts[[3, 1, 0, 2]], flag]))
    np.testing.assert_array_equal(known["reference_text"], np.hstack([texts, flag]))


def test_text_of_a_host_is_the_mean_of_its_protocols(curated, hosts, tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "SCRATCH", tmp_path / "scratch")
    about = tiny.pretrain(tiny.bert(tmp_path / "bert"), modalities="crystal text")
    model = encode.Model(about, align.build(about).eval())
    got = defects.host_texts(hosts, curated, encode.encoded(model, curated, modality="text")["embeddings"])
    assert got.shape == (10, about.embed_dim)
    table = curated.protocols[f"text_L{about.mask_level}"]
    for row, mp_id in enumerate(hosts.mp_id):
        own = table[(curated.protocols.mp_id == mp_id).to_numpy()].tolist()
        expected = model.embed_texts(own).mean(0) if own else np.zeros(about.embed_dim)
        np.testing.assert_allclose(got[row], expected, atol=1e-6)
    assert 0 < got.any(1).sum() < 10


def test_view_context():
    known = defects.view_context(np.array([3, 0]), pixel_A=0.2)
    assert known.shape == (2, 14)
    assert known[:, :13].argmax(1).tolist() == [3, 0]
    assert known[:, 13].tolist() == pytest.approx([np.log(0.2)] * 2)


# Heads and network


def synthetic(n, *, seed, informative):
    """Classes written into the features; or into features and context together, so that neither alone tells them."""
    rng = np.random.default_rng(seed)
    kind = rng.integers(5, size=n)
    context = rng.choice([-1.0, 1.0], size=(n, 1))
    x = rng.normal(scale=0.1, size=(n, 5))
    x[np.arange(n), kind] += 1 if informative == "features" else context[:, 0]
    return x, context, kind


@pytest.mark.parametrize("informative", ["features", "both"])
def test_head_learns_what_context_tells_of_features(informative):
    data = {s: synthetic(n, seed=i, informative=informative) for i, (s, n) in enumerate([("train", 800), ("val", 100)])}
    data["test"] = synthetic(200, seed=9, informative=informative)
    features, context, kind = ({s: d[j] for s, d in data.items()} for j in range(3))
    probability = networks.fit_head(features, context, kind, epochs=40, learning_rate=1e-2, seed=0)["test"]
    assert probability.shape == (200, 5)
    np.testing.assert_allclose(probability.sum(1), 1, rtol=1e-5)
    assert (probability.argmax(1) == kind["test"]).mean() > 0.95


def test_head_never_reads_the_test_labels():
    data = {s: synthetic(60, seed=i, informative="features") for i, s in enumerate(("train", "val", "test"))}
    features, context, kind = ({s: d[j] for s, d in data.items()} for j in range(3))
    options = {"epochs": 2, "learning_rate": 1e-2, "seed": 0}
    del kind["test"]
    first, again = (networks.fit_head(features, context, kind, **options) for _ in range(2))
    np.testing.assert_array_equal(first["test"], again["test"])
    assert first["val"].shape == (60, 5)


def test_network_tells_a_bright_image_from_a_dark_one(cfg):
    rng = np.random.default_rng(0)
    kind = np.repeat([0, 1], 40)
    images = torch.as_tensor(rng.normal(size=(80, 2, 32, 32)) + 2 * kind[:, None, None, None]).half()
    shots = DefectSet(images, kind, kind, kind, np.ones(80), np.full(80, 9.0), np.ones((80, 2)))
    quick = dataclasses.replace(cfg, epochs=3, batch_size=16)
    tower = networks.fit_network(shots, quick, seed=0)
    x = networks.features(tower, images)
    assert x.shape == (80, 512)
    gap = x[kind == 1].mean(0) - x[kind == 0].mean(0)
    projected = (x - x.mean(0)) @ gap
    assert ((projected > 0) == (kind == 1)).mean() > 0.95
    np.testing.assert_array_equal(networks.features(networks.fit_network(shots, quick, seed=0), images), x)


def test_a_network_reads_what_it_is_told_while_it_trains(cfg):
    """Images hold nothing but noise: only what is told beside them tells two classes apart, and another's misleads."""
    rng = np.random.default_rng(0)
    kind = np.tile([0, 1], 40)
    images, told = torch.as_tensor(rng.normal(size=(80, 2, 32, 32))).half(), 2.0 * kind[:, None] - 1
    shots = DefectSet(images, kind, kind, kind, np.ones(80), np.full(80, 9.0), np.ones((80, 2)))
    net = networks.fit_network(shots, dataclasses.replace(cfg, epochs=12, batch_size=16), seed=0, told=told)
    own, other = (networks.features(net, images, of) for of in (told, -told))
    gap = own[kind == 1].mean(0) - own[kind == 0].mean(0)
    middle = own.mean(0)
    assert (((own - middle) @ gap > 0) == (kind == 1)).mean() == 1
    assert (((other - middle) @ gap > 0) == (kind == 1)).mean() == 0


def test_killed_network_goes_on_to_the_same_weights(cfg, tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    kind = np.repeat([0, 1], 20)
    images, ones = torch.as_tensor(rng.normal(size=(40, 4, 32, 32))).half(), np.ones(40)
    shots = DefectSet(images, kind, kind, kind, ones, ones, np.ones((40, 2)))
    quick, state = dataclasses.replace(cfg, epochs=3, batch_size=16), tmp_path / "state.pt"
    whole = networks.fit_network(shots, quick, seed=0).state_dict()
    save, saved = fit._save, []

    def killed_in_the_second(*args, **kwargs):
        if saved:
            raise KeyboardInterrupt
        saved.append(save(*args, **kwargs))

    with monkeypatch.context() as patch:
        patch.setattr(fit, "_save", killed_in_the_second)
        with pytest.raises(KeyboardInterrupt):
            networks.fit_network(shots, quick, seed=0, state=state)
    assert state.exists()
    resumed = networks.fit_network(shots, quick, seed=0, state=state).state_dict()
    assert all(torch.equal(w, resumed[name]) for name, w in whole.items())
    assert not state.exists()


# The stage


@pytest.fixture
def project(curated, tmp_path, monkeypatch):
    """A project with the curated set and a model, untrained."""
    for name, folder in {"ROOT": "", "DATA": "data", "SCRATCH": "scratch"}.items():
        monkeypatch.setattr(paths, name, tmp_path / folder)
    dataset.write(paths.curated("tiny"), curated)
    pretrain = tiny.pretrain(tiny.bert(tmp_path / "bert"), modalities="crystal text image")
    model = paths.results("tiny") / "pretrained"
    model.mkdir(parents=True)
    aligned = align.build(pretrain)
    align.save(aligned, model)
    about = {"pretrain": dataclasses.asdict(pretrain), "text_model_hash": aligned.towers["text"].fingerprint}
    cache.write_json(model / "config.json", about)
    return tmp_path


def test_the_stage_from_end_to_end(project, cfg, monkeypatch):
    metrics = defect_scores.run(cfg)
    assert {(r["arm"], r["metric"]) for r in metrics["results"]} == {
        (arm, metric)
        for arm in (*ARMS, *PICTURES, *TEXT_ARMS)
        for metric in ("macro_F1", "accuracy", "ECE", "ECE_scaled")
    }
    assert metrics["hosts"] == {"train": 7, "val": 1, "test": 2}
    assert metrics["synthetic"] is False
    f1 = {r["arm"]: r["value"] for r in metrics["results"] if r["metric"] == "macro_F1"}
    assert f1["majority"] == pytest.approx(1 / 15)
    accuracy = {r["arm"]: r["value"] for r in metrics["results"] if r["metric"] == "accuracy"}
    assert accuracy["context"] == pytest.approx(0.2)  # the same answer to all classes of a view: exactly chance
    cache.write_json(project / "metrics.json", metrics)  # plain values

    def unwanted(*_, **__):
        raise AssertionError("fitted again")

    monkeypatch.setattr(networks, "fit_network", unwanted)
    monkeypatch.setattr(networks, "fit_head", unwanted)
    assert defect_scores.run(cfg) == metrics
    assert (
        defect_scores.run(dataclasses.replace(cfg, bootstrap=10))["results"][0]["value"]
        == metrics["results"][0]["value"]
    )
    with pytest.raises(AssertionError, match="fitted again"):
        defect_scores.run(dataclasses.replace(cfg, epochs=2))


def test_hosts_without_validation_keep_the_last_epoch(hosts, cfg):
    rest = hosts.split != "val"
    crystals, wrong = (each.take(np.flatnonzero(rest)) for each in (hosts.structures, hosts.wrong))
    fewer = Hosts(crystals, hosts.mp_id[rest], hosts.split[rest], wrong, hosts.polymorph[rest])
    for reference, channels in (("", 2), ("own", 4)):
        made = render(fewer, "val", cfg, epoch=0, seed=0, reference=reference)
        assert made.images.shape == (0, channels, 32, 32)
    n = {"train": 20, "val": 0, "test": 5}
    features = {s: np.random.default_rng(0).normal(size=(k, 3)) for s, k in n.items()}
    context = {s: np.ones((k, 2)) for s, k in n.items()}
    kind = {s: np.arange(k) % 5 for s, k in n.items()}
    probability = networks.fit_head(features, context, kind, epochs=1, learning_rate=1e-2, seed=0)
    assert (probability["val"].shape, probability["test"].shape) == ((0, 5), (5, 5))
