import math
from itertools import combinations, permutations, product
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from matalign.pretrain import losses

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


def pairwise_by_loops(b, tau, centre=None):
    """The definition, one row at a time, in plain floats."""
    z, has, rows = b["embeddings"], b["present"], range(len(b["material"]))
    pairs = []
    for m, n in permutations(z, 2):
        if centre and centre not in (m, n):
            continue
        e = {(i, j): math.exp(float(z[m][i] @ z[n][j]) / tau) for i in rows for j in rows if has[n][j]}
        p = {i: [j for j in rows if is_positive(b, m, n, i, j)] for i in rows}
        every = [
            -np.mean([math.log(e[i, j] / sum(e[i, k] for k in rows if has[n][k])) for j in p[i]]) for i in rows if p[i]
        ]
        pairs += [np.mean(every)] if every else []
    return np.mean(pairs) if pairs else 0.0


def anchored_by_loops(b, tau):
    return pairwise_by_loops(b, tau, centre="crystal")


def proposal_by_loops(b, tau, self_pairs=True):
    z, has, rows = b["embeddings"], b["present"], range(len(b["material"]))
    e = {
        (i, m, j, n): math.exp(float(z[m][i] @ z[n][j]) / tau) for i, j in product(rows, rows) for m, n in product(z, z)
    }
    terms = []
    for i in rows:
        top = sum(e[i, m, j, n] for m, n in permutations(z, 2) for j in rows if is_positive(b, m, n, i, j))
        bottom = 0.0
        for j, m, n in product(rows, z, z):
            if has[m][i] and has[n][j] and (self_pairs or (i, m) != (j, n)):
                bottom += e[i, m, j, n]
        terms += [-math.log(top / bottom)] if top else []
    return np.mean(terms) if terms else 0.0


def proposal_noself_by_loops(b, tau):
    return proposal_by_loops(b, tau, self_pairs=False)


def sigmoid_by_loops(b, tau):
    z, has, rows = b["embeddings"], b["present"], range(len(b["material"]))
    pairs = []
    for m, n in combinations(z, 2):
        decisions = [(i, j, is_positive(b, m, n, i, j)) for i, j in product(rows, rows) if has[m][i] and has[n][j]]
        positives = sum(yes for *_, yes in decisions)
        if positives:
            bias = math.log(positives / max(1, len(decisions) - positives))
            logits = [(float(z[m][i] @ z[n][j]) / tau + bias, yes) for i, j, yes in decisions]
            pairs.append(sum(math.log1p(math.exp(-s if yes else s)) for s, yes in logits) / positives)
    return np.mean(pairs) if pairs else 0.0


REFERENCE = {
    "pairwise": pairwise_by_loops,
    "anchored": anchored_by_loops,
    "proposal": proposal_by_loops,
    "proposal-noself": proposal_noself_by_loops,
    "sigmoid": sigmoid_by_loops,
}
every = pytest.mark.parametrize("name", list(REFERENCE))
blocks = pytest.mark.parametrize("block", [2, 256])


def value_and_gradients(name, b, log_temperature):
    """Of a loss; gradients by modality and `log_temperature`."""
    z = {m: v.detach().requires_grad_() for m, v in b["embeddings"].items()}
    log_temperature = torch.tensor(log_temperature, dtype=next(iter(z.values())).dtype).requires_grad_()
    loss = losses.LOSSES[name](**{**b, "embeddings": z}, log_temperature=log_temperature)
    loss.backward()
    return loss.item(), {m: v.grad for m, v in (z | {"log_temperature": log_temperature}).items()}


def test_every_loss_has_a_reference():
    assert set(losses.LOSSES) == set(REFERENCE)


@every
@blocks
@pytest.mark.parametrize(("seed", "tau"), [(0, 0.2), (1, 0.2), (2, 0.05), (3, 0.01), (4, 1.0)])
@pytest.mark.parametrize("repeated_texts", [True, False])
def test_loss_is_its_definition(name, block, seed, tau, repeated_texts, monkeypatch):
    monkeypatch.setattr(losses, "BLOCK", block)
    b = batch(seed)
    if not repeated_texts:
        b["identical"] = None
    loss = losses.LOSSES[name](**b, log_temperature=torch.tensor(math.log(tau), dtype=torch.float64))
    assert loss.item() == pytest.approx(REFERENCE[name](b, tau), rel=1e-11)


@every
@blocks
def test_gradients(name, block, monkeypatch):
    monkeypatch.setattr(losses, "BLOCK", block)
    b = batch(3, n=5)

    def loss(log_temperature, *z):
        return losses.LOSSES[name](
            **{**b, "embeddings": dict(zip(MODALITIES, z, strict=True))}, log_temperature=log_temperature
        )

    inputs = [torch.tensor(-1.0, dtype=torch.float64), *b["embeddings"].values()]
    assert torch.autograd.gradcheck(loss, [x.clone().requires_grad_() for x in inputs])


