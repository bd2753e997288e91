"""ViTutor core: data, models, the training loop and the reports that every paper package shares."""

import os

__version__ = "0.1.0"

if os.name != "posix":
    # Run folders are locked with fcntl, and runs are stopped by signals. As an exit it is one line, whoever imports it.
    raise SystemExit("error: ViTutor runs on Linux and macOS; on Windows, install it inside WSL")
