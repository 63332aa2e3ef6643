"""Work that is packed here, done in pieces elsewhere and unpacked here is the work that would have been done here."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml

from matalign import away, config, curate, dataset, defects, embed, fits, launch, paths, scratch
from matalign.encoders import text

REPOSITORY = Path(__file__).parents[1]
RUNS = "random:100:1:-cgconv B:random:100:1:-cgconv:+pretrained_fusion:+text"
STAGES = ("pretrain", "properties", "defects-head")


class Place:
    """A folder to which the project is moved: its parameters and sample, and nothing yet made."""

    def __init__(self, root, patch):
        self.root, self.patch = root, patch
        root.mkdir()
        params = yaml.safe_load((REPOSITORY / "params.yaml").read_text())
        params["tiny"]["pretrain"]["modalities"] = "crystal text"  # an image tower is large
        params["tiny"]["properties"] |= {"targets": "formation_energy_eV_atom", "runs": RUNS}
        (root / "params.yaml").write_text(yaml.safe_dump(params))
        shutil.copytree(REPOSITORY / "data" / "sample", root / "data" / "sample")

    def enter(self, scratch="scratch"):
        """Be here, with resume state in the named folder."""
        at = {"ROOT": self.root, "DATA": self.root / "data", "SCRATCH": self.root / scratch}
        for name, folder in {
            **at,
            "PARAMS": self.root / "params.yaml",
            "SAMPLE": self.root / "data" / "sample",
        }.items():
            self.patch.setattr(paths, name, folder)
        self.patch.setattr(away, "FOLDER", self.root / ".away")
        self.patch.setenv("MATALIGN_ROOT", str(self.root))  # of the processes that are started
        self.patch.setenv("MATALIGN_SCRATCH", str(self.root / scratch))
        self.patch.setenv("MATALIGN_FITS", str(self.root / f"{scratch}.jsonl"))
        for cached in (fits.task, fits.graphs, fits.frozen, embed.fingerprint):
            cached.cache_clear()

    def results(self):
        """What pretraining, fits and defects come to, from scratch where it holds them."""
        model = launch.pretrain(config.load("pretrain", "tiny"))
        found = {str(file.relative_to(model)): file.read_bytes() for file in model.glob("*")}
        for fit, result in fits.fit_all(config.load("properties", "tiny")).items():
            found |= {f"{fit} {part}": result[part].tolist() for part in ("val", "test")}
        predictions = defects.run(config.load("defects", "tiny"))
        return found | {arm: values.tolist() for arm, values in predictions.probability.items()}

    def notes(self, scratch="scratch"):
        """Of each stage what was computed, loaded, and loaded from elsewhere."""
        lines = [json.loads(line) for line in (self.root / f"{scratch}.jsonl").read_text().splitlines()]
        return {(line["stage"], line["state"], "elsewhere" in line) for line in lines}


@pytest.fixture(scope="module")
def patch():
    with pytest.MonkeyPatch.context() as patch:
        yield patch
    for cached in (fits.task, fits.graphs, fits.frozen, embed.fingerprint):
        cached.cache_clear()


@pytest.fixture(scope="module")
def here(tmp_path_factory, patch):
    """The tiny profile, curated."""
    place = Place(tmp_path_factory.mktemp("away") / "here", patch)
    patch.setattr(away.check, "git", lambda *_: "params.yaml\0")
    place.enter()
    curate.run(config.load("curate", "tiny"))
    return place


@pytest.fixture(scope="module")
def parts(here, patch):
    """What came back of work that was stopped twice, once by time and once by a kill; in files of 20 kB."""
    _, own = away.pack("tiny")
    assert own == (here.root / "params.yaml").stat().st_size
    there = Place(here.root.parent / "there", patch)
    shutil.copytree(here.root / ".away", there.root / ".away")
    there.enter()
    assert not away.work("tiny", minutes=0.01)
    assert not list(paths.SCRATCH.glob("pretrain/*/model"))
    command = [sys.executable, "-m", "matalign.away", "work", "--profile", "tiny"]
    with open(there.root / "output", "w") as output:
        killed = subprocess.Popen(command, env=os.environ, stdout=output, stderr=output)
        while not list(paths.SCRATCH.glob("pretrain/*/model")):
            assert killed.poll() is None, (there.root / "output").read_text()
            time.sleep(0.05)
        killed.send_signal(signal.SIGKILL)
        killed.wait()
    assert not list(paths.SCRATCH.glob("defects-head/*/result.safetensors"))
    patch.setattr(away, "PART_BYTES", 20_000)
    assert away.work("tiny", out=there.root / "back")
    patch.setattr(away, "PART_BYTES", 15_000_000)
    here.enter()
    return sorted((there.root / "back").iterdir())


def test_what_comes_back_is_loaded_and_is_what_would_have_been_computed_here(here, parts):
    assert len(parts) > 1
    assert all(part.stat().st_size <= 20_000 for part in parts)
    new = away.unpack(parts)
    assert {name.partition("/")[0] for name in new} == set(STAGES)
    assert away.unpack(parts) == []
    found = here.results()
    notes = here.notes()
    assert {note for note in notes if note[0] in ("pretrain", "defects-head")} == {
        ("pretrain", "loaded", True),
        ("defects-head", "loaded", True),
    }
    assert not any(stage == "defects-network" for stage, _, _ in notes)
    computed = {fit.arm for fit in fits.plan(config.load("properties", "tiny"))} - {"dummy", "composition"}
    assert computed
    elsewhere = json.loads(next(paths.SCRATCH.glob(f"pretrain/*/{scratch.ELSEWHERE}")).read_text())
    assert elsewhere["torch"] == embed.torch.__version__
    assert elsewhere["text_features"] == "float32"
    here.enter("afresh")
    assert here.results() == found
    assert {state for stage, state, _ in here.notes("afresh") if stage in STAGES} == {"computed"}
    here.enter()


def test_results_of_other_code_or_data_are_refused(here, parts, monkeypatch):
    digest = scratch.code_digest
    monkeypatch.setattr(scratch, "code_digest", lambda module: digest(module) + ("x" if module == "fits" else ""))
    with pytest.raises(ValueError, match=r"tiny-01-of-\d\d\.tar: of other code for properties; take the commit"):
        away.unpack(parts)
    monkeypatch.undo()
    curated = dataset.read(paths.curated("tiny"))
    monkeypatch.setattr(dataset, "read", lambda folder: dataset.Curated(**{**vars(curated), "digest": "other"}))
    with pytest.raises(ValueError, match=f"of data {curated.digest}, here is other"):
        away.unpack(parts)


def test_a_missing_or_damaged_part_is_told(here, parts, tmp_path):
    with pytest.raises(ValueError, match="are not all parts of one run"):
        away.unpack(parts[1:])
    copies = [Path(shutil.copy(part, tmp_path)) for part in parts]
    content = bytearray(copies[0].read_bytes())
    content[5000:5040] = bytes(40)
    copies[0].write_bytes(content)
    here.enter("empty")
    with pytest.raises(ValueError, match="damaged"):
        away.unpack(copies)
    here.enter()


def test_results_without_room_wait_and_models_go_first(here, parts, monkeypatch, tmp_path):
    everything, none = away.send("tiny", tmp_path / "all")
    assert none == 0
    whole = sum(part.stat().st_size for part in everything)
    monkeypatch.setattr(away, "PART_BYTES", 10**9)
    (sent,), left = away.send("tiny", tmp_path, room=whole - 10_000)
    names = list(away.untarred(sent.read_bytes()))[1:]
    assert names[0].startswith("pretrain/")
    assert sent.stat().st_size <= whole - 10_000
    assert left > 0
    assert len(names) + left == len(away.untarred(b"".join(part.read_bytes() for part in sorted(everything)))) - 1


def test_a_pack_that_is_too_large_is_refused(here, monkeypatch):
    monkeypatch.setattr(away, "PACK_BYTES", 20_000)
    with pytest.raises(ValueError, match=r"the pack has 0\.\d MB beside the project's 0\.0 MB: over 0 MB; try --half"):
        away.pack("tiny")


def test_texts_that_were_taken_along_have_their_features_and_no_others(here, tmp_path):
    cfg, texts = config.load("pretrain", "tiny"), ["mix the salt", "fire at 900 in air"]
    tower = text.TextTower()
    for half in (False, True):
        text.carry(tower, texts, tmp_path, half=half)
        carried = text.CarriedTower(tmp_path)
        assert (carried.dim, carried.fingerprint) == (tower.dim, tower.fingerprint)
        assert carried.absent == sum(p.numel() for p in tower.parameters())
        np.testing.assert_allclose(
            carried.features(texts[::-1]), tower.features(texts[::-1]), rtol=1e-3, atol=1e-6 * half
        )
    with pytest.raises(ValueError, match="1 of 2 texts have no features here, first 'stir'"):
        carried.features([texts[0], "stir"])
    assert isinstance(text.build(cfg), text.TextTower)
