import dataclasses
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tiny
import torch

from matalign import align, checkpoints, dataset, losses, paths, scratch, train
from matalign.examples import Examples


@pytest.fixture(scope="module", autouse=True)
def repeatable():
    """What a rank's `main` sets; fused kernels split their sums by the number of threads."""
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(deterministic)


@pytest.fixture
def project(tmp_path, monkeypatch):
    """An own project with the tiny set curated."""
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    monkeypatch.setattr(paths, "DATA", tmp_path / "data")
    monkeypatch.setattr(paths, "SCRATCH", tmp_path / "scratch")
    dataset.write(paths.curated("tiny"), tiny.curated())
    return tmp_path


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return tiny.bert(tmp_path_factory.mktemp("train") / "bert")


def fit(cfg, name, **options):
    folder = paths.ROOT / name
    folder.mkdir(exist_ok=True)
    return train.fit(cfg, folder, **options)


def contents(folder):
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


def examples(cfg):
    curated = dataset.read(paths.curated("tiny"))
    return Examples(cfg, curated, align.build(cfg), torch.device("cpu"))


def test_two_runs_have_the_same_bytes_and_learn(project, bert):
    cfg = tiny.pretrain(bert, epochs=10, learning_rate=1e-2, patience=10)
    first = fit(cfg, "first")
    assert contents(first) == contents(fit(cfg, "second"))
    losses_train = [h["loss_train"] for h in train.metrics(first)["history"]]
    assert losses_train[-1] < losses_train[0] - 0.15
    assert contents(first) != contents(fit(dataclasses.replace(cfg, seed=1), "third"))


@pytest.mark.parametrize(
    "changes",
    [
        {"modalities": "crystal text image", "image_fraction": 0.5, "epochs": 1},
        {"loss": "seed", "unfreeze_layers": 1, "crystal_tower": "cgconv"},
        {"modalities": "text image", "epochs": 1},
    ],
)
def test_modalities_towers_losses(project, bert, changes):
    cfg = tiny.pretrain(bert, **changes)
    metrics = train.metrics(fit(cfg, "run"))
    assert len(metrics["history"]) == cfg.epochs
    assert set(metrics["parameters"]) == {*cfg.modalities.split(), "heads"}
    assert all(np.isfinite(h["loss_val"]) for h in metrics["history"])


def test_killed_and_resumed_run_ends_with_the_same_bytes(project, bert):
    cfg = tiny.pretrain(bert, epochs=40, patience=40, checkpoint_steps=3)
    folder = project / "killed"
    folder.mkdir()
    scratch.write_json(folder / "pretrain.json", dataclasses.asdict(cfg))
    command = [sys.executable, "-c", train.LAUNCHER, str(os.getpid()), "--standalone", "--nproc-per-node", "1"]
    env = {**os.environ, "MATALIGN_ROOT": str(project), "MATALIGN_SCRATCH": str(paths.SCRATCH), "OMP_NUM_THREADS": "1"}
    with open(project / "output", "w") as output:
        agent = subprocess.Popen(
            [*command, "-m", "matalign.train", "--config", str(folder / "pretrain.json")],
            env=env,
            stdout=output,
            stderr=output,
        )
        while not (folder / "state.safetensors").exists():
            assert agent.poll() is None, (project / "output").read_text()
            time.sleep(0.002)
        agent.send_signal(signal.SIGKILL)  # the agent alone; its rank must not go on in the dark
        agent.wait()
    with scratch.held(folder):
        assert not (folder / "model").exists()
        steps = len((folder / "log.jsonl").read_text().splitlines())
        resumed = train.fit(cfg, folder)
    assert 3 <= steps < 40 * 5
    assert contents(resumed) == contents(fit(cfg, "uninterrupted"))


def test_finished_run_is_published_without_training_again(project, bert, monkeypatch, tmp_path):
    cfg = tiny.pretrain(bert)
    fits = tmp_path / "fits.jsonl"
    monkeypatch.setenv("MATALIGN_FITS", str(fits))
    started = []

    def torchrun(cfg, folder, *, ranks, dry_run):
        started.append(ranks)
        train.fit(cfg, folder)

    monkeypatch.setattr(train, "_torchrun", torchrun)
    published = train.launch(cfg)
    assert published == project / "results" / "tiny" / "model"
    before = contents(published)
    (published / "left over").touch()
    assert contents(train.launch(cfg)) == before
    assert started == [1]
    assert [json.loads(line)["state"] for line in fits.read_text().splitlines()] == ["computed", "loaded"]


