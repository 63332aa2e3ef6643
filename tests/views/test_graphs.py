"""Neighbour graphs against shells known by hand and an explicit sum over images."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pymatgen.optimization.neighbors import find_points_in_spheres

from matalign.data.dataset import Structures
from matalign.views import neighbours as search
from matalign.views.graphs import GraphsOnDemand, GraphStore, graphs
from matalign.views.neighbours import neighbour_lists

OPTIONS = {"cutoff_A": 6.0, "neighbours": 16}


def neighbours(*crystal, **options):
    """The graph of one crystal."""
    return neighbour_lists(Structures.pack([crystal]), **options)


def centres(graph):
    return np.repeat(np.arange(len(graph.edges_of)), graph.edges_of)


def slow_neighbours(numbers, frac, lattice, *, cutoff_A, neighbours):
    """For each atom its sorted (distance, neighbour) and its cutoff, from all images within six cells."""
    shifts = np.array(list(itertools.product(range(-6, 7), repeat=3)))
    out = []
    for v in range(len(numbers)):
        vec = ((frac[None] + shifts[:, None]) - frac[v]) @ lattice  # (images, n, 3)
        d = np.linalg.norm(vec, axis=-1)
        pairs = sorted((d[s, u], u) for s, u in zip(*np.nonzero((d < cutoff_A) & (d > 1e-8))))
        radius = pairs[neighbours][0] if len(pairs) > neighbours else cutoff_A
        out.append(([p for p in pairs if p[0] < radius * (1 - 1e-4)], radius))
    return out


@pytest.mark.parametrize("name", ["nacl", "si", "srtio3", "molecule", "one_atom", "isolated", "skewed"])
@pytest.mark.parametrize("k", [3, 16])
def test_neighbours_are_those_of_an_explicit_sum_over_images(crystals, name, k):
    crystal = crystals[name]
    graph = neighbours(*crystal, cutoff_A=6.0, neighbours=k)
    first = 0
    for v, (pairs, radius) in enumerate(slow_neighbours(*crystal, cutoff_A=6.0, neighbours=k)):
        edges = slice(first, first := first + graph.edges_of[v])
        assert (centres(graph)[edges] == v).all()
        np.testing.assert_allclose(np.linalg.norm(graph.edge_vec[edges], axis=1), [p[0] for p in pairs], atol=1e-9)
        assert sorted(graph.neighbour[edges]) == sorted(p[1] for p in pairs)
        assert graph.edge_cutoff[v] == pytest.approx(radius, abs=1e-9)
    assert first == len(graph.neighbour)


def test_shells_known_by_hand(nacl, si, srtio3):
    # NaCl: 6 + 12 neighbours, so the 17th is in the second shell, which stays out as a whole.
    graph = neighbours(*nacl, **OPTIONS)
    assert graph.edges_of.tolist() == [6, 6]
    np.testing.assert_allclose(graph.edge_cutoff, 5.64 / np.sqrt(2))
    # Si: 4 + 12 = 16, the 17th opens the third shell.
    graph = neighbours(*si, **OPTIONS)
    assert graph.edges_of.tolist() == [16, 16]
    np.testing.assert_allclose(graph.edge_cutoff, 5.431 * np.sqrt(11) / 4)
    # Sr: 12 O, then 8 Ti; Ti: 6 O + 8 Sr, then 6 Ti; O: 2 Ti + 4 Sr + 8 O, then 6 O.
    graph = neighbours(*srtio3, **OPTIONS)
    assert graph.edges_of.tolist() == [12, 14, 14, 14, 14]
    np.testing.assert_allclose(graph.edge_cutoff, 3.905 * np.array([np.sqrt(3) / 2, 1, 1, 1, 1]))


def test_vectors_point_from_the_centre_to_the_neighbour(skewed):
    numbers, frac, lattice = skewed
    graph = neighbours(*skewed, **OPTIONS)
    u, v = graph.neighbour, centres(graph)
    shift = graph.edge_vec @ np.linalg.inv(lattice) - (frac[u] - frac[v])
    np.testing.assert_allclose(shift, shift.round(), atol=1e-9)
    assert len(numbers) == 3
    assert np.abs(shift.round()).max() >= 1


def test_an_isolated_atom_has_no_edge_and_the_full_cutoff(isolated):
    graph = neighbours(*isolated, **OPTIONS)
    assert graph.neighbour.shape == (0,)
    assert graph.edge_vec.shape == (0, 3)
    assert graph.edge_cutoff.tolist() == [6.0]


@pytest.mark.parametrize("name", ["nacl", "si", "srtio3"])
def test_rounding_breaks_no_shell(crystals, name):
    """Noise far below the precision of a CIF moves ties apart; they still go in or out together."""
    numbers, frac, lattice = crystals[name]
    rng = np.random.default_rng(0)
    for _ in range(20):
        noisy = neighbours(numbers, frac + rng.normal(0, 1e-7, frac.shape), lattice, **OPTIONS)
        assert noisy.edges_of.tolist() == neighbours(numbers, frac, lattice, **OPTIONS).edges_of.tolist()


def environments(graph, numbers):
    """Each atom's element, cutoff, and distances and elements of its neighbours: what no relabelling may change."""
    out, first = [], 0
    for v, count in enumerate(graph.edges_of):
        edges = slice(first, first := first + count)
        d = np.linalg.norm(graph.edge_vec[edges], axis=1).round(5)
        shell = tuple(sorted(zip(d.tolist(), np.asarray(numbers)[graph.neighbour[edges]].tolist())))
        out.append((int(numbers[v]), round(float(graph.edge_cutoff[v]), 5), shell))
    return sorted(out)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**31), name=st.sampled_from(["nacl", "si", "srtio3", "skewed"]))
