"""Fuzzing of what reads bytes that may come from anybody; each file is a command, its corpus is kept beside it."""
