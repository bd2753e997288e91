"""What the commands do, as Python calls.

from vitutor_core.api import compare, evaluate, predict, train

record = train("dearkd", "runs/first", settings={"data.source": "folder:my_images", "train.epochs": 20})
print(evaluate("runs/first")["balanced_top1"])
for prediction in predict("runs/first", ["new_images"]):
    print(prediction.path, prediction.classes[0])
"""

from __future__ import annotations

from vitutor_core.cli.calls import evaluate, predict, train
from vitutor_core.cli.compare import compare_papers as compare

__all__ = ["compare", "evaluate", "predict", "train"]
