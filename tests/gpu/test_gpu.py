"""What would run on a GPU, on one that is pretended: no tensor is left on the wrong device."""

import dataclasses

import numpy as np
import pretend
import pytest
import tiny
import torch

from matalign import config, paths
from matalign.data import dataset
from matalign.pretrain import align, batches, checkpoint, encode, train
from matalign.quantities import METAL
from matalign.tasks.defects import hosts, networks
from matalign.tasks.properties import networks as regression
from matalign.towers import crystal
from matalign.views import anomalies, micrographs, references, registration


@pytest.fixture(autouse=True)
def project(tmp_path, monkeypatch):
    for name, folder in {"ROOT": "", "DATA": "data", "SCRATCH": "scratch"}.items():
        monkeypatch.setattr(paths, name, tmp_path / folder)
    dataset.write(paths.curated("tiny"), tiny.curated())
    torch.use_deterministic_algorithms(True)
    yield tmp_path
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return tiny.bert(tmp_path_factory.mktemp("gpu") / "bert")


def trained(bert, device, **changes):
    cfg = tiny.pretrain(bert, modalities="crystal text image", epochs=1, **changes)
    ex = batches.Examples(cfg, tiny.curated(), align.build(cfg).to(device).train(), device)
    folder = paths.ROOT / device.type
    folder.mkdir()
    at = train.optimise(ex, folder, quiet=True)
    checkpoint.export(ex, at, folder)
    return at, folder / "model"


def test_pretraining_on_a_gpu_is_that_of_the_processor(bert):
    at, model = trained(bert, torch.device("cpu"))
    with pretend.gpu() as device:
        at_gpu, model_gpu = trained(bert, device)
    assert at_gpu.history[0]["loss_val"] == pytest.approx(at.history[0]["loss_val"], rel=1e-5)
    own, other = (encode.load(folder).aligned.weights() for folder in (model, model_gpu))
    torch.testing.assert_close(other, own, rtol=2**-7, atol=3e-3)  # Adam's first steps are as long where noise is all
    assert all(torch.equal(w, w.bfloat16().float()) for w in other.values())
    sizes = [sum(f.stat().st_size for f in folder.glob("*.safetensors")) for folder in (model, model_gpu)]
    assert sizes[1] < 0.6 * sizes[0]


@pytest.mark.parametrize("model", [crystal.Regressor, regression.Fusion, regression.CrossAttention])
def test_fits_on_a_gpu_are_those_of_the_processor(bert, model):
    cfg, curated = tiny.pretrain(bert), tiny.curated()
    rng = np.random.default_rng(0)
    others = [] if model is crystal.Regressor else [rng.normal(size=(24, 3, 5)).astype(np.float16)]
    labels = rng.normal(size=(24, 2))
    labels[::3, 1] = np.nan
    parts = {"train": np.arange(14), "val": np.arange(14, 19), "test": np.arange(19, 24)}

    def predictions(device):
        inputs = regression.Inputs(crystal.graphs(cfg, curated.structures), others, device)
        torch.manual_seed(0)
        net = model(crystal.build(cfg), 2, *([inputs.pooled(parts["train"])] if others else [])).to(device)
        schedule = dataclasses.replace(
            config.load("properties", "tiny"), batch_size=6, learning_rate=1e-2, weight_decay=0.0
        )
        options = {"targets": {"a": 1.0, METAL: 0.5}, "steps": 6, "seed": 0, "state": paths.ROOT / "state"}
        options["schedule"] = schedule
        return regression.train(net, inputs, labels, parts, **options)

    own = predictions(torch.device("cpu"))
    with pretend.gpu() as device:
        there = predictions(device)
    for part, values in own.items():
        np.testing.assert_allclose(there[part], values, rtol=1e-5, atol=1e-6)


