"""Figures of micrographs registered with crystals: metrics of the stage in, a matplotlib Figure out."""

import base64
import io
from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from matalign.report.style import ARMS, PAGE_IN, Metrics, diagonal, legend, panels

COLOURS = {"rendered": "#555555", "CdTe": "#0072B2", "SrTiO3": "#D55E00"}
SPECTRA = {"measured": "-", "simulated, rendered noise": ":", "simulated, measured noise": "--"}
CLASSES = {"LC": "Lomer–Cottrell", "SF1": "stacking fault", "SF2": "stacking fault 2", "Twin_Bound": "twin boundary"}
CLASSES |= {"Bulk": "bulk", "Vacancy_CdTe": "vacancy", "Extra": "extra", "IExtra": "extra 2", "Mis": "missing"}
SHOWN = ("majority", "nearest", "image", "image_reference")


def drawings(metrics: Metrics) -> dict[str, Figure]:
    """Every figure by name; those of experimental patches where the profile has some."""
    found = {"registration": registration(metrics)}
    real = metrics["experimental"]
    return found | ({"patches": page(real["page"]), "few_labels": few_labels(real)} if real else {})


def registration(metrics: Metrics) -> Figure:
    """Error of pixel sizes in rendered pictures; ranks of crystals by registration and in the aligned space."""
    fig, ((error, rank),) = panels(1, 2, width=PAGE_IN, height=2.3)
    rows = sorted(metrics["pictures"], key=lambda r: r["pixel_error"])
    found = np.array([100 * r["pixel_error"] for r in rows])
    right = np.array([r["axis_right"] for r in rows])
    at = np.arange(len(rows))
    look = {"fmt": "o", "ms": 2.5, "elinewidth": 0.6, "lw": 0}
    for name, of, colour in (("axis right", right, "#0072B2"), ("axis wrong", ~right, "#D55E00")):
        stated = [200 * rows[i]["stated"] for i in at[of]]
        error.errorbar(at[of], found[of].clip(-12, 12), yerr=stated, color=colour, label=name, **look)
    error.set(xlabel="rendered pictures, sorted", ylabel="error of pixel size (%)", ylim=(-13, 13))
    error.legend()
    ends = [0.8, 1.3 * metrics["crystals"]]
    diagonal(rank, ends)
    points = {"rendered": [(r["embedding"], r["registration"]) for r in metrics["ranks"]]}
    for r in metrics["experimental"].get("ranks", ()):
        if r["scale"] == "known":
            points.setdefault(r["material"], []).extend(zip(r["embedding"], r["rank"], strict=True))
    for name, where in points.items():
        if where:
            rank.scatter(*np.transpose(where), s=8, lw=0, color=COLOURS[name], label=name, alpha=0.7)
    rank.set(xscale="log", yscale="log", xlim=ends, ylim=ends, aspect="equal")
    rank.set(xlabel="rank in the aligned space", ylabel="rank by registration")
    legend(fig, [rank], columns=3)
    return fig


def page(rows: list[Mapping[str, Any]]) -> Figure:
    """Of each class an experimental patch, the pristine picture registered with it, and the residual; the verdict."""
    fig, axes = panels(3, len(rows), width=PAGE_IN, height=2.4)
    for column, row in zip(axes.T, rows, strict=True):
        strip = plt.imread(io.BytesIO(base64.b64decode(row["png"])))
        for ax, part in zip(column, np.split(strip, 3, axis=1), strict=True):
            ax.imshow(part, cmap="gray", vmin=0, vmax=1, interpolation="none")
            ax.set(xticks=[], yticks=[], frame_on=False)
        column[0].set_title(f"{row['material']}\n{CLASSES.get(row['label'], row['label'])}", fontsize=5.2, pad=2)
        column[2].set_xlabel(f"{row['verdict']}\nr = {row['correlation']:.2f}", fontsize=5.2)
    for ax, name in zip(axes[:, 0], ("patch", "registered", "residual"), strict=True):
        ax.set_ylabel(name, fontsize=7)
    fig.get_layout_engine().set(w_pad=0.01, h_pad=0.01, wspace=0.01, hspace=0.01)
    return fig


def few_labels(real: Mapping[str, Any]) -> Figure:
    """Power over spatial frequency of bulk patches and of simulated ones; macro-F1 against labelled patches a class."""
    materials = list(real["materials"])
    fig, axes = panels(2, len(materials), width=PAGE_IN, height=4.2)
    for (power, score), material in zip(axes.T, materials, strict=True):
        pixel_A = real["materials"][material]["pixel_A"]
        for r in real["spectra"]:
            if r["material"] == material:
                k = np.arange(1, len(r["power"]) + 1) / (2 * len(r["power"]) * pixel_A)
                power.plot(k, r["power"], ls=SPECTRA[r["of"]], color=COLOURS[material], label=r["of"])
        power.set(yscale="log", title=material, xlabel="spatial frequency (1/Å)", ylabel="power")
        power.legend()
        none = [r for r in real["zero_shot"] if r["material"] == material and r["noise"] != "rendered"]
        some = [r for r in real["few"] if (r["material"], r["split"]) == (material, "apart")]
        for i, name in enumerate(SHOWN):
            rows = [r for r in (*none, *some) if r["arm"] == name]
            at = [(0, 5, 20).index(r["shots"]) + 0.06 * (i - 1.5) for r in rows]
            bars = np.abs([[r[end] - r["macro_F1"] for r in rows] for end in ("low", "high")])
            look = {"color": ARMS[name].colour, "marker": ARMS[name].marker, "ms": 4, "lw": 0, "elinewidth": 0.8}
            score.errorbar(at, [r["macro_F1"] for r in rows], yerr=bars, label=name.replace("_", " + "), **look)
        score.set(xlabel="labelled patches a class", ylabel="macro-F1", ylim=(0, 1))
        score.set_xticks(range(3), ["0", "5", "20"])
    legend(fig, [axes[1, 0]], columns=4)
    return fig
