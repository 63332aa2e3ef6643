"""Telling defects apart in simulated micrographs, with and without knowing what the host should look like.

Every host gives all five classes equally and from the same views, so nothing but the image can tell a class: an arm
without the image must be at chance. One image network is trained on images alone; every arm then fits the same small
head to its features; arms differ in the context that modulates them and share the network, the images, the head's width
and its schedule. The zone axis and the pixel size are part of every arm's context.

What the network sees is the micrograph and, beside it, what of it does not repeat (`imaging.aperiodic`).
"""

import copy
import itertools
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from matalign import dataset, embed, imaging, paths, scratch, stats
from matalign.config import Defects
from matalign.dataset import Curated, Structures
from matalign.encoders.image import ImageTower
from matalign.imaging import DEFECTS, ZONE_AXES, Optics

ARMS = ("majority", "context", "image", "image_composition", "image_structure", "image_other")
SPLITS = {"train": 0.7, "val": 0.1, "test": 0.2}  # of the hosts
FULL_DOSE_E_A2 = (1e3, 1e5)  # of test images; the others leave out the lowest and highest decile (of the logarithm)
DOSE_DECILES_E_A2 = (10**3.2, 10**4.8)
DOSE_BINS_E_A2 = tuple(10**x for x in (3.0, 3.2, 3.6, 4.0, 4.4, 4.8, 5.0))
ROSE = 5.0  # signal to noise from which a feature is reliably seen (Rose, 1948)
CHANCE_F1 = 0.22  # an arm without the image above this has found a leak
CHUNK = 125  # images rendered at once


@dataclass(frozen=True)
class Hosts:
    """n crystals that defects are put in."""

    structures: Structures
    mp_id: np.ndarray  # (n,)
    split: np.ndarray  # (n,) train, val or test, by chemical system


@dataclass(frozen=True)
class Shots:
    """Labelled micrographs of hosts, all classes from each view."""

    images: Tensor  # (N, 2, px, px) float16: the micrograph, and what of it does not repeat
    kind: np.ndarray  # (N,) row of DEFECTS
    host: np.ndarray  # (N,) row of the hosts
    axis: np.ndarray  # (N,) row of ZONE_AXES
    dose_e_A2: np.ndarray  # (N,)
    visibility: np.ndarray  # (N,) signal to noise of the difference to pristine


@dataclass(frozen=True)
class Predictions:
    """What each arm says about the test images."""

    shots: Shots
    mp_id: np.ndarray  # (N,) of each image's host
    probability: dict[str, np.ndarray]  # arm -> (seeds, N, 5)
    n_hosts: dict[str, int]  # split -> number
    synthetic: bool  # the hosts are of the embedded sample


def choose_hosts(curated: Curated, *, hosts: int, seed: int) -> Hosts:
    """Choose hosts by hash, 70/10/20 of train, val and test of the split by chemical system.

    Args:
        curated: the materials.
        hosts: how many at most.
        seed: of the hash.

    Raises:
        ValueError: no material to train on, or none to test on.
    """
    ids, split = curated.materials.mp_id.to_numpy(str), curated.splits.chemsys.to_numpy(str)
    order = np.argsort([imaging.view_seed(seed, 0, i, -1) for i in ids], kind="stable")
    rows = np.sort(np.concatenate([order[split[order] == s][: max(1, round(f * hosts))] for s, f in SPLITS.items()]))
    for needed in ("train", "test"):
        if needed not in split[rows]:
            raise ValueError(f"no {needed} host among {len(ids)} materials; the split by chemical system has none")
    return Hosts(curated.structures.take(rows), ids[rows], split[rows])


