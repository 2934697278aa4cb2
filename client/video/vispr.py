"""VISPR in its published form: images in train2017, val2017, test2017, and one JSON an image with its labels.

``2017_########.jpg`` and, in a parallel folder, ``2017_########.json``: ``{"image_path": ..., "labels": [...]}``.
Images have no action; they serve as views and to train and judge attackers.
"""

import json
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from tqdm import tqdm

from client.video.folders import Notice, Tree, checked_folder, files_below, not_media, split_of_folder
from client.video.rows import IMAGE_SUFFIXES, Row, absolute
from spact_models.errors import UserError
from spact_models.nearest import nearest

SPLIT_FOLDER = re.compile(r"(?:train|val|test)2017", re.IGNORECASE)
# The seven attributes of the published protocol.
VISPR1 = (
    "a4_gender", "a9_face_complete", "a10_face_partial", "a12_semi_nudity", "a17_color", "a64_rel_personal",
    "a65_rel_social",
)  # fmt: skip
# The seven "novel" ones, as the paper's supplement is reported to name them; not verified, so give your own by name.
VISPR2 = (
    "a1_age_approx", "a2_weight_approx", "a6_hair_color", "a11_tattoo", "a16_race", "a59_sports", "a73_landmark",
)  # fmt: skip
SUBSETS = {"vispr1": VISPR1, "vispr2": VISPR2}
# All 68 published labels; a0_safe means none of the others.
_LABELS = """
    a0_safe a1_age_approx a2_weight_approx a3_height_approx a4_gender a5_eye_color a6_hair_color a7_fingerprint
    a8_signature a9_face_complete a10_face_partial a11_tattoo a12_semi_nudity a13_full_nudity a16_race a17_color
    a18_ethnic_clothing a19_name_full a20_name_first a21_name_last a23_birth_city a24_birth_date a25_nationality
    a26_handwriting a27_marital_status a29_ausweis a30_credit_card a31_passport a32_drivers_license a33_student_id
    a35_mail a37_receipt a38_ticket a39_disability_physical a41_injury a43_medicine a46_occupation
    a48_occassion_work a49_phone a55_religion a56_sexual_orientation a57_culture a58_hobbies a59_sports
    a60_occassion_personal a61_opinion_general a62_opinion_political a64_rel_personal a65_rel_social
    a66_rel_professional a67_rel_competitors a68_rel_spectators a69_rel_views a70_education_history a73_landmark
    a74_address_current_complete a75_address_current_partial a78_address_home_complete a79_address_home_partial
    a82_date_time a85_username a90_email a92_email_content a97_online_conversation a99_legal_involvement
    a102_vehicle_ownership a103_license_plate_complete a104_license_plate_partial
    """
LABELS = frozenset(_LABELS.split())


def read_vispr(root: Path, labels: Path | None = None, attributes: str | None = None) -> Tree:
    """Rows of the images, a 0/1 column for each attribute of the subset, the split by folder (val counts as train).

    ``attributes`` is vispr1 (the default), vispr2 or a list of labels separated by commas. Label files are looked for
    in ``labels``, by default anywhere below ``root``; an image without one is kept and its attributes are unknown.
    Without any label file the rows carry no attributes, unless ``attributes`` was asked for.

    Raises UserError: no images, no label files where they were asked for, an unknown attribute.
    """
    top = absolute(root)
    names = attribute_names(attributes or "vispr1")
    files, notices = files_below(top)
    images, twice = _images(top, [path for path in files if path.suffix.lower() in IMAGE_SUFFIXES])
    label_files = _json_files(files if labels is None else files_below(checked_folder(labels, "--labels"))[0])
    used = {*images.values(), *(notice.path for notice in twice), *label_files}
    notices += twice + not_media(path for path in files if path not in used)
    if not label_files and (labels is not None or attributes is not None):
        raise UserError(f"{labels or root}: holds no label file (2017_########.json); give their folder with --labels")
    if not label_files:
        notices.append(Notice(top, "no label files: rows carry no attributes (give their folder with --labels)", True))
        return Tree([Row(path, split=split_of_folder(folder)) for (folder, _), path in images.items()], notices)
    rows, label_notices = _labelled_rows(images, label_files, names)
    return Tree(rows, notices + label_notices)


