"""A released model of 24 salts and a random BERT, made by the stage's own code in a folder of its own."""

import contextlib
import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import plausible
import pytest
import tiny

from matalign import cache, config, paths
from matalign.data import dataset
from matalign.data.dataset import Curated
from matalign.pretrain import checkpoint, encode, train
from matalign.release import build
from matalign.tasks.properties.task import frozen, graphs, task

LABELS = {"formation_energy_eV_atom": -1.0, "band_gap_eV": 4.0, "bulk_modulus_GPa": 50.0, "shear_modulus_GPa": 20.0}
GROUPS = [  # fitted together; arms, the better one first
    ({"formation_energy_eV_atom": 1.0, "band_gap_eV": 0.2, "is_metal": 0.1}, ("scratch", "pretrained")),
    ({"bulk_modulus_GPa": 1.0, "shear_modulus_GPa": 1.0}, ("cgconv", "scratch")),
]


def curated() -> Curated:
    """The salts with labels that rise with the row, the gap of every third nil; three parts of the random split."""
    made = tiny.curated()
    rise = np.linspace(1, 2, len(made.materials))
    labels = {name: start * rise for name, start in LABELS.items()}
    labels["band_gap_eV"][::3] = 0.0
    labels["is_metal"] = (labels["band_gap_eV"] == 0).astype(float)
    labels["shear_modulus_GPa"][::3] = np.nan
    part = np.array(["train", "val", "train", "test"] * 6)
    splits = made.splits.assign(random=part, pretrain=np.where(part == "test", "excluded", part))
    return dataclasses.replace(made, materials=made.materials.assign(**labels), splits=splits)


def metrics() -> dict:
    """Of the stage properties: which arms there were, and their errors on validation."""
    rows = []
    for targets, arms in GROUPS:
        for error, arm in enumerate(arms):
            place = {"targets": targets, "arm": arm, "cohort": "A", "split": "random", "label_percent": 100.0}
            rows.append({**place, "seed": 0, "val_error": dict.fromkeys(targets, float(error))})
    return {"fits": rows}


@contextlib.contextmanager
def model(root: Path):
    """Make it in a folder, which the project is moved to as long as the context lasts.

    Yields:
        The folder of the model, its metrics, its stage's config.
    """
    cfg = tiny.pretrain(tiny.bert(root / "bert"), modalities="crystal text image", image_px=32, epochs=1)
    caches = (task, graphs, frozen, encode.fingerprint)
    with pytest.MonkeyPatch.context() as patch:
        for name, folder in {"ROOT": root, "DATA": root / "data", "SCRATCH": root / "scratch"}.items():
            patch.setattr(paths, name, folder)
        for kept in caches:
            kept.cache_clear()
        dataset.write(paths.curated("tiny"), curated())
        shutil.copy(paths.SAMPLE.parent / "sources.yaml", paths.DATA)
        (root / "run").mkdir()
        trained = train.fit(cfg, root / "run", max_steps=1)
        results = paths.results("tiny")
        (results / "metrics").mkdir(parents=True)
        trained.rename(results / "pretrained")
        made = {"curate": plausible.metrics()["curate"], "properties": metrics()}
        made["pretrain"] = checkpoint.metrics(results / "pretrained")
        for stage, values in made.items():
            cache.write_json(results / "metrics" / f"{stage}.json", values)
        stage = config.load("release", "tiny", file=Path(__file__).parents[1] / "params.yaml")
        (paths.DATA / "sample").symlink_to(paths.SAMPLE)  # of whose crystals the set has none
        made = json.loads(json.dumps(build.build(stage)))
        (paths.DATA / "sample").unlink()  # else recipes would be of these
        yield results / "model", made, stage
        for kept in caches:
            kept.cache_clear()
