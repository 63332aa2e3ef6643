"""Ablations on 24 rock salts whose texts and images tell their elements."""

import dataclasses
import json

import numpy as np
import pytest
import tiny
import torch

from matalign import cache, config, paths
from matalign.data import dataset
from matalign.pretrain import align, encode, train
from matalign.report import ablations as report
from matalign.tasks.ablations import ablations, fits, shown
from matalign.tasks.ablations.fits import Fit
from matalign.tasks.ablations.shown import Source
from matalign.tasks.ablations.variants import BASE, GROUPS, Variant, chosen
from matalign.towers.text import TextTower
from matalign.views import draws, micrographs

BASIC = Variant(batch_size=8, order=1)
VIEWS = 3
PAIRS = {"pairs": ["shuffled"]}


def salts() -> dataset.Curated:
    """The tiny set with formation energies; every salt has two protocols, the last three are the test set."""
    found = tiny.curated()
    split = np.array(["train"] * 21 + ["test"] * 3, dtype=object)
    split[[2, 7, 12, 17, 20]] = "val"  # of each the training set has other salts of the cation and of the anion
    materials = found.materials.assign(formation_energy_eV_atom=-1 - 0.1 * np.arange(24.0))
    of_others = found.protocols.assign(
        mp_id=[f"mp-{int(mp_id[3:]) - 1}" for mp_id in found.protocols.mp_id],
        protocol_id=found.protocols.protocol_id + "b",
        **{f"text_L{level}": found.protocols[f"text_L{level}"] + " the" for level in range(4)},
    )
    protocols = dataset.pd.concat([found.protocols, of_others]).sort_values("protocol_id", ignore_index=True)
    splits = found.splits.assign(chemsys=split, pretrain=np.where(split == "test", "excluded", split))
    return dataset.Curated(materials, found.structures, protocols, splits, audit={})


@pytest.fixture
def project(tmp_path, monkeypatch):
    """An own project with the salts curated."""
    for name, value in {"ROOT": tmp_path, "DATA": tmp_path / "data", "SCRATCH": tmp_path / "scratch"}.items():
        monkeypatch.setattr(paths, name, value)
    shown.task.cache_clear()
    dataset.write(paths.curated("tiny"), salts())
    return tmp_path


def make(**changes) -> config.Ablations:
    values = {**vars(config.load("ablations", "tiny")), "threads": 1, "seed": 0, "variants": PAIRS}
    values |= {"views": VIEWS, "epochs": 2, "learning_rate": 1e-2, "label_percent": 100.0, "steps": 2, "bootstrap": 20}
    return config.build(config.Ablations, values | changes, where="test")


@pytest.fixture
def source(project):
    """Features made by hand: elements, for images with noise; no tower has to be run."""
    return written(project, make(epochs=20))


def written(project, cfg) -> Source:
    curated = dataset.read(paths.curated("tiny"))
    elements = curated.structures.fractions()[:, [3, 11, 19, 37, 55, 47, 9, 17, 35, 53]].astype(np.float32)
    noise = np.random.default_rng(0).normal(0, 0.05, (24, VIEWS + 1, 10)).astype(np.float32)
    row = curated.materials.mp_id.searchsorted(curated.protocols.mp_id)
    made = {"images": elements[:, None] + noise, **{f"texts_L{level}": elements[row] for level in range(4)}}
    cache.save(project / "features.safetensors", made)
    pretrain = tiny.pretrain("", image_fraction=0.25, protocol_repeats=1, embed_dim=32)
    return Source(cfg, pretrain, config.load("properties", "tiny"), project / "features.safetensors", "")


def test_the_variants_of_a_group_stand_beside_its_base():
    found = chosen(make(variants=PAIRS | {"loss": ["anchored", "proposal"]}))
    assert {group: list(names) for group, names in found.items()} == {
        "loss": ["pairwise", "proposal", "anchored"],
        "pairs": ["true", "shuffled"],
    }
    assert found["loss"]["proposal"] == Variant(loss="proposal")
    assert chosen(make(variants={})) == {}
    for names in GROUPS.values():
        first, *others = names.values()
        assert first == BASE
        for variant in others:  # one factor at a time
            assert sum(getattr(variant, f.name) != getattr(BASE, f.name) for f in dataclasses.fields(Variant)) == 1


