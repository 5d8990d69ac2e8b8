"""NESS in torch modules: what a layer sees (capture), how it is adapted, and how the update is folded in."""
