"""What can be known to be wrong with a run before anything is started or written: cheap checks, no torch, no ray."""

from __future__ import annotations

import importlib.util
import os
import resource
import shutil
import socket
import sys
import tempfile
from pathlib import Path

from configs.schema import SERVING_TOKEN, RunConfig
from console import task_folder
from contracts.errors import ClusterError, ConfigError, RunFolderError
from serving.exposure import check_exposure

_CONNECT_S = 5.0


def check(config: RunConfig, *, folder: Path) -> None:
    """Raises UserError at the first thing that cannot work; `folder` holds the user's own code and files."""
    _check_model(config)
    _check_task(config, folder)
    _check_disk(config)
    _check_cluster(config)
    if config.serving.enabled:
        check_exposure(config.serving, token=os.environ.get(SERVING_TOKEN))


def _check_model(config: RunConfig) -> None:
    if config.model.path is None:
        return
    folder = Path(config.model.path)
    asked = f"model.path: {config.model.path}"
    todo = "name a local Hugging Face folder, or leave model.path out to make a small model from model.init"
    if not folder.is_dir():
        raise ConfigError(asked, f"there is no folder {folder.absolute()}", todo)
    missing = [name for name in ("config.json", "tokenizer_config.json") if not (folder / name).is_file()]
    if not any(folder.glob("*.safetensors")):
        missing.append("*.safetensors")
    if missing:
        raise ConfigError(asked, f"{folder.absolute()} lacks {', '.join(missing)}", todo)


def _check_task(config: RunConfig, folder: Path) -> None:
    """The user's own task is made once, in a process of its own: its faults show in seconds, before Ray is up."""
    task_folder.needed(config, folder)
    is_own = config.environment.name != "reasoning_gym" or ":" in config.environment.verifier
    if config.control.id is not None or not is_own:
        return
    from environments.host import EnvironmentHost

    with EnvironmentHost(config.environment, seed=config.seed, folder=folder.resolve()) as host:
        host.prompts("train", [0])
        if config.warm_start.steps:
            host.targets("train", range(config.environment.train_items))


def take_engine(config: RunConfig) -> RunConfig:
    """The configuration with an engine that is installed: vLLM has no wheel for every machine. Says so where it has to
    take the other one."""
    if config.engine.backend != "vllm" or importlib.util.find_spec("vllm") is not None:
        return config
    print("vllm is not installed here: taking the transformers engine (engine.backend=transformers)", file=sys.stderr)
    return config.model_copy(update={"engine": config.engine.model_copy(update={"backend": "transformers"})})


def _check_disk(config: RunConfig) -> None:
    root = Path(config.root).absolute()
    place = next(path for path in (root, *root.parents) if path.exists())
    if not place.is_dir():
        raise RunFolderError(f"a run folder under {root}", f"{place} is a file", "choose another: --set root=FOLDER")
    try:
        tempfile.TemporaryFile(dir=place).close()  # has no name: nothing is left behind
    except OSError as error:
        raise RunFolderError(
            f"a run folder under {root}",
            f"{place} cannot be written: {error.strerror}",
            "make it writable, or choose another: --set root=FOLDER",
        ) from None
    store = config.store
    needed_mib = store.reserve_mib + store.segment_mib + store.control_segment_mib
    free_mib = shutil.disk_usage(place).free >> 20
    if free_mib < needed_mib:
        raise RunFolderError(
            f"a run folder under {root}",
            f"the disk has {free_mib} MiB left; the store alone begins with {needed_mib} MiB",
            "free some space, choose another disk (--set root=FOLDER), or a smaller store.segment_mib",
        )
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    if limit != resource.RLIM_INFINITY and limit < store.segment_mib << 20:
        raise RunFolderError(
            f"log segments of {store.segment_mib} MiB",
            f"this shell limits files to {limit >> 20} MiB",
            "raise the limit (ulimit -f unlimited), or set a smaller store.segment_mib",
        )


def _check_cluster(config: RunConfig) -> None:
    host, colon, port = config.cluster.address.rpartition(":")
    if not colon or not port.isdigit() or "/" in host:
        return  # "local" and "auto": Ray knows
    try:
        socket.create_connection((host, int(port)), timeout=_CONNECT_S).close()
    except OSError as error:
        raise ClusterError(
            f"cluster.address: {config.cluster.address}",
            f"nothing answers there: {error.strerror or error}",
            "start a cluster (ray start --head), or run on this machine alone: --set cluster.address=local",
        ) from None
