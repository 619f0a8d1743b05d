"""The experience store: two append-only logs that are the truth, and an index that can be thrown away and rebuilt."""