def test_the_graph_depends_neither_on_order_nor_on_the_cell(crystals, seed, name):
    numbers, frac, lattice = crystals[name]
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(numbers))
    lower, upper = np.tril(rng.integers(-2, 3, (3, 3)), -1), np.triu(rng.integers(-1, 2, (3, 3)), 1)
    change = (np.eye(3) + lower) @ (np.eye(3) + upper)  # integer, determinant one: another cell of the same lattice
    other = (frac + rng.random(3)) @ np.linalg.inv(change) + rng.integers(-2, 3, frac.shape)
    moved = neighbours(numbers[order], other[order], change @ lattice, **OPTIONS)
    assert environments(moved, numbers[order]) == environments(neighbours(numbers, frac, lattice, **OPTIONS), numbers)


def random_crystals(seed, count=40):
    """Crystals of 1 to 12 atoms, dense and sparse, in cells as skewed as they come, with coordinates of any image."""
    rng = np.random.default_rng(seed)
    out = []
    while len(out) < count:
        n = int(rng.integers(1, 13))
        lattice = rng.normal(0, 1, (3, 3)) * rng.choice([1.5, 4.0, 9.0])
        if abs(np.linalg.det(lattice)) > 4 * n:
            frac = rng.integers(0, 4, (n, 3)) / 4 if rng.random() < 0.5 else rng.random((n, 3))
            out.append((rng.integers(1, 90, n), frac + rng.integers(-1, 2, (n, 3)), lattice))
    return out


def pymatgens_graph(numbers, frac, lattice, *, cutoff_A, neighbours):
    """The same rule on pymatgen's list, which has pairs exactly at the cutoff too; of each atom its sorted edges."""
    x = frac @ lattice
    found = find_points_in_spheres(x, x, cutoff_A, np.ones(3, np.int64), np.ascontiguousarray(lattice), 1e-8)
    out = []
    for v in range(len(x)):
        others = (found[0] == v) & ((found[1] != v) | found[2].any(1))
        u, image, d = (column[others] for column in found[1:])
        radius = min([*np.sort(d)[neighbours:][:1], cutoff_A])
        edges = np.column_stack([d, u, x[u] + image @ lattice - x[v]])[d < radius * (1 - search.TIE)]
        out.append((sorted(edges.round(6).tolist()), radius))
    return out


@pytest.mark.parametrize("k", [3, 16])
def test_graphs_are_those_of_pymatgens_neighbours(crystals, k):
    every = [*crystals.values(), *random_crystals(0)]
    graph = neighbour_lists(Structures.pack(every), cutoff_A=6.0, neighbours=k)
    first, atom = 0, 0
    for crystal in every:
        for edges, radius in pymatgens_graph(*crystal, cutoff_A=6.0, neighbours=k):
            mine = slice(first, first := first + graph.edges_of[atom])
            vec = graph.edge_vec[mine]
            ours = np.column_stack([np.linalg.norm(vec, axis=1), graph.neighbour[mine], vec]).round(6)
            assert (np.diff(ours[:, 0]) >= 0).all()
            assert len(ours) == len(edges)
            np.testing.assert_allclose(sorted(ours.tolist()), edges, atol=2e-6)
            assert graph.edge_cutoff[atom] == pytest.approx(radius)
            atom += 1
    assert (atom, first) == (len(graph.edges_of), len(graph.neighbour))


@pytest.mark.parametrize(("neighbours", "edges"), [(5, 0), (6, 6), (17, 6), (18, 18), (40, 26)])
def test_pairs_exactly_at_the_cutoff_change_nothing(neighbours, edges):
    """Simple cubic, 3 Å: 6 neighbours, 12, 8, and 6 at 6 Å, which pymatgen counts as within 6 Å and we do not."""
    crystal = np.array([84]), np.zeros((1, 3)), np.eye(3) * 3.0
    graph = neighbour_lists(Structures.pack([crystal]), cutoff_A=6.0, neighbours=neighbours)
    ((theirs, radius),) = pymatgens_graph(*crystal, cutoff_A=6.0, neighbours=neighbours)
    assert graph.edges_of.tolist() == [len(theirs)] == [edges]
    assert graph.edge_cutoff == pytest.approx(radius)