def attribute_names(attributes: str) -> tuple[str, ...]:
    """``vispr1``, ``vispr2`` or ``a4_gender,a16_race`` -> names; UserError for an unknown or repeated one."""
    if attributes in SUBSETS:
        return SUBSETS[attributes]
    names = tuple(name.strip() for name in attributes.split(","))
    for name in names:
        if name not in LABELS:
            near = nearest(name, [*LABELS, *SUBSETS])
            said = f"nearest is {near} (or give vispr1 or vispr2)" if near else "give vispr1, vispr2 or names of labels"
            raise UserError(f"--attributes: {name!r} is no VISPR label; {said}")
    if len(set(names)) < len(names):
        raise UserError(f"--attributes = {attributes!r} names a label twice; name each once")
    return names


def _json_files(files: Sequence[Path]) -> list[Path]:
    return [path for path in files if path.suffix.lower() == ".json"]


def _images(top: Path, paths: Sequence[Path]) -> tuple[dict[tuple[str, str], Path], list[Notice]]:
    """(split folder or "", name) -> image; a second image of that name and folder is left out with a notice."""
    if not paths:
        raise UserError(f"{top}: holds no image; give the folder that holds train2017, val2017 and test2017")
    images: dict[tuple[str, str], Path] = {}
    for path in paths:
        inside = [parent.name for parent in path.parents if parent.is_relative_to(top)]
        folder = next((name.lower() for name in inside if SPLIT_FOLDER.fullmatch(name)), "")
        images.setdefault((folder, path.stem), path)
    taken = set(images.values())
    return images, [Notice(path, "same name and split as another image") for path in paths if path not in taken]


def _labelled_rows(
    images: Mapping[tuple[str, str], Path], label_files: Sequence[Path], names: Sequence[str]
) -> tuple[list[Row], list[Notice]]:
    files_of: dict[str, list[Path]] = defaultdict(list)
    for file in label_files:
        files_of[file.stem].append(file)
    rows: list[Row] = []
    notices: list[Notice] = []
    used: set[Path | None] = set()
    for (folder, name), path in tqdm(images.items(), desc="reading labels", unit=" images", disable=None, leave=False):
        label_file = _label_file(folder, files_of.get(name, []))
        used.add(label_file)
        attributes, reason = _attributes(label_file, names)
        if reason:
            notices.append(Notice(path, reason, kept=True))
        rows.append(Row(path, split=split_of_folder(folder), attributes=attributes))
    return rows, notices + [Notice(file, "label file without an image") for file in label_files if file not in used]


def _label_file(folder: str, candidates: Sequence[Path]) -> Path | None:
    """The label file of an image: of its own split (train2017, train2017_annotation ...), or in no split's folder."""
    by_split: dict[str, Path] = {}
    for file in candidates:
        found = next((found[0].lower() for parent in file.parents if (found := SPLIT_FOLDER.match(parent.name))), "")
        by_split.setdefault(found, file)
    return by_split.get(folder) or by_split.get("") or (None if folder else next(iter(by_split.values()), None))


def _attributes(file: Path | None, names: Sequence[str]) -> tuple[dict[str, str], str]:
    """(0/1 by attribute, "") or ({}, why they are not known)."""
    if file is None:
        return {}, "no label file: attributes unknown"
    try:
        labels = json.loads(file.read_text(encoding="utf-8-sig"))["labels"]
    except (OSError, ValueError, KeyError, TypeError):
        labels = None
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        return {}, 'label file is not {"labels": [...]}: attributes unknown'
    return {name: "1" if name in labels else "0" for name in names}, ""
