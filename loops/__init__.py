"""The heart: tasks, rollout, update, publish, evaluate, replay as plain state machines with their ports injected. No ray, no torch."""
