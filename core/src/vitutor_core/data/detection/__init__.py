"""Images with boxes and masks: where they come from, how they are augmented, and their two loaders."""
