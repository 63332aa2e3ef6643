import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import psutil
import pytest
import tiny
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from matalign import cache, paths
from matalign.data import dataset
from matalign.pretrain import align, batches, checkpoint, encode, launch, losses, train
from matalign.pretrain.batches import Examples


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
    losses_train = [h["loss_train"] for h in checkpoint.metrics(first)["history"]]
    assert losses_train[-1] < losses_train[0] - 0.15
    assert contents(first) != contents(fit(dataclasses.replace(cfg, seed=1), "third"))


@pytest.mark.parametrize(
    "changes",
    [
        {"modalities": "crystal text image", "image_fraction": 0.5, "epochs": 1},
        {"loss": "proposal", "unfreeze_layers": 1, "crystal_tower": "cgconv"},
        {"modalities": "text image", "auxiliary_weight": 0.0, "epochs": 1},
        {"modalities": "crystal", "epochs": 1},
    ],
)
def test_modalities_towers_losses(project, bert, changes):
    cfg = tiny.pretrain(bert, **changes)
    metrics = checkpoint.metrics(fit(cfg, "run"))
    assert len(metrics["history"]) == cfg.epochs
    denoiser = {"denoiser"} if cfg.auxiliary_weight else set()
    assert set(metrics["parameters"]) == {*cfg.modalities.split(), "heads", *denoiser}
    assert all(np.isfinite(h["loss_val"]) for h in metrics["history"])


def test_killed_and_resumed_run_ends_with_the_same_bytes(project, bert):
    cfg = tiny.pretrain(bert, epochs=40, patience=40, checkpoint_steps=3)
    folder = project / "killed"
    folder.mkdir()
    cache.write_json(folder / "pretrain.json", dataclasses.asdict(cfg))
    env = {**os.environ, "MATALIGN_ROOT": str(project), "MATALIGN_SCRATCH": str(paths.SCRATCH), "OMP_NUM_THREADS": "1"}
    with open(project / "output", "w") as output:
        starter = subprocess.Popen(
            [sys.executable, *launch.command(folder)],
            env=env,
            stdout=output,
            stderr=output,
        )
        while not (folder / "state.pt").exists():
            assert starter.poll() is None, (project / "output").read_text()
            time.sleep(0.002)
        starter.send_signal(signal.SIGKILL)
        starter.wait()
    with cache.held(folder):
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

    def torchrun(cfg, folder, *, ranks, on_cpu):
        started.append(ranks)
        train.fit(cfg, folder)

    monkeypatch.setattr(launch, "torchrun", torchrun)
    published = launch.pretrain(cfg)
    assert published == project / "results" / "tiny" / "pretrained"
    before = contents(published)
    (published / "left over").touch()
    (half := published.with_name(".pretrained")).mkdir()  # what a run leaves that is killed while it publishes
    (half / "crystal.safetensors").touch()
    assert contents(launch.pretrain(cfg)) == before
    assert not half.exists()
    assert started == [1]
    assert len(json.loads((published.parent / "provenance" / "pretrain_epochs.json").read_text())) == cfg.epochs
    assert [json.loads(line)["state"] for line in fits.read_text().splitlines()] == ["computed", "loaded"]


def test_control_is_the_auxiliary_objective_alone_beside_the_model(project, bert, monkeypatch):
    cfg = tiny.pretrain(bert, control=True, epochs=1)
    monkeypatch.setattr(launch, "torchrun", lambda cfg, folder, *, ranks, on_cpu: train.fit(cfg, folder))
    published = launch.pretrain(cfg)
    model, control = encode.load(published), encode.load(published / launch.CONTROL)
    assert model.aligned.modalities == ["crystal", "text"]
    assert control.aligned.modalities == ["crystal"]
    first, other = (m.towers["crystal"].state_dict() for m in (model, control))
    assert not torch.equal(first["layers.0.out.weight"], other["layers.0.out.weight"])
    heads = align.build(launch.alone(cfg)).heads.state_dict()  # untouched: there is nothing to align with
    assert all(torch.equal(w, heads[name]) for name, w in control.aligned.heads.state_dict().items())
    start = align.build(launch.alone(cfg)).towers.state_dict()
    assert not torch.equal(start["crystal.layers.0.out.weight"], other["layers.0.out.weight"])