def shoot(hosts: Hosts, split: str, cfg: Defects, *, epoch: int, seed: int, device: str = "cpu") -> Shots:
    """Render a split's hosts in all five classes.

    Args:
        hosts: the crystals.
        split: train, val or test; test images have doses and element pairs that the others lack.
        cfg: views (`images_per_class`), `image_px`, `pixel_A`.
        epoch: another number gives other views.
        seed: of the views.
        device: where to render.
    """
    test = split == "test"
    dose = FULL_DOSE_E_A2 if test else DOSE_DECILES_E_A2
    optics = Optics(image_px=cfg.image_px, pixel_A=cfg.pixel_A, dose_e_A2=dose)
    chosen = np.flatnonzero(hosts.split == split)
    host = np.repeat(chosen, cfg.images_per_class * len(DEFECTS))
    view = np.tile(np.repeat(np.arange(cfg.images_per_class), len(DEFECTS)), len(chosen))
    kind = np.tile(np.arange(len(DEFECTS)), len(chosen) * cfg.images_per_class)
    parts = []
    for start in tqdm(range(0, len(host), CHUNK), f"{split} images", mininterval=1, disable=len(host) < 20 * CHUNK):
        at = slice(start, start + CHUNK)
        keys = [imaging.view_seed(seed, epoch, hosts.mp_id[h], v) for h, v in zip(host[at], view[at], strict=True)]
        made = imaging.defect_images(
            hosts.structures, host[at], kind[at], keys, optics=optics, held_out=test, device=device
        )
        images = torch.cat([made.images, imaging.aperiodic(made.images, pixel_A=cfg.pixel_A)], dim=1).half().cpu()
        parts.append((images, made.view.axis.cpu(), made.view.dose_e_A2.cpu(), made.visibility.cpu()))
    if not parts:
        parts = [(torch.zeros(0, 2, cfg.image_px, cfg.image_px).half(), *(torch.zeros(0) for _ in range(3)))]
    images, axis, doses, visibility = (torch.cat(column) for column in zip(*parts, strict=True))
    return Shots(images, kind, host, axis.numpy().astype(np.int64), doses.numpy(), visibility.numpy())