@pytest.mark.parametrize(
    ("variants", "message"),
    [
        (
            {"losses": []},
            "unknown group 'losses', the nearest is 'loss'; of loss, descriptors, modalities, missing, batch, mask, ",
        ),
        (
            {"loss": ["sigmoids"]},
            "unknown variant of loss 'sigmoids', the nearest is 'sigmoid'; of pairwise, proposal, ",
        ),
        ({"batch": [32]}, r"variants.batch\[0\] must be str, got 32"),
    ],
)
def test_unknown_variants_are_refused_with_those_there_are(variants, message):
    with pytest.raises(ValueError, match=message):
        chosen(make(variants=variants))


def test_shuffled_pairs_leave_no_material_its_own_text_or_image(project):
    curated = salts()
    moved, owner = shown.shuffled(curated, seed=0)
    outside = (curated.splits.pretrain != "excluded").to_numpy()
    rows = np.arange(24)
    assert (owner != rows)[outside].all()
    assert (owner == rows)[~outside].all()
    assert sorted(owner) == rows.tolist()

    before = curated.materials.mp_id.searchsorted(curated.protocols.mp_id)
    after = curated.materials.mp_id.searchsorted(moved.protocols.mp_id)
    trained = curated.protocols.train_ok.to_numpy(bool) & outside[before]
    assert trained.sum() > 30
    assert (before != after)[trained].all()
    assert outside[after[trained]].all()
    assert (before == after)[~trained].all()
    assert (owner[after] != before)[trained].all()  # nor do the text and the image of one row belong together
    assert moved.protocols.drop(columns="mp_id").equals(curated.protocols.drop(columns="mp_id"))

    again, same = shown.shuffled(curated, seed=0)
    assert again.protocols.equals(moved.protocols)
    assert (same == owner).all()
    assert (shown.shuffled(curated, seed=1)[1] != owner).any()


@pytest.mark.parametrize("rate", [0.0, 0.3, 0.9])
def test_modalities_are_dropped_at_their_rate_by_key(source, rate):
    variant = dataclasses.replace(BASIC, missing=rate)
    made = shown.examples(source, variant, 0)
    epochs = [made.views("train", epoch) for epoch in range(150)]
    text = np.concatenate([views.text < 0 for views in epochs])
    image = np.concatenate([~views.image for views in epochs])
    n = len(text)
    assert n == 150 * 16
    bound = 4 * np.sqrt(rate * (1 - rate) / n)
    assert abs(text.mean() - rate) <= bound
    assert abs(image.mean() - rate) <= bound
    assert abs((text & image).mean() - rate**2) <= bound  # one does not tell the other

    again = shown.examples(source, variant, 0).views("train", 7)
    for name in ("rows", "text", "image"):
        assert (getattr(again, name) == getattr(epochs[7], name)).all()
    (part,) = made.parts(epochs[7])
    present = dict(zip(made.model.modalities, part.numbers[:, 2:].bool().unbind(1), strict=True))
    assert present["crystal"].all()
    assert (present["text"].numpy() == (epochs[7].text >= 0)).all()
    assert (present["image"].numpy() == epochs[7].image).all()


def test_an_image_is_a_cached_view_of_the_material_that_owns_it():
    images = np.arange(4 * VIEWS, dtype=np.float32).reshape(4, VIEWS, 1)
    made = shown.CachedImages(images, np.array([1, 2, 3, 0]))
    keys = np.array([0, 1, 2, 2**63 - 1], np.uint64)
    got = made(np.array([0, 0, 3, 3]), keys)[:, 0].tolist()
    assert got == [3, 4, 2, (2**63 - 1) % VIEWS]


@pytest.fixture
def model(project):
    """A pretrained model of the profile, though nothing has trained it."""
    cfg = tiny.pretrain(tiny.bert(project / "bert"), modalities="crystal text image", image_px=32)
    made = align.build(cfg)
    folder = paths.results("tiny") / "pretrained"
    folder.mkdir(parents=True)
    align.save(made, folder)
    about = {"pretrain": dataclasses.asdict(cfg), "text_model_hash": TextTower(cfg.text_model).fingerprint}
    cache.write_json(folder / "config.json", about)
    return made.eval()


