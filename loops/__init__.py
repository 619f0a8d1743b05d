"""The heart: tasks, rollout, update, publish, replay as plain state machines with injected ports. No ray, no torch."""
