"""What the processes of a run say about themselves: metrics, logs, and who they are."""
