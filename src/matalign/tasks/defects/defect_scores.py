"""How well defects are told apart: macro-F1, recall, calibration; by dose, against the noise, with intervals."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

from matalign import stats
from matalign.claims import claim, locate
from matalign.config import Defects
from matalign.tasks.defects.defects import ARMS, PICTURES, TEXT_ARMS, VECTORS, Predictions, predict
from matalign.tasks.defects.hosts import DOSE_DECILES_E_A2
from matalign.views.defect_images import DEFECTS

DOSE_BINS_E_A2 = tuple(10**x for x in (3.0, 3.2, 3.6, 4.0, 4.4, 4.8, 5.0))
ROSE = 5.0  # signal to noise from which a feature is reliably seen (Rose, 1948)
CHANCE_F1 = 0.22  # an arm without the image above this has found a leak
PICTURE_GAIN, PICTURE_LOW = 0.15, 0.10  # in macro-F1, and its lower bound, for a reference to help
LOST = 0.9  # of that gain, with another host's reference
F1 = "macro-F1"
LEAST_GAIN = 0.01  # a smaller gain counts as this where shares of it are asked for


def macro_f1(true: np.ndarray, predicted: np.ndarray, *, classes: int = len(DEFECTS)) -> float:
    """Mean over classes of 2 TP / (2 TP + FP + FN), class numbers (N,); one neither there nor predicted counts zero."""
    table = np.bincount(true * classes + predicted, minlength=classes**2).reshape(classes, classes)
    marked = table.sum(0) + table.sum(1)
    return float((2 * table.diagonal() / np.maximum(marked, 1)).mean())


def sharpened(probability: np.ndarray, temperature: float) -> np.ndarray:
    """(N, 5) class probabilities p^(1/T), each row summing to 1 again: T > 1 makes an arm less sure."""
    return np.exp(log_softmax(np.log(np.maximum(probability, 1e-12)) / temperature, axis=1))


def fit_temperature(probability: np.ndarray, kind: np.ndarray) -> float:
    """The T of least log loss on validation images (Guo et al., ICML 2017), rows `kind` of DEFECTS; 1 without any."""

    def log_loss(log_t: float) -> float:
        right = sharpened(probability, np.exp(log_t))[np.arange(len(kind)), kind]
        return -np.log(np.maximum(right, 1e-12)).mean()

    return float(np.exp(minimize_scalar(log_loss, bounds=(-3, 3), method="bounded").x)) if len(kind) else 1.0


@dataclass(frozen=True)
class Scorer:
    """Scores of every arm with their intervals over hosts and seeds; see `score`."""

    predictions: Predictions
    cfg: Defects

    @property
    def arms(self) -> list[str]:
        """Those there are, in their order."""
        return [arm for arm in (*ARMS, *TEXT_ARMS, *PICTURES) if arm in self.predictions.probability]

    @property
    def options(self) -> dict[str, int]:
        """Of the bootstrap."""
        return {"resamples": self.cfg.bootstrap, "seed": self.cfg.seed}

    @cached_property
    def label(self) -> dict[str, np.ndarray]:
        """Arm -> (seeds, N, 2) true and predicted class."""
        predicted = {arm: self.predictions.probability[arm].argmax(2) for arm in self.arms}
        return {arm: np.stack([np.broadcast_to(self.kind, p.shape), p], axis=2) for arm, p in predicted.items()}

    @cached_property
    def temperature(self) -> dict[str, list[float]]:
        """Arm -> the temperature of each seed, fitted on validation."""
        return {arm: [fit_temperature(*seed) for seed in self.predictions.validation[arm]] for arm in self.arms}

    @property
    def kind(self) -> np.ndarray:
        """(N,) row of DEFECTS of each image."""
        return self.predictions.test.kind

    def confidence(self, arm: str, *, scaled: bool = False) -> np.ndarray:
        """(seeds, N, 2) confidence, with the arm's temperature or without, and correctness."""
        p = self.predictions.probability[arm]
        if scaled:
            p = np.stack([sharpened(seed, t) for seed, t in zip(p, self.temperature[arm], strict=True)])
        correct = self.label[arm][:, :, 0] == self.label[arm][:, :, 1]
        return np.stack([p.max(2), correct], axis=2)

    def bootstrap(self, values: np.ndarray, of: np.ndarray | slice = slice(None), **how: Any) -> dict[str, float]:
        """Bounds of a statistic of values (seeds, N, …), over hosts and seeds, of some images."""
        return stats.bootstrap(values[:, of], self.predictions.mp_id[of], **how, **self.options).bounds()

    def macro_f1(self, arm: str, of: np.ndarray | slice = slice(None)) -> dict[str, float]:
        """Bounds, over some images."""
        return self.bootstrap(self.label[arm], of, statistic=lambda items: macro_f1(*items.T))

    def results(self) -> list[dict]:
        """Rows {arm, metric, value, low, high, n_images, n_hosts, seeds} over all test images."""
        n = {"n_images": len(self.kind), "n_hosts": self.predictions.n_hosts["test"], "seeds": self.cfg.seeds}
        rows = []
        for arm in self.arms:
            sure, scaled = self.confidence(arm), self.confidence(arm, scaled=True)
            scores = {"macro_F1": self.macro_f1(arm), "accuracy": self.bootstrap(sure[:, :, 1])}
            for name, values in {"ECE": sure, "ECE_scaled": scaled}.items():
                scores[name] = self.bootstrap(values, statistic=lambda items: stats.calibration_error(*items.T))
            rows += [{"arm": arm, "metric": metric, **bounds, **n} for metric, bounds in scores.items()]
        return rows

    def recall(self) -> list[dict]:
        """Rows {arm, defect, value, low, high}: share of a class's images that are recognised."""
        return [
            {"arm": arm, "defect": defect, **self.bootstrap(self.confidence(arm)[:, :, 1], self.kind == number)}
            for arm, (number, defect) in itertools.product(self.arms, enumerate(DEFECTS))
        ]

    def dose(self) -> list[dict]:
        """Rows {arm, dose_low, dose_high, held_out, macro_F1, low, high, n}."""
        rows = []
        for arm, (place, of) in itertools.product(self.arms, dose_bins(self.predictions.test.dose_e_A2)):
            bounds = {"macro_F1" if k == "value" else k: v for k, v in self.macro_f1(arm, of).items()}
            rows.append({"arm": arm, **place, **bounds, "n": int(of.sum())})
        return rows

    def reliability(self) -> list[dict]:
        """Rows {arm, …} of `stats.reliability`."""
        bins = {arm: stats.reliability(*self.confidence(arm).reshape(-1, 2).T) for arm in self.arms}
        return [{"arm": arm, **row} for arm, rows in bins.items() for row in rows]

    def differences(self, pairs: Sequence[tuple[str, str]], of: np.ndarray | slice = slice(None)) -> list[dict]:
        """Rows {arm, baseline, metric, difference, low, high, p, p_holm, seeds, n_test}, paired by image."""
        hosts, rows = self.predictions.mp_id[of], []
        for arm, baseline in pairs:
            both = (self.label[name][:, of] for name in (arm, baseline))
            gain = stats.paired(*both, hosts, statistic=lambda items: macro_f1(*items.T), **self.options)
            rows.append({"arm": arm, "baseline": baseline, "metric": "macro_F1", **gain.bounds("difference")})
        n = {"seeds": self.cfg.seeds, "n_test": len(hosts)}
        return [{**row, **n} for row in stats.adjusted(rows)]

    def kept(self) -> list[dict]:
        """Rows {arm, value, low, high}: share of the reference's gain over the image that another reference brings."""
        rows = []
        for arm in PICTURES:
            if arm in self.arms and arm != "image_reference":
                answers = [self.label[name][..., 1:] for name in ("image_reference", arm)]
                rows.append({"arm": arm, **self.bootstrap(np.dstack([self.label["image"], *answers]), statistic=_kept)})
        return rows

    def with_protocol(self, text_pairs: Sequence[tuple[str, str]]) -> dict:
        """Scores on the test hosts that have a protocol: only there has the text arm more to read."""
        of, hosts = self.predictions.has_text, self.predictions.mp_id
        rows, compared = [], []
        if text_pairs and of.any():
            rows = [{"arm": a, "metric": "macro_F1", **self.macro_f1(a, of)} for a in self.arms]
            compared = self.differences([("image_structure", "image"), *text_pairs], of)
        counts = {"n_hosts": len(set(hosts[of])), "n_images": int(of.sum())}
        return {"results": rows, "comparisons": compared, **counts}