def test_defects_on_a_gpu_are_those_of_the_processor(monkeypatch):
    cfg = dataclasses.replace(config.load("defects", "tiny"), hosts=6)
    for module in (hosts, networks):
        monkeypatch.setattr(module, "CHUNK", 40)
    crystals, ids = tiny.curated().structures.take(np.arange(6)), np.array([f"mp-{i}" for i in range(6)])
    six = hosts.Hosts(crystals, ids, np.full(6, "train"), crystals, np.zeros(6, bool))

    def seen(device):
        shots = hosts.render(six, "train", cfg, epoch=0, seed=0, device=device)
        tower = networks.fit_network(shots, cfg, seed=0, device=device, state=paths.ROOT / "state.pt")
        features = networks.features(tower, shots.images, device=device)
        parts = dict.fromkeys(("train", "val", "test"), features)
        kind = dict.fromkeys(parts, shots.kind)
        options = {"epochs": 1, "learning_rate": 1e-3, "seed": 0, "device": device}
        return shots, features, networks.fit_head(parts, parts, kind, **options)["test"]

    shots, *own = seen("cpu")
    with pretend.gpu():
        shots_gpu, *there = seen("cuda")
    assert torch.equal(shots.images, shots_gpu.images)
    options = {"epoch": 0, "seed": 0, "reference": "own"}
    beside = hosts.render(six, "train", cfg, **options)
    with pretend.gpu():
        beside_gpu = hosts.render(six, "train", cfg, **options, device="cuda")
    np.testing.assert_array_equal(beside_gpu.axis, beside.axis)
    same = (beside.images - beside_gpu.images).abs().amax((1, 2, 3)) < 0.02
    assert same.float().mean() > 0.8  # where two places fit equally well, rounding chooses
    for a, b in zip(there, own, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("scale", [0.4, (0.2, 0.6)])
def test_registration_on_a_gpu_is_that_of_the_processor(scale):
    structures = tiny.curated().structures.take(np.arange(3))
    images = micrographs.render(
        structures, np.arange(3), [1, 2, 3], optics=micrographs.Optics(image_px=32, pixel_A=0.4)
    )
    refs = references.references(structures, np.repeat(np.arange(3), 2), [0, 3] * 3)

    def found(device):
        which = np.arange(6).reshape(3, 2)
        it = registration.register(images.to(device), refs, which, pixel_A=scale)
        return [it.correlation.cpu(), it.residual.cpu(), anomalies.score(it).cpu()], anomalies.anomalies(
            it, refs, which[np.arange(3), it.choice.cpu()], structures
        )

    own, listed = found(torch.device("cpu"))
    with pretend.gpu() as device:
        there, listed_there = found(device)
    for a, b in zip(there, own, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    assert [[a.kind for a in each] for each in listed] == [[a.kind for a in each] for each in listed_there]


def test_a_model_on_a_gpu_embeds_as_on_the_processor(bert):
    _, folder = trained(bert, torch.device("cpu"))
    curated = tiny.curated()

    def embedded(device):
        model = encode.load(folder, device=device)
        images = model.micrographs(curated, np.arange(4), seed=0, epoch=0)
        made = [
            model.embed_structures(curated.structures),
            model.embed_texts(["mix the salt"]),
            model.embed_images(images),
        ]
        return [*made, *(tiny.embed(model, m, curated)[1] for m in model.towers)]

    own = embedded("cpu")
    with pretend.gpu():
        there = embedded("cuda")
    for a, b in zip(own, there, strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-5, atol=1e-6)


def test_pretraining_in_bfloat16_learns_as_in_float32(bert, monkeypatch):
    at, _ = trained(bert, torch.device("cpu"))
    cpu, autocast = torch.device("cpu"), torch.autocast
    monkeypatch.setattr(batches, "nullcontext", lambda: autocast("cpu", torch.bfloat16))
    monkeypatch.setattr(paths, "ROOT", paths.ROOT / "half")
    paths.ROOT.mkdir()
    half, _ = trained(bert, cpu)
    assert half.history[0]["loss_val"] != at.history[0]["loss_val"]
    assert half.history[0]["loss_val"] == pytest.approx(at.history[0]["loss_val"], rel=0.02)
