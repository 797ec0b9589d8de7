"""How does it learn? State, step, loop, optimisers, checkpoints, mesh, run records."""
