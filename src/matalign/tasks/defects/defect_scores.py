"""How well defects are told apart: macro-F1, recall, calibration; by dose, against the noise, with intervals."""

import itertools

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

from matalign import stats
from matalign.claims import Claim
from matalign.config import Defects
from matalign.tasks.defects.defects import ARMS, DOSE_DECILES_E_A2, TEXT_ARMS, Predictions, run
from matalign.views.defect_images import DEFECTS

DOSE_BINS_E_A2 = tuple(10**x for x in (3.0, 3.2, 3.6, 4.0, 4.4, 4.8, 5.0))
ROSE = 5.0  # signal to noise from which a feature is reliably seen (Rose, 1948)
CHANCE_F1 = 0.22  # an arm without the image above this has found a leak


def macro_f1(true: np.ndarray, predicted: np.ndarray, *, classes: int = len(DEFECTS)) -> float:
    """Mean over classes of 2 TP / (2 TP + FP + FN); a class neither there nor predicted counts zero.

    Args:
        true: (N,) class numbers.
        predicted: (N,) class numbers.
        classes: how many there are.
    """
    table = np.bincount(true * classes + predicted, minlength=classes**2).reshape(classes, classes)
    marked = table.sum(0) + table.sum(1)
    return float((2 * table.diagonal() / np.maximum(marked, 1)).mean())


def sharpened(probability: np.ndarray, temperature: float) -> np.ndarray:
    """(N, 5) class probabilities p^(1/T), each row summing to 1 again: T > 1 makes an arm less sure."""
    return np.exp(log_softmax(np.log(np.maximum(probability, 1e-12)) / temperature, axis=1))


def fit_temperature(probability: np.ndarray, kind: np.ndarray) -> float:
    """The T of least log loss on validation images (Guo et al., ICML 2017); 1 without any.

    Args:
        probability: (N, 5) that an arm gave.
        kind: (N,) row of DEFECTS.
    """

    def log_loss(log_t: float) -> float:
        right = sharpened(probability, np.exp(log_t))[np.arange(len(kind)), kind]
        return -np.log(np.maximum(right, 1e-12)).mean()

    return float(np.exp(minimize_scalar(log_loss, bounds=(-3, 3), method="bounded").x)) if len(kind) else 1.0


def score(predictions: Predictions, cfg: Defects) -> dict:
    """Metrics of all arms, as `results/<profile>/metrics/defects.json` holds them.

    Intervals are over hosts and seeds; comparisons are paired by image, p-values Holm-corrected over their table.
    """
    shots, hosts = predictions.shots, predictions.mp_id
    options = {"resamples": cfg.bootstrap, "seed": cfg.seed}
    label: dict[str, np.ndarray] = {}  # arm -> (seeds, N, 2): true and predicted class
    sure: dict[str, np.ndarray] = {}  # arm -> (seeds, N, 2): confidence, correctness
    scaled: dict[str, np.ndarray] = {}  # the same with the confidence of the arm's temperature
    temperature: dict[str, list[float]] = {}
    for arm, p in predictions.probability.items():
        predicted = p.argmax(2)
        true = np.broadcast_to(shots.kind, predicted.shape)
        label[arm] = np.stack([true, predicted], axis=2)
        sure[arm] = np.stack([p.max(2), predicted == true], axis=2)
        temperature[arm] = [fit_temperature(*seen) for seen in predictions.validation[arm]]
        calmer = np.stack([sharpened(seed, t) for seed, t in zip(p, temperature[arm], strict=True)])
        scaled[arm] = np.stack([calmer.max(2), predicted == true], axis=2)

    def f1(items: np.ndarray) -> float:
        return macro_f1(items[:, 0], items[:, 1])

    def ece(items: np.ndarray) -> float:
        return stats.calibration_error(items[:, 0], items[:, 1])

    def differences(pairs: list[tuple[str, str]], of: np.ndarray) -> list[dict]:
        gains = [stats.paired(label[a][:, of], label[b][:, of], hosts[of], statistic=f1, **options) for a, b in pairs]
        about = {"seeds": cfg.seeds, "n_test": int(of.sum())}
        return [
            {
                "arm": arm,
                "baseline": baseline,
                "metric": "macro_F1",
                "difference": g.value,
                "low": g.low,
                "high": g.high,
            }
            | {"p": g.p, "p_holm": float(p), **about}
            for (arm, baseline), g, p in zip(pairs, gains, stats.holm([g.p for g in gains]), strict=True)
        ]

    everything, arms = np.ones(len(hosts), dtype=bool), [a for a in (*ARMS, *TEXT_ARMS) if a in label]
    about = {"n_images": len(hosts), "n_hosts": predictions.n_hosts["test"], "seeds": cfg.seeds}
    results, recall, dose, bins = [], [], [], []
    for arm in arms:
        scores = {
            "macro_F1": stats.bootstrap(label[arm], hosts, statistic=f1, **options),
            "accuracy": stats.bootstrap(sure[arm][:, :, 1], hosts, **options),
            "ECE": stats.bootstrap(sure[arm], hosts, statistic=ece, **options),
            "ECE_scaled": stats.bootstrap(scaled[arm], hosts, statistic=ece, **options),
        }
        results += [{"arm": arm, "metric": metric, **s.bounds(), **about} for metric, s in scores.items()]
        bins += [{"arm": arm, **row} for row in stats.reliability(*sure[arm].reshape(-1, 2).T)]
        for number, defect in enumerate(DEFECTS):
            of = shots.kind == number
            right = stats.bootstrap(sure[arm][:, of, 1], hosts[of], **options)
            recall.append({"arm": arm, "defect": defect, **right.bounds()})
        for place, of in dose_bins(shots.dose_e_A2):
            at = stats.bootstrap(label[arm][:, of], hosts[of], statistic=f1, **options)
            row = {"macro_F1": at.value, "low": at.low, "high": at.high, "n": int(of.sum())}
            dose.append({"arm": arm, **place, **row})

    pairs = [(arm, "image") for arm in arms if arm != "image"]
    pairs += [("image_structure", "image_other"), ("image_structure", "image_composition")]
    text_pairs = [("image_text", "image_structure"), TEXT_ARMS] if set(TEXT_ARMS) <= set(arms) else []
    comparisons = differences([*pairs, *text_pairs], everything)

    of = predictions.has_text  # the test hosts that have a protocol: only there has the text arm more to read
    with_protocol = {"results": [], "comparisons": [], "n_hosts": len(set(hosts[of])), "n_images": int(of.sum())}
    if text_pairs and of.any():
        for arm in arms:
            at = stats.bootstrap(label[arm][:, of], hosts[of], statistic=f1, **options)
            with_protocol["results"].append({"arm": arm, "metric": "macro_F1", **at.bounds()})
        with_protocol["comparisons"] = differences([("image_structure", "image"), *text_pairs], of)

    flawed, seen = shots.kind > 0, shots.visibility >= ROSE
    visible = [
        {"defect": defect, "visible": float((v >= ROSE).mean()), "median": float(np.median(v)), "n": len(v)}
        for defect, v in ((d, shots.visibility[shots.kind == i]) for i, d in enumerate(DEFECTS) if i)
    ]
    return {
        "stage": "defects",
        "profile": cfg.profile,
        "synthetic": predictions.synthetic,
        "seed": cfg.seed,
        "results": results,
        "recall": recall,
        "dose": dose,
        "dose_visible": [{**p, "visible": float(seen[of & flawed].mean())} for p, of in dose_bins(shots.dose_e_A2)],
        "reliability": bins,
        "temperature": [{"arm": arm, "temperature": float(np.mean(temperature[arm]))} for arm in arms],
        "comparisons": comparisons,
        "with_protocol": with_protocol,
        "ceiling": float(seen[flawed].mean()),
        "visibility": visible,
        "hosts": predictions.n_hosts,
        "claims": _claims(results, comparisons),
    }


