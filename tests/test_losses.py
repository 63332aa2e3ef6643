import math
from itertools import permutations, product
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from matalign import losses

MODALITIES = ("crystal", "text", "image")


def batch(seed, *, n=7, d=5, materials=4, texts=3):
    """Random float64 unit vectors, masks, repeated materials and repeated texts."""
    g = torch.Generator().manual_seed(seed)
    return {
        "embeddings": {m: F.normalize(torch.randn(n, d, generator=g, dtype=torch.float64), dim=1) for m in MODALITIES},
        "present": {m: torch.rand(n, generator=g) < 0.7 for m in MODALITIES},
        "material": torch.randint(materials, (n,), generator=g),
        "identical": {"text": torch.randint(texts, (n,), generator=g)},
    }


def is_positive(b, m, n, i, j):
    same = b["material"][i] == b["material"][j]
    if "text" in (m, n) and b["identical"]:
        has = b["present"]["text"][i] and b["present"]["text"][j]
        same = same or (has and b["identical"]["text"][i] == b["identical"]["text"][j])
    return bool(same and b["present"][m][i] and b["present"][n][j])


def pairwise_by_loops(b, tau):
    """The definition, one row at a time, in plain floats."""
    z, has, rows = b["embeddings"], b["present"], range(len(b["material"]))
    pairs = []
    for m, n in permutations(z, 2):
        e = {(i, j): math.exp(float(z[m][i] @ z[n][j]) / tau) for i in rows for j in rows if has[n][j]}
        p = {i: [j for j in rows if is_positive(b, m, n, i, j)] for i in rows}
        every = [
            -np.mean([math.log(e[i, j] / sum(e[i, k] for k in rows if has[n][k])) for j in p[i]]) for i in rows if p[i]
        ]
        pairs += [np.mean(every)] if every else []
    return np.mean(pairs) if pairs else 0.0


def seed_by_loops(b, tau):
    z, has, rows = b["embeddings"], b["present"], range(len(b["material"]))
    e = {
        (i, m, j, n): math.exp(float(z[m][i] @ z[n][j]) / tau) for i, j in product(rows, rows) for m, n in product(z, z)
    }
    terms = []
    for i in rows:
        top = sum(e[i, m, j, n] for m, n in permutations(z, 2) for j in rows if is_positive(b, m, n, i, j))
        bottom = sum(e[i, m, j, n] for m, n in product(z, z) for j in rows if has[m][i] and has[n][j])
        terms += [-math.log(top / bottom)] if top else []
    return np.mean(terms) if terms else 0.0


REFERENCE = {"pairwise": pairwise_by_loops, "seed": seed_by_loops}
both = pytest.mark.parametrize("name", list(REFERENCE))


@both
@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("repeated_texts", [True, False])
def test_loss_is_its_definition(name, seed, repeated_texts):
    b = batch(seed)
    if not repeated_texts:
        b["identical"] = None
    loss = losses.LOSSES[name](**b, log_temperature=torch.tensor(math.log(0.2), dtype=torch.float64))
    assert loss.item() == pytest.approx(REFERENCE[name](b, 0.2), rel=1e-12)


@both
def test_gradients(name):
    b = batch(3, n=5)

    def loss(log_temperature, *z):
        return losses.LOSSES[name](
            **{**b, "embeddings": dict(zip(MODALITIES, z, strict=True))}, log_temperature=log_temperature
        )

    inputs = [torch.tensor(-1.0, dtype=torch.float64), *b["embeddings"].values()]
    assert torch.autograd.gradcheck(loss, [x.clone().requires_grad_() for x in inputs])


@both
def test_batch_of_one_material_in_three_modalities(name):
    b = batch(0, n=1)
    b["present"] = dict.fromkeys(MODALITIES, torch.tensor([True]))
    loss = losses.LOSSES[name](**b, log_temperature=torch.tensor(0.0))
    assert loss.item() == pytest.approx(REFERENCE[name](b, 1.0), abs=1e-12)
    if name == "pairwise":
        assert loss.item() == pytest.approx(0.0, abs=1e-12)  # nothing to be told apart from