def score(predictions: Predictions, cfg: Defects) -> dict:
    """Metrics of all arms, as `results/<profile>/metrics/defects.json` holds them.

    Intervals are over hosts and seeds; comparisons are paired by image, p-values Holm-corrected over their table.
    """
    scorer = Scorer(predictions, cfg)
    arms, test = scorer.arms, predictions.test
    pairs = [(arm, "image") for arm in arms if arm != "image"]
    pairs += [("image_structure", "image_other"), ("image_structure", "image_composition"), VECTORS]
    pairs += [("image_reference", arm) for arm in PICTURES if arm in arms and arm != "image_reference"]
    text_pairs = [("image_text", "image_structure"), TEXT_ARMS] if set(TEXT_ARMS) <= set(arms) else []
    results = scorer.results()
    comparisons, kept = scorer.differences([*pairs, *text_pairs]), scorer.kept()
    flawed, seen, doses = test.kind > 0, test.visibility >= ROSE, dose_bins(test.dose_e_A2)
    of_defect = {defect: test.visibility[test.kind == i] for i, defect in enumerate(DEFECTS) if i}
    return {
        **cfg.head(synthetic=predictions.synthetic),
        "results": results,
        "recall": scorer.recall(),
        "dose": scorer.dose(),
        "dose_visible": [{**place, "visible": float(seen[of & flawed].mean())} for place, of in doses],
        "reliability": scorer.reliability(),
        "temperature": [{"arm": arm, "temperature": float(np.mean(scorer.temperature[arm]))} for arm in arms],
        "comparisons": comparisons,
        "with_protocol": scorer.with_protocol(text_pairs),
        "kept": kept,
        "axis": {**scorer.bootstrap(predictions.axis[..., 0]), "chance": float(predictions.axis[..., 1].mean())},
        "polymorphs": predictions.polymorphs,
        "ceiling": float(seen[flawed].mean()),
        "visibility": [
            {"defect": defect, "visible": float((v >= ROSE).mean()), "median": float(np.median(v)), "n": len(v)}
            for defect, v in of_defect.items()
        ],
        "hosts": predictions.n_hosts,
        "claims": _claims(results, comparisons, kept),
    }