@pytest.mark.parametrize("k", [3, 16])
def test_few_crystals_without_numba_are_as_many_with_it(crystals, k, monkeypatch):
    structures = Structures.pack([*crystals.values(), *random_crystals(0)])
    graphs_of = []
    for few in (0, 1 << 30):
        monkeypatch.setattr(search, "FEW", few)
        graphs_of.append(neighbour_lists(structures, cutoff_A=6.0, neighbours=k))
    for name, one, other in zip(search.Graph._fields, *graphs_of):
        np.testing.assert_array_equal(one, other, err_msg=name)


def test_where_nothing_can_be_kept_the_search_is_compiled_all_the_same(monkeypatch):
    def njit(*, nogil, cache=False):
        if cache:
            raise RuntimeError("no locator available")
        return lambda function: (function, nogil)

    monkeypatch.setattr("numba.njit", njit)
    assert search.compiled.__wrapped__() == (search._fill, True)


def test_graphs_made_for_each_batch_are_those_that_are_kept(crystals):
    structures = Structures.pack([*crystals.values(), *random_crystals(1)])
    kept, made = graphs(structures, **OPTIONS), graphs(structures, **OPTIONS, kept_bytes=1000)
    assert isinstance(kept, GraphStore)
    assert isinstance(made, GraphsOnDemand)
    assert len(kept) == len(made) == len(structures)
    size = sum(tensor.nbytes for tensor in (kept.z, kept.edge_cutoff, kept.neighbour, kept.edge_vec, kept.edge_ptr))
    assert isinstance(graphs(structures, **OPTIONS, kept_bytes=size - 9), GraphsOnDemand)  # less the first pointer
    for rows in (torch.tensor([3, 40, 3, 0]), torch.arange(len(structures)).flip(0)):
        for name, tensor in vars(made.batch(rows)).items():
            assert torch.equal(tensor, getattr(kept.batch(rows), name)), name


def test_batches_hold_each_crystals_own_graph_in_the_order_asked_for(crystals):
    structures = Structures.pack(list(crystals.values()))
    store = GraphStore.build(structures, **OPTIONS)
    rows = torch.tensor([4, 5, 2, 2, 0])
    batch = store.batch(rows)
    assert len(batch.ptr) == 6
    assert (batch.edge_index[1].diff() >= 0).all()
    assert batch.z.dtype == batch.edge_index.dtype == batch.batch.dtype == torch.int64
    assert batch.edge_vec.dtype == batch.edge_cutoff.dtype == torch.float32
    first_edge = 0
    for place, row in enumerate(rows):
        graph = neighbours(*structures[int(row)], **OPTIONS)
        atoms = slice(int(batch.ptr[place]), int(batch.ptr[place + 1]))
        edges = slice(first_edge, first_edge := first_edge + len(graph.neighbour))
        assert batch.z[atoms].tolist() == structures[int(row)][0].tolist()
        assert (batch.batch[atoms] == place).all()
        np.testing.assert_array_equal(
            batch.edge_index[:, edges].numpy() - atoms.start, [graph.neighbour, centres(graph)]
        )
        np.testing.assert_array_equal(batch.edge_vec[edges].numpy(), graph.edge_vec.astype(np.float32))
        np.testing.assert_array_equal(batch.edge_cutoff[atoms].numpy(), graph.edge_cutoff.astype(np.float32))
    assert first_edge == len(batch.edge_vec)
    assert batch.ptr[-1] == len(batch.z)


def test_batch_of_isolated_atoms_and_empty_batch(isolated):
    store = GraphStore.build(Structures.pack([isolated]), **OPTIONS)
    assert store.batch(torch.tensor([0, 0])).edge_index.shape == (2, 0)
    assert store.batch(torch.zeros(0, dtype=torch.long)).ptr.tolist() == [0]


def test_threads_and_chunks_change_nothing(crystals, monkeypatch):
    structures = Structures.pack([*crystals.values(), *crystals.values()])
    one = GraphStore.build(structures, **OPTIONS)
    monkeypatch.setattr("matalign.views.graphs.CHUNK", 3)
    two = GraphStore.build(structures, **OPTIONS, workers=2)
    for name, tensor in vars(one).items():
        assert torch.equal(tensor, getattr(two, name)), name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"frac_coords": np.full((2, 3), np.nan)}, "finite"),
        ({"lattice": np.ones((3, 3))}, "without volume"),
    ],
)
def test_impossible_input_is_refused(nacl, change, message):
    crystal = dict(zip(["numbers", "frac_coords", "lattice"], nacl)) | change
    with pytest.raises(ValueError, match=message):
        neighbours(*crystal.values(), **OPTIONS)


def test_a_bad_structure_in_a_store_is_named_by_its_rows(nacl):
    bad = (nacl[0], nacl[1], np.ones((3, 3)))
    with pytest.raises(ValueError, match="structures 0–1: lattice without volume"):
        GraphStore.build(Structures.pack([nacl, bad]), **OPTIONS)
