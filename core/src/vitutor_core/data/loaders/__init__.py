"""How the images of a batch come to the device: all at once, or decoded by workers."""
