"""A curated set of 24 materials, a random BERT of 4,000 parameters, and the parameters to train on them in seconds."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from transformers import BertConfig, BertModel

from matalign import config, towers
from matalign.data.dataset import Curated, Structures
from matalign.pretrain import encode
from matalign.views import draws

FCC = np.array([[0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]])
CATIONS = {"Li": 3, "Na": 11, "K": 19, "Rb": 37, "Cs": 55, "Ag": 47}
ANIONS = {"F": 9, "Cl": 17, "Br": 35, "I": 53}
WORDS = [*"abcdefghijklmnopqrstuvwxyz0123456789", "mix", "the", "salt", "and", "fire", "at", "in", "air", "grind"]


def curated() -> Curated:
    """Alkali and silver halides as rock salt; half have two protocols each, those of the first the same text."""
    rows, crystals, protocols = [], [], []
    for i, (cation, anion) in enumerate((c, a) for c in CATIONS for a in ANIONS):
        crystals.append(
            (np.array([CATIONS[cation], ANIONS[anion]]), np.array([[0, 0, 0], [0.5] * 3]), FCC * (5 + 0.1 * i))
        )
        rows.append(
            {
                "mp_id": f"mp-{100 + i}",
                "formula": cation + anion,
                "chemsys": "-".join(sorted([cation, anion])),
                "n_atoms": 2,
                "space_group": 225,
                "source": "test",
                **dict.fromkeys(
                    ["formation_energy_eV_atom", "band_gap_eV", "is_metal", "bulk_modulus_GPa", "shear_modulus_GPa"],
                    np.nan,
                ),
            }
        )
        for k in range(2 * (i % 2)):
            text = f"mix the salt and fire at {100 + 7 * i + k} in air" if i > 1 else "grind the salt"
            protocols.append(
                {
                    "protocol_id": f"p{i:02d}-{k}",
                    "mp_id": f"mp-{100 + i}",
                    "doi": f"10.1/{i}",
                    "method": "solid-state",
                    "target_formula": cation + anion,
                    "precursors": [cation, anion],
                    "max_temperature_C": 100.0 + i,
                    **{f"text_L{level}": text + f" {level}" for level in range(4)},
                    "train_ok": i != 23,
                }
            )
    materials = pd.DataFrame(rows)
    part = np.array(["train"] * 16 + ["val"] * 5 + ["excluded"] * 3)
    splits = pd.DataFrame({"mp_id": materials.mp_id, "random": "train", "chemsys": "train", "pretrain": part})
    return Curated(materials, Structures.pack(crystals), pd.DataFrame(protocols), splits, audit={})


def bert(folder: Path) -> Path:
    """Write a random two-layer BERT with a word-piece tokenizer."""
    folder.mkdir(parents=True)
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, *(f"##{w}" for w in WORDS[:36])]
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer"}))
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    BertModel(BertConfig(vocab_size=len(vocabulary), max_position_embeddings=160, **shape)).save_pretrained(folder)
    return folder


def pretrain(text_model: Path, **changes: object) -> config.Pretrain:
    """Parameters of a training of seconds."""
    base = config.load("pretrain", "tiny")
    values = {**vars(base), "text_model": str(text_model), "modalities": "crystal text", "threads": 1, "gpus": "auto"}
    values |= {"width": 8, "layers": 1, "order": 1, "embed_dim": 8, "batch_size": 6, "epochs": 3, "checkpoint_steps": 2}
    values |= {"protocol_repeats": 2, "val_materials": 100, "loss": "pairwise", "patience": 3, "seed": 0}
    values["control"] = False
    return config.build(config.Pretrain, {**values, **changes}, where="test")


def embed(model: encode.Model, modality: str, made: Curated, *, epoch: int = -1) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the materials that have a modality, whichever it is, and its vectors of the aligned space."""
    inputs = towers.load(modality).Inputs(model.config, made, model.towers[modality], model.device)
    rows = np.flatnonzero(inputs.has)
    keys = [draws.view_seed(model.config.seed, epoch, mp_id, 0) for mp_id in made.materials.mp_id[rows]]
    with torch.no_grad():
        z = model.aligned.encode(modality, inputs(rows, np.array(keys, np.uint64)))
    return rows, z.float().cpu().numpy()
