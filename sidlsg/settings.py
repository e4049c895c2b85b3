"""From preset files and assignments to a configuration: what a user writes, and which value wins. No torch in here."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from sidlsg.config import FIELDS, Config, checked
from sidlsg.data import presets_folder
from sidlsg.errors import UsageError, nearest
from sidlsg.paths import user_path

# One decision in four settings: what goes with each precision unless it is given too.
WITH_PRECISION: dict[str, dict[str, Any]] = {
    "fp32": {"half_teacher": False, "adam_eps": 1e-8, "clip_value": None},
    "bf16": {"half_teacher": False, "adam_eps": 1e-8, "clip_value": None},
    "fp16": {"half_teacher": False, "adam_eps": 1e-6, "clip_value": 1.0},
}


OTHER_BASE = re.compile(r".*:.*|[-+]?0[0-9_]+", re.DOTALL)  # 1:30 is 90 in YAML 1.1, and 010 is 8


def make_config(preset: str | None, options: Mapping[str, Any]) -> Config:
    """Option > preset > default; every option counts, None too (which is what YAML's null says).

    Settings that belong together change together, unless they are options themselves: a strategy without a kappa takes that
    strategy's own default; another precision takes what goes with it (`WITH_PRECISION`); a micro-batch caps the fake score's.

    Raises UsageError for an unknown preset, or values that are wrong or do not fit together.
    """
    settings = load_settings(preset_path(preset)) if preset else {}
    given = dict(options)
    if "strategy" in given and "kappa" not in given:
        settings.pop("kappa", None)
    precision = given.get("precision")
    if precision in WITH_PRECISION and precision != settings.get("precision", Config.precision):
        settings |= WITH_PRECISION[precision]
    micro, fake = given.get("micro_batch"), settings.get("fake_micro_batch")
    if isinstance(micro, int) and fake is not None and fake > micro:
        settings["fake_micro_batch"] = micro
    return Config(**settings | given)


def gather(assignments: Sequence[str], options: Mapping[str, Any]) -> dict[str, Any]:
    """Settings from ``--set NAME=VALUE`` texts and from options (None: not given), each converted to its field's type.

    Raises UsageError for an unknown name, a wrong value, or a setting that is given twice.
    """
    settings: dict[str, Any] = {}
    for text in assignments:
        key, equals, value = (part.strip() for part in text.partition("="))
        if not equals:
            raise UsageError(f'--set takes NAME=VALUE, not "{text}"')
        if key not in FIELDS:
            raise UsageError(f'--set: unknown setting "{key}"{nearest(key, FIELDS)}')
        if key in settings:
            raise UsageError(f"--set: {key} is given twice")
        settings[key] = checked(key, _value(key, _parse(value, f"--set {text}"), f"--set {text}"))
    for name, value in read_settings({k: v for k, v in options.items() if v is not None}).items():
        if name in settings:
            raise UsageError(f"{name} is given twice, by --{name.replace('_', '-')} and by --set")
        settings[name] = value
    return settings


def read_settings(values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings given in Python, converted as in a preset ("50k", 1.5); raises UsageError naming the setting."""
    for key in values:
        if key not in FIELDS:
            raise UsageError(f'unknown setting "{key}"{nearest(key, FIELDS)}')
    return {key: checked(key, value) for key, value in values.items()}


def load_settings(path: Path) -> dict[str, Any]:
    """Settings of a preset file, each converted to its field's type.

    Raises UsageError, with the line, for YAML that does not parse, an unknown key (naming the nearest), a key given
    twice, or a value of the wrong type or out of its range.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UsageError(f"{path} does not exist") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read as a YAML file: {error}") from None
    node = _parse(text, str(path))
    if node is None:
        return {}
    if not isinstance(node, yaml.MappingNode):
        raise UsageError(f"{path}: a preset is a list of `key: value` lines")
    settings: dict[str, Any] = {}
    for key_node, value_node in node.value:
        key, line = str(key_node.value), key_node.start_mark.line + 1
        if key not in FIELDS:
            raise UsageError(f'{path}, line {line}: unknown key "{key}"{nearest(key, FIELDS)}')
        if key in settings:
            raise UsageError(f'{path}, line {line}: "{key}" is given twice')
        value = _value(key, value_node, f"{path}, line {line}")
        try:
            settings[key] = checked(key, value)
        except UsageError as error:
            raise UsageError(f"{path}, line {line}: {error}") from None
    return settings


def _parse(text: str, source: str) -> yaml.Node | None:
    """The node of a YAML text; raises UsageError, with the line, when there is none."""
    try:
        return yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise UsageError(f"{source}{where}: not valid YAML ({getattr(error, 'problem', error)})") from None
    except RecursionError:
        raise UsageError(f"{source[:200]}: brackets are nested thousands deep") from None


def _value(key: str, node: yaml.Node | None, source: str) -> Any:
    """What a node says; raises UsageError for a tag or a date that does not fit its text."""
    if isinstance(node, yaml.ScalarNode) and node.tag.endswith((":int", ":float")) and OTHER_BASE.fullmatch(node.value):
        raise UsageError(f"{source}: {key} is {node.value}, which YAML reads to the base 60 or 8; write a plain number")
    try:
        return None if node is None else yaml.SafeLoader("").construct_object(node, deep=True)  # type: ignore[no-untyped-call]
    except Exception:  # PyYAML raises half a dozen types
        raise UsageError(f"{source[:200]}: the value of {key} is not valid YAML") from None


def preset_names() -> list[str]:
    return sorted(path.stem for path in presets_folder().glob("*.yaml"))


def preset_path(name: str) -> Path:
    """The file of a preset by name, or a path to one; raises UsageError naming the nearest preset."""
    if name in preset_names():
        return presets_folder() / f"{name}.yaml"
    path = user_path(name)
    if path.suffix in (".yaml", ".yml") or os.path.isfile(path):
        return path
    raise UsageError(f'unknown preset "{name}"{nearest(name, preset_names())}')
