"""Who does what, where, and on which side of the split: the table behind the synthetic clips.

- Each identity acts in front of all backgrounds but two in training and of those two in test, so that no test clip
  shows a pair of identity and background that training has shown. Which two, goes round.
- Actions are dealt to each identity evenly, on both sides of the split: nobody has an action of their own.
- Sites differ in their mix, as sites do: the chance of a clip to belong to a site is the product of two tables, one of
  identities and one of actions, each row drawn from a Dirichlet(alpha), times the room the site has left. A site's size
  is drawn from a Dirichlet(10), so no site is very small. Each identity stands at two sites or more in training, each
  site has three actions or more in training and at least one test clip.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from spact_models.errors import UserError

SIZE_ALPHA = 10.0
LEAST_ACTIONS = 3  # of a site, in training
PLAN_DRAWS = 50  # each draw is checked against the rules above; a small set may need several


@dataclass(frozen=True)
class Scene:
    """One clip to be filmed."""

    number: int
    identity: int
    action: str
    background: str
    split: str
    site: int = -1  # -1 = not assigned yet


def least_clips(identities: int, sites: int) -> int:
    """Below this the rules above cannot be kept, or only by luck."""
    return max(24, 4 * identities, 10 * sites)


def draw_plan(
    clips: int,
    identities: int,
    sites: int,
    alpha: float,
    actions: Sequence[str],
    backgrounds: Sequence[str],
    test_share: float,
    rng: np.random.Generator,
) -> list[Scene]:
    """``clips`` scenes that keep the rules above. Raises UserError when no draw keeps them."""
    for _ in range(PLAN_DRAWS):
        scenes = _assign_sites(
            _deal(clips, identities, actions, backgrounds, test_share, rng), identities, sites, alpha, rng
        )
        if _keeps_rules(scenes, identities, sites, actions, backgrounds):
            return scenes
    raise UserError(
        f"--clips = {clips}, too few for {identities} identities at {sites} sites with alpha = {alpha}: each site must "
        f"see at least {LEAST_ACTIONS} actions; ask for more clips, fewer sites, or a larger alpha"
    )


def _deal(
    clips: int,
    identities: int,
    actions: Sequence[str],
    backgrounds: Sequence[str],
    test_share: float,
    rng: np.random.Generator,
) -> list[Scene]:
    """Scenes without sites, in random order."""
    circle = [backgrounds[k] for k in rng.permutation(len(backgrounds))]
    shares = [clips // identities + (k < clips % identities) for k in range(identities)]
    scenes: list[Scene] = []
    for identity, share in enumerate(shares):
        hidden = _held_out(identity, circle)
        shown = [name for name in circle if name not in hidden]
        tests = min(max(1, round(test_share * share)), share - 3)
        for split, count, places in (("train", share - tests, shown), ("test", tests, hidden)):
            moves = zip(_dealt(actions, count, rng), _dealt(places, count, rng), strict=True)
            scenes.extend(Scene(0, identity, action, place, split) for action, place in moves)
    return [replace(scenes[k], number=number) for number, k in enumerate(rng.permutation(len(scenes)))]


def _held_out(identity: int, circle: Sequence[str]) -> tuple[str, str]:
    """An identity's two test backgrounds: opposite ones first, so that few identities hide none from training."""
    half = len(circle) // 2
    first = identity % len(circle)
    second = (first + 1 + (half - 1 + identity // half) % (len(circle) - 1)) % len(circle)
    return circle[first], circle[second]


def _dealt(cards: Sequence[str], count: int, rng: np.random.Generator) -> list[str]:
    """``count`` cards from as many shuffled decks as it takes: even, but in no order."""
    decks = -(-count // len(cards))
    return [cards[k] for _ in range(decks) for k in rng.permutation(len(cards))][:count]


def _assign_sites(
    scenes: Sequence[Scene], identities: int, sites: int, alpha: float, rng: np.random.Generator
) -> list[Scene]:
    by_identity = rng.dirichlet([alpha] * sites, identities)
    actions = sorted({scene.action for scene in scenes})
    by_action = dict(zip(actions, rng.dirichlet([alpha] * sites, len(actions)), strict=True))
    size = rng.dirichlet([SIZE_ALPHA] * sites)
    room = size * len(scenes)
    placed: list[Scene] = []
    homes: dict[int, set[int]] = {identity: set() for identity in range(identities)}
    for scene in scenes:
        chance = (by_identity[scene.identity] * by_action[scene.action] + 1e-6) * np.maximum(room, 1e-3)
        if scene.split == "train" and len(homes[scene.identity]) == 1:  # the second clip goes to a second site
            chance[list(homes[scene.identity])] = 0.0
        site = int(rng.choice(sites, p=chance / chance.sum()))
        room[site] -= 1
        if scene.split == "train":
            homes[scene.identity].add(site)
        placed.append(replace(scene, site=site))
    return placed


def _keeps_rules(
    scenes: Sequence[Scene], identities: int, sites: int, actions: Iterable[str], backgrounds: Iterable[str]
) -> bool:
    train = [scene for scene in scenes if scene.split == "train"]
    actions_of = {site: {scene.action for scene in train if scene.site == site} for site in range(sites)}
    sites_of = {k: {scene.site for scene in train if scene.identity == k} for k in range(identities)}
    places_of = {k: {scene.background for scene in train if scene.identity == k} for k in range(identities)}
    return (
        {scene.action for scene in train} == set(actions)
        and {scene.background for scene in train} == set(backgrounds)
        and all(len(found) >= LEAST_ACTIONS for found in actions_of.values())
        and all(len(found) >= 2 for found in sites_of.values())
        and all(len(found) >= 2 for found in places_of.values())
        and {scene.site for scene in scenes if scene.split == "test"} == set(range(sites))
    )
