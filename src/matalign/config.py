"""One frozen dataclass per stage, read from `params.yaml`; an unknown, missing or mistyped key raises."""

import dataclasses
import difflib
import functools
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

import yaml

from matalign import __version__, paths


@dataclass(frozen=True)
class Stage:
    """Parameters every notebook takes."""

    profile: str  # which section of params.yaml, which folder of results/
    seed: int  # of every random draw
    threads: int  # of torch and of BLAS, in every process

    def head(self, *, synthetic: bool) -> dict[str, Any]:
        """What the metrics of every stage begin with."""
        stage = type(self).__name__.lower()
        return {"stage": stage, "profile": self.profile, "synthetic": synthetic, "seed": self.seed}


@dataclass(frozen=True)
class Curate(Stage):
    """01_curate: which materials and protocols enter."""

    raw: str  # folder of the raw files, relative to the project
    max_atoms: int  # keep cells of at most so many atoms; 0: all
    keep_with_protocol: bool  # keep a material that has a protocol whatever its cell's size
    max_materials: int  # keep so many materials, chosen by hash; 0: all
    min_formation_energy_eV_atom: float  # below: an outlier
    max_temperature_C: float  # above: an absurd temperature
    modalities: str  # that the set is to serve: makes what those need beyond structures and protocols
    workers: int  # processes


@dataclass(frozen=True)
class Pretrain(Stage):
    """02_pretrain: towers, loss and contrastive training."""

    modalities: str  # files of encoders/; two or more, or crystal alone with an auxiliary weight
    crystal_tower: str  # ild or cgconv
    cutoff_A: float  # no neighbour beyond
    neighbours: int  # the per-atom cutoff is the distance of the next one
    width: int  # channels of the crystal tower
    layers: int  # message-passing layers
    order: int  # highest Legendre order of the local descriptors; -1: none
    channels: int  # of the local descriptors, for each order
    text_model: str  # minilm, a Hugging Face id, or a path
    unfreeze_layers: int  # of the text model, counted from the top
    mask_level: int  # of the protocols' text, 0-3
    image_px: int
    pixel_A: float  # angstrom per pixel
    image_weights: str  # '' for random, or a path to a ResNet-50 state dict (safetensors)
    image_fraction: float  # share of the materials shown with their image in an epoch
    protocol_repeats: int  # times a material with a protocol is shown in an epoch; the others once
    val_materials: int  # that the validation loss is taken on, chosen by hash
    embed_dim: int
    loss: str  # pairwise, anchored, proposal, proposal-noself or sigmoid
    auxiliary_weight: float  # of masked atoms and denoising, beside the contrastive loss; 0: none
    mask_atoms: float  # share of the atoms whose element is hidden
    noise_A: float  # standard deviation of the atoms' displacement, in each direction
    control: bool  # train the crystal tower by the auxiliary objective alone as well, to see what alignment adds
    temperature: float  # initial
    learning_rate: float
    weight_decay: float  # decoupled from the gradient, as in AdamW; 0: Adam
    batch_size: int  # global, whatever the number of ranks
    micro_batch: int  # rows of a rank that are embedded with a graph at once (gradient caching); 0: all
    epochs: int
    patience: int  # epochs without a better validation loss before stopping
    gpus: str  # auto (all of this machine, or one process on the CPU), or how many, on all nodes together
    checkpoint_steps: int  # save the training state after so many steps; 0: each epoch only


Weights = tuple[tuple[str, float], ...]  # column -> its weight in the loss


@dataclass(frozen=True)
class Run:
    """A place in the tables of properties."""

    split: str  # random or chemsys
    percent: float  # of the labels of the training and validation sets
    seeds: int
    cohort: str = "A"  # A: all materials with a label; B: those with a protocol too
    also: tuple[str, ...] = ()  # arms besides those of the stage
    without: tuple[str, ...] = ()  # arms left out


@dataclass(frozen=True)
class Properties(Stage):
    """03_properties: scratch against pretrained."""

    targets: tuple[tuple[str, Weights], ...]  # groups that are fitted together: columns of materials.parquet
    arms: tuple[str, ...]  # of arms.ARMS, in every run
    runs: tuple[tuple[str, tuple[Run, ...]], ...]  # of each group of targets
    steps: int  # optimiser steps at all labels of cohort A
    min_steps: int  # at a hundredth of them or fewer
    batch_size: int
    learning_rate: float
    weight_decay: float
    compiled: bool  # train the layers of the crystal tower in bfloat16, compiled: 1.8 times as fast, by a C++ compiler
    bootstrap: int  # resamples


