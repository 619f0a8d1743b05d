"""The configuration: one frozen schema, one loader, and the run files (*.yaml)."""