@every
def test_blocks_make_no_difference(name, monkeypatch):
    b = batch(7, n=50, materials=30, texts=20)
    loss, grads = value_and_gradients(name, b, -2.0)
    recall = losses.recall_at_1(**b)
    monkeypatch.setattr(losses, "BLOCK", 7)  # the last one is not full
    blocked, blocked_grads = value_and_gradients(name, b, -2.0)
    assert blocked == pytest.approx(loss, rel=1e-12)
    for key, grad in grads.items():
        assert grad.abs().max() > 1e-4
        torch.testing.assert_close(blocked_grads[key], grad, rtol=1e-10, atol=1e-13)
    assert losses.recall_at_1(**b) == recall


class Largest(TorchDispatchMode):
    """Notes the number of elements of the largest tensor that any operation makes."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        tensors = [t for t in tree_leaves(out) if isinstance(t, torch.Tensor)]
        self.elements = max([self.elements, *(t.untyped_storage().nbytes() // t.element_size() for t in tensors)])
        return out


@pytest.mark.parametrize("name", [*REFERENCE, "recall_at_1"])
def test_no_tensor_holds_all_logits(name, monkeypatch):
    n, block = 600, 20
    b = batch(8, n=n, materials=n // 2, texts=n // 2)
    b["present"] = dict.fromkeys(MODALITIES, torch.ones(n, dtype=torch.bool))

    def largest():
        with Largest() as seen:
            losses.recall_at_1(**b) if name == "recall_at_1" else value_and_gradients(name, b, -2.0)
        return seen.elements

    assert largest() >= 256 * n  # blocks are seen
    monkeypatch.setattr(losses, "BLOCK", block)
    assert largest() == block * n


@every
def test_batch_of_one_material_in_three_modalities(name):
    b = batch(0, n=1)
    b["present"] = dict.fromkeys(MODALITIES, torch.tensor([True]))
    loss = losses.LOSSES[name](**b, log_temperature=torch.tensor(0.0))
    assert loss.item() == pytest.approx(REFERENCE[name](b, 1.0), abs=1e-12)
    if name in ("pairwise", "anchored"):
        assert loss.item() == pytest.approx(0.0, abs=1e-12)  # nothing to be told apart from


@every
@pytest.mark.parametrize("rows", ["one modality each", "none", "no rows"])
def test_nothing_to_align_costs_nothing_and_has_a_gradient(name, rows):
    n = 0 if rows == "no rows" else 3
    b = batch(0, n=n)
    some = torch.eye(3, dtype=torch.bool) if rows == "one modality each" else torch.zeros(3, n, dtype=torch.bool)
    b |= {"present": dict(zip(MODALITIES, some, strict=True)), "material": torch.arange(n), "identical": None}
    b["embeddings"] = {m: v.float() for m, v in b["embeddings"].items()}
    loss, grads = value_and_gradients(name, b, -2.0)
    assert loss == 0
    assert all(grad is not None and (grad == 0).all() for grad in grads.values())
    assert all(counts == (0, 0, 0) for counts in losses.recall_at_1(**b).values())


@every
def test_modality_absent_from_the_whole_batch_is_as_if_it_were_not_there(name):
    b = batch(1)
    b["present"]["image"] = torch.zeros(7, dtype=torch.bool)
    without = {**b, **{k: {m: b[k][m] for m in ("crystal", "text")} for k in ("embeddings", "present")}}
    (loss, grads), (expected, expected_grads) = (value_and_gradients(name, x, -1.0) for x in (b, without))
    assert loss == pytest.approx(expected, rel=1e-12)
    assert (grads.pop("image") == 0).all()
    for key, grad in grads.items():
        torch.testing.assert_close(grad, expected_grads[key])


@every
def test_what_an_absent_row_holds_does_not_matter(name):
    b = batch(2)
    z = {m: torch.where(b["present"][m][:, None], v, torch.nan).requires_grad_() for m, v in b["embeddings"].items()}
    loss = losses.LOSSES[name](**{**b, "embeddings": z}, log_temperature=torch.tensor(-1.0, dtype=torch.float64))
    loss.backward()
    assert loss.item() == pytest.approx(REFERENCE[name](b, math.exp(-1.0)), rel=1e-12)
    assert all(torch.isfinite(v.grad).all() for v in z.values())


def aligned(rows, *, modalities=MODALITIES):
    """Every modality holds the same vector of a material, and the materials are orthogonal."""
    material = torch.tensor(rows)
    z = torch.eye(8, dtype=torch.float64)[material]
    present = dict.fromkeys(modalities, torch.ones(len(rows), dtype=torch.bool))
    return {"embeddings": dict.fromkeys(modalities, z), "present": present, "material": material, "identical": None}


@pytest.mark.parametrize("n", [1, 5])
def test_all_rows_the_same_material_and_aligned(n):
    """Nothing to tell apart: log n for a choice among n equals; for the proposal its floor; n² sure decisions."""
    b = aligned([0] * n)
    log_temperature = torch.tensor(-3.0, dtype=torch.float64)
    values = {name: loss(**b, log_temperature=log_temperature).item() for name, loss in losses.LOSSES.items()}
    assert values == pytest.approx(
        {
            "pairwise": math.log(n),
            "anchored": math.log(n),
            "proposal": math.log(3 / 2),
            "proposal-noself": math.log(1 + (n - 1) / (2 * n)),
            "sigmoid": math.log1p(math.exp(-math.exp(3)) / n**2),
        },
        abs=1e-8,  # softplus is x beyond 20
    )


@pytest.mark.parametrize("modalities", [2, 3])
def test_floors_under_perfect_alignment(modalities):
    b = aligned(range(6), modalities=MODALITIES[:modalities])
    log_temperature = torch.tensor(math.log(0.01), dtype=torch.float64)
    values = {name: loss(**b, log_temperature=log_temperature).item() for name, loss in losses.LOSSES.items()}
    assert values.pop("proposal") == pytest.approx(math.log(modalities / (modalities - 1)), rel=1e-12)
    assert values.pop("sigmoid") == pytest.approx(5 * math.log(1 + 1 / 5), rel=1e-12)  # five negatives at the prior
    assert max(values.values()) < 1e-12
    twice = aligned([0, 0, 1, 1, 2, 2], modalities=MODALITIES[:modalities])
    expected = math.log(1 + 1 / (2 * (modalities - 1)))
    assert losses.proposal_noself(**twice, log_temperature=log_temperature).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("name", "starves"), [("proposal", True), ("proposal-noself", True), ("pairwise", False)])
def test_an_easy_pair_starves_a_hard_one(name, starves):
    """The gradient at the image, far from its crystal, while the text comes near to it; along the sphere."""
    crystal, other, image = torch.eye(24, dtype=torch.float64).split(8)
    norms = []
    for cosine in (0.0, 0.9):
        z = {"crystal": crystal, "text": cosine * crystal + math.sqrt(1 - cosine**2) * other, "image": image}
        b = {"embeddings": z, "present": dict.fromkeys(z, torch.ones(8, dtype=torch.bool))}
        b |= {"material": torch.arange(8), "identical": None}
        grad = value_and_gradients(name, b, math.log(0.1))[1]["image"]
        norms.append((grad - (grad * image).sum(1, keepdim=True) * image).norm().item())
    assert norms[1] < norms[0] / 100 if starves else norms[1] >= norms[0]


@every
@pytest.mark.parametrize("tau", losses.TEMPERATURES)
def test_float32_at_the_clamps_of_the_temperature(name, tau):
    b = batch(4, n=64, materials=40, texts=30)
    exact, exact_grads = value_and_gradients(name, b, math.log(tau))
    b["embeddings"] = {m: z.float() for m, z in b["embeddings"].items()}
    loss, grads = value_and_gradients(name, b, math.log(tau))
    assert loss == pytest.approx(exact, rel=1e-5)
    for key, grad in grads.items():
        torch.testing.assert_close(grad.double(), exact_grads[key], rtol=1e-3, atol=1e-4)


def test_one_modality_is_refused():
    b = batch(0)
    with pytest.raises(ValueError, match="needs two modalities, got text"):
        losses.pairwise({"text": b["embeddings"]["text"]}, b["present"], b["material"], torch.tensor(0.0))


def test_no_structure_to_anchor_to_is_refused():
    b = batch(0)
    z = {m: b["embeddings"][m] for m in ("text", "image")}
    with pytest.raises(ValueError, match="'anchored' needs the modality 'crystal', got text, image"):
        losses.anchored(z, b["present"], b["material"], torch.tensor(0.0))


def test_the_proposals_loss_has_a_floor_and_starves_the_images():
    defects = losses.proposal_loss_faults()
    lowest = {(r["loss"], r["modalities"]): r["value"] for r in defects["floor"] if r["temperature"] < 0.0101}
    for m in (2, 3, 4):
        assert lowest["proposal", m] == pytest.approx(np.log(m / (m - 1)), abs=1e-9)
        assert lowest["proposal-noself", m] == pytest.approx(0, abs=1e-9)
        assert lowest["pairwise", m] == pytest.approx(0, abs=1e-9)
    ends = {}
    for r in defects["starvation"]:
        ends.setdefault(r["loss"], []).append(r["gradient"])
    assert all(len(g) == 21 for g in ends.values())
    assert ends["proposal"][-1] < ends["proposal"][0] / 100
    assert ends["proposal-noself"][-1] < ends["proposal-noself"][0] / 100
    assert ends["pairwise"][-1] > ends["pairwise"][0]


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
