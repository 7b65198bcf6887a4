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
from gnnrec.lessons import Lesson, lessons_of, ndcg_loss, user_ndcg
from gnnrec.loop import TrainResult, optimise
from gnnrec.sampling import Episode
from gnnrec.variation import made_bridge, made_text, with_variants

_VALIDATION_SHARE = 0.15
_PULL_USERS = 3000  # users of a fit for whom `pull_to_start` is meant as it is
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
    random share of their items and with another popularity, as a near source would give. Where
    texts are read, some are drawn from the source as if its items came in variants.

    What is learned is drawn back in part to a fresh model's weights: validation, on sub-graphs of
    the same sources, cannot tell how much of it holds elsewhere. The record's values are of before.
    """
    lessons: list[Lesson] = []
    total = config.n_lessons * len(sources)
    for number in tqdm(range(total), desc="sampling sub-graphs", delay=1):
        rng = numpy_generator(config.seed, "lessons", number)
        source = sources[number % len(sources)]
        reads_text = bool(model.config.text_dim) and source.item_text is not None
        if reads_text and rng.random() < config.variants:
            source = with_variants(source, rng)
        episode = sample_episode(source, config, rng, device=device)
        bridged, varied = rng.random() < 0.5, rng.random() < config.varied_texts
        bridge = made_bridge(source, episode, rng) if bridged else None
        if varied and reads_text:
            episode.input = episode.input.with_text(made_text(source, episode, rng))
        if bridge is not None:
            episode.input.kept["bridges"] = [bridge]
        drawn = next(lessons_of(model, episode, number, max_users=_PRETRAINING_USERS), None)
        if drawn is not None:
            lessons.append(drawn.light())
    n_held_out = max(1, int(len(lessons) * _VALIDATION_SHARE))
    held_out, kept = lessons[:n_held_out], lessons[n_held_out:] or lessons
    order = _order(len(kept), config.weigh.max_steps, config.seed)
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
    model.draw_back(config.draw_back)
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
    fits both a transferred and a fresh model to half of the folds and compares them on the rest,
    then the other way round: only where the fresh one is better by more than two standard errors
    of the paired difference over users is it fitted to all folds instead. With one, chance alone
    would drop one in six sources that are as good.

    Args:
        fresh: Makes a model without a source.
        pretrained: The transferred model, changed in place; a fresh one for scratch.
        trained: Names of the parameters to fit.
        episodes: Folds of the training rows.
        validation: The training rows' graph and the validation rows; None without any.
        whole: The graph of all training rows, whose context the folds share.
        config: `weigh`, `guard` and the seed; `weigh.pull_to_start` is meant for folds with 3,000
            users who have a visible interaction: it is divided by how many times that there are.
        kept: Holds the lessons for the next call with the same rows and source.
    """
    scratch = config.retrain == "scratch"
    folds, held_out = _lessons(pretrained, episodes, validation, whole, config.seed, kept)

    def fitted(
        model: ChannelBlend, chosen: list[Lesson], label: str, shown: list[Lesson] | None = None
    ) -> TrainResult:
        order = _order(len(chosen), config.weigh.max_steps, config.seed)
        names = trained if model is pretrained else model.trained_parameters("scratch")
        # The start is worth as much as so many users: what more of them say outweighs it.
        pull = config.weigh.pull_to_start * _PULL_USERS / max(sum(p.n_told for p in chosen), 1)
        return optimise(
            model,
            lambda step: ndcg_loss(model, chosen[order[step]]),
            names,
            (lambda m: -float(user_ndcg(m, shown).mean())) if shown else None,
            config.weigh.model_copy(update={"pull_to_start": pull}),
            label=label,
            decay_learning_rate=True,
            keep_best=False,
            depths=model.depths(names),
        )

    model, choice, seconds = pretrained, "scratch" if scratch else "transferred", 0.0
    half = len(folds) // 2
    if config.guard and not scratch and half:
        # A fresh model has no bridge.
        alone = [[part.without(("bridge",)) for part in fold] for fold in folds]
        start = {name: value.clone() for name, value in pretrained.state_dict().items()}
        twins = kept.setdefault("twins", {}) if kept is not None else {}
        about = (pretrained.fixed_sha256(), config.seed, config.weigh.model_dump_json())
        gaps = []
        for told, asked in ((slice(half), slice(half, None)), (slice(half, None), slice(half))):
            seconds += fitted(pretrained, _flat(folds[told]), "guard").seconds
            own = user_ndcg(pretrained, _flat(folds[asked]))
            pretrained.load_state_dict(start)
            # The same for all modes of one comparison; its time counts in each.
            key = (*about, str(told))
            if key not in twins:
                twin = fresh()
                spent = fitted(twin, _flat(alone[told]), "guard, from scratch").seconds
                twins[key] = (user_ndcg(twin, _flat(alone[asked])), spent)
            theirs, spent = twins[key]
            seconds += spent
            gaps.append(theirs - own)
        gap = np.concatenate(gaps)
        error = gap.std(ddof=1) / math.sqrt(len(gap)) if len(gap) > 1 else math.inf
        if gap.mean() > _DOUBT * error:
            model, choice = fresh(), "scratch"
            # What scratch itself would learn from: candidates of other channels are not there.
            folds, held_out = _lessons(model, episodes, validation, whole, config.seed, None)
    result = fitted(model, _flat(folds), f"{config.retrain} weighing", held_out)
    result.seconds += seconds
    value = user_ndcg(model, _flat(folds) + held_out).mean()
    result.best_value, result.best_step = -float(value), result.steps
    return Weighed(model, result, choice)


def _flat(folds: list[list[Lesson]]) -> list[Lesson]:
    return [part for fold in folds for part in fold]


def _order(n: int, n_steps: int, seed: int) -> np.ndarray:
    """Which of n lessons each step takes, every one as often as any other."""
    rng = numpy_generator(seed, "order")
    return np.concatenate([rng.permutation(n) for _ in range(-(-n_steps // n))])


def _lessons(
    model: ChannelBlend,
    episodes: list[Episode],
    validation: Episode | None,
    whole: GraphInput,
    seed: int,
    kept: dict[str, Any] | None,
) -> tuple[list[list[Lesson]], list[Lesson]]:
    """Make every episode's lessons: those of each fold, and those of the validation rows.

    They depend on the model's tables and not on what is fitted, so the modes of one comparison
    share them through `kept`.
    """
    key = (model.fixed_sha256(), seed, len(episodes), str(whole.device))
    if kept is not None and kept.get("lessons", (None,))[0] == key:
        return cast("tuple[list[list[Lesson]], list[Lesson]]", kept["lessons"][1:])
    with torch.no_grad():
        about = model.about(whole)
    parts = episodes if validation is None else [*episodes, validation]
    drawn = [
        [part.light() for part in lessons_of(model, episode, seed + number, about=about)]
        for number, episode in enumerate(parts)
    ]
    folds = [fold for fold in drawn[: len(episodes)] if fold]
    held_out = _flat(drawn[len(episodes) :])
    if kept is not None:
        kept["lessons"] = (key, folds, held_out)
    return folds, held_out
