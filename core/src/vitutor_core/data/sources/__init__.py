"""What images and labels are read from, and which of them are used."""
