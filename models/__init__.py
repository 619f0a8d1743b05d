"""Networks, tokenizers, and the versioned registry of weights (torch; no ray)."""
