"""What the runs of a suite are made from: data sets, overlaps, checkpoints; each made once."""

from __future__ import annotations

import functools
import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from gnnrec.catalogue import Catalogue
from gnnrec.checkpoint import Checkpoint
from gnnrec.config import ModelConfig
from gnnrec.device import derive_seed
from gnnrec.errors import ConfigError, DataError
from gnnrec.model import build_model
from gnnrec.overlap import Overlap, Side, overlap, without
from gnnrec.runs import pretrain_run
from gnnrec.sources import Log, describe, open_file, open_log
from gnnrec.suite import SHUFFLED, Suite
from gnnrec.text import TextEncoder
from gnnrec.zoo import resolve

Say = Callable[[str], None]


@dataclass(frozen=True)
class DataSet:
    """A log as the models read it.

    Attributes:
        log: The log and its items.
        catalogue: With text vectors where the suite reads text.
        seconds: Time to encode the texts; little where they were in the cache.
        sha256: Digest of its pairs in raw ids.
    """

    log: Log
    catalogue: Catalogue
    seconds: float
    sha256: str

    @property
    def has_text(self) -> bool:
        """Whether its items have text vectors."""
        return self.catalogue.text is not None

    @property
    def side(self) -> Side:
        """What is compared with another data set."""
        data, items = self.catalogue.log, self.log.items
        texts = [""] * data.n_items if items is None else items.align(data.item_ids)[0]
        return Side(data, texts, self.catalogue.text)


class Materials:
    """Opens, compares and pretrains on demand; checkpoints stay in the folder.

    Args:
        suite: Says what there is.
        folder: Gets a folder for each checkpoint.
        device: Where to pretrain and to encode texts.
        mirror: Folder with copies of the data sets.
        say: Told what takes long.
    """

    def __init__(
        self, suite: Suite, folder: Path, device: str, mirror: Path | None, say: Say
    ) -> None:
        self.suite, self.folder, self.device = suite, folder, device
        self.mirror, self.say = mirror, say
        reads = suite.strict or "raw-text" in suite.arms
        reads = reads or any(settings.text for settings in suite.encoder.values())
        self.text_model = suite.text_model if reads else None
        # A few at a time: the logs of a long suite need not all be in memory.
        self.data_set = functools.lru_cache(maxsize=2)(self._data_set)
        self.overlap = functools.lru_cache(maxsize=4)(self._overlap)
        self._loaded = functools.lru_cache(maxsize=8)(Checkpoint.load)

    def check(self) -> None:
        """Refuse what no run could do, before the first.

        Raises:
            ConfigError: A retraining mode that an encoder does not have.
        """
        for encoder in self.suite.encoders:
            scratch, shuffled = self.scratch(encoder), self.suite.shuffled
            for arm in self.suite.arms_of(encoder):
                scratch.check_retrain(shuffled if arm == SHUFFLED else arm)

    def _data_set(self, name: str) -> DataSet:
        log = self.open(name)
        started = time.perf_counter()
        model = self.text_model
        encoder = None if model is None else TextEncoder(model, self.device)
        catalogue = Catalogue.build(log.interactions, log.items, encoder)
        seconds = time.perf_counter() - started
        return DataSet(log, catalogue, seconds, str(describe(log)["sha256"]))

    def open(self, name: str) -> Log:
        """Open a data set by its name in the suite."""
        own = self.suite.data.get(name)
        if own is None:
            return open_log(name, mirror=self.mirror)
        try:
            log = open_file(own.file, own.items, columns=own.columns, min_weight=own.min_weight)
        except DataError as error:
            hint = f" (in a suite: user_column = ... and so on under [data.{name}])"
            raise DataError(f"{error}{hint if '-column' in str(error) else ''}") from error
        return replace(log, name=name)

    def _overlap(self, source: str, target: str) -> Overlap:
        mine, theirs = self.data_set(source).side, self.data_set(target).side
        return overlap(mine, theirs, self.suite.near_text, self.suite.number_ids)

    @functools.cached_property
    def _text_dim(self) -> int:
        return 0 if self.text_model is None else TextEncoder(self.text_model, self.device).dim

    def model_config(self, encoder: str) -> ModelConfig:
        """The architecture of an encoder, which its arm from scratch shares."""
        settings = self.suite.encoder[encoder]
        text = settings.text
        return settings.pretrain.model.model_copy(
            update={
                "text_dim": self._text_dim if text else 0,
                "text_model": self.text_model if text else None,
            }
        )

    def scratch(self, encoder: str) -> Checkpoint:
        """An architecture with weights that nobody pretrained."""
        config = self.model_config(encoder)
        torch.manual_seed(derive_seed(0, "unused"))
        return Checkpoint("scratch", config, build_model(config).state_dict())

    def checkpoint(self, encoder: str, sources: tuple[str, ...], target: str) -> Checkpoint:
        """The encoder pretrained on sources, without what the target shares where that is strict.

        Raises:
            ConfigError: A source is the target itself.
        """
        settings = self.suite.encoder[encoder]
        target_sha256 = self.data_set(target).sha256
        if settings.checkpoint is not None:
            return self._not_of_itself(resolve(settings.checkpoint), target, target_sha256)
        config = settings.pretrain.model_copy(update={"model": self.model_config(encoder)})
        strict = [self.suite.number_ids, self.suite.near_text] if self.suite.strict else None
        used = {*sources, *([target] if strict else [])}
        made_from = {
            "config": config.model_dump(mode="json"),
            "data": {n: d.identity() for n, d in self.suite.data.items() if n in used},
            "strict": strict,
        }
        digest = hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()[:8]
        name = f"{encoder}.{'+'.join(sources)}"
        if self.suite.strict:
            name += f".without.{target}"
        folder = self.folder / f"{name}.{digest}"
        if not folder.is_dir():
            logs = [self.open(source) for source in sources]
            for log in logs:
                _refuse_itself(log.name, str(describe(log)["sha256"]), target, target_sha256)
            if self.suite.strict:
                logs = [without(log, self.overlap(log.name, target)) for log in logs]
            self.say(f"pretraining {name}")
            pretrain_run(logs, config, name=folder.name, device=self.device).save(folder)
        return self._not_of_itself(folder, target, target_sha256)

    def _not_of_itself(self, folder: Path, target: str, target_sha256: str) -> Checkpoint:
        found: Checkpoint = self._loaded(folder)
        for source in found.training["sources"]:
            _refuse_itself(source["name"], source["sha256"], target, target_sha256)
        return found


def _refuse_itself(source: str, source_sha256: str, target: str, target_sha256: str) -> None:
    if source == target or source_sha256 == target_sha256:
        raise ConfigError(
            f"found the target {target} in its own source {source}, expected other data; leave "
            "one of them out of the suite"
        )
