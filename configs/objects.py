"""Find what a configuration names as `module:object` in the user's own folder, and hash its code.

    loss = load_object("my_losses:cispo", asked="The policy loss my_losses:cispo was asked for (learner.loss).")

The folder comes after Python's and Ratchet's own folders on the search path, so that a `models.py` there never takes
their place, and before every other one: a run reads its own copy of the user's folder, not the working directory. Where
another module of that name comes first all the same, the error says so.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, NoneType
from typing import Any

from configs.schema import RunConfig
from contracts.errors import UserError

FORM = "module:object"
TASK_FOLDER = "task"


def own_folder(run: Path) -> Path:
    """Where a run keeps its own copy of the user's folder: what is edited later does not reach a run that goes on."""
    return run / TASK_FOLDER


def own_names(config: RunConfig) -> dict[str, str]:
    """Every key of the configuration that names a `module:object`, with that name."""
    environment = config.environment
    keys = {
        "environment.name": environment.name,
        "environment.dataset": environment.dataset if environment.name == "openenv" else "",
        "environment.verifier": environment.verifier,
        "learner.loss": config.learner.loss,
    }
    return {key: name for key, name in keys.items() if ":" in name}


def load_object(name: str, *, asked: str, folder: Path | None = None) -> Callable[..., Any]:
    """The function, class or callable object that `name` (`module:object`) names.

    `asked` is the first sentence of every error. `folder` holds the user's modules; None: the working directory.
    Raises UserError where the name has another form, the import fails, or the module holds no such callable.
    """
    module_name, colon, object_name = name.partition(":")
    if not (module_name and colon and object_name.isidentifier()):
        raise UserError(asked, f"{name!r} is not of the form {FORM}.", f"Write it as {FORM}, as in my_module:my_name.")
    home = (Path.cwd() if folder is None else folder).resolve()
    module = _import(module_name, home, asked=asked)
    found = getattr(module, object_name, None)
    if not callable(found):
        here = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        kind = f"no {object_name}" if found is None else f"{object_name}, which cannot be called"
        raise UserError(asked, f"{module_name} has {kind}.", f"It has: {', '.join(here) or 'nothing that can be'}.")
    result: Callable[..., Any] = found
    return result


def code_hash(*functions: Callable[..., Any]) -> str:
    """SHA-256 (hex) of names and whole source files: a helper that changed beside a function counts too.

    What the file imports from others does not.
    """
    digest = hashlib.sha256()
    for function in functions:
        named = function if hasattr(function, "__qualname__") else type(function)  # an object with __call__
        owner = type(getattr(function, "__self__", None))  # a method may be inherited
        for part in (named, owner) if owner is not NoneType else (named,):
            digest.update(part.__qualname__.encode() + b"\0" + _source(part) + b"\0")
    return digest.hexdigest()


def _import(name: str, home: Path, *, asked: str) -> ModuleType:
    if str(home) not in sys.path:
        sys.path.insert(next((n for n, entry in enumerate(sys.path) if _is_foreign(entry)), len(sys.path)), str(home))
    importlib.invalidate_caches()  # the file may be younger than Python's last look into the folder
    try:
        module = importlib.import_module(name)
    except Exception as error:
        frames = [one for one in traceback.extract_tb(error.__traceback__) if str(home) in one.filename]
        line = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
        found = f"Importing {name} failed: {type(error).__name__}: {error}{line}."
        raise UserError(asked, found, f"See that {_file_of(name, home)} is there and imports by itself.") from error
    own, taken = _file_of(name, home), getattr(module, "__file__", None)
    if own.exists() and (taken is None or Path(taken).resolve() != own):
        found = f"The name {name} already means {taken or 'a module of Python itself'}."
        raise UserError(asked, found, f"Give {own} another name.")
    return module


def _is_foreign(entry: str) -> bool:
    """Whether a folder of the search path is neither Python's nor Ratchet's ("" is the working directory)."""
    path = Path(entry or ".").resolve()
    inside = any(path.is_relative_to(Path(prefix).resolve()) for prefix in (sys.prefix, sys.base_prefix))
    return not inside and path != Path(__file__).resolve().parents[1]


def _file_of(name: str, home: Path) -> Path:
    """Where the module lies if it is one of the folder's own."""
    path = home.joinpath(*name.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_name(f"{path.name}.py")


def _source(part: Callable[..., Any]) -> bytes:
    """The whole file that defines it; what is compiled has its module's name alone."""
    try:
        return Path(inspect.getfile(part)).read_bytes()
    except TypeError:
        return part.__module__.encode()