# Several ranks


def doubled(batch):
    return dataclasses.replace(batch, **{n: t.double() for n, t in vars(batch).items() if t.is_floating_point()})


class Doubled(Examples):
    """In float64, where sums in another order differ by 1e-16."""

    def parts(self, views):
        return [
            dataclasses.replace(p, inputs=self._inputs(p), corrupted=self._doubled(p)) for p in super().parts(views)
        ]

    def _inputs(self, part):
        how = {"crystal": doubled, "text": torch.Tensor.double, "image": lambda render: lambda: render().double()}
        return {modality: how[modality](x) for modality, x in part.inputs.items()}

    def _doubled(self, part):
        x = part.corrupted
        return x and x._replace(batch=doubled(x.batch), displacement=x.displacement.double())


def resnet_examples(cfg, curated):
    """Real towers, with weights that let a gradient through every layer: residual branches start at zero."""
    model = align.build(cfg)
    assert model.towers["image"].depth == 50
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p += 0.02 * torch.randn(p.shape, generator=g)
    return Doubled(cfg, curated, model.double(), torch.device("cpu"))


def step_on_seven(examples):
    """Loss and flat gradient of a step on seven rows, of which the last four have no image and two no text."""
    views = examples.views("train", 0)
    views = views[np.argsort(views.text < 0, kind="stable")][[0, 1, -1, 2, -2, 3, 4]]
    views = dataclasses.replace(views, image=np.array([True, True, True, False, False, False, False]))
    optimizer = torch.optim.SGD([p for p in examples.model.parameters() if p.requires_grad], lr=0.0)
    loss = train.train_step(examples, examples.parts(views), optimizer)
    return loss, {n: p.grad for n, p in examples.model.named_parameters() if p.requires_grad}


def differences(examples, loss, grads):
    """What steps in one piece and in micro-batches of at most three rows differ by from a loss and gradients."""
    off = []
    for micro_batch in (0, 3):
        part = dataclasses.replace(examples, cfg=dataclasses.replace(examples.cfg, micro_batch=micro_batch))
        got, mine = step_on_seven(part)
        off += [abs(got - loss), max(((mine[n] - g).abs().max() / g.abs().max()).item() for n, g in grads.items())]
    return off


def one_rank(number, cfg, curated, loss, grads, folder):
    torch.set_num_threads(1)
    paths.SCRATCH = folder / "scratch"
    examples = resnet_examples(cfg, curated)
    for ranks in (4, 2):
        if number < ranks:
            os.environ |= {"RANK": str(number), "WORLD_SIZE": str(ranks)}
            dist.init_process_group("gloo", init_method=f"file://{folder}/{ranks}", rank=number, world_size=ranks)
            (folder / f"{ranks}-{number}.json").write_text(json.dumps(differences(examples, loss, grads)))
            dist.destroy_process_group()


def test_ranks_and_micro_batches_have_the_loss_and_gradients_of_one_batch(project, bert, tmp_path):
    cfg = tiny.pretrain(bert, modalities="crystal text image")
    curated = dataset.read(paths.curated("tiny"))
    examples = resnet_examples(cfg, curated)
    loss, grads = step_on_seven(examples)
    grads = {n: g.clone() for n, g in grads.items()}
    assert min(g.abs().max() for g in grads.values()) > 1e-9
    assert max(differences(examples, loss, grads)) < 1e-9
    # Shares of 4 and 3 rows, the second without an image; of 2, 2, 2 and 1.
    mp.start_processes(one_rank, (cfg, curated, loss, grads, tmp_path), nprocs=4, start_method="forkserver")
    found = [json.loads((tmp_path / f"{r}-{i}.json").read_text()) for r in (2, 4) for i in range(r)]
    assert np.max(found) < 1e-9, found


