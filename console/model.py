"""`ratchet model init` and `ratchet model export`: a small model from nothing, a trained one as a folder to keep."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from configs.loader import load
from configs.schema import ModelInit, RunConfig
from console.run_folder import read_manifest, resolve
from contracts.errors import UserError
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
    merge: Annotated[
        bool, typer.Option("--merge", help="Of a run with adapters: the whole model, adapters merged into the base.")
    ] = False,
) -> None:
    """A version as a folder that transformers loads, with a card; of a run with adapters, one that peft loads."""
    folder = resolve(run)
    config = load(folder / "config.yaml")
    if config.control.id is not None:
        raise UserError(
            f"export a version of {folder.name}",
            f"it is a control run: its policy for {config.control.id} is no language model",
            f"read {folder / 'model' / 'policy.json'} and {folder / 'versions'} with models/actor_critic.py",
        )
    from actors.offline import version_weights
    from buffers.view import StoreView
    from models.export import ModelCard, export_adapters, export_model
    from models.lora import AdaptedBase
    from models.lora import merge as merge_adapters

    weights = version_weights(folder, version)
    view = StoreView.open(folder / "store")
    records = [record for _, record in view.decisions()]
    scores = [one.scores for one in records if isinstance(one, Evaluation) and one.version == version]
    card = ModelCard(
        name=folder.name,
        config_hash=read_manifest(folder)["config_hash"],
        lineage=_lineage(config, [one for one in records if isinstance(one, Version)], version),
        scores=scores[-1] if scores else {},
    )
    base, lora = folder / "model", config.model.lora
    if lora.rank and not merge:
        export_adapters(weights, settings=lora, base=base, out=out, card=card)
    else:
        whole = merge_adapters(weights, base=AdaptedBase(base, lora)) if lora.rank else weights
        export_model(whole, base=base, out=out, card=card)
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
    if config.model.lora.rank:
        lines.append(f"low-rank adapters of rank {config.model.lora.rank}, which alone learned")
    if config.warm_start.steps:
        lines.append(f"{config.warm_start.steps} supervised steps on {environment}")
    lines.append(f"{updates} {config.learner.algorithm} updates on {environment}")
    return tuple(lines)
