"""The benchmarks' table follows from the values that were measured; nothing is timed here."""

import json
import sys
from concurrent.futures import ThreadPoolExecutor

import pandas as pd
import pytest
import torch
from benchmarks import comparison, large, run, scale
from projects import REPOSITORY
from test_house import lock

from matalign.views.graphs import GraphStore

FOLDER = REPOSITORY / "results" / "bench"


def row(better, ours, peer):
    return comparison.compare("a thing", "1/s", better=better, ours=("mine", ours), peer=("theirs", peer))


def test_ratio_says_how_many_times_ours_is_ahead():
    assert row("more", [6.0, 8.0, 9.0], [2.0, 4.0, 3.0])["ratios"] == [3, 2, 3]
    assert row("less", [2.0, 4.0, 8.0], [6.0, 4.0, 4.0])["ratios"] == [3, 1, 0.5]
    assert row("less", [2.0, 4.0, 8.0], [6.0, 4.0, 4.0])["ratio"] == 1
    with pytest.raises(ValueError, match="zip"):
        row("more", [1.0], [1.0, 2.0])


def test_verdict_needs_all_repeats():
    assert comparison.verdict(row("more", [6.0, 10.0, 8.0], [2.0, 4.0, 4.0])) == "ahead, 2.5 times"
    assert comparison.verdict(row("less", [6.0, 10.0, 8.0], [2.0, 4.0, 4.0])) == "behind, 2.5 times"
    assert comparison.verdict(row("more", [6.0, 3.0], [2.0, 4.0])) == "level"


def test_sides_take_turns_and_the_first_turn_is_not_counted():
    calls = []
    seconds = comparison.alternate({n: lambda n=n: calls.append(n) for n in "ab"}, repeats=3, desc="")
    assert "".join(calls) == "abababab"
    assert [len(values) for values in seconds.values()] == [3, 3]


def test_rates_compare_one_side_with_all_others():
    made = comparison.rates("w", "x/s", 10, {"p": [5.0], "mine": [2.0], "q": [1.0]}, "mine")
    assert [(r["ours"], r["peer"], r["ratio"]) for r in made] == [("mine", "p", 2.5), ("mine", "q", 0.5)]


def test_figure_puts_each_ratio_on_a_logarithmic_axis_in_the_colour_of_its_verdict():
    table = [row("more", ours, [2.0, 4.0]) for ours in ([6.0, 12.0], [1.0, 2.0], [1.0, 8.0])]
    ax = comparison.figure({"any": {"comparisons": table}}).axes[0]
    assert ax.get_xscale() == "log"
    bars, dots = ([line for line in ax.lines if (line.get_marker() != "None") is dot] for dot in (False, True))
    assert [(d.get_xdata()[0], d.get_color()) for d in dots] == [(3, "#0072B2"), (0.5, "#D55E00"), (1.25, "#888888")]
    assert [list(b.get_xdata()) for b in bars[:3]] == [[3, 3], [0.5, 0.5], [0.5, 2]]


@pytest.fixture
def bench(monkeypatch, tmp_path):
    """`run.main` with three made-up benchmarks, in this process; what it has measured, in order; and what breaks."""
    measured, broken = [], set()

    def measure(name, settings):
        if name in broken:
            raise RuntimeError("killed")
        measured.append((name, settings.profile, settings.started))
        return {"comparisons": [row("more", [float(len(measured))], [2.0])]}

    monkeypatch.setattr(run, "FOLDER", tmp_path / "bench")
    monkeypatch.setattr(run.paths, "SCRATCH", tmp_path / "scratch")
    monkeypatch.setattr(run, "NAMES", ("one", "two", "three"))
    monkeypatch.setattr(run, "ProcessPoolExecutor", lambda n, context: ThreadPoolExecutor(n))
    monkeypatch.setattr(run, "measure", measure)
    monkeypatch.setattr(run.style, "save", lambda fig, folder, name: (folder / f"{name}.png").touch())
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.setenv(name, "1")  # the run sets them

    def main(*args):
        monkeypatch.setattr(sys, "argv", ["run", *args])
        run.main()

    return main, measured, broken


def test_killed_run_goes_on_and_a_finished_one_starts_anew(bench):
    main, measured, broken = bench
    broken.add("two")
    with pytest.raises(RuntimeError, match="killed"):
        main()
    assert list(run.read()) == ["one"]
    broken.clear()
    main()
    assert [name for name, _, _ in measured] == ["one", "two", "three"]
    assert len({started for _, _, started in measured}) == 1
    main()
    assert [name for name, _, _ in measured[3:]] == ["one", "two", "three"]


def test_killed_run_of_another_profile_is_not_gone_on_with(bench):
    main, measured, broken = bench
    broken.add("two")
    for profile in ("sample", "laptop"):
        with pytest.raises(RuntimeError, match="killed"):
            main("--profile", profile)
    assert [m[:2] for m in measured] == [("one", "sample"), ("one", "laptop")]


def test_named_benchmark_is_measured_again_and_the_others_stay(bench):
    main, measured, _ = bench
    main()
    main("two")
    assert [name for name, _, _ in measured] == ["one", "two", "three", "two"]
    assert [part["comparisons"][0]["ratio"] for part in run.read().values()] == [0.5, 2, 1.5]
    assert sorted(f.name for f in run.FOLDER.iterdir()) == ["bench.csv", "bench.json", "bench.png"]
    with pytest.raises(SystemExit):
        main("four")