class Saved:
    """A tensor kept for a backward pass; the class counts the bytes of all that are kept, and the most so far."""

    now = most = 0

    def __init__(self, tensor):
        self.tensor = tensor
        Saved.now += tensor.nbytes
        Saved.most = max(Saved.most, Saved.now)

    def __del__(self):
        Saved.now -= self.tensor.nbytes


def test_gradient_caching_keeps_the_graph_of_one_micro_batch(project, bert):
    cfg = tiny.pretrain(bert, modalities="crystal image", image_fraction=1.0)
    ex, curated = examples(cfg), dataset.read(paths.curated("tiny"))
    weights = {p.data_ptr() for p in ex.model.parameters()}
    optimizer, most = torch.optim.SGD(ex.model.parameters(), lr=0.0), []
    for micro_batch in (0, 2):
        ex = Examples(dataclasses.replace(cfg, micro_batch=micro_batch), curated, ex.model, ex.device)
        parts = ex.parts(ex.views("train", 0)[:16])
        Saved.now = Saved.most = 0
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t: t if t.data_ptr() in weights else Saved(t), lambda x: getattr(x, "tensor", x)
        ):
            train.train_step(ex, parts, optimizer)
        most.append(Saved.most)
    assert most[1] < most[0] / 6, most  # 2 rows of 16: 43 MB to 5.4 MB


def test_what_a_tower_draws_by_itself_is_the_same_in_both_passes(project, bert):
    cfg = tiny.pretrain(bert, micro_batch=2, auxiliary_weight=0.0)
    ex = examples(cfg)
    for head in ex.model.heads.values():
        head.append(torch.nn.Dropout(0.5))
    parts = ex.parts(ex.views("train", 0)[:6])
    train.train_step(ex, parts, torch.optim.SGD(ex.model.parameters(), lr=0.0))
    cached = {n: p.grad for n, p in ex.model.named_parameters() if p.requires_grad}
    ex.model.zero_grad()
    batch = ex.gather(torch.cat([ex.embed(part) for part in parts]), parts)  # in one graph
    losses.pairwise(**batch, log_temperature=ex.model.log_temperature).backward()
    for name, p in ex.model.named_parameters():
        if p.requires_grad:
            torch.testing.assert_close(cached[name], p.grad, rtol=1e-5, atol=1e-7)
    masks = [ex.embed(part).eq(0) for part in parts]
    assert not torch.equal(masks[0], masks[1])


def test_dry_run_takes_two_steps_and_publishes_nothing(project, bert, monkeypatch):
    cfg, started = tiny.pretrain(bert), []

    def torchrun(cfg, run, *, ranks, max_steps, on_cpu):
        started.append((ranks, on_cpu))
        train.fit(cfg, run, max_steps=max_steps)

    monkeypatch.setattr(launch, "torchrun", torchrun)
    for _ in range(2):  # the second anew, not from where the first stood
        assert len(checkpoint.metrics(launch.pretrain(cfg, dry_run_ranks=4))["steps"]) == 2
    assert started == [(4, True), (4, True)]
    assert not paths.results("tiny").exists()


