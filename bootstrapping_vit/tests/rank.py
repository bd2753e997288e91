"""One of two gloo processes that make an aligned update together. Arguments: rank, folder."""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file

from bootstrapping_vit.config import BootstrappingConfig
from bootstrapping_vit.method import BootstrappingViT
from vitutor_core.data.types import Batch, DataInfo
from vitutor_core.distributed import Processes
from vitutor_core.train.method import Clock

rank, folder = int(sys.argv[1]), Path(sys.argv[2])
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
config = BootstrappingConfig.from_mapping(json.loads((folder / "config.json").read_text()), where="test")
info = DataInfo("digits", tuple("0123456789"), 16, 3, (0.5,) * 3, (0.5,) * 3, 900, 896, "test")
method = BootstrappingViT.build(config, info)
method.load_state_dict(load_file(folder / "weights.safetensors"))
whole = load_file(folder / "batch.safetensors")
images, targets = (whole[name].chunk(2)[rank] for name in ("images", "targets"))
micro_batches = [Batch(*parts, torch.arange(2)) for parts in zip(images.chunk(2), targets.chunk(2), strict=True)]

for mode in ("evaluation", "training"):
    method.train(mode == "training")
    method.zero_grad()
    step = Processes(rank, 2, torch.device("cpu")).wrap(method)
    rule = method.update_rule()
    assert rule is not None
    for batch in micro_batches:
        rule(partial(step, batch, Clock(0, 4, 40)), scale=0.5, no_sync=step.no_sync)
    found = {name: parameter.grad for name, parameter in method.named_parameters()}
    save_file(found | dict(method.named_buffers()), folder / f"{mode}-{rank}.safetensors")
dist.destroy_process_group()