def fit_network(shots: Shots, cfg: Defects, *, seed: int, device: str = "cpu") -> ImageTower:
    """Train the image network that all arms share: image -> class.

    Defects below the noise are left out of training: their images are those of a pristine crystal with another name.
    Each batch is turned or mirrored as a whole by one of the square's eight symmetries. AdamW, one-cycle learning rate.

    Args:
        shots: training images.
        cfg: depth, epochs, batch size, learning rate.
        seed: of initialisation, order and symmetries.
        device: where to train.
    """
    torch.manual_seed(seed)
    tower = ImageTower(depth=cfg.depth, channels=2)
    net = nn.Sequential(tower, nn.Linear(tower.dim, len(DEFECTS))).to(device)
    usable = np.flatnonzero((shots.kind == 0) | (shots.visibility >= 1))
    kind = torch.as_tensor(shots.kind, device=device)
    steps = cfg.epochs * -(-len(usable) // cfg.batch_size)
    optimiser = torch.optim.AdamW(net.parameters(), lr=cfg.learning_rate, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, cfg.learning_rate, total_steps=steps + 1, pct_start=0.2)
    rng = np.random.default_rng(seed)
    with tqdm(total=steps, desc="image network", mininterval=1) as bar:
        for _ in range(cfg.epochs):
            for batch in np.array_split(rng.permutation(usable), -(-len(usable) // cfg.batch_size)):
                images = shots.images[batch].to(device).float()
                images = torch.rot90(images, int(rng.integers(4)), dims=(2, 3))
                images = images.flip(3) if rng.integers(2) else images
                with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=device == "cuda"):
                    logits = net[1](tower(images)[0])
                loss = F.cross_entropy(logits.float(), kind[torch.as_tensor(batch, device=device)])
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                schedule.step()
                bar.update()
                bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
    return tower.eval()


@torch.no_grad()
def features(tower: ImageTower, images: Tensor, *, device: str = "cpu") -> np.ndarray:
    """(N, dim) float32 features of (N, 2, px, px) images."""
    parts = [tower(part.to(device).float())[0].cpu() for part in images.split(CHUNK)]
    return torch.cat(parts).numpy() if parts else np.zeros((0, tower.dim), np.float32)


class Head(nn.Module):
    """Features (B, d) and context (B, c) -> class scores (B, 5): the context scales and shifts the features.

    z = f · (1 + γ(c)) + β(c), then two layers (FiLM; Perez et al., AAAI 2018). γ and β start at zero.
    """

    def __init__(self, dim: int, context: int, *, hidden: int = 64):
        super().__init__()
        self.read = nn.Sequential(nn.Linear(context, hidden), nn.GELU(), nn.Dropout(0.3))
        self.modulate = nn.Linear(hidden, 2 * dim)
        nn.init.zeros_(self.modulate.weight)
        nn.init.zeros_(self.modulate.bias)
        layers = (nn.Linear(dim, hidden), nn.GELU(), nn.Dropout(0.3), nn.Linear(hidden, len(DEFECTS)))
        self.decide = nn.Sequential(*layers)

    def forward(self, features: Tensor, context: Tensor) -> Tensor:
        """Class scores (B, 5)."""
        scale, shift = self.modulate(self.read(context)).chunk(2, dim=1)
        return self.decide(features * (1 + scale) + shift)


def fit_head(
    features: dict[str, np.ndarray],
    context: dict[str, np.ndarray],
    kind: dict[str, np.ndarray],
    *,
    epochs: int,
    learning_rate: float,
    seed: int,
) -> np.ndarray:
    """Fit one arm's head; the epoch of lowest validation loss counts (the last, without validation images).

    Args:
        features: split -> (N, d).
        context: split -> (N, c).
        kind: split -> (N,) row of DEFECTS; the test images' is not read.
        epochs: passes over the training images, 256 at a time.
        learning_rate: of AdamW, one-cycle.
        seed: of initialisation, order and dropout.

    Returns:
        (N_test, 5) class probabilities.
    """
    torch.manual_seed(seed)

    def scaled(arrays: dict[str, np.ndarray]) -> dict[str, Tensor]:  # by the training images' mean and spread
        mean, spread = arrays["train"].mean(0), arrays["train"].std(0)
        spread = np.maximum(spread, 1e-3)
        return {s: torch.as_tensor((a - mean) / spread, dtype=torch.float32) for s, a in arrays.items()}

    x, c = scaled(features), scaled(context)
    y = {s: torch.as_tensor(kind[s]) for s in ("train", "val")}
    head = Head(x["train"].shape[1], c["train"].shape[1])
    optimiser = torch.optim.AdamW(head.parameters(), lr=learning_rate, weight_decay=0.1)
    batches = -(-len(y["train"]) // 256)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, learning_rate, total_steps=epochs * batches + 1)
    best, state = np.inf, None
    for _ in range(epochs):
        head.train()
        for rows in torch.randperm(len(y["train"])).chunk(batches):
            loss = F.cross_entropy(head(x["train"][rows], c["train"][rows]), y["train"][rows])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
        if len(y["val"]):
            head.eval()
            with torch.no_grad():
                loss = F.cross_entropy(head(x["val"], c["val"]), y["val"]).item()
            if loss < best:
                best, state = loss, copy.deepcopy(head.state_dict())
    if state is not None:
        head.load_state_dict(state)
    head.eval()
    with torch.no_grad():
        return head(x["test"], c["test"]).softmax(1).numpy()


def contexts(hosts: Hosts, embeddings: np.ndarray) -> dict[str, np.ndarray]:
    """What each arm is told of the hosts, (n, c), besides zone axis and pixel size.

    Args:
        hosts: n crystals.
        embeddings: (n, d) of their structures in the aligned space.
    """
    other = np.roll(embeddings, len(embeddings) // 2, axis=0)  # a fixed other host's: nobody keeps its own
    return {
        "context": embeddings,
        "image": np.zeros((len(hosts.mp_id), 0)),
        "image_composition": hosts.structures.fractions(),
        "image_structure": embeddings,
        "image_other": other,
    }


def view_context(axis: np.ndarray, *, pixel_A: float) -> np.ndarray:
    """(N, 14): zone axis one-hot, log of the pixel size."""
    return np.concatenate([np.eye(len(ZONE_AXES))[axis], np.full((len(axis), 1), np.log(pixel_A))], axis=1)


def run(cfg: Defects) -> Predictions:
    """Render, train, and let every arm judge the test images; what an earlier run has fitted is not fitted again.

    Args:
        cfg: the stage's parameters; the curated set and the model of its profile must be there.
    """
    torch.set_num_threads(cfg.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    curated = dataset.read(paths.curated(cfg.profile))
    hosts = choose_hosts(curated, hosts=cfg.hosts, seed=cfg.seed)
    embeddings = embed.load(cfg.profile, device=device).embed_structures(hosts.structures)
    told = contexts(hosts, embeddings)
    key = {name: value for name, value in vars(cfg).items() if name not in ("profile", "bootstrap", "head_epochs")}
    key |= {"data": curated.digest, "code": scratch.code_digest("defects"), "device": device}

    test = shoot(hosts, "test", cfg, epoch=0, seed=cfg.seed, device=device)
    labels = ("kind", "host", "axis")
    embedded = scratch.digest(np.round(embeddings.astype(np.float64), 5).tolist())
    probability: dict[str, list[np.ndarray]] = {arm: [] for arm in ARMS}
    for seed in range(cfg.seed, cfg.seed + cfg.seeds):

        def network(seed: int = seed) -> scratch.Result:
            shots = shoot(hosts, "train", cfg, epoch=0, seed=seed, device=device)
            tower = fit_network(shots, cfg, seed=seed, device=device)
            # Heads learn on views that the network has not been trained on, as those of the test are.
            seen = {s: shoot(hosts, s, cfg, epoch=1, seed=seed, device=device) for s in ("train", "val")}
            result = {f"features_{s}": features(tower, shots.images, device=device) for s, shots in seen.items()}
            result |= {f"{name}_{s}": getattr(shots, name) for s, shots in seen.items() for name in labels}
            return result | {"features_test": features(tower, test.images, device=device)}

        fitted = scratch.memo("defects-network", {**key, "fit_seed": seed}, network)
        fitted |= {f"{name}_test": getattr(test, name) for name in labels}
        images = {s: fitted[f"features_{s}"] for s in SPLITS}
        kind = {s: fitted[f"kind_{s}"] for s in SPLITS}
        view = {s: view_context(fitted[f"axis_{s}"], pixel_A=cfg.pixel_A) for s in SPLITS}
        for arm in ARMS[1:]:
            context = {s: np.concatenate([view[s], told[arm][fitted[f"host_{s}"]]], axis=1) for s in SPLITS}
            seen = {s: np.zeros_like(x) for s, x in images.items()} if arm == "context" else images
            head_key = {**key, "fit_seed": seed, "arm": arm, "epochs": cfg.head_epochs, "embeddings": embedded}

            def head(seen: dict = seen, context: dict = context, kind: dict = kind, seed: int = seed) -> scratch.Result:
                p = fit_head(seen, context, kind, epochs=cfg.head_epochs, learning_rate=cfg.learning_rate, seed=seed)
                return {"probability": p}

            made = scratch.memo("defects-head", head_key, head)
            probability[arm].append(made["probability"])
        share = np.bincount(kind["train"], minlength=len(DEFECTS)) / len(kind["train"])
        probability["majority"].append(np.tile(share, (len(test.kind), 1)))
    n_hosts = {s: int((hosts.split == s).sum()) for s in SPLITS}
    stacked = {arm: np.stack(p) for arm, p in probability.items()}
    synthetic = bool((curated.materials.source == paths.SAMPLE.name).all())
    return Predictions(test, hosts.mp_id[test.host], stacked, n_hosts, synthetic)


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


def calibration_error(confidence: np.ndarray, correct: np.ndarray, *, bins: int = 10) -> float:
    """Expected calibration error: Σ_b n_b / N · |accuracy_b − mean confidence_b| (Guo et al., ICML 2017).

    Args:
        confidence: (N,) probability of the predicted class; bin b holds (b / bins, (b + 1) / bins], zero the first.
        correct: (N,) whether the prediction is right.
        bins: equally wide bins; an empty one counts nothing.
    """
    at = np.clip(np.ceil(np.asarray(confidence) * bins).astype(int) - 1, 0, bins - 1)
    gap = np.bincount(at, weights=np.asarray(correct, dtype=float) - confidence, minlength=bins)
    return float(np.abs(gap).sum() / len(confidence))


def score(predictions: Predictions, cfg: Defects) -> dict:
    """Metrics of all arms, as `results/<profile>/metrics/defects.json` holds them.

    Intervals are over hosts, nested with seeds; comparisons are paired by image, p-values Holm-corrected over them all.
    """
    shots, hosts = predictions.shots, predictions.mp_id
    options = {"resamples": cfg.bootstrap, "seed": cfg.seed}
    label: dict[str, np.ndarray] = {}  # arm -> (seeds, N, 2): true and predicted class
    sure: dict[str, np.ndarray] = {}  # arm -> (seeds, N, 2): confidence, correctness
    for arm, p in predictions.probability.items():
        predicted = p.argmax(2)
        true = np.broadcast_to(shots.kind, predicted.shape)
        label[arm] = np.stack([true, predicted], axis=2)
        sure[arm] = np.stack([p.max(2), predicted == true], axis=2)

    def f1(items: np.ndarray) -> float:
        return macro_f1(items[:, 0], items[:, 1])

    def interval(estimate: stats.Interval) -> dict[str, float]:
        return {"value": estimate.value, "low": estimate.low, "high": estimate.high}

    about = {"n_images": len(shots.kind), "n_hosts": predictions.n_hosts["test"], "seeds": cfg.seeds}
    results, recall, dose = [], [], []
    for arm in ARMS:
        scores = {
            "macro_F1": stats.bootstrap(label[arm], hosts, statistic=f1, **options),
            "accuracy": stats.bootstrap(sure[arm][:, :, 1], hosts, **options),
            "ECE": stats.bootstrap(
                sure[arm], hosts, statistic=lambda items: calibration_error(items[:, 0], items[:, 1]), **options
            ),
        }
        results += [{"arm": arm, "metric": metric, **interval(s), **about} for metric, s in scores.items()]
        for number, defect in enumerate(DEFECTS):
            of = shots.kind == number
            right = stats.bootstrap(sure[arm][:, of, 1], hosts[of], **options)
            recall.append({"arm": arm, "defect": defect, **interval(right)})
        for low, high in itertools.pairwise(DOSE_BINS_E_A2):
            of = (shots.dose_e_A2 >= low) & (shots.dose_e_A2 < high)
            if of.any():
                value = float(np.mean([f1(seed[of]) for seed in label[arm]]))
                held_out = high <= DOSE_DECILES_E_A2[0] or low >= DOSE_DECILES_E_A2[1]
                row = {"arm": arm, "dose_low": low, "dose_high": high, "macro_F1": value, "n": int(of.sum())}
                dose.append({**row, "held_out": held_out})

    pairs = [(arm, "image") for arm in ARMS if arm not in ("image",)]
    pairs += [("image_structure", "image_other"), ("image_structure", "image_composition")]
    gains = {pair: stats.paired(label[pair[0]], label[pair[1]], hosts, statistic=f1, **options) for pair in pairs}
    adjusted = stats.holm([gain.p for gain in gains.values()])
    comparisons = [
        {"arm": arm, "baseline": baseline, "metric": "macro_F1", "difference": g.value, "low": g.low, "high": g.high}
        | {"p": g.p, "p_holm": float(p), "seeds": cfg.seeds, "n_test": len(shots.kind)}
        for ((arm, baseline), g), p in zip(gains.items(), adjusted, strict=True)
    ]

    flawed = shots.kind > 0
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
        "comparisons": comparisons,
        "ceiling": float((shots.visibility[flawed] >= ROSE).mean()),
        "visibility": visible,
        "hosts": predictions.n_hosts,
        "claims": _claims(results, gains),
    }


def _claims(results: list[dict], gains: dict[tuple[str, str], stats.Interval]) -> list[dict]:
    def row(claim: str, low: float, value: float, high: float, threshold: float, passed: bool, note: str) -> dict:
        bounds = {"value": value, "low": low, "high": high, "threshold": threshold, "unit": "macro-F1"}
        return {"claim": claim, **bounds, "verdict": "PASS" if passed else "FAIL", "note": note}

    context = next(r for r in results if (r["arm"], r["metric"]) == ("context", "macro_F1"))
    image = gains["majority", "image"]
    own, other = gains["image_structure", "image"], gains["image_other", "image"]
    over_other = gains["image_structure", "image_other"]
    return [
        row(
            "without the image, defects cannot be told apart",
            context["low"],
            context["value"],
            context["high"],
            CHANCE_F1,
            context["value"] <= CHANCE_F1,
            "macro-F1 of the context-only arm, at most the threshold; more would mean that the set leaks",
        ),
        row(
            "the micrograph alone tells defects apart",
            -image.high,
            -image.value,
            -image.low,
            0.0,
            image.high < 0,
            "image only less majority class",
        ),
        row(
            "knowing the host's structure helps",
            own.low,
            own.value,
            own.high,
            0.0,
            own.low > 0 and over_other.low > 0,
            "image + aligned structure less image only; with another host's embedding instead of its own: "
            f"{other.value:+.3f} [{other.low:+.3f}, {other.high:+.3f}]",
        ),
    ]


def evaluate(cfg: Defects) -> dict:
    """The whole stage: `score(run(cfg), cfg)`."""
    return score(run(cfg), cfg)
