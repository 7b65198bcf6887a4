"""Pretraining a channel blend on many sub-graphs, and weighing its channels anew on a target."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from tqdm import tqdm

from gnnrec.blend import ChannelBlend
from gnnrec.bridge import BRIDGE_RANK, Bridge
from gnnrec.config import PretrainConfig, TransferConfig
from gnnrec.device import numpy_generator
from gnnrec.episodes import Source, sample_episode
from gnnrec.features import GraphInput, text_table
from gnnrec.lessons import Lesson, lesson, ndcg_loss, user_ndcg
from gnnrec.loop import TrainResult, optimise
from gnnrec.sampling import Episode
from gnnrec.variation import made_bridge, made_text

_VALIDATION_SHARE = 0.15
_DOUBT = 2.0  # standard errors by which a from-scratch fit has to be better to be kept
_PRETRAINING_USERS = 120  # of one sub-graph: more sub-graphs say more than more users


def pretrain_blend(
    model: ChannelBlend,
    sources: list[Source],
    config: PretrainConfig,
    device: torch.device | str,
    log: Path | None,
) -> tuple[ChannelBlend, TrainResult]:
    """Learn how to weigh channels on graphs of many sizes, then add the sources' item tables.

    Half of the sub-graphs get a bridge from users of the same source who are not in them, to a
    random share of their items and with another popularity, as a near source would give.
    """
    lessons: list[Lesson] = []
    total = config.n_lessons * len(sources)
    for number in tqdm(range(total), desc="sampling sub-graphs", delay=1):
        rng = numpy_generator(config.seed, "lessons", number)
        source = sources[number % len(sources)]
        episode = sample_episode(source, config, rng, device=device)
        bridged, varied = rng.random() < 0.5, rng.random() < config.varied_texts
        bridge = made_bridge(source, episode, rng) if bridged else None
        if varied and model.config.text_dim and episode.input.item_text is not None:
            episode.input = episode.input.with_text(made_text(source, episode, rng))
        if bridge is not None:
            episode.input.kept["bridges"] = [bridge]
        drawn = lesson(model, episode, number, max_users=_PRETRAINING_USERS)
        if drawn is not None:
            lessons.append(drawn.light())
    n_held_out = max(1, int(len(lessons) * _VALIDATION_SHARE))
    held_out, kept = lessons[:n_held_out], lessons[n_held_out:] or lessons
    rng = numpy_generator(config.seed, "order")
    order = np.concatenate(
        [rng.permutation(len(kept)) for _ in range(-(-config.weigh.max_steps // len(kept)))]
    )
    result = optimise(
        model,
        lambda step: ndcg_loss(model, kept[order[step]]),
        model.trained_parameters("full"),
        lambda m: -float(user_ndcg(m, held_out).mean()),
        config.weigh,
        log=log,
        label="pretraining",
        decay_learning_rate=True,
        depths=model.depths(model.trained_parameters("full")),
    )
    return _with_bridges(model, sources, config, device).eval(), result


def _with_bridges(
    model: ChannelBlend, sources: list[Source], config: PretrainConfig, device: torch.device | str
) -> ChannelBlend:
    """Return the model with a table of each source's most popular items that have a text."""
    bridges = []
    for source in sources:
        if source.item_text is None or not config.bridge_items or not model.config.text_dim:
            continue
        text = text_table(source.item_text, source.n_items)
        x = GraphInput(source.graph, text, spectral_rank=BRIDGE_RANK, device=device)
        degrees = np.where(np.abs(source.item_text).sum(axis=1) > 0, x.graph.item_degrees, 0)
        codes = np.argsort(-degrees, kind="stable")[: config.bridge_items]
        codes = np.sort(codes[degrees[codes] > 0])
        if not len(codes):
            continue
        bridge = Bridge(len(codes), model.config.text_dim).to(device)
        bridge.take(x, torch.from_numpy(codes).to(device))
        bridges.append(bridge)
    sizes = tuple(len(bridge.text) for bridge in bridges)
    whole = ChannelBlend(model.config.model_copy(update={"bridges": sizes})).to(device)
    state = model.state_dict()
    for number, bridge in enumerate(bridges):
        state |= {f"bridges.{number}.{name}": table for name, table in bridge.state_dict().items()}
    whole.load_state_dict(state)
    return whole


@dataclass(frozen=True)
class Weighed:
    """A blend fitted to a target, what its training did, and which start the guard kept."""

    model: ChannelBlend
    result: TrainResult
    choice: str


