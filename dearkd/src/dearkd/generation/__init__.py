"""Data-free DearKD (section 3.3): images from a trained CNN alone, by inverting it."""
