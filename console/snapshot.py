"""`ratchet snapshot create` and `ratchet snapshot list`: a run, kept at a moment, restorable on an empty machine."""

from __future__ import annotations

import typer

app = typer.Typer(help="Keep a run at a moment.", no_args_is_help=True, rich_markup_mode=None)
