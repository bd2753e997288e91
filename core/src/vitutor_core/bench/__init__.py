"""What a machine makes of the training step, in ratios measured side by side: `vitutor bench`."""

from __future__ import annotations

SHARES = {
    "limits": 1.0,
    "plain step": 5.0,
    "waiting for data": 1.0,
    "resident loader": 1.0,
    "streamed loader": 2.0,
    "methods": 3.0,
    "teachers": 2.0,
    "host and kernels": 1.0,
    "several GPUs": 1.0,
}
"""Parts, each with its share of the time."""
