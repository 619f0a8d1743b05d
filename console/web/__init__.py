"""Pages about a run, made from its files. Imports no actors."""
