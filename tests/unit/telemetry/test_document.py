"""docs/metrics.md is what the catalogue prints."""

from __future__ import annotations

from pathlib import Path

from telemetry.catalogue import render_markdown

ROOT = Path(__file__).resolve().parents[3]


def test_the_document_is_the_catalogue() -> None:
    written = (ROOT / "docs" / "metrics.md").read_text().strip()
    assert written == render_markdown().strip(), "run: .venv/bin/python -m telemetry.catalogue > docs/metrics.md"
