"""Training of the learned gist encoders behind a frozen base: recipe, losses, loop, checkpoints."""