def test_cached_features_are_the_live_towers_and_a_second_run_trains_nothing(model, monkeypatch):
    cfg = make(variants=PAIRS | {"modalities": ["with-xrd"]}, epochs=1)
    first = ablations.run(cfg)
    assert {r["variant"] for r in first["results"]} == {"true", "shuffled", "all-three"}
    assert first["skipped"] == [{"group": "modalities", "variant": "with-xrd", "reason": "no xrd in the curated set"}]
    task, curated = shown.task(shown.source(cfg)), salts()
    optics = micrographs.Optics(image_px=32, pixel_A=0.4)
    for images, epoch in ((task.images[:, 1], 1), (task.held_out, encode.EVALUATION)):
        keys = [draws.view_seed(0, epoch, mp_id, 0) for mp_id in curated.materials.mp_id[:2]]
        with torch.no_grad():
            live = model.towers["image"](micrographs.render(curated.structures, np.arange(2), keys, optics=optics))[0]
        np.testing.assert_allclose(images[:2], live.numpy(), rtol=1e-4, atol=1e-5)
    text = curated.protocols.text_L1[5]
    torch.testing.assert_close(task.texts[text], encode.load("tiny").towers["text"].features([text])[0])

    def fail(*args, **kwargs):
        raise AssertionError("trains again")

    monkeypatch.setattr(train, "optimise", fail)
    assert ablations.run(cfg) == first
    with pytest.raises(AssertionError, match="trains again"):  # and another variant would be trained
        ablations.run(make(variants=PAIRS | {"loss": ["proposal"]}, epochs=1))


def test_a_killed_variant_goes_on_to_the_same_result(source, monkeypatch):
    source = dataclasses.replace(source, cfg=dataclasses.replace(source.cfg, epochs=3))
    whole = fits.fit_or_load(source, Fit(BASIC, 0))
    monkeypatch.setattr(paths, "SCRATCH", paths.SCRATCH.with_name("other"))
    validate, epochs = train.validate, []

    def dies(*args, **kwargs):
        epochs.append(1)
        if len(epochs) == 3:
            raise KeyboardInterrupt
        return validate(*args, **kwargs)

    monkeypatch.setattr(train, "validate", dies)
    with pytest.raises(KeyboardInterrupt):
        fits.fit_or_load(source, Fit(BASIC, 0))
    resumed = fits.fit_or_load(source, Fit(BASIC, 0))
    assert len(epochs) == 4  # two epochs were kept
    assert resumed.keys() == whole.keys()
    for name, value in whole.items():
        np.testing.assert_array_equal(resumed[name], value, err_msg=name)


def test_the_base_learns_and_shuffled_pairs_do_not(source):
    base, shuffled, random = (
        fits.fit_or_load(source, Fit(variant, 0))
        for variant in (
            BASIC,
            dataclasses.replace(BASIC, shuffled=True),
            dataclasses.replace(BASIC, trained=False),
        )
    )
    assert base["loss"] < shuffled["loss"] - 0.1
    assert base["loss"] < random["loss"] - 0.1
    of = {row["pair"]: row for row in base["pairs"]}
    assert list(of) == ["crystal–text", "crystal–image", "text–image"]
    assert of["text–image"]["recall"] > 0.7
    untrained = {row["pair"]: row["loss"] for row in random["pairs"]}
    assert all(of[pair]["loss"] < untrained[pair] for pair in of)
    # 3 test materials among 24: their protocols and their images tell their elements
    assert base["structure_text_L1/MRR"].shape == (3,)
    assert base["image_text_L1/MRR"].mean() > random["image_text_L1/MRR"].mean()
    assert base["finetuned/MAE"].shape == base["ridge/MAE"].shape == (3,)
    assert base["test_rows"].tolist() == [21, 22, 23]


def test_modalities_that_a_variant_lacks_have_no_row(source):
    result = fits.fit_or_load(source, Fit(dataclasses.replace(BASIC, modalities="crystal text"), 0))
    assert {name.split("/")[0] for name in result if "/" in name} == {
        "structure_text_L1",
        "structure_text_L2",
        "finetuned",
        "ridge",
    }
    assert [row["pair"] for row in result["pairs"]] == ["crystal–text"]


def test_what_is_not_read_and_what_came_later_leave_keys_as_they_were(source):
    known = {f.name for f in dataclasses.fields(Variant)} - {"supervised", "attends"}
    profiled = dataclasses.replace(source, extras=(("profile", "1"),))
    other = dataclasses.replace(source, extras=(("profile", "2"),))
    for group in GROUPS.values():
        for variant in group.values():
            key = fits.key(source, Fit(variant, 0))
            later = {"supervised"} if variant.supervised else {"attends"} if variant.attends else set()
            assert key["fit"]["variant"].keys() == known | later
            reads = "profile" in (variant.modalities + variant.supervised)
            assert (fits.key(profiled, Fit(variant, 0)) != fits.key(other, Fit(variant, 0))) == reads
            assert (fits.key(profiled, Fit(variant, 0)) != key) == reads
    assert len({cache.digest(fits.key(profiled, Fit(v, 0))) for g in GROUPS.values() for v in g.values()}) == 28


