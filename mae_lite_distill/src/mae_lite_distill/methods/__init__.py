"""What the rows do: pre-train an encoder in one of several ways, or probe it."""
