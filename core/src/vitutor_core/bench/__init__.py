"""What a machine makes of the training step, in ratios measured side by side: `vitutor bench`."""
