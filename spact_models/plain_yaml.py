"""YAML as people write settings in it: plain types, no key twice, no aliases."""

from __future__ import annotations

from typing import Any

import yaml

from spact_models.errors import UserError


class _PlainLoader(yaml.SafeLoader):
    """YAML's plain types; no key twice, and no aliases: a few lines of them can stand for more than memory holds."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.composer.ComposerError(None, None, "aliases (*name) are not read here; write it out", mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            problem = f"the key {twice!r} stands here twice; remove one"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
        return super().construct_mapping(node, deep)


def read_plain_yaml(content: bytes) -> Any:
    """What a UTF-8 text of YAML holds.

    Raises:
        UserError: it is none, or has a key twice or an alias; the message says where.
    """
    try:
        return yaml.load(content.decode("utf-8"), _PlainLoader)
    except RecursionError:
        raise UserError("not valid YAML (nested too deep).") from None
    except (
        yaml.YAMLError,
        ValueError,
        OverflowError,
        TypeError,
        AttributeError,
        KeyError,
    ) as error:  # odd dates, numbers
        raise UserError(f"not valid YAML ({error}).") from None
