"""Write one version as a folder to keep: a Hugging Face model that stands alone, or adapters in peft's own format."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file

from configs.schema import Lora
from contracts.errors import UserError
from contracts.protocols import WeightSet
from models.durable import sync
from models.folder import check_folder
from models.lora import peft_config
from models.registry import tensors_of
from models.versions import FILE_NAME

# Everything a base folder has beside its weights and its card.
COMPANIONS = ("*.json", "*.jinja", "*.txt", "*.model", "LICENSE*")
WEIGHT_INDEX = "*.index.json"
ADAPTER_FILE_NAME = "adapter_model.safetensors"  # peft's


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """What the card says besides the weights' own version and hash."""

    name: str  # of the run
    config_hash: str
    lineage: tuple[str, ...]  # how the weights came about, oldest first; one line each
    scores: Mapping[str, float] = field(default_factory=dict)


def export_model(weights: WeightSet, *, base: Path, out: Path, card: ModelCard) -> None:
    """Write `weights` with the configuration and tokenizer of `base` to the new folder `out`, visible when whole.

    Raises UserError where `out` holds something, or `base` is no model or another network than the weights'.
    """
    check_folder(base)
    _check_free(out)
    _check_same_network(weights, base)
    with _published(out) as draft:
        for path in _companions(base):
            shutil.copyfile(path, draft / path.name)
        _state_dtype(draft / "config.json", weights)
        save_file(tensors_of(weights), draft / FILE_NAME, metadata={"format": "pt"})
        (draft / "README.md").write_text(_render(card, weights, library="transformers"))


def export_adapters(weights: WeightSet, *, settings: Lora, base: Path, out: Path, card: ModelCard) -> None:
    """Write adapters as peft's `from_pretrained` and vLLM's LoRA requests read them; `base` is named, not copied.

    Raises UserError where `out` holds something.
    """
    _check_free(out)
    with _published(out) as draft:
        peft_config(settings, base=str(base.resolve())).save_pretrained(str(draft))
        save_file(tensors_of(weights), draft / ADAPTER_FILE_NAME, metadata={"format": "pt"})
        (draft / "README.md").write_text(_render(card, weights, library="peft"))


@contextmanager
def _published(out: Path) -> Iterator[Path]:
    """A draft folder that becomes `out`, durably, when the block ends well."""
    out.parent.mkdir(parents=True, exist_ok=True)
    draft = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    draft.mkdir()
    try:
        yield draft
        for path in draft.iterdir():
            sync(path)
        sync(draft)
        draft.rename(out)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    sync(out.parent)


def _check_free(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"an export to {out}", "there is something already", "name a new folder")


def _companions(base: Path) -> list[Path]:
    indexes = set(base.glob(WEIGHT_INDEX))
    return [path for pattern in COMPANIONS for path in sorted(base.glob(pattern)) if path not in indexes]


def _check_same_network(weights: WeightSet, base: Path) -> None:
    theirs: set[str] = set()
    for path in base.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            theirs.update(file.keys())
    # Where the base ties its weights it may store both names or one, so that one missing name is no difference.
    tied = bool(json.loads((base / "config.json").read_text()).get("tie_word_embeddings"))
    differing = sorted(weights.tensors.keys() - theirs if tied else weights.tensors.keys() ^ theirs)
    if theirs and differing:
        raise UserError(
            f"an export of version {weights.version} over {base}",
            f"the two differ in {len(differing)} tensors, such as {differing[0]}",
            "name the model folder of the run that made the version",
        )


def _state_dtype(path: Path, weights: WeightSet) -> None:
    """Let config.json say the data type that the weights now have (transformers reads it back as `dtype="auto"`)."""
    config = json.loads(path.read_text())
    config.pop("torch_dtype", None)
    config["dtype"] = next(iter(weights.dtypes.values()))
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def _render(card: ModelCard, weights: WeightSet, *, library: str) -> str:
    num_parameters = sum(int(array.size) for array in weights.tensors.values())
    what = "Low-rank adapters" if library == "peft" else "A causal language model"
    lines = [
        "---",
        f"library_name: {library}",
        "pipeline_tag: text-generation",
        "---",
        "",
        f"# {card.name}, version {weights.version}",
        "",
        f"{what} fine-tuned with Ratchet.",
        "",
        "| | |",
        "|---|---|",
        f"| version | {weights.version} |",
        f"| root hash (sha256 over names, types, shapes, bytes) | `{weights.root_hash}` |",
        f"| configuration hash | `{card.config_hash}` |",
        f"| parameters stored | {num_parameters:,} |",
        "",
        "## Lineage",
        "",
        *(f"{place}. {line}" for place, line in enumerate(card.lineage, start=1)),
        "",
        "## Scores",
        "",
    ]
    if card.scores:
        lines += [
            "| metric | value |",
            "|---|---|",
            *(f"| {name} | {value:.4g} |" for name, value in card.scores.items()),
        ]
    else:
        lines += ["This version was not evaluated."]
    return "\n".join(lines) + "\n"
