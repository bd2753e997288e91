"""What the commands and `vitutor_core.api` do: train, measure and export runs, their teachers and rows."""
