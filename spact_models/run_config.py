"""From flat keys to checked settings: defaults < ``flower.toml`` < ``--set key=value``.

The flat keys (``section.field``) stand in ``pyproject.toml`` with the same defaults as in ``settings.py``, because
Flower wants them there; a test holds the two together.
"""

from __future__ import annotations

import dataclasses
import functools
import tomllib
import typing
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from spact_models.errors import UserError
from spact_models.nearest import known_settings
from spact_models.presets import PRESETS
from spact_models.settings import Scalar, Settings

SECTIONS: dict[str, type] = {
    f.name: typing.cast(type, f.default_factory)
    for f in fields(Settings)
    if f.default_factory is not dataclasses.MISSING
}


def default_config() -> dict[str, Scalar]:
    """Every key with its default, ``"preset"`` where the preset decides: what pyproject.toml must hold."""
    top = {spec.name: _default(spec) for spec in fields(Settings) if spec.name not in SECTIONS}
    nested = {f"{name}.{spec.name}": _default(spec) for name, cls in SECTIONS.items() for spec in fields(cls)}
    return {**top, **nested}


def _default(spec: dataclasses.Field[Any]) -> Scalar:
    value = spec.default
    assert isinstance(value, bool | int | float | str)
    return value


def load_settings(overrides: Mapping[str, object]) -> Settings:
    """Check flat overrides against the known keys, fill in the preset, build :class:`Settings`.

    Raises:
        UserError: an unknown key (naming the nearest known one), a value of the wrong type or outside its rule.
    """
    defaults = default_config()
    for key in overrides:
        if key not in defaults:
            raise UserError(f"{key}: no such setting. {known_settings(key, defaults)}")
    chosen = {**defaults, **overrides}
    preset = chosen["preset"]
    if preset not in PRESETS:
        raise UserError(f"preset = {preset!r}, must be one of: {', '.join(PRESETS)}")
    decided = PRESETS[str(preset)]
    for key, value in chosen.items():
        if value == "preset":
            if key not in decided:
                raise UserError(f"{key} = 'preset', but no preset decides it; the default is {defaults[key]!r}")
            chosen[key] = decided[key]
    top = {name: _typed(Settings, name, name, chosen[name]) for name in defaults if "." not in name}
    sections = {name: _build_section(name, cls, chosen) for name, cls in SECTIONS.items()}
    return Settings(**top, **sections)


def _build_section(section: str, cls: type, chosen: Mapping[str, object]) -> Any:
    values = {f.name: _typed(cls, f.name, f"{section}.{f.name}", chosen[f"{section}.{f.name}"]) for f in fields(cls)}
    try:
        return cls(**values)
    except UserError as error:
        raise UserError(f"{section}.{error}") from None


def _typed(cls: type, name: str, key: str, value: object) -> Any:
    wanted = _hints(cls)[name]
    if wanted is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if wanted is int and isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, wanted) and not (wanted is int and isinstance(value, bool)):
        return value
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
    raise UserError(f"{key} = {value!r}, must be {words[wanted]}")


@functools.cache
def _hints(cls: type) -> Mapping[str, Any]:
    return typing.get_type_hints(cls)  # compiles every annotation anew each time it is asked


def read_config_file(path: Path) -> dict[str, Scalar]:
    """Flat overrides from a TOML file such as ``flower.toml``; nested tables become dotted keys.

    Raises:
        UserError: the file is missing, is not TOML, or holds a value that is not a scalar.
    """
    try:
        tree = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"--config {path}: {error.strerror or error}. Name a TOML file such as flower.toml.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"--config {path}: not valid TOML ({error}).") from None
    return _flatten(tree, path, "")


def _flatten(tree: Mapping[str, object], path: Path, prefix: str) -> dict[str, Scalar]:
    out: dict[str, Scalar] = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            out.update(_flatten(value, path, f"{prefix}{name}."))
        elif isinstance(value, bool | int | float | str):
            out[prefix + name] = value
        else:
            raise UserError(f"{path}: {prefix}{name} = {value!r}, must be a single number, text or true/false")
    return out


def parse_assignment(text: str) -> tuple[str, Scalar]:
    """``"game.omega=0.5"`` -> ``("game.omega", 0.5)``; the value is TOML, or plain text when it is not.

    Raises:
        UserError: there is no ``=``.
    """
    key, equals, value = text.partition("=")
    key, value = key.strip(), value.strip()
    if not equals or not key:
        raise UserError(f"--set {text!r}, must be KEY=VALUE, for example --set game.omega=0.5")
    try:
        parsed = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        parsed = value
    if not isinstance(parsed, bool | int | float | str):
        raise UserError(f"--set {text!r}: the value must be a single number, text or true/false")
    return key, parsed
