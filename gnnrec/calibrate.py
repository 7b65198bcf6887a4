"""Pretraining a channel blend on many sub-graphs, and weighing its channels anew on a target."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from gnnrec.blend import ChannelBlend
from gnnrec.bridge import BRIDGE_RANK, Bridge, Matched, item_directions
from gnnrec.config import PretrainConfig, TransferConfig
from gnnrec.device import numpy_generator
from gnnrec.episodes import Source, sample_episode
from gnnrec.features import GraphInput, text_table
from gnnrec.graph import BipartiteGraph
from gnnrec.lessons import Lesson, hit_loss, lesson, user_ndcg
from gnnrec.sampling import Episode
from gnnrec.train import TrainResult, optimise

_VALIDATION_SHARE = 0.15
_OTHERS = (500, 8000)  # users whose interactions make an episode's bridge


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
        if rng.random() < 0.5:
            episode.input.kept["bridges"] = [_made_bridge(source, episode, rng)]
        drawn = lesson(model, episode, number)
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
        lambda step: hit_loss(model, kept[order[step]]),
        model.trained_parameters("full"),
        lambda m: -float(user_ndcg(m, held_out).mean()),
        config.weigh,
        log=log,
        label="pretraining",
        decay_learning_rate=True,
    )
    return _with_bridges(model, sources, config, device).eval(), result


def _made_bridge(source: Source, episode: Episode, rng: np.random.Generator) -> Matched:
    """What other users of the source say of an episode's items."""
    x = episode.input
    others = np.setdiff1d(np.arange(source.n_users), episode.user_codes)
    low, high = (min(bound, len(others)) for bound in _OTHERS)
    n = round(math.exp(rng.uniform(math.log(max(low, 1)), math.log(max(high, 1)))))
    rows = source.graph.user_items[np.sort(rng.permutation(others)[:n])].tocoo()
    graph = BipartiteGraph(
        rows.row.astype(np.int64), rows.col.astype(np.int64), max(n, 1), source.n_items
    )
    far = GraphInput(graph, spectral_rank=BRIDGE_RANK, device=x.device, seed=x.seed)
    vectors, response = item_directions(far)
    codes = torch.from_numpy(episode.item_codes).to(x.device)
    n_items = len(codes)
    found = torch.from_numpy(rng.random(n_items) < rng.uniform(0.1, 1.0)).to(x.device)
    found = (found & (far.item_degrees[codes] > 0)).float()
    drift = torch.from_numpy(np.exp(rng.normal(0.0, rng.uniform(0.0, 1.2), n_items)))
    mean = far.item_degrees.sum() / max(int((far.item_degrees > 0).sum()), 1)
    popularity = (
        far.item_degrees[codes] / mean.clamp_min(1e-12) * drift.to(far.item_degrees) * found
    )
    return Matched(vectors[codes] * found[:, None], response, popularity, found)


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
) -> Weighed:
    """Fit the named weights on a target's folds; keep a from-scratch fit if it is clearly better.

    All steps are made: what a small target can hide is too little to choose a step by. The
    record's value is minus NDCG@20 over the folds' hidden edges and the validation rows. The guard
    keeps the transferred model unless the fit from scratch is better by more than a standard error
    of the paired difference over those users, on whom both were mostly fitted.

    Args:
        fresh: Makes a model without a source.
        pretrained: The transferred model, changed in place; a fresh one for scratch.
        trained: Names of the parameters to fit.
        episodes: Folds of the training rows.
        validation: The training rows' graph and the validation rows; None without any.
        whole: The graph of all training rows, whose context the folds share.
        config: `weigh`, `guard` and the seed.
    """
    scratch = config.retrain == "scratch"

    def parts(model: ChannelBlend) -> list[Lesson]:
        with torch.no_grad():
            about = model.about(whole)
        every = episodes if validation is None else [*episodes, validation]
        made = [lesson(model, e, config.seed + n, about=about) for n, e in enumerate(every)]
        return [part for part in made if part is not None]

    def fitted(model: ChannelBlend, names: list[str], label: str) -> tuple[TrainResult, np.ndarray]:
        lessons = parts(model)
        folds = lessons[: len(episodes)]
        order = numpy_generator(config.seed, "order").integers(
            0, len(folds), config.weigh.max_steps
        )
        result = optimise(
            model,
            lambda step: hit_loss(model, folds[order[step]]),
            names,
            None,
            config.weigh,
            label=label,
        )
        reached = user_ndcg(model, lessons)
        result.best_value, result.best_step = -float(reached.mean()), result.steps
        return result, reached

    result, reached = fitted(pretrained, trained, f"{config.retrain} weighing")
    if scratch or not config.guard:
        return Weighed(pretrained, result, "scratch" if scratch else "transferred")
    for x in [whole, *(e.input for e in episodes), *([validation.input] if validation else [])]:
        x.kept.clear()
    twin = fresh()
    twin_result, twin_reached = fitted(twin, twin.trained_parameters("scratch"), "guard")
    result.seconds += twin_result.seconds
    gap = twin_reached - reached
    error = gap.std(ddof=1) / math.sqrt(len(gap)) if len(gap) > 1 else math.inf
    if gap.mean() > error:
        twin_result.seconds = result.seconds
        return Weighed(twin, twin_result, "scratch")
    return Weighed(pretrained, result, "transferred")
