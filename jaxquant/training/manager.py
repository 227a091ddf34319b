"""Orbax's manager of checkpoints, but for what it does otherwise than a run here needs it."""

import dataclasses
import pathlib

import orbax.checkpoint as ocp


class Manager(ocp.CheckpointManager):
  """A manager that saves when it is told to, and leaves preemption alone."""

  def __init__(self, directory: pathlib.Path, policy: 'KeepNewestAndBest'):
    # Directories made in the background would let a failed save hold up the exit of the process for five minutes.
    super().__init__(directory, options=ocp.CheckpointManagerOptions(
        preservation_policy=policy, lightweight_initialize=True,
        async_options=ocp.AsyncOptions(create_directories_asynchronously=False)))

  def reached_preemption(self, step: int) -> bool:
    """False: asking JAX would tell it that this process is at `step`, while processes agree by counting otherwise."""
    del step
    return False


@dataclasses.dataclass
class KeepNewestAndBest:
  """A preservation policy of Orbax's, for metrics from our manifests: Orbax's own would take NaN for the best."""

  newest: int
  best: int
  metric: str
  metrics: dict[int, dict[str, float]] = dataclasses.field(default_factory=dict)

  def ranked(self, steps, metrics) -> list[int]:
    measured = [step for step in steps if self.metric in metrics.get(step, {})]
    return sorted(measured, key=lambda step: (metrics[step][self.metric], -step))

  def should_preserve(self, checkpoints, *, context) -> list[bool]:
    del context
    steps = [checkpoint.step for checkpoint in checkpoints]
    kept = {*steps[-self.newest:], *self.ranked(steps, self.metrics)[:self.best]}
    return [step in kept for step in steps]