def _kept(items: np.ndarray) -> float:
    """Of rows (true class, answers of image alone, with the reference, with another)."""
    image, own, other = (macro_f1(items[:, 0], answers) for answers in items[:, 1:].T)
    return (other - image) / max(own - image, LEAST_GAIN)


def dose_bins(dose_e_A2: np.ndarray) -> list[tuple[dict[str, float | bool], np.ndarray]]:
    """Bins of dose that hold an image: {dose_low, dose_high, held_out}, e/Å², and (N,) which images."""
    bins = []
    for low, high in itertools.pairwise(DOSE_BINS_E_A2):
        held_out = high <= DOSE_DECILES_E_A2[0] or low >= DOSE_DECILES_E_A2[1]
        of = (dose_e_A2 >= low) & (dose_e_A2 < high)
        if of.any():
            bins.append(({"dose_low": low, "dose_high": high, "held_out": held_out}, of))
    return bins


def _claims(results: list[dict], comparisons: list[dict], kept: list[dict]) -> list[dict]:
    gains = {(r["arm"], r["baseline"]): {**r, "value": r["difference"]} for r in comparisons}
    context = next(r for r in results if (r["arm"], r["metric"]) == ("context", "macro_F1"))
    image = gains["majority", "image"]
    image = {"value": -image["value"], "low": -image["high"], "high": -image["low"]}
    tested = [
        claim(
            "without the image, defects cannot be told apart",
            context,
            question="Does the set give classes away without the image?",
            metric=locate("results", "value", arm="context", metric="macro_F1"),
            threshold=CHANCE_F1,
            passed=context["value"] <= CHANCE_F1,
            unit=F1,
            note="macro-F1 of the context-only arm, at most the threshold; more would mean that the set leaks",
        ),
        claim(
            "the micrograph alone tells defects apart",
            image,
            question="Does the micrograph alone tell defects apart?",
            metric="-" + _gain("majority", "image"),
            passed=image["low"] > 0,
            unit=F1,
            note="image only less majority class",
        ),
        _vector(gains),
        *_pictures(gains["image_reference", "image"], next(r for r in kept if r["arm"] == "reference_other")),
    ]
    if TEXT_ARMS in gains:
        text, wrong = gains["image_text", "image_structure"], gains[TEXT_ARMS]
        note = "image + structure + text less image + structure, all hosts; less that with another host's text: "
        tested.append(
            claim(
                "the host's protocol helps beyond its structure",
                text,
                question="Does the host's protocol help beyond its structure?",
                metric=_gain("image_text", "image_structure"),
                passed=text["low"] > 0 and wrong["low"] > 0,
                unit=F1,
                control=f"gain over another host's text: {_signed(wrong)}",
                note=note + _signed(wrong),
            )
        )
    return tested


