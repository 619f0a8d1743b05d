"""Update rules: supervised fine-tuning and policy gradients (torch; no ray, no inference engines)."""
