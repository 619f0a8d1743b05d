"""Find one reasoning-gym data set by name without importing the other hundred.

`import reasoning_gym` loads every data set, and with them sympy and matplotlib: about a second. Here its packages are
put in place unexecuted: a module below them imports as ever, and a package's own __init__ runs when somebody asks the
package for a name it does not have yet.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import importlib.util
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

from contracts.errors import UserError

PACKAGE = "reasoning_gym"
_COMPOSITE = "composite"  # mixes other data sets, so it needs the whole package
_RESERVED = ("seed", "size")  # TextTasks chooses them: they decide which items are held out
_DEFINES = re.compile(r'^(?:DATASET_NAME = |register_dataset\(\s*)"(\w+)"', re.MULTILINE)
_waiting: list[ModuleType] = []  # packages in place whose __init__ has not run

Entry = Mapping[str, Any]  # one item as reasoning-gym makes it: question, answer, metadata


class Dataset(Protocol):
    """The part of reasoning_gym.dataset.ProceduralDataset that is used here."""

    def __getitem__(self, index: int) -> dict[str, Any]: ...

    def score_answer(self, answer: str, entry: Entry) -> float: ...


@dataclass(frozen=True, kw_only=True)
class DatasetKind:
    """A data set's class and the class of its parameters."""

    name: str
    make: type[Any]
    parameters: type[Any]

    def create(self, parameters: Mapping[str, Any], *, seed: int, size: int) -> Dataset:
        """Items 0 .. size - 1 of `seed`. Raises UserError where the data set refuses the parameters."""
        asked = f"environment.parameters {dict(parameters)} were asked for with data set {self.name}."
        known = [field.name for field in dataclasses.fields(self.parameters) if field.name not in _RESERVED]
        wrong = [name for name in parameters if name not in known]
        if wrong:
            reserved = " (seed and size follow from the run's seed and item counts)" if wrong[0] in _RESERVED else ""
            raise UserError(asked, f"It has no parameter {wrong[0]}{reserved}.", f"It has: {', '.join(known)}.")
        try:
            config = self.parameters(**self._converted(parameters), seed=seed, size=size)
            dataset: Dataset = self.make(config=config)
        except Exception as error:  # a named border: another package's checks, of any type
            raise UserError(
                asked, f"It refuses them: {str(error) or repr(error)}.", f"It has: {', '.join(known)}."
            ) from error
        return dataset

    def _converted(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """YAML has lists where the parameters want tuples, and mappings where `composite` wants its own class."""
        if self.name != _COMPOSITE:
            return dict(parameters)
        _execute_all()  # its parts may be any data set
        spec = importlib.import_module(f"{PACKAGE}.composite").DatasetSpec
        return {key: [spec(**part) for part in value] for key, value in parameters.items()}


def find_dataset(name: str) -> DatasetKind:
    """The data set `name`. Raises UserError, naming similar ones, where there is none."""
    files = _files()
    if name not in files:
        near = difflib.get_close_matches(name, files, n=3)
        todo = f"Did you mean {' or '.join(near)}?" if near else "There are: " + ", ".join(sorted(files)) + "."
        raise UserError(
            f"The data set {name} was asked for (environment.dataset).",
            f"reasoning-gym {package_version()} has {len(files)} data sets, none of that name.",
            todo,
        )
    make, parameters = _registry(files[name])[name]
    return DatasetKind(name=name, make=make, parameters=parameters)


def dataset_names() -> list[str]:
    return sorted(_files())


def package_version() -> str:
    return version("reasoning-gym")


def _root() -> Path:
    spec = importlib.util.find_spec(PACKAGE)  # does not import it
    if spec is None or not spec.submodule_search_locations:
        raise UserError("A reasoning-gym data set was asked for.", "The package is not installed.", "Run make setup.")
    return Path(spec.submodule_search_locations[0])


def _files() -> dict[str, Path]:
    """Data set name to the file that registers it."""
    return {
        name: file for file in sorted(_root().rglob("*.py")) for name in _DEFINES.findall(file.read_text("utf-8"))[:1]
    }


def _registry(file: Path) -> dict[str, tuple[type[Any], type[Any]]]:
    """What is registered once the module in `file` is imported."""
    module = ".".join((PACKAGE, *file.relative_to(_root()).with_suffix("").parts))
    category = module.rpartition(".")[0]
    for name in (PACKAGE, category):
        if name not in sys.modules:
            sys.modules[name] = _unexecuted(name)
    importlib.import_module(f"{PACKAGE}.coaching")  # first, as in the package's own order: the two import each other
    importlib.import_module(module)
    return dict(importlib.import_module(f"{PACKAGE}.factory").DATASETS)


def _unexecuted(name: str) -> ModuleType:
    """The package `name`, whose __init__ runs at the first look at an attribute that is not there."""
    spec = importlib.util.find_spec(name)
    assert spec is not None
    package = importlib.util.module_from_spec(spec)

    def look_up(attribute: str) -> Any:
        if attribute.startswith("__"):  # inspection, not use
            raise AttributeError(f"module {name!r} has no attribute {attribute!r}")
        _execute_all()
        return getattr(package, attribute)

    package.__dict__["__getattr__"] = look_up
    _waiting.append(package)
    return package


def _execute_all() -> None:
    """Run every __init__ that was put off, the inner packages' first: the outer one's takes them as they are."""
    while _waiting:
        package = _waiting.pop()
        del package.__dict__["__getattr__"]
        assert package.__spec__ is not None
        assert package.__spec__.loader is not None
        package.__spec__.loader.exec_module(package)
