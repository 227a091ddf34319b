"""The trainer: a training step on a mesh of devices, and the loop that feeds, logs and saves it."""

import functools
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxquant import errors
from jaxquant.layers import sharding
from jaxquant.models import staging
from jaxquant.numerics import trees
from jaxquant.training import preemption
from jaxquant.training import step as training_step


class Interrupted(Exception):
  """The job was told to stop; a checkpoint of the last step is saved. Start the same command again. Exit code 75."""

  exit_code = preemption.EXIT_CODE
  collective = True  # every process raises it


class Schedule(NamedTuple):
  """When the loop does what, in steps.

  Attributes:
    steps: in all.
    log_every: between records of kind `train`.
    save_every: between checkpoints; the last step is one too.
    visit: steps after which `Hooks.visit` is called, the first being 0: before any training.
  """

  steps: int
  log_every: int
  save_every: int
  visit: frozenset[int]


class Hooks(NamedTuple):
  """What the loop calls back.

  Attributes:
    compiled: (step, seconds): a step that had to be compiled is done, after so many seconds.
    log: (step, metrics): metrics of the last step, with the `seconds` and `steps` since the log before.
    visit: (step, state): measurements at the visits of the schedule.
    validate: (step, state): metrics to choose the best checkpoint by, at the visits and checkpoints of the schedule.
    save: (step, state, metrics, data state): asynchronous. The metrics are those of this very step; there are none at a
      step that is saved for the sake of leaving alone, which should not take long.
    wait: until the last save is on disk.
    stepped: (step): a step has been handed to the device.
  """

  compiled: Callable[[int, float], None]
  log: Callable[[int, dict], None]
  visit: Callable[[int, training_step.TrainState], None]
  validate: Callable[[int, training_step.TrainState], dict]
  save: Callable[[int, training_step.TrainState, dict, Any], None]
  wait: Callable[[], None]
  stepped: Callable[[int], None] = lambda step: None


class Trainer:
  """Holds what does not change during training: objective, optimizer, mesh and the compiled steps."""

  def __init__(
      self, objective: training_step.Objective, tx: optax.GradientTransformation, mesh: jax.sharding.Mesh, *,
      fully_sharded: bool = False, microbatches: int = 1):
    """Prepares the step; nothing is compiled yet.

    Args:
      objective: the loss.
      tx: the optimizer.
      mesh: devices along `sharding.DATA_AXIS`.
      fully_sharded: split parameters and optimizer state over the devices, instead of a copy on each.
      microbatches: parts of the global batch whose gradients are averaged.
    """
    self.mesh, self.tx, self._fully = mesh, tx, fully_sharded
    self._objective, self._microbatches, self._programs = objective, microbatches, {}

  def shardings(self, state: Any) -> Any:
    """Where the arrays of a state, given as such or abstractly, live on the mesh."""
    return sharding.tree_shardings(self.mesh, state, self._fully)

  def compute(self, make: Callable[..., Any], *arguments: Any) -> Any:
    """`make(*arguments)`, computed under jit straight into its shardings."""
    return jax.jit(make, out_shardings=self.shardings(jax.eval_shape(make, *arguments)))(*arguments)

  def initialize(self, params: Any) -> training_step.TrainState:
    """The state before the first step."""
    return self.compute(lambda params: training_step.initial_state(params, self.tx), params)

  def abstract_state(self, params: Any) -> training_step.TrainState:
    """Shapes, dtypes and shardings of the state, the target of a restore, for `params` given as such or abstractly."""
    abstract = jax.eval_shape(lambda params: training_step.initial_state(params, self.tx), params)
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), abstract, self.shardings(abstract))

  def step(self, state: training_step.TrainState, local_rows: np.ndarray, number: int):
    """One step on a global batch.

    Args:
      state: the state before it; donated.
      local_rows: this process's rows of the batch, int32 [rows, length + 1].
      number: which step this is, from 1.

    Returns:
      (state, metrics), as `training.step.train_step` has them.
    """
    return self._program(number)(state, sharding.place_rows(self.mesh, local_rows))

  def _program(self, number):
    """The step, not compiled before its first call: there is one program for each loss that steps may have."""
    objective = self._objective.at(number)
    if objective not in self._programs:
      step = functools.partial(
          training_step.train_step, objective=objective, tx=self.tx, microbatches=self._microbatches)
      self._programs[objective] = jax.jit(step, donate_argnums=0)
    return self._programs[objective]

  def fit(
      self, state: training_step.TrainState, batches: Iterator[dict[str, np.ndarray]], schedule: Schedule,
      hooks: Hooks, stop: preemption.Preemption) -> training_step.TrainState:
    """Trains from the state's step to the last one.

    Args:
      state: the state to start from; donated.
      batches: this process's rows, `tokens`; positioned at the state's step; has `get_state`.
      schedule: when to log, save and visit.
      hooks: what to call then.
      stop: asked after every step whether to save and leave.

    Returns:
      The final state, saved.

    Raises:
      NonFiniteError: the loss is not finite; nothing non-finite has been saved.
      Interrupted: `stop` said so, after a checkpoint.
    """
    step = int(state.step)
    clock, logged = time.monotonic(), step
    with jax.set_mesh(self.mesh):
      if step == 0 and 0 in schedule.visit:
        hooks.visit(0, state)
        hooks.validate(0, state)
        clock = time.monotonic()
      while step < schedule.steps:
        programs, before = len(self._programs), time.monotonic()
        state, metrics = self.step(state, next(batches)['tokens'], step + 1)
        step += 1
        hooks.stepped(step)
        if len(self._programs) > programs:  # this step was compiled; throughput is measured from the next
          jax.block_until_ready(metrics)
          hooks.compiled(step, time.monotonic() - before)
          clock, logged = time.monotonic(), step
        leaving = stop.requested()
        due = step % schedule.save_every == 0 or step == schedule.steps
        saving, visiting = due or leaving, step in schedule.visit
        if logging := step % schedule.log_every == 0 or saving or visiting:
          metrics = {name: float(value) for name, value in jax.device_get(metrics).items()}
          _check_finite(step, metrics, state.params if saving else None)
          seconds = time.monotonic() - clock
          hooks.log(step, {**metrics, 'seconds': seconds, 'steps': step - logged})
        if visiting:
          hooks.visit(step, state)
        measured = hooks.validate(step, state) if visiting or due else {}
        if saving:
          hooks.save(step, state, measured, batches.get_state())
        if logging:
          clock, logged = time.monotonic(), step
        if leaving and step < schedule.steps:
          hooks.wait()
          raise Interrupted(f'stopped at step {step} of {schedule.steps}')
    hooks.wait()
    return state


def _check_finite(step, metrics, params):
  """Raises `NonFiniteError`; a step whose loss is still finite may leave parameters, to be saved, that are not."""
  try:
    if not np.isfinite(metrics['loss']):
      raise errors.NonFiniteError(f'the loss is {metrics["loss"]}')
    trees.check_finite(params)
  except errors.NonFiniteError as error:
    raise errors.NonFiniteError(f'step {step}: {error}; checkpoints before it are finite') from None


def model_params(config, key) -> Any:
  """Freshly initialized float parameters of a decoder; traceable."""
  return staging.make(config).init(key, jnp.zeros((1, 1), jnp.int32))['params']


def log_spaced(steps: int, count: int) -> frozenset[int]:
  """0, and about `count` steps from 1 to `steps`, evenly spaced in their logarithm."""
  return frozenset({0, steps, *np.unique(np.geomspace(1, steps, count).round().astype(int)).tolist()})