def test_repeated_store_holds_the_same_crystals_again(structures):
    store = GraphStore.build(structures, cutoff_A=4.0, neighbours=6)
    twice = scale.repeated(store, 2)
    assert len(twice) == 2 * len(store) == 6
    once, again = store.batch(torch.tensor([2, 0])), twice.batch(torch.tensor([5, 3]))
    for name in ("z", "edge_index", "edge_vec", "edge_cutoff", "batch", "ptr"):
        assert torch.equal(getattr(once, name), getattr(again, name)), name


def test_scale_measures_each_size_and_batch(monkeypatch, curated):
    monkeypatch.setattr(scale, "SECONDS", 0.0)
    monkeypatch.setattr(scale.dataset, "read", lambda folder: curated)
    made = scale.measure("tiny", [2, 6], [2, 3])
    rows = made["rows"]
    places = [(row["what"], row["structures"], row["batch"]) for row in rows]
    assert places == [(w, n, b) for n in (2, 6) for b in (2, 3) for w in ("training", "embedding")]
    assert all(row["atoms_per_s"] >= 2 * row["structures_per_s"] > 0 for row in rows)  # no crystal has one atom
    for trained, embedded in zip(rows[::2], rows[1::2], strict=True):
        assert trained["step_GiB"] > 0 == embedded["step_GiB"]  # nothing is kept without gradients
        assert trained["flop_per_atom"] > embedded["flop_per_atom"] > 0
    assert rows[0]["graphs_GiB"] < rows[-1]["graphs_GiB"]
    axes = scale.figure({"one": made, "another": made}).axes
    assert [len(ax.lines) for ax in axes] == [4, 4, 3, 3]


def test_a_step_keeps_what_its_backward_pass_reads():
    x = torch.ones(1000, requires_grad=True)
    # exp keeps its result, the others nothing
    assert scale.added(lambda x: (x.exp() * 2).sum().backward(), lambda: x) == 4000
    with torch.no_grad():
        assert scale.added(torch.exp, lambda: x) == 0


def test_outlook_is_linear_in_structures_and_devices():
    rows = [
        {"what": "training", "structures": n, "batch": b, "structures_per_s": rate, "flop_per_atom": 1e6}
        for n, b, rate in ((10, 64, 900.0), (1000, 64, 500.0), (1000, 256, 400.0))
    ]
    graphs = {"structures": 1000, "atoms": 20_000, "bytes": 10**7, "seconds": 2.0, "threads": 2, "views_seconds": 0.1}
    table = scale.outlook({"a device": {"rows": rows, "graphs": graphs}}).set_index("what")
    assert "500 structures/s, 0.01 TFLOP/s" in table.index[0]
    assert "200,000 atoms/s, 0.2 TFLOP/s" in table.index[1]
    hours, aim, building, views = (row.tolist() for _, row in table.drop(columns="device").iterrows())
    assert hours == ["0.14", "0.0087", "14", "0.87"]  # at 500 structures/s: of the most structures the fastest
    assert aim == ["0.0069", "0.00043", "0.69", "0.043"]  # 20 atoms each
    assert building == ["0.14", "0.0087", "14", "0.87"]  # 500 a second
    assert views == ["0.028", "0.028", "2.8", "2.8"]


@pytest.fixture
def committed():
    """`results/bench/bench.json`."""
    if not FOLDER.exists():
        pytest.skip("results/bench is absent: `make bench PROFILE=laptop` makes it")
    return json.loads((FOLDER / "bench.json").read_text())


def test_committed_table_is_that_of_its_values(committed):
    assert tuple(committed) == run.NAMES
    for r in comparison.rows(committed):
        again = comparison.compare(
            r["what"],
            r["unit"],
            better=r["better"],
            ours=(r["ours"], r["ours_values"]),
            peer=(r["peer"], r["peer_values"]),
        )
        assert again == r
    table = pd.read_csv(FOLDER / "bench.csv", dtype=str, keep_default_na=False)
    assert table.to_dict("records") == comparison.table(committed).to_dict("records")


def test_committed_loss_on_a_large_batch_stays_below_two_gigabytes(committed):
    large = committed["losses"]["large"]
    assert (large["batch"], large["modalities"]) == (32768, 3)
    assert 0 < large["peak_MiB"] * 2**20 < 2e9


def test_committed_outlook_is_that_of_its_measurements():
    if not (FOLDER / "scale.json").exists():
        pytest.skip("results/bench/scale.json is absent: `python -m benchmarks.scale --profile full` makes it")
    table = pd.read_csv(FOLDER / "scale.csv", dtype=str, keep_default_na=False)
    again = scale.outlook(json.loads((FOLDER / "scale.json").read_text()))
    assert table.to_dict("records") == again.to_dict("records")


def test_committed_table_of_a_large_set_is_that_of_its_measurements_and_within_three_gigabytes():
    rows = json.loads((FOLDER / "large.json").read_text())["rows"]
    table = pd.read_csv(FOLDER / "large.csv", dtype=str, keep_default_na=False)
    assert table.to_dict("records") == large.table(rows).to_dict("records")
    assert {row["what"] for row in rows if row["crystals"] == 10**6} == {"training", "embedding", "reading"}
    assert all(process["GiB"] + process["file_GiB"] < 3 for row in rows for process in row.get("processes", ()))


def test_committed_table_names_what_it_was_measured_with(committed):
    pinned = lock("tests/benchmarks/requirements.txt")
    for part in committed.values():
        assert part["settings"]["profile"] == "laptop"
        assert part["machine"] == committed["search"]["machine"]
        assert part["git"]["dirty"] is False
        assert part["versions"]["torch"] == pinned["torch"]
        assert {name: pinned[name] for name in part["versions"] if name in pinned}.items() <= part["versions"].items()
