"""What the rows do: pre-train an encoder in one of two ways, or probe it."""