@pytest.mark.parametrize("ranks", [2, 4])
def test_dry_run_on_several_ranks_is_the_run_of_one(project, bert, capfd, ranks):
    # 28 views in batches of 7: shares of 4 and 3 rows, or of 2, 2, 2 and 1
    cfg = tiny.pretrain(bert, batch_size=7, image_fraction=0.5)
    folder = train.launch(cfg, dry_run_ranks=ranks)
    assert "epoch 1/3" in capfd.readouterr().err
    assert not paths.results("tiny").exists()
    several, one = train.metrics(folder), train.metrics(fit(cfg, "one", max_steps=2))
    assert several["ranks"] == ranks
    assert len(several["steps"]) == len(one["steps"]) == 2
    for a, b in zip([*several["steps"], *several["history"]], [*one["steps"], *one["history"]], strict=True):
        assert {k: v for k, v in a.items() if k != "recall_val"} == pytest.approx(
            {k: v for k, v in b.items() if k != "recall_val"}, rel=1e-5
        )
    models = [align.build(cfg), align.build(cfg), align.build(cfg)]
    align.load(models[0], folder)
    align.load(models[1], project / "one" / "model")
    w = [m.weights() for m in models]
    torch.testing.assert_close(w[0], w[1], rtol=1e-4, atol=1e-6)
    assert not torch.allclose(w[0]["heads.text.1.weight"], w[2]["heads.text.1.weight"], rtol=1e-4, atol=1e-6)


def test_failure_of_a_rank_is_raised_with_its_traceback(project, bert):
    cfg = tiny.pretrain(bert, modalities="crystal spectrum")
    with pytest.raises(RuntimeError, match=r"(?s)exit code 1; .*Traceback.*ValueError: no modality 'spectrum'"):
        train.launch(cfg)


def test_loss_that_is_not_a_number_stops_with_the_materials_and_keeps_the_last_state(project, bert, monkeypatch):
    calls, pairwise = [], losses.pairwise

    def third_is_nan(*args, **kwargs):
        calls.append(kwargs["material"])
        return pairwise(*args, **kwargs) * (np.nan if len(calls) == 3 else 1)

    cfg = tiny.pretrain(bert)
    monkeypatch.setitem(losses.LOSSES, "pairwise", third_is_nan)
    with pytest.raises(FloatingPointError, match=r"loss nan .*the batch holds mp-") as error:
        fit(cfg, "nan")
    named = str(error.value).split("holds ")[1].split(", ")
    assert named == [f"mp-{100 + row}" for row in calls[2].tolist()]
    model = align.build(cfg)
    assert checkpoints.restore(project / "nan" / "state.safetensors", model).steps == 2
    assert all(torch.isfinite(t).all() for t in model.weights().values())
    monkeypatch.setitem(losses.LOSSES, "pairwise", pairwise)
    assert contents(fit(cfg, "nan")) == contents(fit(cfg, "clean"))


def test_training_stops_early_and_keeps_the_best_epoch(project, bert, monkeypatch):
    values = iter([3.0, 2.0, 2.5, 2.0, 1.0])
    monkeypatch.setattr(train, "validate", lambda *_, **__: {"loss_val": next(values), "recall_val": []})
    model = fit(tiny.pretrain(bert, epochs=5, patience=2), "run")
    metrics = train.metrics(model)
    assert [h["loss_val"] for h in metrics["history"]] == [3.0, 2.0, 2.5, 2.0]  # as good as before is not better
    assert metrics["best_epoch"] == 2
    values = iter([3.0, 2.0])
    two = fit(tiny.pretrain(bert, epochs=2, patience=2), "two")
    assert {k: v for k, v in contents(model).items() if k.endswith("safetensors")} == {
        k: v for k, v in contents(two).items() if k.endswith("safetensors")
    }


