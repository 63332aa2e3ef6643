import dataclasses

import pytest
import yaml

import matalign
from matalign import config, paths

PROFILES = [key for key in yaml.safe_load(paths.PARAMS.read_text()) if key not in ("base", "profiles", "versions")]


@pytest.fixture
def params(tmp_path):
    """A params.yaml to break: a function that edits the parsed file and gives the path of the result."""

    def write(edit):
        values = yaml.safe_load(paths.PARAMS.read_text())
        edit(values)
        file = tmp_path / "params.yaml"
        file.write_text(yaml.safe_dump(values, sort_keys=False))
        return file

    return write


@pytest.mark.parametrize("profile", PROFILES)
def test_every_profile_defines_every_stage(profile):
    for stage, cls in config.STAGES.items():
        cfg = config.load(stage, profile)
        assert type(cfg) is cls
        assert cfg.profile == profile


def test_profiles_are_there():
    assert {"sample", "laptop", "ablations", "full_cpu", "full", "tiny"} <= set(PROFILES)


def test_a_profile_overrides_base_and_leaves_the_rest(params):
    def edit(values):
        values["base"]["pretrain"] |= {"epochs": 6, "width": 64}
        values["sample"]["pretrain"] = {"epochs": 2}

    cfg = config.load("pretrain", "sample", file=params(edit))
    assert (cfg.epochs, cfg.width) == (2, 64)


def test_unknown_key_names_file_key_and_nearest(params):
    file = params(lambda values: values["tiny"]["pretrain"].update(epoch=1))
    with pytest.raises(ValueError, match=r"params\.yaml: tiny\.pretrain: unknown parameter 'epoch'.*'epochs'"):
        config.load("pretrain", "tiny", file=file)


def test_unknown_section_names_the_nearest(params):
    file = params(lambda values: values["tiny"].update(pretraining={}))
    with pytest.raises(ValueError, match=r"tiny: unknown stage 'pretraining'.*'pretrain'"):
        config.load("curate", "tiny", file=file)


def test_missing_key(params):
    file = params(lambda values: values["base"]["curate"].pop("workers"))
    with pytest.raises(ValueError, match=r"sample\.curate: missing parameter 'workers'"):
        config.load("curate", "sample", file=file)


@pytest.mark.parametrize(
    ("key", "value", "kind"),
    [
        ("epochs", "six", "int"),
        ("epochs", 6.0, "int"),
        ("epochs", True, "int"),
        ("gpus", 4, "str"),
        ("learning_rate", "3e-4", "float"),  # what YAML 1.1 makes of 3e-4, without a dot
        ("learning_rate", None, "float"),
    ],
)
def test_wrong_type(params, key, value, kind):
    file = params(lambda values: values["full"]["pretrain"].update({key: value}))
    with pytest.raises(ValueError, match=rf"params\.yaml: full\.pretrain: {key} must be {kind}, got "):
        config.load("pretrain", "full", file=file)


def test_a_whole_number_is_a_float_where_one_is_expected(params):
    file = params(lambda values: values["base"]["curate"].update(max_temperature_C=2000))
    value = config.load("curate", "sample", file=file).max_temperature_C
    assert value == 2000.0
    assert type(value) is float


def test_unknown_stage_and_profile():
    with pytest.raises(ValueError, match=r"unknown stage 'train', the nearest is .*; of curate, pretrain"):
        config.load("train", "sample")
    with pytest.raises(ValueError, match=r"params\.yaml: no profile 'desktop', the nearest is .*; of sample, laptop"):
        config.load("curate", "desktop")


def test_configs_are_frozen_and_keys():
    cfg = config.load("curate", "sample")
    with pytest.raises(dataclasses.FrozenInstanceError):
        cfg.seed = 1
    for stage in config.STAGES:
        assert hash(config.load(stage, "sample")) == hash(config.load(stage, "sample"))
        assert config.load(stage, "sample") == config.load(stage, "sample")


def test_lists_and_maps_become_tuples_and_what_is_wrong_in_them_is_named():
    cfg = config.load("properties", "tiny")
    assert dict(dict(cfg.targets)["electronic"])["band_gap_eV"] == 0.2
    assert dict(cfg.runs)["elastic"] == (config.Run("random", 100.0, 1, without=("cgconv",)),)
    assert config.build(config.Properties, vars(cfg), where="again") == cfg
    run = {"split": "random", "percent": 5, "seeds": 1}
    for runs, message in (
        ({"elastic": run}, "params: runs.elastic must be a list"),
        (
            {"elastic": [{**run, "seed": 1}]},
            r"runs.elastic\[0\]: unknown parameter 'seed', the nearest is 'seeds'",
        ),
        ({"elastic": [{"split": "random", "seeds": 1}]}, r"runs.elastic\[0\]: missing parameter 'percent'"),
        ({"elastic": [{**run, "also": "text"}]}, r"runs.elastic\[0\]: also must be a list, got 'text'"),
    ):
        with pytest.raises(ValueError, match=message):
            config.build(config.Properties, vars(cfg) | {"runs": runs}, where="params")


def test_every_kind_has_a_version_and_an_unknown_one_is_named(tmp_path, monkeypatch):
    written = yaml.safe_load(paths.PARAMS.read_text())["versions"]
    assert len(written) == 12
    assert all(config.version(kind) == written[kind] >= 1 for kind in written)
    with pytest.raises(ValueError, match=r"versions lack 'paper', the nearest is .*; of curate, embed"):
        config.version("paper")
    monkeypatch.setattr(paths, "PARAMS", tmp_path / "absent.yaml")  # an installed package
    assert config.version("curate") == matalign.__version__
