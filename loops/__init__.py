"""The heart: tasks, rollout, update, publish, evaluate, replay as plain state machines, ports injected. No ray, no torch."""