@dataclass(frozen=True)
class Release(Stage):
    """03b_release: the model that others use."""

    members: int  # of each ensemble of predictors
    index_size: int  # components that vectors are kept in, of the space's `embed_dim`
    micrographs: int  # that the error of int8 is measured on, of materials that pretraining has not seen
    queries: int  # of each modality, that the index is compared with the full vectors on
    foreign: int  # materials that the profile leaves out, on which the model is measured too
    bootstrap: int


@dataclass(frozen=True)
class Retrieval(Stage):
    """04_retrieval: structures and protocols, against counting elements."""

    levels: str  # mask levels
    learned_levels: str  # of these, where arms that read the text with a language model take part
    protocols_per_material: int  # at most so many, chosen by hash; 0: all
    hard_gallery: int  # the true material and its nearest by element Jaccard
    registered: int  # images that ask by registration too, seconds each; 0: all
    epochs: int  # of the retrieval heads and of the composition-only arm alike
    batch_size: int
    learning_rate: float
    bootstrap: int


@dataclass(frozen=True)
class Recommendation(Stage):
    """04b_recommendation: precursor sets and temperatures for compositions."""

    raw: str  # folder of the raw files, relative to the project
    width: int  # channels of the two towers
    dropout: float
    networks: int  # of several seeds, their scores averaged
    epochs: int
    batch_size: int
    learning_rate: float
    beam: int  # partial sets kept at each step
    trees: int  # of a temperature's boosted ensemble
    bootstrap: int


@dataclass(frozen=True)
class Defects(Stage):
    """05_defects: five classes in simulated micrographs."""

    hosts: int  # crystals
    images_per_class: int  # views per host, each in all five classes
    image_px: int
    pixel_A: float
    depth: int  # layers of the image network: 10, 18 or 50
    epochs: int  # of the image networks
    head_epochs: int  # of each arm's head
    batch_size: int
    learning_rate: float
    seeds: int  # of image networks and heads
    bootstrap: int


@dataclass(frozen=True)
class Ablations(Stage):
    """05b_ablations: one factor at a time, on features of images and texts that are made once."""

    variants: tuple[tuple[str, tuple[str, ...]], ...]  # of each group of variants.GROUPS; its base always
    seeds: int
    views: int  # images of each material
    epochs: int
    learning_rate: float  # of the contrastive training, whose other parameters are pretraining's
    label_percent: float  # of the training labels of formation energy
    steps: int  # of fine-tuning on these; its other parameters are those of the stage properties
    bootstrap: int


@dataclass(frozen=True)
class Atlas(Stage):
    """05c_atlas: the map of the space, one page."""

    attracted: int  # nearest neighbours of a crystal that t-SNE draws towards it
    iterations: int  # of t-SNE
    neighbours: int  # listed for each point, of each modality


@dataclass(frozen=True)
class Micrographs(Stage):
    """05d_micrographs: pictures registered with crystals, rendered ones and experimental ones."""

    raw: str  # folder of the raw files, relative to the project
    pictures: int  # rendered, of so many crystals
    ranked: int  # of these, and of each class of patches, that all crystals are ranked for
    views: int  # simulated for each class, that an image network is trained on
    depth: int  # of that network
    epochs: int
    head_epochs: int
    batch_size: int
    learning_rate: float
    resplits: int  # draws of the few patches that are labelled
    bootstrap: int


@dataclass(frozen=True)
class Paper(Stage):
    """06_paper: tables, figures, PDF."""

    title: str
    ablations: str  # profile whose ablations are printed; "": its own


STAGES: dict[str, type[Stage]] = {cls.__name__.lower(): cls for cls in Stage.__subclasses__()}
T = TypeVar("T")


def known(name: str, names: Collection[str], what: str) -> None:
    """Refuse a name that is not one of those there are, by a ValueError that has the nearest, and lists them."""
    if name not in names:
        near = (difflib.get_close_matches(name, names, n=1, cutoff=0.0) or [""])[0]
        raise ValueError(f"{what} {name!r}, the nearest is {near!r}; of {', '.join(names)}")


