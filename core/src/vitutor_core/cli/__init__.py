"""The vitutor command, and the commands that every paper package shares."""