def test_numbers_are_aligned_or_predicted_and_tokens_attended_to(model):
    values = np.abs(np.random.default_rng(0).normal(size=(24, 3)))
    values[3] = np.nan
    dataset.write(paths.curated("tiny"), dataclasses.replace(salts(), extras={"profile": values}))
    variants = {"modalities": ["with-profile"], "objective": ["profile-supervised", "token-attention"]}
    cfg = make(variants=variants, epochs=1)
    metrics = ablations.run(cfg)
    assert metrics["skipped"] == []
    names = {"all-three", "with-profile", "both", "profile-supervised", "token-attention"}
    assert {r["variant"] for r in metrics["results"]} == names
    assert all(np.isfinite(r["value"]) for r in metrics["results"])

    start = shown.source(cfg)
    tokens, texts = shown.kept_tokens(start.tokens), shown.examples(start, BASE, 0).texts.distinct
    with torch.no_grad():
        live = model.towers["text"](texts[3:4])[1]["tokens"][0]
    assert tokens["length"][3] == len(live)
    torch.testing.assert_close(tokens["text"][3, : len(live)].float(), live, rtol=1e-2, atol=1e-2)
    assert tokens["image"].shape == (24, 1, 2048)  # 32 px end as one cell

    base = shown.examples(start, BASE, 0)
    for name in ("profile-supervised", "token-attention"):
        made = shown.examples(start, GROUPS["objective"][name], 0)
        for before, after in zip(base.model.towers["crystal"].parameters(), made.model.towers["crystal"].parameters()):
            assert torch.equal(before, after)  # the same start
        assert isinstance(fits.Regressor(made.model.towers["crystal"], 1).tower, type(base.model.towers["crystal"]))
        (part,) = made.parts(made.views("train", 0))
        assert made.auxiliary(part) != base.auxiliary(part)


def test_no_variants_make_empty_tables_at_once(project):
    made = ablations.run(make(variants={}))  # there is no model
    assert made["results"] == made["comparisons"] == made["pairs"] == made["statements"] == []
    assert report.tables(made, own=True) == report.figures(made) == {}
    json.dumps(made, allow_nan=False)


def row(group, variant, task, difference, p):
    metric = "MAE" if task == "finetuned" else "MRR"
    return {"group": group, "variant": variant, "task": task, "metric": metric, "difference": difference, "p_holm": p}


@pytest.mark.parametrize(
    ("differences", "verdicts"),
    [
        ([row("loss", "proposal", "structure_text_L1", -0.2, 0.01)], ["base"]),
        ([row("loss", "proposal", "structure_text_L1", 0.2, 0.01)], ["proposal"]),
        ([row("loss", "proposal", "structure_text_L1", 0.2, 0.06)], ["base"]),
        ([row("loss", "proposal", "finetuned", -0.2, 0.01)], ["proposal"]),  # a smaller error
        ([row("pairs", "shuffled", "finetuned", 0.1, 0.01)], ["lost"]),
        ([row("pairs", "shuffled", "finetuned", 0.1, 0.4)], ["shared"]),
        (
            [row("pairs", "shuffled", "finetuned", 0.1, 0.01), row("objective", "none", "finetuned", 0.1, 0.01)],
            ["lost", "base"],
        ),
        (
            [row("pairs", "shuffled", "finetuned", 0.1, 0.01), row("objective", "none", "finetuned", 0.1, 0.2)],
            ["no gain", "base"],
        ),
    ],
)
def test_statements_follow_from_the_comparisons(differences, verdicts):
    rows = [{"group": d["group"]} for d in differences]
    assert [s["verdict"] for s in ablations.statements(rows, differences)] == verdicts


def test_the_summary_has_the_base_once_and_what_differs_from_it():
    import plausible

    metrics = plausible.metrics()["ablations"]
    tables = report.tables(metrics, own=True)
    assert list(tables) == ["ablations_loss", "ablations_pairs", "ablations", "ablations_statements"]
    assert len(tables["ablations_loss"].rows) == sum(
        row["group"] == "loss" for row in (*metrics["results"], *metrics["pairs"])
    )
    summary = tables["ablations"]
    assert [line[:2] for line in summary.cells] == [
        ["", "base"],
        *(["loss", name] for name in ("proposal", "proposal-noself", "anchored", "sigmoid")),
        ["pairs", "shuffled"],
    ]
    assert summary.header[2::2] == ["structure → protocol,\nL1 MRR", "image → protocol,\nL1 MRR"]
    assert [line[3] for line in summary.cells] == ["", *["0.010"] * 5]
    assert [line[4].endswith("†") for line in summary.cells] == [False, False, False, True, False, False]
