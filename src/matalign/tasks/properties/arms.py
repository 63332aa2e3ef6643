"""The arms of the tables of properties, and the runs that a config asks for.

Arms from the structure alone. `dummy`: the median of the training labels, or the majority's class. `composition`:
gradient boosting on Magpie-like statistics of elemental properties (Ward et al., npj Comput. Mater. 2, 16028, 2016),
blind to structure. `cgconv`, `scratch`: CGConv and ILD tower from random weights. `scratch_long`: `scratch` with three
times the steps. `pretrained`: the ILD tower from contrastive pretraining, fine-tuned. `slow_tower`: the same with the
tower at three tenths of the learning rate. `auxiliary`: `pretrained` from its control, which was pretrained by the
auxiliary objective alone. `ridge`: ridge regression on the pooled features of the frozen pretrained tower. `probe`: on
the readout of all its layers, under a Gaussian kernel. `composition_probe`: likewise on the features of `composition`.

Arms of fused inference, which also see a micrograph of the material, and in cohort B its protocols, through the frozen
towers. `early_fusion`: ILD tower from random weights, its pooled features beside theirs. `cross_attention`: the same,
its atoms attending to their tokens. `pretrained_fusion`: the pretrained ILD tower beside their aligned embeddings.
`text`, `image`: ridge regression on the frozen features of that modality alone.
"""

from collections.abc import Collection
from dataclasses import dataclass

from torch import nn

from matalign import config
from matalign.config import Properties, Run, Weights
from matalign.tasks.properties.networks import CrossAttention, Fusion
from matalign.towers.crystal import READOUT, Regressor


@dataclass(frozen=True)
class Network:
    """An arm that trains a crystal tower."""

    tower: str = ""  # of towers.crystal; "": the one that was pretrained
    weights: str = ""  # folder in results/<profile> with the tower's weights; "": random ones
    model: type[nn.Module] = Regressor
    others: str = ""  # what it sees of the other modalities: tokens or embeddings; "": nothing
    length: int = 1  # steps, of the schedule's
    tower_rate: float = 1.0  # learning rate of the tower, of the schedule's


NETWORKS = {
    "cgconv": Network("cgconv"),
    "scratch": Network("ild"),
    "scratch_long": Network("ild", length=3),
    "pretrained": Network(weights="pretrained"),
    "slow_tower": Network(weights="pretrained", tower_rate=0.3),
    "auxiliary": Network(weights="pretrained/control"),
    "early_fusion": Network("ild", model=Fusion, others="tokens"),
    "cross_attention": Network("ild", model=CrossAttention, others="tokens"),
    "pretrained_fusion": Network(weights="pretrained", model=Fusion, others="embeddings"),
}
SINGLE = ("text", "image")
PROBES = ("probe", "composition_probe")
FUSED = tuple(name for name, network in NETWORKS.items() if network.others)
ARMS = ("dummy", "composition", "ridge", *PROBES, *NETWORKS, *SINGLE)
STRUCTURE_ONLY = tuple(arm for arm in ARMS if arm not in (*FUSED, *SINGLE))
COHORTS = {"A": ("image",), "B": ("image", "text")}  # and the modalities that fused arms see beside the structure


@dataclass(frozen=True)
class Fit:
    """One model to fit; with the data and the version of `properties`, all that its predictions depend on."""

    targets: Weights  # that are fitted together
    arm: str
    cohort: str
    split: str
    percent: float
    seed: int
    steps: int = 0  # of the optimiser; 0 where there is none

    @property
    def weights(self) -> dict[str, float]:
        """Target -> weight in the loss."""
        return dict(self.targets)


def groups(cfg: Properties) -> dict[Weights, tuple[Run, ...]]:
    """The targets that are fitted together, and where.

    Raises:
        ValueError: nothing to fit, a group of targets without runs or runs without targets, a target in two groups or
            without weight, an unknown cohort, split or arm, a share outside (0, 100].
    """
    targets, runs = dict(cfg.targets), dict(cfg.runs)
    if targets.keys() != runs.keys() or not all(targets.values()) or not all(runs.values()) or not targets:
        raise ValueError(f"targets: {', '.join(targets)}, but runs: {', '.join(runs)}; expected both of each group")
    weights = [pair for group in targets.values() for pair in group]
    for name, weight in weights:
        if [other for other, _ in weights].count(name) > 1 or not weight > 0:
            raise ValueError(f"target {name!r}: expected once, with a weight above 0")
    everywhere = [run for group in runs.values() for run in group]
    for run in everywhere:
        if run.cohort not in COHORTS or run.split not in ("random", "chemsys"):
            raise ValueError(f"{run}: cohort {' or '.join(COHORTS)}, split random or chemsys")
        if not 0 < run.percent <= 100 or run.seeds < 1:
            raise ValueError(f"{run}: 0 < percent ≤ 100, seeds ≥ 1")
    for arm in (*cfg.arms, *(arm for run in everywhere for arm in (*run.also, *run.without))):
        config.known(arm, ARMS, "arms: unknown")
    return {targets[name]: runs[name] for name in targets}


def read(arm: str, cohort: str, modalities: Collection[str]) -> list[str]:
    """Modalities whose frozen features an arm reads, of those of the model; ValueError without any that it needs."""
    if arm in ("ridge", "probe"):
        return ["crystal" if arm == "ridge" else READOUT]
    wanted = [arm] if arm in SINGLE else list(COHORTS[cohort]) if arm in FUSED else []
    found = [m for m in wanted if m in COHORTS[cohort] and m in modalities]
    if wanted and not found:
        has = ", ".join(modalities)
        raise ValueError(
            f"{arm} in cohort {cohort}: needs {' or '.join(wanted)}; the model has {has}, text is in B only"
        )
    return found
