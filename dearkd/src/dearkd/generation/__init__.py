"""Data-free DearKD (section 4): images from a trained CNN alone, by inverting it."""
