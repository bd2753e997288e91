"""The method protocol, the only training loop, and what it needs: optimiser, checkpoints, processes."""