@both
@pytest.mark.parametrize("rows", ["one modality each", "none"])
def test_nothing_to_align_costs_nothing_and_has_a_gradient(name, rows):
    b = batch(0, n=3)
    some = torch.eye(3, dtype=torch.bool) if rows == "one modality each" else torch.zeros(3, 3, dtype=torch.bool)
    b |= {"present": dict(zip(MODALITIES, some, strict=True)), "material": torch.arange(3), "identical": None}
    z = {m: v.float().requires_grad_() for m, v in b["embeddings"].items()}
    log_temperature = torch.tensor(-2.0, requires_grad=True)
    loss = losses.LOSSES[name](**{**b, "embeddings": z}, log_temperature=log_temperature)
    loss.backward()
    assert loss.item() == 0
    assert all(v.grad is not None and (v.grad == 0).all() for v in z.values())
    assert log_temperature.grad == 0


@both
def test_modality_absent_from_the_whole_batch_is_as_if_it_were_not_there(name):
    b = batch(1)
    b["present"]["image"] = torch.zeros(7, dtype=torch.bool)
    without = {**b, **{k: {m: b[k][m] for m in ("crystal", "text")} for k in ("embeddings", "present")}}
    log_temperature = torch.tensor(-1.0)
    loss, expected = (losses.LOSSES[name](**x, log_temperature=log_temperature) for x in (b, without))
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)


@both
def test_what_an_absent_row_holds_does_not_matter(name):
    b = batch(2)
    z = {m: torch.where(b["present"][m][:, None], v, torch.nan).requires_grad_() for m, v in b["embeddings"].items()}
    loss = losses.LOSSES[name](**{**b, "embeddings": z}, log_temperature=torch.tensor(-1.0, dtype=torch.float64))
    loss.backward()
    assert loss.item() == pytest.approx(REFERENCE[name](b, math.exp(-1.0)), rel=1e-12)
    assert all(torch.isfinite(v.grad).all() for v in z.values())


@pytest.mark.parametrize("n", [1, 5])
def test_all_rows_the_same_material_and_aligned(n):
    """Nothing to tell apart. `pairwise`: log n for a choice among n equals; `seed`: its floor, whatever n."""
    z = torch.zeros(n, 4, dtype=torch.float64)
    z[:, 0] = 1
    b = {"embeddings": dict.fromkeys(MODALITIES, z), "present": dict.fromkeys(MODALITIES, torch.ones(n, dtype=bool))}
    b |= {"material": torch.zeros(n, dtype=int), "log_temperature": torch.tensor(-3.0)}
    assert losses.pairwise(**b).item() == pytest.approx(math.log(n), abs=1e-12)
    assert losses.seed(**b).item() == pytest.approx(math.log(3 / 2), rel=1e-12)


def test_perfect_alignment_brings_pairwise_to_zero_but_seed_to_its_floor():
    z = torch.eye(6, dtype=torch.float64)
    b = {"embeddings": dict.fromkeys(MODALITIES, z), "present": dict.fromkeys(MODALITIES, torch.ones(6, dtype=bool))}
    b |= {"material": torch.arange(6), "log_temperature": torch.tensor(math.log(0.01))}
    assert losses.pairwise(**b).item() < 1e-12
    assert losses.seed(**b).item() == pytest.approx(0.4054651, abs=1e-6)


@both
def test_float32_is_finite_at_the_lowest_temperature(name):
    b = batch(4, n=64)
    b["embeddings"] = {m: z.float().requires_grad_() for m, z in b["embeddings"].items()}
    loss = losses.LOSSES[name](**b, log_temperature=torch.tensor(math.log(losses.TEMPERATURES[0])))
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(z.grad).all() for z in b["embeddings"].values())


def test_one_modality_is_refused():
    b = batch(0)
    with pytest.raises(ValueError, match="needs two modalities, got text"):
        losses.pairwise({"text": b["embeddings"]["text"]}, b["present"], b["material"], torch.tensor(0.0))


