"""How pixels change between a decoded image and a batch; one augmentation for both loaders."""
