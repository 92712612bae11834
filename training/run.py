"""Run: what stays the same while a run goes on, made once and handed to its parts; and Position, where it is."""

from dataclasses import dataclass
from typing import NamedTuple

import torch

from pipeline.dataset.manifest_file import Manifest
from training.distributed import World
from training.train_config import TrainConfig


@dataclass(frozen=True)
class Run:
    """One rank's run: its settings, its dataset, its place among the ranks, and its device."""

    config: TrainConfig
    manifest: Manifest
    world: World
    device: torch.device

    @property
    def group_size(self) -> int:
        """How many ranks share a copy of the tables by columns; 1: each rank has whole tables."""
        world = self.world
        return self.config.group_size_of(self.device.type, world.world_size, world.local_world_size)


class Position(NamedTuple):
    """In epoch ``epoch``, after ``step`` of its steps; ``done`` counts the steps of the whole run so far."""

    epoch: int
    step: int
    done: int
