"""Environments of OpenEnv (the package openenv-core), in the environment's own process: no server, no container.

    environment:
      name: openenv
      dataset: my_env.server.my_env_environment:MyEnvironment     # the environment's class
      parameters: {action: my_env.models:MyAction, field: message, show: "{echoed_message}"}
      python: /path/to/venv/bin/python                            # where it and openenv-core are installed

An answer becomes the one text `field` of the `action`; what the policy reads is `show`, a template with the fields of
the observation. Other parameters go to the class. An environment is taken to be another item for each seed that it is
reset with: its items are told apart by the seed alone, not by what they show, so that nothing proves that a held-out
item differs from every training item but the environment's own use of its seed.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

from configs.objects import code_hash, load_object
from configs.schema import Environment
from contracts.errors import UserError
from environments.text.own import GymSource
from environments.text.sources import Source

_PARAMETERS = ("action", "field", "show")


def open_openenv(environment: Environment, *, seed: int, folder: Path | None) -> Source:
    """The source that environment.dataset (`module:class`) names. Raises UserError."""
    asked = f"The OpenEnv environment {environment.dataset} was asked for (environment.dataset)."
    given = environment.parameters
    missing = [name for name in _PARAMETERS if not isinstance(given.get(name), str)]
    if missing:
        todo = f"Set environment.parameters.{missing[0]}; see the top of environments/text/openenv.py."
        raise UserError(asked, f"There is no text {missing[0]} in environment.parameters.", todo)
    make = load_object(environment.dataset, asked=asked, folder=folder)
    action = load_object(given["action"], asked=asked, folder=folder)
    others = {name: value for name, value in given.items() if name not in _PARAMETERS}
    settings = environment.model_copy(update={"parameters": {}})

    def play() -> OpenEnvGame:
        return OpenEnvGame(make(**others), action=action, field=given["field"], show=given["show"])

    return GymSource(play, settings, seed=seed, asked=asked, code=code_hash(make, action))


class OpenEnvGame:
    """environments.text.own.TextGame by one OpenEnv environment."""

    def __init__(self, environment: Any, *, action: Any, field: str, show: str) -> None:
        self._environment, self._action, self._field, self._show = environment, action, field, show
        # Some environments take no seed: then every item is the same.
        self._seeded = "seed" in inspect.signature(environment.reset).parameters

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """`options` is not used: an OpenEnv environment knows no splits."""
        observation = self._environment.reset(**({"seed": seed} if self._seeded else {}))
        return self._text(observation), {"item": f"seed {seed}"}

    def step(self, action: str) -> tuple[str, Any, bool, bool, dict[str, Any]]:
        observation = self._environment.step(self._action(**{self._field: action}))
        reward = 0.0 if observation.reward is None else float(observation.reward)
        return self._text(observation), reward, bool(observation.done), False, {}

    def _text(self, observation: Any) -> str:
        return self._show.format_map(observation.model_dump())
