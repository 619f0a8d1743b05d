"""Read a run file: YAML plus `--set section.key=value`, every mistake answered by one ConfigError (asked, found, todo).

    config = load("configs/quickstart.yaml", ["seed=1", "learner.learning_rate=2e-4"])

A key that does not exist is an error that names the nearest valid one and the line of the file.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import yaml
from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from configs.schema import RESUMABLE, RunConfig, Section
from contracts.errors import ConfigError

Location = tuple[str | int, ...]


@dataclass(frozen=True, kw_only=True)
class Change:
    """One key whose value differs between two configurations."""

    key: str  # dotted: "learner.learning_rate"
    old: Any
    new: Any
    resumable: bool  # whether a resumed run may differ in it


class _Loader(yaml.SafeLoader):
    """YAML 1.1 takes `1e-4` for a string; a learning rate is a number here."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def load(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """The configuration in the YAML file `path` with `overrides` ("section.key=value", value in YAML) on top.

    Raises ConfigError where the file cannot be read, is no mapping, or holds a wrong key or value.
    """
    file = Path(path)
    node, document = _parse(_read(file), file)
    source = _Source(file, node)
    for override in overrides:
        source.set_keys.append(_apply(document, override))
    _refuse_exotic_values(document, file)
    try:
        return RunConfig.model_validate(document)
    except ValidationError as error:
        raise _explain(error, source) from None


def dump(config: RunConfig) -> str:
    """The resolved configuration as YAML; `load` reads it back equal."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def config_hash(config: RunConfig) -> str:
    """SHA-256 (hex) of the canonical JSON of every key that may not change on resume.

    Two configurations with one hash may continue each other's runs; resumable keys do not enter.
    """
    fixed = {key: value for key, value, field in _leaves(config) if not _resumable(field)}
    text = json.dumps(fixed, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def compare(old: RunConfig, new: RunConfig) -> list[Change]:
    """Every key that differs, in the schema's order."""
    before = {key: value for key, value, _ in _leaves(old)}
    return [
        Change(key=key, old=before[key], new=value, resumable=_resumable(field))
        for key, value, field in _leaves(new)
        if before[key] != value
    ]


def check_resume(old: RunConfig, new: RunConfig) -> None:
    """Raise ConfigError if a run with `old` cannot go on with `new`; the message names what changed and what may."""
    refused = [change for change in compare(old, new) if not change.resumable]
    if not refused:
        return
    allowed = [key for key, _, field in _leaves(new) if _resumable(field)]
    raise ConfigError(
        "This run cannot be resumed with a changed " + ", ".join(change.key for change in refused) + ".",
        "Changed: " + "; ".join(f"{change.key} from {change.old!r} to {change.new!r}" for change in refused) + ".",
        "Take the old values, or start a new run. These keys may change: " + ", ".join(allowed) + ".",
    )


# ---------------------------------------------------------------------------------------------- reading


def _read(file: Path) -> str:
    asked = f"The configuration file {file} was asked for."
    if not file.exists():
        raise ConfigError(asked, "There is no such file.", _neighbours(file))
    if file.is_dir():
        raise ConfigError(asked, "It is a folder.", "Name a YAML file inside it.")
    try:
        content = file.read_bytes()
    except OSError as error:
        raise ConfigError(
            asked, f"It cannot be read: {error.strerror}.", "Make it readable, or name another."
        ) from None
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        found = f"It is no text: byte {error.start} is not UTF-8."
        raise ConfigError(asked, found, "Name a YAML file.") from None
    if not text.strip():
        raise ConfigError(asked, "It is empty.", "Start from configs/quickstart.yaml.")
    return text


def _neighbours(file: Path) -> str:
    others = sorted(other.name for other in file.parent.glob("*.yaml")) if file.parent.is_dir() else []
    near = difflib.get_close_matches(file.name, others, n=3, cutoff=0.4) or others[:3]
    if near:
        return f"In {file.parent} there is: {', '.join(near)}."
    return "Check the path; configs/quickstart.yaml is a start."


def _parse(text: str, file: Path) -> tuple[yaml.MappingNode, dict[str, Any]]:
    """The YAML tree (for line numbers) and its content."""
    asked = f"The configuration file {file} was asked for."
    try:
        node = yaml.compose(text, Loader=_Loader)
        if not isinstance(node, yaml.MappingNode):
            kind = "empty (comments only)" if node is None else f"a {node.tag.rpartition(':')[2]}"
            raise ConfigError(asked, f"It is {kind}, not a mapping.", "Write `section:` and `key: value` lines.")
        _refuse_repeated_keys(node, file)
        document = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise ConfigError(asked, f"It is not valid YAML: {_yaml_reason(error)}.", "Correct it there.") from None
    return node, document


def _yaml_reason(error: yaml.YAMLError) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return f"{error.problem} in line {error.problem_mark.line + 1}, column {error.problem_mark.column + 1}"
    return str(error).splitlines()[0]


def _refuse_repeated_keys(node: yaml.MappingNode, file: Path) -> None:
    """YAML would silently take the last one. Sections are two levels deep: no need to look further down."""
    for mapping in (node, *(value for _, value in node.value if isinstance(value, yaml.MappingNode))):
        seen: dict[str, int] = {}
        for key, _ in mapping.value:
            name, line = str(key.value), key.start_mark.line + 1
            if name in seen:
                found = f"It is there twice: in lines {seen[name]} and {line}."
                raise ConfigError(f"The key {name} was set in {file}.", found, "Delete one of them.")
            seen[name] = line


def _apply(document: dict[str, Any], override: str) -> Location:
    """Write one `section.key=value` into the document; where it went."""
    dotted, equals, text = override.partition("=")
    keys = tuple(dotted.strip().split("."))
    if not equals or not all(keys):
        raise ConfigError(f"--set {override} was asked for.", "It is no assignment.", "Write --set section.key=value.")
    try:
        value = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        found = f"{text!r} is not valid YAML: {_yaml_reason(error)}."
        raise ConfigError(f"--set {override} was asked for.", found, "Quote it.") from None
    target: Any = document
    for depth, key in enumerate(keys[:-1], start=1):
        if target.get(key) is None:
            target[key] = {}
        target = target[key]
        if not isinstance(target, dict):
            found = f"{'.'.join(keys[:depth])} is a value ({target!r}), not a section."
            raise ConfigError(f"--set {override} was asked for.", found, "Name a key that exists.")
    target[keys[-1]] = value
    return keys


def _refuse_exotic_values(document: Mapping[str, Any], file: Path) -> None:
    """Dates, infinities and loops are YAML, but no configuration: they have no canonical JSON."""
    try:
        json.dumps(document, allow_nan=False)
    except (TypeError, ValueError) as error:
        todo = "Use text, finite numbers, true, false, null, lists and mappings; quote dates."
        raise ConfigError(f"The configuration file {file} was asked for.", f"A value in it: {error}.", todo) from None


# ---------------------------------------------------------------------------------------------- explaining


class _Source:
    """Where a key was written: a line of the file, or `--set`."""

    def __init__(self, file: Path, node: yaml.MappingNode) -> None:
        self.file, self.node = file, node
        self.set_keys: list[Location] = []

    def place(self, location: Location) -> str:
        if any(location[: len(keys)] == keys for keys in self.set_keys):
            return "--set"
        node: yaml.Node = self.node
        line = 1
        for part in location:
            pairs = node.value if isinstance(node, yaml.MappingNode) else []
            found = next(((key, value) for key, value in pairs if key.value == str(part)), None)
            if found is None:
                break
            line, node = found[0].start_mark.line + 1, found[1]
        return f"{self.file}, line {line}"


def _explain(error: ValidationError, source: _Source) -> ConfigError:
    """The first mistake in three sentences."""
    details = error.errors()
    first = details[0]
    location = _known_part(first["loc"])
    key = ".".join(map(str, location))
    place = source.place(location)
    more = f" ({len(details) - 1} more of this kind to correct after it.)" if len(details) > 1 else ""
    if first["type"] == "extra_forbidden":
        return ConfigError(f"{place}: {key} was set.", f"There is no such key.{more}", _nearest(location))
    if not location:
        rule = first["msg"].removeprefix("Value error, ")
        return ConfigError(
            f"{source.file} was asked for.", f"Its values contradict each other: {rule}.", "Correct one."
        )
    return ConfigError(f"{place}: {key} was set to {first['input']!r}.", f"{_reason(first)}.{more}", _wanted(location))


def _reason(detail: ErrorDetails) -> str:
    if detail["type"] in ("model_type", "model_attributes_type"):
        return "It is a section: it holds keys of its own"
    return detail["msg"].removeprefix("Value error, ")


def _known_part(location: Location) -> Location:
    """pydantic also names union branches and tuple positions: keep the keys that a person wrote."""
    kept: list[str | int] = []
    model: type[Section] | None = RunConfig
    for part in location:
        if model is None:
            break
        kept.append(part)
        model = _section(model.model_fields[str(part)]) if str(part) in model.model_fields else None
    return tuple(kept)


def _nearest(location: Location) -> str:
    """The nearest valid key: the same name in another section, a similar one here, or an abbreviation of one here."""
    *parents, wrong = map(str, location)
    homes = [key for key in _all_keys() if key.rsplit(".", 1)[-1] == wrong]
    if homes:
        return f"Did you mean {' or '.join(homes)}?"
    siblings = [key for key in (*_all_keys(), *_all_sections()) if key.split(".")[:-1] == parents]
    by_leaf = {key.rsplit(".", 1)[-1]: key for key in siblings}
    abbreviated = [leaf for leaf in by_leaf if "".join(word[0] for word in leaf.split("_")) == wrong]
    close = abbreviated or difflib.get_close_matches(wrong, by_leaf, n=1)
    return f"Did you mean {by_leaf[close[0]]}?" if close else "Valid here: " + ", ".join(by_leaf) + "."


def _wanted(location: Location) -> str:
    field = _field(location)
    if field is None:
        return "See configs/schema.py."
    if (section := _section(field)) is not None:
        return "Keys of this section: " + ", ".join(section.model_fields) + "."
    bounds = "".join(f", {_bound(rule)}" for rule in field.metadata if _bound(rule))
    return (
        f"Set it to {_type_name(field.annotation)}{bounds} (default {field.get_default(call_default_factory=True)!r})."
    )


def _bound(rule: Any) -> str:
    words = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
    return " and ".join(f"{word} {getattr(rule, name)}" for name, word in words.items() if hasattr(rule, name))


def _type_name(annotation: Any) -> str:
    if get_origin(annotation) is Literal:
        return " or ".join(map(repr, get_args(annotation)))
    names = {int: "a whole number", float: "a number", str: "text", bool: "true or false", type(None): "null"}
    if annotation in names:
        return names[annotation]
    if get_origin(annotation) is dict:
        return "a mapping"
    if get_origin(annotation) is tuple:
        return "a list of " + " and ".join(_type_name(part) for part in get_args(annotation) if part is not ...)
    return " or ".join(map(_type_name, get_args(annotation)))


# ---------------------------------------------------------------------------------------------- the schema's keys


def _section(field: FieldInfo) -> type[Section] | None:
    kind = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, Section) else None


def _field(location: Location) -> FieldInfo | None:
    model: type[Section] | None = RunConfig
    field: FieldInfo | None = None
    for part in location:
        field = model.model_fields.get(str(part)) if model else None
        if field is None:
            return None
        model = _section(field)
    return field


def _leaves(config: Section, prefix: str = "") -> Iterator[tuple[str, Any, FieldInfo]]:
    """(dotted key, JSON value, field) of every key that holds a value."""
    for name, field in type(config).model_fields.items():
        value = getattr(config, name)
        if isinstance(value, Section):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", list(value) if isinstance(value, tuple) else value, field


def _resumable(field: FieldInfo) -> bool:
    return isinstance(field.json_schema_extra, dict) and field.json_schema_extra.get(RESUMABLE) is True


def _all_keys() -> list[str]:
    return [key for key, _, _ in _leaves(RunConfig())]


def _all_sections(model: type[Section] = RunConfig, prefix: str = "") -> list[str]:
    names: list[str] = []
    for name, field in model.model_fields.items():
        if (section := _section(field)) is not None:
            names += [prefix + name, *_all_sections(section, f"{prefix}{name}.")]
    return names
