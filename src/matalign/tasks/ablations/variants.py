"""The variants of the ablations, in groups: each differs from a base in one factor."""

from collections.abc import Iterable
from dataclasses import dataclass

from matalign import config, towers
from matalign.config import Ablations

BATCH = 128  # of the base


@dataclass(frozen=True)
class Variant:
    """How a tower is trained; what is not said is as in the base."""

    loss: str = "pairwise"
    crystal_tower: str = "ild"
    order: int = 3
    modalities: str = "crystal text image"
    missing: float = 0.0  # share of the shown materials without their image, and of those without their text
    batch_size: int = BATCH
    mask_level: int = 1
    shuffled: bool = False  # texts and images of other materials
    auxiliary_weight: float = 1.0
    trained: bool = True
    supervised: str = ""  # modality whose numbers the auxiliary objective predicts, too
    attends: bool = False  # hidden atoms to the tokens of text and image, before their elements are told

    @property
    def read(self) -> list[str]:
        """Modalities that it is trained on, in a contrastive loss or not."""
        return [*self.modalities.split(), *self.supervised.split()]


BASE = Variant()
GROUPS: dict[str, dict[str, Variant]] = {  # in each the base first
    "loss": {
        "pairwise": BASE,
        **{name: Variant(loss=name) for name in ("proposal", "proposal-noself", "anchored", "sigmoid")},
    },
    "descriptors": {
        "ILD-3": BASE,
        **{f"ILD-{order}": Variant(order=order) for order in (1, 0)},
        "no-ILD": Variant(order=-1),
        "CGConv": Variant(crystal_tower="cgconv"),
    },
    "modalities": {
        "all-three": BASE,
        "no-image": Variant(modalities="crystal text"),
        "no-text": Variant(modalities="crystal image"),
        "with-composition": Variant(modalities="crystal text image composition"),
        "with-xrd": Variant(modalities="crystal text image xrd"),
        "with-profile": Variant(modalities="crystal text image profile"),
    },
    "missing": {"0%": BASE, **{f"{percent}%": Variant(missing=percent / 100) for percent in (30, 60, 90)}},
    "batch": {"128": BASE, **{str(size): Variant(batch_size=size) for size in (32, 512)}},
    "mask": {"L1": BASE, **{f"L{level}": Variant(mask_level=level) for level in (0, 2, 3)}},
    "pairs": {"true": BASE, "shuffled": Variant(shuffled=True)},
    "objective": {  # the auxiliary objective is the crystal's own
        "both": BASE,
        "contrastive": Variant(auxiliary_weight=0.0),
        "auxiliary": Variant(modalities="crystal"),
        "profile-supervised": Variant(supervised="profile"),
        "token-attention": Variant(attends=True),
        "none": Variant(trained=False),
    },
}


def chosen(cfg: Ablations) -> dict[str, dict[str, Variant]]:
    """Group -> name -> variant, those that a config names, in the order of `GROUPS`; a group always has its base.

    Raises:
        ValueError: an unknown group or variant; the message has the nearest and lists those there are.
    """
    wanted = {group: set(names) for group, names in cfg.variants}
    for group, names in wanted.items():
        config.known(group, GROUPS, "variants: unknown group")
        for name in names:
            config.known(name, GROUPS[group], f"variants: unknown variant of {group}")
    return {
        group: {name: v for name, v in variants.items() if v == BASE or name in wanted[group]}
        for group, variants in GROUPS.items()
        if group in wanted
    }


def lacking(variant: Variant, extras: Iterable[str]) -> list[str]:
    """Modalities of a variant that the curated set has not been made for."""
    return [m for m in variant.read if towers.needs_curation(m) and m not in extras]