def _vector(gains: Mapping[tuple[str, str], dict]) -> dict:
    """Passes where neither another host's vector nor the own composition has the gain."""
    own, other, composition, trained, *less = (
        gains[pair]
        for pair in (
            ("image_structure", "image"),
            ("image_other", "image"),
            ("image_composition", "image"),
            ("image_vector", "image_vector_other"),
            ("image_structure", "image_other"),
            ("image_structure", "image_composition"),
        )
    )
    note = "image + aligned structure less image only; with another host's embedding instead of its own: "
    note += f"{_signed(other)}; with the composition: {_signed(composition)}; "
    note += f"told to the network while it trains, over another host's: {_signed(trained)}"
    return claim(
        "knowing the host's structure as a vector helps",
        own,
        question="Does the host's structure help as a vector of the space?",
        metric=_gain("image_structure", "image"),
        passed=own["low"] > 0 and all(gain["low"] > 0 for gain in less),
        unit=F1,
        control=f"another host's vector: {_signed(other)}; composition alone: {_signed(composition)}",
        note=note,
    )


def _pictures(picture: dict, share: dict) -> list[dict]:
    """`share` of the gain of the own picture is kept with another host's."""
    lost = {"value": 1 - share["value"], "low": 1 - share["high"], "high": 1 - share["low"]}
    return [
        claim(
            "knowing the host's structure as a picture helps",
            picture,
            question="Does the host's structure help as a picture of what should be there?",
            metric=_gain("image_reference", "image"),
            threshold=PICTURE_GAIN,
            passed=picture["value"] >= PICTURE_GAIN and picture["low"] > PICTURE_LOW,
            unit=F1,
            control=f"another host's picture keeps {share['value']:.2f} of the gain",
            note=f"image + reference less image only; the lower bound must exceed {PICTURE_LOW}",
        ),
        claim(
            "another host's picture does not",
            lost,
            question="Is the gain lost with another host's picture?",
            metric="1-" + locate("kept", "value", arm="reference_other"),
            threshold=LOST,
            passed=lost["value"] >= LOST and picture["low"] > 0,
            unit="of the gain",
            note="share of that gain that a network trained and tested with another host's reference does not have",
        ),
    ]


def _gain(arm: str, baseline: str) -> str:
    return locate("comparisons", "difference", arm=arm, baseline=baseline)


def _signed(row: dict) -> str:
    return "{value:+.3f} [{low:+.3f}, {high:+.3f}]".format(**row)


def run(cfg: Defects) -> dict:
    """The whole stage: `score(predict(cfg), cfg)`."""
    return score(predict(cfg), cfg)
