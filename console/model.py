"""`ratchet model init` and `ratchet model export`: a small model from nothing, a trained one as a folder to keep."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from configs.loader import load
from configs.schema import ModelInit, RunConfig
from console.run_folder import read_manifest, resolve
from contracts.records import Evaluation, Version

app = typer.Typer(help="Make and export models.", no_args_is_help=True, rich_markup_mode=None)

_DEFAULT = ModelInit()


@app.command()
def init(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A folder that does not exist or is empty.")],
    seed: Annotated[int, typer.Option(help="The same seed makes the same bytes.")] = 0,
    layers: int = _DEFAULT.layers,
    width: int = _DEFAULT.width,
    heads: int = _DEFAULT.heads,
    feed_forward: int = _DEFAULT.feed_forward,
    max_positions: int = _DEFAULT.max_positions,
    tied_embeddings: bool = _DEFAULT.tied_embeddings,
) -> None:
    """A small seeded Qwen2-architecture model and its tokenizer, as a Hugging Face folder."""
    from models.init import init_model

    settings = ModelInit(
        layers=layers,
        width=width,
        heads=heads,
        feed_forward=feed_forward,
        max_positions=max_positions,
        tied_embeddings=tied_embeddings,
    )
    init_model(out, settings=settings, seed=seed)
    typer.echo(f"model: {out.absolute()}")


@app.command()
def export(
    run: Annotated[str, typer.Argument(metavar="RUN")],
    version: Annotated[int, typer.Option(metavar="V", help="Any version in the log.")],
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="A folder that does not exist or is empty.")],
) -> None:
    """A version as a Hugging Face folder with tokenizer and model card."""
    folder = resolve(run)
    from buffers.view import StoreView
    from models.export import ModelCard, export_model
    from models.registry import list_versions, load_version

    if version in list_versions(folder / "versions"):
        weights = load_version(folder / "versions", version)
    else:  # its file was pruned: the log still knows how it was made
        from actors.offline import rebuild_version

        weights = rebuild_version(folder, version)[0].weights(version)
    view = StoreView.open(folder / "store")
    records = [record for _, record in view.decisions()]
    scores = [one.scores for one in records if isinstance(one, Evaluation) and one.version == version]
    card = ModelCard(
        name=folder.name,
        config_hash=read_manifest(folder)["config_hash"],
        lineage=_lineage(load(folder / "config.yaml"), [one for one in records if isinstance(one, Version)], version),
        scores=scores[-1] if scores else {},
    )
    export_model(weights, base=folder / "model", out=out, card=card)
    typer.echo(f"model: {out.absolute()}")


def _lineage(config: RunConfig, versions: list[Version], version: int) -> tuple[str, ...]:
    """Where the weights came from: the base, the warm start, the updates along the version's ancestry."""
    by_number = {one.version: one for one in versions}
    updates, at = 0, by_number.get(version)
    while at is not None and at.parent >= 0:
        updates, at = updates + 1, by_number.get(at.parent)
    base = config.model.path or f"made from nothing, seed {config.seed}"
    environment = config.environment.label
    lines = [f"base model: {base}"]
    if config.warm_start.steps:
        lines.append(f"{config.warm_start.steps} supervised steps on {environment}")
    lines.append(f"{updates} {config.learner.algorithm} updates on {environment}")
    return tuple(lines)
