"""One style, one palette, one name an arm, and the pieces that figures share.

No module that trains or evaluates imports this one, so a change of colour re-runs the paper alone.
"""

import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

Metrics = Mapping[str, Any]
Row = Mapping[str, Any]

COLUMN_IN = 3.33  # width of one column of the paper
PAGE_IN = 6.9  # both columns and the gap
PNG_COLOURS = 128


class Arm(NamedTuple):
    """How an arm is named and drawn, everywhere."""

    label: str
    colour: str
    marker: str


# Blue is always the arm with the aligned structure, orange the plain baseline, light grey what reads no data.
# Within a figure colours stay apart under protanopia and deuteranopia too (tested), and markers differ.
ARMS: dict[str, Arm] = {
    "dummy": Arm("median of training set", "#AAAAAA", "x"),
    "majority": Arm("majority class", "#AAAAAA", "x"),
    "random": Arm("random", "#AAAAAA", "x"),
    "formula": Arm("formula match", "#000000", "P"),
    "jaccard": Arm("element Jaccard", "#7A4419", "v"),
    "stoichiometry": Arm("stoichiometric distance", "#555555", "<"),
    "tfidf": Arm("TF-IDF", "#B2DF8A", ">"),
    "composition": Arm("composition only", "#E69F00", "s"),
    "cgconv": Arm("CGConv, scratch", "#882255", "D"),
    "scratch": Arm("ILD, scratch", "#D55E00", "v"),
    "scratch_long": Arm("ILD, scratch, 3× epochs", "#CC6677", "h"),
    "pretrained": Arm("ILD, pretrained", "#0072B2", "o"),
    "slow_tower": Arm("ILD, pretrained, slower tower", "#6118F2", "*"),
    "auxiliary": Arm("ILD, auxiliary objective alone", "#009E73", "p"),
    "aligned": Arm("aligned, as pretrained", "#56B4E9", "^"),
    "structure": Arm("structure tower", "#0072B2", "o"),
    "composition_hybrid": Arm("Jaccard + composition", "#D55E00", "D"),
    "structure_hybrid": Arm("Jaccard + structure", "#6118F2", "*"),
    "registration": Arm("registration", "#882255", "h"),
    "ridge": Arm("frozen + ridge", "#56B4E9", "^"),
    "probe": Arm("frozen layers + kernel", "#000000", "P"),
    "composition_probe": Arm("composition + kernel", "#7A4419", "<"),
    "early_fusion": Arm("fused: early, scratch", "#D55E00", "<"),
    "cross_attention": Arm("fused: cross-attention", "#CC6677", "P"),
    "pretrained_fusion": Arm("fused: pretrained", "#0072B2", "*"),
    "text": Arm("protocol only", "#009E73", "d"),
    "context": Arm("context only", "#000000", "+"),
    "image": Arm("image only", "#E69F00", "s"),
    "image_composition": Arm("image + composition", "#882255", "D"),
    "image_structure": Arm("image + structure", "#0072B2", "o"),
    "image_other": Arm("image + other host", "#D55E00", "X"),
    "image_vector": Arm("image + structure, end to end", "#B2DF8A", "d"),
    "image_vector_other": Arm("image + other host, end to end", "#7A4419", "P"),
    "image_text": Arm("image + structure + text", "#009E73", "p"),
    "image_text_other": Arm("image + structure + other text", "#6118F2", "*"),
    "image_reference": Arm("image + reference", "#56B4E9", "^"),
    "reference_other": Arm("image + other host's reference", "#CC6677", "v"),
    "reference_structure": Arm("image + wrong structure's reference", "#CC6677", "<"),
    "reference_axis": Arm("image + wrong axis's reference", "#CC6677", ">"),
    "reference_unknown": Arm("image + reference, axis unknown", "#56B4E9", "h"),
    "reference_view": Arm("image + true view's reference", "#6118F2", "d"),
    "reference_text": Arm("image + reference + text", "#56B4E9", "P"),
    "nearest": Arm("nearest known target", "#7A4419", "v"),
    "popularity": Arm("popularity", "#E69F00", "s"),
    "assembled": Arm("assembled", "#0072B2", "o"),
    "boosting": Arm("boosting on fractions", "#E69F00", "s"),
    "recipes": Arm("with text-mined recipes", "#0072B2", "o"),
    "GPT-4.1": Arm("GPT-4.1", "#B2DF8A", "P"),
    "Grok-3-mini": Arm("Grok-3-mini", "#B2DF8A", "P"),
    "Llama-4": Arm("Llama-4 Maverick", "#B2DF8A", "P"),
    "DeepSeek": Arm("DeepSeek-V3", "#B2DF8A", "P"),
    "Gemini-2.0-flash": Arm("Gemini 2.0 Flash", "#B2DF8A", "P"),
    "Mistral-small": Arm("Mistral Small 3.1", "#B2DF8A", "P"),
    "Qwen2.5-VL": Arm("Qwen2.5-VL", "#B2DF8A", "P"),
    "models": Arm("language models, fused", "#882255", "D"),
    "assembled_models": Arm("assembled + language models", "#009E73", "p"),
    "SyntMTE": Arm("SyntMTE (published)", "#882255", "D"),
}
NOT_STRUCTURE_ONLY = ("early_fusion", "cross_attention", "pretrained_fusion", "text", "image")  # of the properties
COLOURS: dict[str, str] = {name: arm.colour for name, arm in ARMS.items()}


