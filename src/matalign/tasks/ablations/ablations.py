"""What the ablations show: tables, comparisons with the base, and a verdict for each group."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from matalign import cache, paths, stats
from matalign.config import Ablations
from matalign.data import dataset
from matalign.tasks.ablations.fits import Fit, fit_all
from matalign.tasks.ablations.variants import BASE, Variant, chosen, lacking

COMPARED, MINIMISED = ("MRR", "MAE"), ("MAE",)
HEADLINES = (("structure_text_L1", "MRR"), ("finetuned", "MAE"))  # that the statements are about


def metrics(cfg: Ablations, results: Mapping[Fit, cache.Result]) -> dict[str, Any]:
    """What `results/<profile>/metrics/ablations.json` holds.

    Returns:
        `results`: {group, variant, task, metric, base, emergent, value, low, high, n_test, n_chemsys, seeds} (emergent:
        query and target were never trained against one another); `comparisons` to the base of the group, paired, with
        Holm's correction within the group; `pairs`: what `aligned` gives, for the group of losses, means over seeds;
        `statements`; `skipped`: variants that the curated set has no data for.
    """
    curated = dataset.read(paths.curated(cfg.profile))
    chemsys, extras = curated.materials.chemsys.to_numpy(), curated.extras
    rows, differences, pairs, skipped = [], [], [], []
    options = {"resamples": cfg.bootstrap, "seed": cfg.seed}
    for group, variants in chosen(cfg).items():
        base: dict[tuple[str, str], np.ndarray] = {}  # (task, metric) -> (seeds, items), of the first variant
        family: list[dict[str, Any]] = []
        for name, variant in variants.items():
            where = {"group": group, "variant": name}
            if absent := lacking(variant, extras):
                skipped.append({**where, "reason": f"no {absent[0]} in the curated set"})
                continue
            found = [results[Fit(variant, cfg.seed + s)] for s in range(cfg.seeds)]
            if group == "loss":
                pairs += [{**where, **row} for row in _pairs(found)]
            scores = {tuple(k.split("/")): np.stack([f[k] for f in found]) for k in found[0] if "/" in k}
            base = base or scores
            for (task_, metric), values in scores.items():
                clusters = chemsys[found[0]["test_rows" if metric in MINIMISED else "query_rows"]]
                cell = {**where, "task": task_, "metric": metric}
                n = {"n_test": values.shape[1], "n_chemsys": len(set(clusters)), "seeds": len(values)}
                about = {"base": variant == BASE, "emergent": emergent(variant, task_)}
                rows.append({**cell, **about, **stats.bootstrap(values, clusters, **options).bounds(), **n})
                if variant != BASE and metric in COMPARED and (task_, metric) in base:
                    d = stats.paired(values, base[task_, metric], clusters, **options)
                    family.append({**cell, **d.bounds("difference")})
        differences += stats.adjusted(family)
    return {
        **cfg.head(synthetic=curated.synthetic),
        "label_percent": cfg.label_percent,
        "n_labels": sorted({result["n_labels"] for result in results.values()}),
        "results": rows,
        "comparisons": differences,
        "pairs": pairs,
        "statements": statements(rows, differences),
        "skipped": skipped,
    }


def emergent(variant: Variant, task_: str) -> bool:
    """Whether a task compares modalities that the variant's loss never compares."""
    return variant.loss == "anchored" and task_.startswith("image_text")


def _pairs(found: Sequence[cache.Result]) -> list[dict[str, Any]]:
    """Own loss, and loss and recall of each pair, means over seeds."""
    rows = pd.DataFrame([row for result in found for row in result["pairs"]]).groupby("pair", sort=False).mean()
    own = float(np.mean([result["loss"] for result in found]))
    return [{"pair": "all", "loss": own, "recall": None}, *rows.reset_index().to_dict("records")]


def statements(rows: Sequence[Mapping[str, Any]], differences: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """What each group shows on each of the `HEADLINES`, derived from the paired comparisons (p < 0.05 after Holm).

    Returns:
        {group, task, metric, verdict, statement}. Verdicts: of `pairs` what becomes of the gain when they are shuffled
        (`lost`, `shared`, or there is `no gain` over a tower that is not trained); of the others the variant that beats
        the base by most, else `base`.
    """
    out = []
    for group in dict.fromkeys(row["group"] for row in rows):
        for task_, metric in HEADLINES:
            cell = {"task": task_, "metric": metric}
            better = {
                (d["group"], d["variant"]): (-1 if metric in MINIMISED else 1) * d["difference"] * (d["p_holm"] < 0.05)
                for d in differences
                if all(d[k] == v for k, v in cell.items())
            }
            mine = {variant: gain for (g, variant), gain in better.items() if g == group}
            if mine:
                verdict, text = _verdict(group, mine, better.get(("objective", "none")))
                out.append({"group": group, **cell, "verdict": verdict, "statement": text})
    return out


def _verdict(group: str, gains: Mapping[str, float], random: float | None) -> tuple[str, str]:
    """Gains over the base, 0 where they are not resolved; `random`: that of the untrained tower, if it was run."""
    if group == "pairs":
        if random is not None and random >= 0:
            return "no gain", "there is no gain over a random tower that shuffled pairs could lose"
        if gains["shuffled"] < 0:
            return "lost", "shuffled pairs lose the gain"
        return "shared", "no loss by shuffling is resolved: no gain is shown to come from the pairing"
    best = max(gains, key=lambda name: gains[name])
    worse = [name for name, gain in gains.items() if gain < 0]
    text = f"{best} beats the base" if gains[best] > 0 else "no variant beats the base"
    return (best if gains[best] > 0 else "base"), text + (f"; worse: {', '.join(worse)}" if worse else "")


def run(cfg: Ablations) -> dict[str, Any]:
    """The whole stage: train and test every variant, then `metrics`; with no variants, empty tables at once."""
    return metrics(cfg, fit_all(cfg))