def test_metrics(project, bert):
    cfg = tiny.pretrain(bert, epochs=2)
    metrics = train.metrics(fit(cfg, "run"))
    json.dumps(metrics, allow_nan=False)
    assert metrics["stage"] == "pretrain"
    assert (metrics["profile"], metrics["seed"], metrics["synthetic"]) == ("tiny", 0, False)
    assert (metrics["n_train"], metrics["n_val"]) == (16, 5)
    assert metrics["data"] == tiny.curated().digest
    assert len(metrics["history"]) == 2
    assert [s["rows"] for s in metrics["steps"]] == 2 * [6, 6, 6, 6]
    pairs = {(r["query"], r["target"]): r for r in metrics["history"][0]["recall_val"]}
    assert set(pairs) == {("crystal", "text"), ("text", "crystal")}
    assert all(0 <= r["value"] <= 1 and r["n_queries"] == 2 for r in pairs.values())
    assert pairs["text", "crystal"]["n_gallery"] == 5
    mean = np.mean([s["loss"] for s in metrics["steps"] if s["epoch"] == 2])
    assert metrics["history"][1]["loss_train"] == pytest.approx(mean)


def test_epoch_shows_each_training_material_and_repeats_those_with_a_protocol(project, bert):
    ex = examples(tiny.pretrain(bert, protocol_repeats=3))
    views = ex.views("train", 0)
    assert np.bincount(views.rows).tolist() == [1, 3] * 8
    assert ((views.text >= 0) == (views.rows % 2 == 1)).all()
    assert len(set(views.keys.tolist())) == len(views)
    texts, protocols = ex.texts.distinct, tiny.curated().protocols
    for row, text in zip(views.rows, views.text, strict=True):
        own = protocols.text_L1[protocols.mp_id == f"mp-{100 + row}"].tolist()
        assert not own if text < 0 else texts[text] in own
    shown = {
        (r, texts[t]) for e in range(9) for r, t in zip(*(getattr(ex.views("train", e), a) for a in ("rows", "text")))
    }
    assert len({text for row, text in shown if row == 5}) == 2  # each of its protocols comes up
    assert not np.array_equal(ex.views("train", 1).rows, views.rows)
    assert set(ex.views("val", -1).rows.tolist()) == set(range(16, 21))


def test_protocol_that_shares_its_doi_with_a_test_protocol_is_never_shown(project, bert):
    curated = tiny.curated()
    curated.splits.loc[23, "pretrain"] = "train"  # its protocols have train_ok False
    ex = dataclasses.replace(examples(tiny.pretrain(bert)), curated=curated)
    assert ex.views("train", 0).text[ex.views("train", 0).rows == 23].tolist() == [-1]
    assert not any("261" in text for text in ex.texts.distinct)


def test_share_of_images(project, bert):
    cfg = tiny.pretrain(bert, modalities="crystal image", image_fraction=0.25)
    ex = examples(cfg)
    share = np.mean([ex.views("train", e).image.mean() for e in range(200)])
    assert share == pytest.approx(0.25, abs=0.03)


def test_view_of_a_material_does_not_depend_on_which_others_there_are(project, bert):
    cfg = tiny.pretrain(bert)
    one, some = examples(cfg), tiny.curated()
    some.splits.loc[0:9, "pretrain"] = "excluded"
    other = dataclasses.replace(one, curated=some)
    a, b = one.views("train", 3), other.views("train", 3)
    kept = a.rows >= 10
    for name in ("rows", "keys", "image", "text"):
        assert np.array_equal(getattr(a, name)[kept], getattr(b, name)), name


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss": "triplet"}, "loss must be one of pairwise, seed, got 'triplet'"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
    ],
)
def test_config_that_cannot_train(project, bert, changes, message):
    with pytest.raises(ValueError, match=message):
        fit(tiny.pretrain(bert, **changes), "run")


def test_split_without_validation(project, bert):
    curated = tiny.curated()
    curated.splits.loc[curated.splits.pretrain == "val", "pretrain"] = "train"
    dataset.write(paths.curated("tiny"), curated)
    with pytest.raises(ValueError, match=r"splits of tiny: pretrain has no material in 'val'"):
        fit(tiny.pretrain(bert), "run")


def test_more_gpus_than_there_are(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [train.rank_count(g) for g in ("auto", "1", "2")] == [2, 1, 2]
    for gpus in ("4", "0", "all"):
        with pytest.raises(ValueError, match=f"1 to the number of GPUs, got '{gpus}' on a machine with 2"):
            train.rank_count(gpus)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert train.rank_count("auto") == 1