def build(cls: type[T], values: Mapping[str, Any], *, where: str) -> T:
    """Make a stage's config, or say what is wrong with its parameters.

    Raises:
        ValueError: an unknown key (with the nearest valid one), a missing key, or a value of another type.
    """
    fields = {f.name: f for f in dataclasses.fields(cls)}
    for key in values:
        known(key, fields, f"{where}: unknown parameter")
    needed = {key for key, f in fields.items() if f.default is f.default_factory is dataclasses.MISSING}
    missing = [key for key in fields if key in needed and key not in values]
    if missing:
        raise ValueError(f"{where}: missing parameter {missing[0]!r}")
    return cls(**{key: _typed(fields[key].type, value, where=f"{where}: {key}") for key, value in values.items()})


def _typed(kind: Any, value: Any, *, where: str) -> Any:
    """A value of YAML as a field's type, lists and maps as tuples, which can be a key; ValueError: another type."""
    if dataclasses.is_dataclass(kind) and isinstance(value, Mapping):
        return build(kind, value, where=where)
    if get_origin(kind) is Mapping and isinstance(value, Mapping):
        return {key: _typed(get_args(kind)[1], v, where=f"{where}.{key}") for key, v in value.items()}
    if get_origin(kind) is tuple:
        inner = get_args(kind)[0]
        if get_origin(inner) is tuple and get_args(inner)[1] is not Ellipsis:  # pairs of a key and a value
            if not isinstance(value, Mapping | tuple):
                raise ValueError(f"{where} must be a map, got {value!r} ({type(value).__name__})")
            pairs = dict(value).items()
            return tuple((key, _typed(get_args(inner)[1], v, where=f"{where}.{key}")) for key, v in pairs)
        if not isinstance(value, list | tuple):
            raise ValueError(f"{where} must be a list, got {value!r} ({type(value).__name__})")
        return tuple(_typed(inner, v, where=f"{where}[{i}]") for i, v in enumerate(value))
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind:
        name = "a map" if dataclasses.is_dataclass(kind) or get_origin(kind) is Mapping else kind.__name__
        raise ValueError(f"{where} must be {name}, got {value!r} ({type(value).__name__})")
    return value


def load(stage: str, profile: str, *, file: Path | None = None) -> Stage:
    """A stage's config for a profile: `base.<stage>` overridden by `<profile>.<stage>` of params.yaml.

    Raises:
        ValueError: see `build`; an unknown stage or profile; or no such file, or one that is no map of maps.
    """
    file = file or paths.PARAMS
    params = _maps(file)
    known(stage, STAGES, "unknown stage")
    known(profile, [key for key in params if key not in ("base", "profiles", "versions")], f"{file.name}: no profile")
    for section in ("base", profile):
        for key, values in params[section].items():
            known(key, STAGES, f"{file.name}: {section}: unknown stage")
            if not isinstance(values or {}, dict):
                raise ValueError(f"{file.name}: {section}.{key} must be a map, got {values!r}")
    merged = {**params["base"][stage], **(params[profile].get(stage) or {}), "profile": profile}
    return build(STAGES[stage], merged, where=f"{file.name}: {profile}.{stage}")


def _maps(file: Path) -> dict[str, dict[str, Any]]:
    """Sections of a params.yaml; raises as `load`."""
    try:
        params = parameters(file.read_text())
    except FileNotFoundError:
        raise ValueError(f"{file}: no such file; start in the project, or set MATALIGN_ROOT to its folder") from None
    except yaml.YAMLError as error:
        raise ValueError(f"{file.name}: not YAML: {error}") from None
    wrong = [key for key, part in params.items() if not isinstance(part, dict)] if isinstance(params, dict) else []
    if wrong or not isinstance(params, dict) or "base" not in params:
        raise ValueError(f"{file.name}: {wrong[0] if wrong else 'base'} must be a map of stages")
    return params


def version(kind: str) -> int | str:
    """Version of a kind of result, a part of its keys: a person raises it when its numbers change on purpose.

    It stands under `versions` of params.yaml; where there is none (an installed package), it is the package's.

    Raises:
        ValueError: no such kind.
    """
    if not paths.PARAMS.exists():
        return __version__
    versions = _maps(paths.PARAMS).get("versions", {})
    known(kind, versions, f"{paths.PARAMS.name}: versions lack")
    return versions[kind]


@functools.lru_cache(maxsize=4)
def parameters(text: str) -> dict[str, Any]:
    """What a params.yaml holds; parsed once, not for each key of a result."""
    return yaml.safe_load(text)
