"""From a data source to batches: sources, subsets, augmentation, resident and streamed loaders."""
