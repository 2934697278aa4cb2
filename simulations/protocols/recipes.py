"""The published protocols at paper size: which data, which official split, which attributes, which budget.

None of the data sets comes with the project. A recipe finds their published trees below one folder, or says which are
missing; the readers are those of ``fedspact index``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from client.video import hmdb51, pa_hmdb51, ucf101, vispr
from client.video.folders import Tree
from client.video.rows import IMAGE_SUFFIXES, Row
from spact_models.attackers import DEFAULTS
from spact_models.errors import UserError
from spact_models.presets import PRESETS

BUDGET = {key: value for key, value in PRESETS["paper"].items() if key.startswith("judge.")}


@dataclass(frozen=True)
class Material:
    """What a recipe judges on; ``attribute_rows`` is None where the videos carry the attributes."""

    rows: list[Row]
    attribute_rows: list[Row] | None
    columns: tuple[str, ...]


@dataclass(frozen=True)
class Recipe:
    """One published table's data. ``read(root, attributes)``: the labels are the recipe's unless named."""

    about: str
    protocol: str  # "": known or novel, as the anonymizer's own actions decide
    read: Callable[[Path, Sequence[str]], Material]
    attackers: tuple[str, ...] = DEFAULTS["paper"]


def read_recipe(name: str, root: Path, attributes: Sequence[str] = ()) -> tuple[Recipe, Material]:
    """Find the recipe's data sets below ``root`` and read them.

    Raises:
        UserError: an unknown recipe, or the folders that are missing and where they were looked for.
    """
    if name not in RECIPES:
        raise UserError(f"--recipe {name}: no such recipe, must be one of {', '.join(RECIPES)}")
    if not root.is_dir():
        raise UserError(f"--root = {str(root)!r}: no such folder; give the one that holds the data sets")
    recipe = RECIPES[name]
    return recipe, recipe.read(root, attributes)


def _find(root: Path, *wanted: tuple[str, ...]) -> list[Path]:
    """For each tuple of names the folder that has one of them, in ``root`` or up to two levels below; all or UserError.

    Of VISPR's folders those that hold images: the labels lie in folders of the same names.
    """
    found: list[Path] = []
    missing: list[str] = []
    for names in wanted:
        places = [
            place for name in names for form in ("", "*/", "*/*/") for place in sorted(root.glob(f"{form}{name}"))
        ]
        places = [place for place in places if place.is_dir() and (names not in VISPR or _holds_images(place))]
        if places:
            found.append(places[0])
        else:
            missing.append(" or ".join(names))
    if missing:
        raise UserError(
            f"--root = {str(root)!r} holds no folder {', no folder '.join(missing)} (looked two levels deep)"
        )
    return found


def _holds_images(folder: Path) -> bool:
    return any(file.suffix.lower() in IMAGE_SUFFIXES for file in folder.iterdir())


def _ucf101_known(root: Path, attributes: Sequence[str]) -> Material:
    videos, splits, train, _ = _find(root, UCF101, (ucf101.SPLITS_FOLDER,), *VISPR)
    names = tuple(attributes) or vispr.VISPR1
    return Material(ucf101.read_ucf101(videos, splits, 1).rows, _vispr(root, train, names), names)


def _hmdb51_novel(root: Path, attributes: Sequence[str]) -> Material:
    videos, splits, train, _ = _find(root, HMDB51, (hmdb51.SPLITS_FOLDER,), *VISPR)
    names = tuple(attributes) or vispr.VISPR2
    return Material(hmdb51.read_hmdb51(videos, splits, 1).rows, _vispr(root, train, names), names)


def _pa_hmdb51(root: Path, attributes: Sequence[str]) -> Material:
    videos, splits, labels = _find(root, HMDB51, (hmdb51.SPLITS_FOLDER,), (pa_hmdb51.LABELS_FOLDER,))
    tree: Tree = pa_hmdb51.read_pa_hmdb51(videos, labels, splits, 1)
    return Material(tree.rows, None, tuple(attributes) or pa_hmdb51.ATTRIBUTES)


def _vispr(root: Path, train: Path, names: Sequence[str]) -> list[Row]:
    """The images beside ``train2017`` (val counts as train); their label files may lie anywhere below ``root``."""
    rows = vispr.read_vispr(train.parent, root, ",".join(names)).rows
    return [row for row in rows if row.split]


UCF101 = ("UCF-101", "UCF101", "ucf101")
HMDB51 = ("hmdb51", "HMDB51", "hmdb51_org")
VISPR = (("train2017",), ("test2017",))
RECIPES = {
    "ucf101-known": Recipe("UCF101 split 1 and VISPR1", "known", _ucf101_known),
    "hmdb51-novel": Recipe("HMDB51 split 1 and VISPR2, f_A as it is", "novel", _hmdb51_novel),
    "pa-hmdb51": Recipe("PA-HMDB51, HMDB51 split 1", "", _pa_hmdb51),
}
