"""Control tasks: Gymnasium environments with vector observations, stepped side by side in lanes."""
