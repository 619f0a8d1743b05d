"""How good a version is: held-out accuracy and what it says of two versions."""