def weigh(
    fresh: Callable[[], ChannelBlend],
    pretrained: ChannelBlend,
    trained: list[str],
    episodes: list[Episode],
    validation: Episode | None,
    whole: GraphInput,
    config: TransferConfig,
    kept: dict[str, Any] | None = None,
) -> Weighed:
    """Fit the named weights on a target's folds; keep a from-scratch fit if it is clearly better.

    All steps are made: what a small target can hide is too little to choose a step by. The
    record's value is minus NDCG@20 over the folds' hidden edges and the validation rows. The guard
    fits both a transferred and a fresh model to half of the folds and compares them on the rest:
    only where the fresh one is better by more than two standard errors of the paired difference
    over users is it fitted to all folds instead. With one, chance alone would drop one in six
    sources that are as good.

    Args:
        fresh: Makes a model without a source.
        pretrained: The transferred model, changed in place; a fresh one for scratch.
        trained: Names of the parameters to fit.
        episodes: Folds of the training rows.
        validation: The training rows' graph and the validation rows; None without any.
        whole: The graph of all training rows, whose context the folds share.
        config: `weigh`, `guard` and the seed.
        kept: Holds the lessons for the next call with the same rows and source.
    """
    scratch = config.retrain == "scratch"
    lessons, n_folds = _lessons(pretrained, episodes, validation, whole, config.seed, kept)
    folds, every = lessons[:n_folds], lessons

    def fitted(
        model: ChannelBlend, chosen: list[Lesson], label: str, shown: list[Lesson] | None = None
    ) -> TrainResult:
        order = numpy_generator(config.seed, "order").integers(
            0, len(chosen), config.weigh.max_steps
        )
        names = trained if model is pretrained else model.trained_parameters("scratch")
        return optimise(
            model,
            lambda step: ndcg_loss(model, chosen[order[step]]),
            names,
            (lambda m: -float(user_ndcg(m, shown).mean())) if shown else None,
            config.weigh,
            label=label,
            decay_learning_rate=True,
            keep_best=False,
            depths=model.depths(names),
        )

    model, choice, seconds = pretrained, "scratch" if scratch else "transferred", 0.0
    half = n_folds // 2
    if config.guard and not scratch and half:
        alone = [part.without(("bridge",)) for part in lessons]  # a fresh model has none
        start = {name: value.clone() for name, value in pretrained.state_dict().items()}
        twin = fresh()
        seconds = fitted(pretrained, folds[:half], "guard").seconds
        seconds += fitted(twin, alone[:half], "guard, from scratch").seconds
        gap = user_ndcg(twin, alone[half:]) - user_ndcg(pretrained, lessons[half:])
        pretrained.load_state_dict(start)
        error = gap.std(ddof=1) / math.sqrt(len(gap)) if len(gap) > 1 else math.inf
        if gap.mean() > _DOUBT * error:
            model, choice = fresh(), "scratch"
            # What scratch itself would learn from: candidates of other channels are not there.
            every, n_folds = _lessons(model, episodes, validation, whole, config.seed, None)
            folds = every[:n_folds]
    result = fitted(model, folds, f"{config.retrain} weighing", every[n_folds:])
    result.seconds += seconds
    result.best_value, result.best_step = -float(user_ndcg(model, every).mean()), result.steps
    return Weighed(model, result, choice)


def _lessons(
    model: ChannelBlend,
    episodes: list[Episode],
    validation: Episode | None,
    whole: GraphInput,
    seed: int,
    kept: dict[str, Any] | None,
) -> tuple[list[Lesson], int]:
    """Make every episode's lesson: those of the folds, how many, then that of the validation rows.

    They depend on the model's tables and not on what is fitted, so the modes of one comparison
    share them through `kept`.
    """
    key = (model.fixed_sha256(), seed, len(episodes), str(whole.device))
    if kept is not None and kept.get("lessons", (None,))[0] == key:
        return cast("tuple[list[Lesson], int]", kept["lessons"][1:])
    with torch.no_grad():
        about = model.about(whole)
    parts = episodes if validation is None else [*episodes, validation]
    drawn = [lesson(model, e, seed + n, about=about) for n, e in enumerate(parts)]
    lessons = [part.light() for part in drawn if part is not None]
    n_folds = sum(part is not None for part in drawn[: len(episodes)])
    if kept is not None:
        kept["lessons"] = (key, lessons, n_folds)
    return lessons, n_folds
