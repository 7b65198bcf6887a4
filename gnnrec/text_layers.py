"""The last layers of a sentence encoder, as a model that is trained on interactions."""

from __future__ import annotations

import copy
import hashlib
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from gnnrec.errors import ConfigError

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

RANK = 8
Delta = dict[str, Tensor]
_BATCH = 64
_PROBE = ("a", "texts of two lengths")
_TOLERANCE = 5e-3  # of a unit vector: what half precision leaves of a hidden state


class LowRank(nn.Module):
    """W x + up down x, up starting at zero: what is learned beside a frozen map (Hu et al. 2021).

    The difference is applied to x, not to W: a gradient of W's size is never made.

    Args:
        linear: W and its bias, frozen.
        rank: Of the difference.
    """

    def __init__(self, linear: nn.Linear, rank: int) -> None:
        super().__init__()
        self._linear = [linear]  # in a list: not a part of this model
        n_out, n_in = linear.weight.shape
        self.up = nn.Parameter(torch.zeros(n_out, rank))
        self.down = nn.Parameter(torch.randn(rank, n_in) / math.sqrt(n_in))

    def forward(self, x: Tensor) -> Tensor:
        """Return (..., n_out)."""
        found: Tensor = self._linear[0](x)
        return found + (x @ self.down.T) @ self.up.T