def test_clamped_temperature_can_come_back():
    log_temperature = torch.nn.Parameter(torch.tensor(-9.0))
    losses.clamp_temperature(log_temperature)
    assert log_temperature.exp().item() == pytest.approx(0.01)
    b = batch(5)
    losses.pairwise(**b, log_temperature=log_temperature).backward()
    assert log_temperature.grad != 0
    with torch.no_grad():
        log_temperature.fill_(2.0)
    losses.clamp_temperature(log_temperature)
    assert log_temperature.exp().item() == pytest.approx(1.0)


def test_recall_at_1_by_hand():
    crystal = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    text = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    present = {"crystal": torch.tensor([True, True, False]), "text": torch.tensor([True, False, True])}
    counts = losses.recall_at_1({"crystal": crystal, "text": text}, present, torch.tensor([7, 8, 8]))
    # Crystal 0 finds its text 0, crystal 1 the text of row 2, the same material; both choose among texts 0 and 2.
    assert counts["crystal", "text"] == (2, 2, 4)
    counts = losses.recall_at_1({"crystal": crystal, "text": text.flip(0)}, present, torch.tensor([7, 8, 8]))
    assert counts["crystal", "text"] == (0, 2, 4)


def parameters():
    """What a rank trains: a linear map for each modality, and the temperature."""
    g = torch.Generator().manual_seed(1)
    maps = {m: torch.randn(4, 4, generator=g, dtype=torch.float64).requires_grad_() for m in MODALITIES}
    return maps, torch.tensor(-1.5, dtype=torch.float64).requires_grad_()


def gathered_loss(name, b, rows):
    maps, log_temperature = parameters()
    z = {m: F.normalize(x[rows] @ maps[m], dim=1) for m, x in b["embeddings"].items()}
    z = {m: torch.where(b["present"][m][rows, None], x, 0) for m, x in z.items()}
    present = {m: losses.all_gather(p[rows].long()).bool() for m, p in b["present"].items()}
    material, text = losses.all_gather(b["material"][rows]), losses.all_gather(b["identical"]["text"][rows])
    loss = losses.LOSSES[name](
        {m: losses.all_gather(x) for m, x in z.items()}, present, material, log_temperature, identical={"text": text}
    )
    loss.backward()
    return loss, {**{m: p.grad for m, p in maps.items()}, "log_temperature": log_temperature.grad}


def global_batch():
    b = batch(6, n=8, d=4)
    b["present"]["image"][4:] = False  # the second of two ranks has no image
    return b


def one_rank(rank, ranks, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=ranks)
    for name in REFERENCE:
        loss, grads = gathered_loss(name, global_batch(), slice(rank * 8 // ranks, (rank + 1) * 8 // ranks))
        for grad in grads.values():
            dist.all_reduce(grad)
            grad /= ranks
        save_file({"loss": loss.detach(), **grads}, f"{folder}/{name}-{rank}.safetensors")
    dist.destroy_process_group()


def test_two_processes_have_the_loss_and_gradients_of_one(tmp_path: Path):
    mp.start_processes(one_rank, (2, str(tmp_path)), nprocs=2, start_method="forkserver")
    for name in REFERENCE:
        loss, grads = gathered_loss(name, global_batch(), slice(None))
        assert loss.item() == pytest.approx(REFERENCE[name]({**global_batch(), "embeddings": mapped()}, math.exp(-1.5)))
        assert all(g.abs().max() > 1e-4 for g in grads.values())
        for rank in range(2):
            there = load_file(tmp_path / f"{name}-{rank}.safetensors")
            for key, value in {"loss": loss, **grads}.items():
                torch.testing.assert_close(there[key], value.detach(), rtol=1e-6, atol=1e-9)


def mapped():
    maps, _ = parameters()
    return {m: F.normalize(x @ maps[m], dim=1).detach() for m, x in global_batch()["embeddings"].items()}
