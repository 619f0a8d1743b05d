"""Text tasks: any reasoning-gym data set, its prompts, its verifiers, and the Gymnasium environment around them."""