@dataclass(frozen=True)
class HiddenTexts:
    """Texts as the first trained layer gets them: what the frozen layers below make of them.

    Attributes:
        tokens: (n_tokens, width) float16, one text after the other.
        start: (n_texts + 1,) int64, where each text begins.
    """

    tokens: Tensor
    start: np.ndarray

    def padded(self, index: np.ndarray, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return (n, longest, width) float32 and the (n, longest) mask of some texts."""
        begin, length = self.start[index], np.diff(self.start)[index]
        place = np.arange(max(length.max(initial=1), 1))
        mask = place < length[:, None]
        rows = torch.from_numpy(np.where(mask, begin[:, None] + place, 0))
        hidden = self.tokens[rows].to(device).float()
        there = torch.from_numpy(mask).to(device)
        return hidden * there[..., None], there.long()


class TextTail(nn.Module):
    """The last K layers of a sentence encoder and its pooling, with low-rank differences to train.

    Works on encoders of the BERT family as sentence-transformers loads them: embeddings, then one
    list of layers. What the layers below make of a text is constant and computed once.

    Args:
        encoder: What sentence-transformers loaded; taken over, and changed by `start`.
        n_layers: K.
        rank: Of each linear map's difference.
        start: Differences to begin with; those of layers below stay as they are.

    Raises:
        ConfigError: The encoder has fewer layers, or is not of that form.
    """

    def __init__(
        self,
        encoder: SentenceTransformer,
        n_layers: int,
        rank: int = RANK,
        start: Delta | None = None,
    ) -> None:
        super().__init__()
        self._whole = [encoder]  # in a list: not a part of this model
        whole = transformer(encoder)
        place, layers = _layers(whole)
        if not 1 <= n_layers <= len(layers):
            raise ConfigError(
                f"--retrain text:{n_layers}: the text encoder has {len(layers)} layers; expected "
                f"text:1 to text:{len(layers)}"
            )
        self.first = len(layers) - n_layers
        self.low_rank = nn.ModuleDict()  # before the tail: parameters go by their first name
        self.device = next(whole.parameters()).device
        below = {k: v for k, v in (start or {}).items() if _layer(k) < self.first}
        apply_delta(encoder, below)
        self._frozen = f"{whole.config.name_or_path}\0{delta_sha256(below)}\0{self.first}"
        self.n_frozen = sum(part.numel() for part in whole.parameters())
        self.tail = copy.deepcopy(whole).requires_grad_(False).eval()
        self.tail.embeddings = _Given()
        kept = nn.ModuleList(list(_layers(self.tail)[1])[self.first :])
        self.tail.get_submodule(place.rpartition(".")[0]).register_module(
            place.rpartition(".")[2], kept
        )
        self.pooling = nn.ModuleList(copy.deepcopy(part) for part in list(encoder)[1:])
        for number, layer in enumerate(kept):
            for name, linear in list(layer.named_modules()):
                if isinstance(linear, nn.Linear):
                    part = LowRank(linear, rank).to(self.device)
                    self.low_rank[f"{self.first + number}.{name}".replace(".", "/")] = part
                    layer.set_submodule(name, part)
        self._load(start or {})
        self._check()

    def reads(self, texts: list[str]) -> str:
        """Return a digest of what `hidden` depends on: same digest, same hidden states."""
        digest = hashlib.sha256(self._frozen.encode())
        for text in texts:
            digest.update(hashlib.sha256(text.encode()).digest())
        return digest.hexdigest()

    def hidden(self, texts: list[str], progress: bool = False) -> HiddenTexts:
        """Return what the frozen layers make of texts. Cost: theirs, once a text."""
        encoder, model = self._whole[0], transformer(self._whole[0])
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        found: list[Tensor] = [torch.empty(0)] * len(texts)
        bar = tqdm(total=len(texts), desc="reading texts", delay=1, disable=not progress)
        for begin in range(0, len(order), _BATCH):
            part = order[begin : begin + _BATCH]
            given = _tokens(encoder, [texts[i] for i in part], self.device)
            with torch.no_grad():
                states = model(**given, output_hidden_states=True).hidden_states[self.first]
            for row, i in enumerate(part):
                there = given["attention_mask"][row].bool()
                found[i] = states[row][there].half().cpu()
            bar.update(len(part))
        bar.close()
        start = np.concatenate([[0], np.cumsum([len(part) for part in found])])
        return HiddenTexts(torch.cat(found) if found else torch.empty(0, 1), start)

    def forward(self, texts: HiddenTexts, index: np.ndarray) -> Tensor:
        """Return (n, dim) float32 unit vectors of some of the texts; gradients reach `low_rank`."""
        # By length, so that little is computed of padding.
        order = np.argsort(np.diff(texts.start)[index], kind="stable")
        parts = [
            self._pooled(*texts.padded(index[order[begin : begin + _BATCH]], self.device))
            for begin in range(0, len(order), _BATCH)
        ]
        back = torch.from_numpy(np.argsort(order)).to(self.device)
        return torch.cat(parts).index_select(0, back)

    def _pooled(self, hidden: Tensor, mask: Tensor) -> Tensor:
        self.tail.embeddings.hidden = hidden
        ids = torch.zeros_like(mask)
        features: Any = {
            "token_embeddings": self.tail(input_ids=ids, attention_mask=mask)[0],
            "attention_mask": mask,
        }
        for part in self.pooling:
            features = part(features)
        vectors: Tensor = features["sentence_embedding"]
        return nn.functional.normalize(vectors, dim=1)

    def delta(self, below: Delta | None = None) -> Delta:
        """Return the differences in half precision, with those of layers `below`."""
        found = {
            f"{name.replace('/', '.')}.{half}": getattr(part, half).detach().cpu().half()
            for name, part in self.low_rank.items()
            for half in ("down", "up")
        }
        kept = {k: v for k, v in (below or {}).items() if _layer(k) < self.first}
        return dict(sorted((kept | found).items()))

    def _load(self, start: Delta) -> None:
        for name, part in self.low_rank.items():
            key = name.replace("/", ".")
            if f"{key}.up" not in start:
                continue
            for half, own in part.named_parameters():
                given = start[f"{key}.{half}"]
                if given.shape != own.shape:
                    raise ConfigError(
                        f"found a text delta of shape {tuple(given.shape)} for {key}; expected "
                        f"{tuple(own.shape)}"
                    )
                own.data.copy_(given)

    def _check(self) -> None:
        """Compare with the whole encoder: other families of layers may hide what this misses."""
        own = {k: v for k, v in self.delta().items() if _layer(k) >= self.first}
        whole = copy.deepcopy(self._whole[0])
        apply_delta(whole, own)
        expected = whole.encode(list(_PROBE), convert_to_tensor=True, normalize_embeddings=True)
        with torch.no_grad():
            found = self(self.hidden(list(_PROBE)), np.arange(len(_PROBE)))
        if not float((found - expected.float()).norm(dim=1).max()) <= _TOLERANCE:
            kind = transformer(whole).config.model_type
            raise ConfigError(
                f"--retrain text: found a {kind} encoder, whose last layers cannot be run alone; "
                "expected one like BERT, or a frozen encoder"
            )


class _Given(nn.Module):
    """Stands where token embeddings are looked up, and hands over hidden states instead."""

    hidden: Tensor

    def forward(self, *_: object, **__: object) -> Tensor:
        return self.hidden


def apply_delta(encoder: SentenceTransformer, delta: Delta) -> None:
    """Add up down to the encoder's matrices, in place.

    Raises:
        ConfigError: A name or a shape is not the encoder's.
    """
    if not delta:
        return
    layers = _layers(transformer(encoder))[1]
    for key in delta:
        if not key.endswith(".up"):
            continue
        number, _, name = key.removesuffix(".up").partition(".")
        try:
            weight = layers[int(number)].get_parameter(f"{name}.weight")
            change = delta[key].float() @ delta[f"{number}.{name}.down"].float()
            weight.data += change.to(weight)
        except (AttributeError, KeyError, IndexError, ValueError, RuntimeError) as error:
            raise ConfigError(
                f"the text delta's {key} does not fit the text encoder ({error}); it was made for "
                "another one"
            ) from error


def check_delta(delta: Delta) -> None:
    """Check that a delta is finite half-precision pairs (n_out, rank) and (rank, n_in).

    Raises:
        ConfigError: It is something else.
    """
    names = {key.rpartition(".")[0] for key in delta}
    for name in names:
        up, down = delta.get(f"{name}.up"), delta.get(f"{name}.down")
        if (
            not name.partition(".")[0].isdigit()
            or up is None
            or down is None
            or not up.ndim == down.ndim == 2
            or up.shape[1] != down.shape[0]
            or not all(half.dtype == torch.float16 and half.isfinite().all() for half in (up, down))
        ):
            raise ConfigError(f"{name} is not a pair of finite float16 matrices")
    if len(delta) != 2 * len(names):
        raise ConfigError(f"found {len(delta)} tensors for {len(names)} matrices")


def delta_sha256(delta: Delta) -> str:
    """Digest of a delta's names and bits."""
    digest = hashlib.sha256()
    for name, tensor in sorted(delta.items()):
        digest.update(f"{name}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def transformer(encoder: SentenceTransformer) -> Any:  # noqa: ANN401 (a model of transformers)
    """Return the transformer that makes the token vectors."""
    first: Any = next(iter(encoder))
    return first.auto_model


def _layers(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """Name and list of the layers: the longest list of alike modules."""
    lists = [
        (name, part) for name, part in model.named_modules() if isinstance(part, nn.ModuleList)
    ]
    if not lists:
        raise ConfigError("--retrain text: the text encoder has no list of layers to retrain")
    return max(lists, key=lambda pair: len(pair[1]))


def _layer(key: str) -> int:
    return int(key.partition(".")[0])


def _tokens(
    encoder: SentenceTransformer, texts: list[str], device: torch.device
) -> dict[str, Tensor]:
    given: Any = encoder.preprocess(texts)
    wanted = ("input_ids", "attention_mask", "token_type_ids")
    return {name: given[name].to(device) for name in wanted if name in given}