def dose_bins(dose_e_A2: np.ndarray) -> list[tuple[dict[str, float | bool], np.ndarray]]:
    """Bins of dose that hold an image: {dose_low, dose_high, held_out}, e/Å², and (N,) which images."""
    found = []
    for low, high in itertools.pairwise(DOSE_BINS_E_A2):
        held_out = high <= DOSE_DECILES_E_A2[0] or low >= DOSE_DECILES_E_A2[1]
        of = (dose_e_A2 >= low) & (dose_e_A2 < high)
        if of.any():
            found.append(({"dose_low": low, "dose_high": high, "held_out": held_out}, of))
    return found


def _claims(results: list[dict], comparisons: list[dict]) -> list[dict]:
    unit = "macro-F1"
    gains = {(r["arm"], r["baseline"]): {**r, "value": r["difference"]} for r in comparisons}
    context = next(r for r in results if (r["arm"], r["metric"]) == ("context", "macro_F1"))
    image = gains["majority", "image"]
    image = {"value": -image["value"], "low": -image["high"], "high": -image["low"]}
    own, other = gains["image_structure", "image"], gains["image_other", "image"]
    found = [
        Claim.of(
            "without the image, defects cannot be told apart",
            context,
            threshold=CHANCE_F1,
            passed=context["value"] <= CHANCE_F1,
            unit=unit,
            note="macro-F1 of the context-only arm, at most the threshold; more would mean that the set leaks",
        ),
        Claim.of(
            "the micrograph alone tells defects apart",
            image,
            threshold=0.0,
            passed=image["low"] > 0,
            unit=unit,
            note="image only less majority class",
        ),
        Claim.of(
            "knowing the host's structure helps",
            own,
            threshold=0.0,
            passed=own["low"] > 0 and gains["image_structure", "image_other"]["low"] > 0,
            unit=unit,
            note="image + aligned structure less image only; with another host's embedding instead of its own: "
            + _signed(other),
        ),
    ]
    if TEXT_ARMS in gains:
        text, wrong = gains["image_text", "image_structure"], gains[TEXT_ARMS]
        note = "image + structure + text less image + structure, all hosts; less that with another host's text: "
        passed = text["low"] > 0 and wrong["low"] > 0
        claim = "the host's protocol helps beyond its structure"
        found.append(Claim.of(claim, text, threshold=0.0, passed=passed, unit=unit, note=note + _signed(wrong)))
    return [claim.row() for claim in found]


def _signed(row: dict) -> str:
    return "{value:+.3f} [{low:+.3f}, {high:+.3f}]".format(**row)


def evaluate(cfg: Defects) -> dict:
    """The whole stage: `score(run(cfg), cfg)`."""
    return score(run(cfg), cfg)