class Drawing(Figure):
    """A Figure that a notebook shows as it is; outside pyplot's registry, so there is nothing to close."""

    def _repr_png_(self) -> bytes:
        file = io.BytesIO()
        self.savefig(file, format="png", dpi=150, metadata={"Software": None})
        return _palette(file)


def use() -> None:
    """Set matplotlib for this paper, as `paper.mplstyle` says; no file gets a timestamp."""
    plt.style.use(Path(__file__).with_name("paper.mplstyle"))


def save(fig: Figure, folder: Path, name: str) -> list[Path]:
    """Write a figure as `<name>.png` and `<name>.pdf`; the same figure gives the same bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    raster, pdf, drawn = folder / f"{name}.png", folder / f"{name}.pdf", io.BytesIO()
    with mpl.rc_context({"pdf.fonttype": 42}):
        fig.savefig(drawn, format="png")
        raster.write_bytes(_palette(drawn))
        fig.savefig(pdf, metadata={"Creator": None, "Producer": None, "CreationDate": None})
    return [raster, pdf]


def _palette(picture: io.BytesIO) -> bytes:
    """A PNG on white in few colours, the rare ones among them: a third of the size, and a chart looks the same."""
    small, image = io.BytesIO(), Image.open(picture).convert("RGBA")
    flat = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    flat = flat.quantize(PNG_COLOURS, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    flat.save(small, format="PNG", optimize=True, dpi=image.info.get("dpi", (96, 96)))
    return small.getvalue()


def ordered(names: Iterable[str]) -> list[str]:
    """Arms in the order of `ARMS`, each once."""
    names = {name for name in names if ARMS[name]}  # KeyError for one without a colour
    return [name for name in ARMS if name in names]


def panels(rows: int, columns: int, *, width: float, height: float, **kwargs: Any) -> tuple[Figure, np.ndarray]:
    """An empty drawing of the given size (inches) and its axes, shape (rows, columns)."""
    fig = Drawing(figsize=(width, height), layout="constrained")
    return fig, fig.subplots(rows, columns, squeeze=False, **kwargs)


def bars(rows: Iterable[Row]) -> np.ndarray:
    """Lengths of error bars below and above, shape (2, n); nil where a row has no interval."""
    ends = [(r["value"], *(r["value"] if r[end] is None else r[end] for end in ("low", "high"))) for r in rows]
    value, low, high = np.array(ends, float).T
    return np.clip(np.stack([value - low, high - value]), 0, None)


def retrieval_rows(rows: Iterable[Row]) -> list[Row]:
    """Rows of the retrieval metrics with `pretrained`, there the aligned model without a head of its own, as `aligned`.

    In the property metrics the same word is a fine-tuned tower, and an arm has one name and colour in the paper.
    """
    return [{**row, "arm": "aligned"} if row["arm"] == "pretrained" else row for row in rows]


def beyond_structure(names: Iterable[str]) -> list[str]:
    """Arms of the properties that see more, or other, than the structure; in the order of `ARMS`."""
    return [name for name in ordered(names) if name in NOT_STRUCTURE_ONLY]


def curves(ax: Axes, rows: list[Row], *, x: str) -> None:
    """One line with error bars an arm."""
    for name in ordered(r["arm"] for r in rows):
        points, look = sorted((r for r in rows if r["arm"] == name), key=lambda r: r[x]), ARMS[name]
        drawn = {"color": look.colour, "marker": look.marker, "label": look.label}
        at = [r[x] for r in points], [r["value"] for r in points]
        ax.errorbar(*at, yerr=bars(points), elinewidth=0.7, capsize=1.5, capthick=0.7, **drawn)


def dot(ax: Axes, row: Row, y: int, **look: Any) -> None:
    """A value with its interval, across a line of a figure whose lines are arms."""
    ax.errorbar(row["value"], y, xerr=bars([row]), capsize=2, **look)


def diagonal(ax: Axes, ends: Sequence[float] = (0, 1)) -> None:
    """Where two axes agree."""
    ax.plot(ends, ends, color="#888888", lw=0.8, zorder=1)


def legend(fig: Figure, axes: Iterable[Axes], *, columns: int) -> None:
    """One legend above all panels."""
    handles: dict[str, Any] = {}
    for ax in axes:
        handles |= dict(zip(*reversed(ax.get_legend_handles_labels()), strict=True))
    if handles:
        fig.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=columns, columnspacing=1.0)