@pytest.mark.slow
def test_two_nodes_are_the_run_of_one_process(project, bert):
    # 24 views in batches of 7: shares of 4 and 3 rows
    cfg = tiny.pretrain(bert, batch_size=7, gpus="2")
    folder = launch.folder(cfg)
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        endpoint = f"127.0.0.1:{s.getsockname()[1]}"
    env = {**os.environ, "MATALIGN_ROOT": str(project), "MATALIGN_SCRATCH": str(paths.SCRATCH), "OMP_NUM_THREADS": "1"}
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1"]
    torchrun += ["--rdzv-backend", "c10d", "--rdzv-id", "pretrain", "--rdzv-endpoint", endpoint]
    module = ["-m", "matalign.pretrain.train", "--config", str(folder / "pretrain.json"), "--max-steps", "2"]
    with open(project / "output", "w") as output:
        nodes = [
            subprocess.Popen(
                [*torchrun, "--node-rank", str(i), "--local-addr", "127.0.0.1", *module],
                env=env,
                stdout=output,
                stderr=output,
            )
            for i in range(2)
        ]
        try:
            assert [node.wait(timeout=300) for node in nodes] == [0, 0], (project / "output").read_text()
        finally:
            for node in nodes:
                node.kill()
    folders = launch.pretrain(cfg), fit(cfg, "one", max_steps=2)  # what was finished by hand is published
    assert folders[0] == project / "results" / "tiny" / "pretrained"
    two, one = (checkpoint.metrics(f) for f in folders)
    assert (two["ranks"], one["ranks"]) == (2, 1)
    assert len(two["steps"]) == len(one["steps"]) == 2
    for a, b in zip([*two["steps"], *two["history"]], [*one["steps"], *one["history"]], strict=True):
        assert {k: v for k, v in a.items() if k != "recall_val"} == pytest.approx(
            {k: v for k, v in b.items() if k != "recall_val"}, rel=1e-5
        )
    models = [align.build(cfg), align.build(cfg), align.build(cfg)]
    for model, f in zip(models, folders, strict=False):
        align.load(model, f)
    w = [m.weights() for m in models]
    torch.testing.assert_close(w[0], w[1], rtol=1e-4, atol=1e-6)
    assert not torch.allclose(w[0]["heads.text.1.weight"], w[2]["heads.text.1.weight"], rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_a_killed_rank_ends_the_job_and_resume_goes_on(project, bert):
    cfg = tiny.pretrain(bert, epochs=40, patience=40, checkpoint_steps=3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dataset, "SHARD", 5)
        dataset.write(paths.curated("tiny"), tiny.curated())  # in five files
    folder = launch.folder(cfg)

    def kill():
        while not (folder / "state.pt").exists():
            time.sleep(0.01)
        for process in psutil.Process().children(recursive=True):
            if process.environ().get("RANK") == "1":
                process.kill()
                return

    threading.Thread(target=kill, daemon=True).start()
    with pytest.raises(RuntimeError, match=r"exit code 1;.*\nrank 1 was killed: Signal 9 .SIGKILL"):
        launch.torchrun(cfg, folder, ranks=2, on_cpu=True)
    assert not (folder / "model").exists()
    steps = checkpoint.load(folder / "state.pt")["progress"]["steps"]
    assert 3 <= steps < 40 * 4
    resumed, one = (checkpoint.metrics(f) for f in (train.fit(cfg, folder), fit(cfg, "one")))
    assert [s["loss"] for s in resumed["steps"]] == pytest.approx([s["loss"] for s in one["steps"]], rel=1e-3)


def test_failure_of_a_rank_is_raised_with_its_traceback(project, bert):
    cfg = tiny.pretrain(bert, modalities="crystal spectrum")
    with pytest.raises(RuntimeError, match=r"(?s)exit code 1; .*Traceback.*ValueError: no modality 'spectrum'"):
        launch.pretrain(cfg)


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
    state = checkpoint.load(project / "nan" / "state.pt")
    assert state["progress"]["steps"] == 2
    assert all(torch.isfinite(t).all() for t in state["model"].values())
    monkeypatch.setitem(losses.LOSSES, "pairwise", pairwise)
    assert contents(fit(cfg, "nan")) == contents(fit(cfg, "clean"))


def test_times_are_beside_the_log_and_add_up(project, bert):
    model = fit(tiny.pretrain(bert, epochs=2), "run")
    lines = [json.loads(line) for line in (model.parent / "times.jsonl").read_text().splitlines()]
    assert [line["what"][:4] for line in lines] == ["star", *2 * [*4 * ["step"], "vali"]]
    assert checkpoint.seconds(model.parent) == pytest.approx(sum(line["seconds"] for line in lines))
    assert checkpoint.seconds(model.parent) > 0
    assert all(0 <= line["waited_s"] <= line["seconds"] for line in lines)
    for number, epoch in enumerate(checkpoint.epochs(model.parent), start=1):
        steps = [line for line in lines if line["epoch"] == number and line["rows"]]
        seconds = sum(line["seconds"] for line in steps)
        assert epoch["epoch"] == number
        assert epoch["materials_per_s"] == pytest.approx(24 / seconds, abs=0.06)
        assert epoch["waiting"] == pytest.approx(sum(line["waited_s"] for line in steps) / seconds, abs=1e-4)
        assert 0.1 < epoch["peak_memory_GiB"] < 100
    assert "times.jsonl" not in contents(model)


def test_training_stops_early_and_keeps_the_best_epoch(project, bert, monkeypatch):
    values = iter([3.0, 2.0, 2.5, 2.0, 1.0])
    monkeypatch.setattr(train, "validate", lambda *_, **__: {"loss_val": next(values), "recall_val": []})
    model = fit(tiny.pretrain(bert, epochs=5, patience=2), "run")
    metrics = checkpoint.metrics(model)
    assert [h["loss_val"] for h in metrics["history"]] == [3.0, 2.0, 2.5, 2.0]  # as good as before is not better
    assert metrics["best_epoch"] == 2
    values = iter([3.0, 2.0])
    two = fit(tiny.pretrain(bert, epochs=2, patience=2), "two")
    assert {k: v for k, v in contents(model).items() if k.endswith("safetensors")} == {
        k: v for k, v in contents(two).items() if k.endswith("safetensors")
    }


def test_metrics(project, bert):
    cfg = tiny.pretrain(bert, epochs=2)
    metrics = checkpoint.metrics(fit(cfg, "run"))
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


def test_a_set_of_several_files_is_shuffled_by_block(project, bert, monkeypatch):
    ex = examples(tiny.pretrain(bert))
    one = ex.views("train", 0)
    monkeypatch.setattr(dataset, "SHARD", 8)
    monkeypatch.setattr(batches, "BLOCK", 2)
    monkeypatch.setattr(batches, "TOGETHER", 3)
    by_block = [ex.views("train", epoch) for epoch in range(5)]
    assert sorted(zip(by_block[0].keys, by_block[0].text)) == sorted(zip(one.keys, one.text))
    assert not np.array_equal(by_block[0].rows, by_block[1].rows)

    def spans(views):
        """Of the views of each block the places from the first to the last."""
        return [np.ptp(np.flatnonzero(views.rows // 2 == block)) + 1 for block in range(8)]

    assert max(spans(one)) > 9  # three blocks of 1 + 2 views each
    assert all(max(spans(views)) <= 9 for views in by_block)
    assert max(map(max, map(spans, by_block))) > 3


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
        (
            {"loss": "triplet"},
            "unknown loss 'triplet', .* of pairwise, anchored, proposal, proposal-noself, sigmoid",
        ),
        (
            {"loss": "anchored", "modalities": "text image", "auxiliary_weight": 0.0},
            "anchored needs the modality crystal, got 'text image'",
        ),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"micro_batch": -1}, "micro_batch must be at least 0, got -1"),
        ({"micro_batch": 2, "crystal_tower": "cgconv"}, "a tower with batch statistics .* one rank, micro_batch 0"),
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


def test_more_gpus_than_there_are(project, bert, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [launch.rank_count(g) for g in ("auto", "1", "2", "8")] == [2, 1, 2, 8]
    for gpus in ("0", "all"):
        with pytest.raises(ValueError, match=f"gpus must be 'auto' or a number of at least 1, got '{gpus}'"):
            launch.rank_count(gpus)
    with pytest.raises(ValueError, match="gpus is '4' on a machine with 2; several nodes: see"):
        launch.pretrain(tiny.pretrain(bert, gpus="4"))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert launch.rank_count("auto") == 1
