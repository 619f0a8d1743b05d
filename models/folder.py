"""What a local Hugging Face model folder must hold."""

from __future__ import annotations

from pathlib import Path

from contracts.errors import UserError

WEIGHT_PATTERNS = ("*.safetensors", "pytorch_model*.bin")


def check_folder(folder: Path) -> None:
    """Raise UserError unless `folder` looks like a Hugging Face model: config.json, tokenizer, weights."""
    asked = f"the model in {folder}"
    todo = "name a local Hugging Face folder, or make one with `ratchet model init`"
    if not folder.is_dir():
        raise UserError(asked, "there is no such folder", todo)
    if not (folder / "config.json").is_file():
        raise UserError(asked, f"it has no config.json, only {_listing(folder)}", todo)
    if not any(next(folder.glob(pattern), None) for pattern in WEIGHT_PATTERNS):
        raise UserError(asked, f"it has no weights ({' or '.join(WEIGHT_PATTERNS)}), only {_listing(folder)}", todo)
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        raise UserError(asked, f"it has no tokenizer (tokenizer.json), only {_listing(folder)}", todo)


def _listing(folder: Path, *, most: int = 8) -> str:
    names = sorted(path.name for path in folder.iterdir())
    return ", ".join(names[:most]) + (", …" if len(names) > most else "") or "nothing"
