"""AdamW in groups: kernels with weight decay, gains and biases without, learned ranges by themselves."""

import dataclasses

import jax
import optax

from jaxquant import errors
from jaxquant.numerics import quantizers

SCHEDULES = ('cosine', 'linear', 'constant')


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
  """AdamW (arXiv:1711.05101) with warm-up.

  Attributes:
    learning_rate: at the peak.
    warmup_steps: linear from zero.
    schedule: decay after the warm-up: `cosine` or `linear` to `final_fraction` of the peak, or `constant`.
    final_fraction: of the peak, reached at the last step.
    weight_decay: of kernels (rank two or more); applied decoupled, times the learning rate.
    b1, b2, epsilon: of Adam.
    clip_norm: bound on the global gradient norm of kernels, gains and biases.
    range_multiplier: the learned ranges' learning rate over that of the rest.
    range_decay: weight decay of learned ranges, zero but for PACT, whose clip its paper decays.
  """

  learning_rate: float = 1e-3
  warmup_steps: int = 100
  schedule: str = 'cosine'
  final_fraction: float = 0.0
  weight_decay: float = 0.1
  b1: float = 0.9
  b2: float = 0.95
  epsilon: float = 1e-8
  clip_norm: float = 1.0
  range_multiplier: float = 1.0
  range_decay: float = 0.0

  def __post_init__(self):
    if self.schedule not in SCHEDULES:
      raise errors.UserError(f'optimizer.schedule is {self.schedule!r}; there are {", ".join(SCHEDULES)}')
    if self.learning_rate <= 0:
      raise errors.UserError(f'optimizer.learning_rate must be positive, not {self.learning_rate}')


def learning_rate(config: OptimizerConfig, steps: int) -> optax.Schedule:
  """The schedule over `steps` steps, warm-up included."""
  peak, final = config.learning_rate, config.learning_rate * config.final_fraction
  warmup = min(config.warmup_steps, steps)
  rest = max(steps - warmup, 1)
  decay = {
      'cosine': lambda: optax.cosine_decay_schedule(peak, rest, config.final_fraction),
      'linear': lambda: optax.linear_schedule(peak, final, rest),
      'constant': lambda: optax.constant_schedule(peak),
  }[config.schedule]()
  return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), decay], [warmup])


def make(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
  """The optimizer for a training tree.

  The groups are separate: a range's gradient sums over every element of an activation and would swamp a norm that it
  shared with the kernels' gradients.
  """
  schedule = learning_rate(config, steps)
  adam = lambda: optax.scale_by_adam(config.b1, config.b2, config.epsilon)
  weights = optax.chain(
      optax.clip_by_global_norm(config.clip_norm), adam(),
      optax.add_decayed_weights(config.weight_decay, mask=lambda tree: jax.tree.map(lambda x: x.ndim >= 2, tree)),
      optax.scale_by_learning_rate(schedule))
  ranges = optax.chain(
      adam(), optax.add_decayed_weights(config.range_decay),
      optax.scale_by_learning_rate(lambda step: config.range_multiplier * schedule(step)))
  return optax.partition({'weights': weights, 'ranges': ranges, 'fixed': optax.set_to_zero()}, labels)


def labels(params):
  """What trains which array, a tree like `params`.

  `ranges` for those inside input quantizers, `fixed` for the clips that such ranges leave where activations are not
  quantized any more, `weights` for all others.
  """
  learned = lambda value: isinstance(value, quantizers.INPUT_QUANTIZERS)

  def label(path, value):
    clip = any(getattr(key, 'key', None) == 'clip' for key in path)
    return jax.tree.map(lambda _: 'ranges' if learned(value) else 'fixed' if clip else 'weights', value)

  return jax.tree_util.tree_map_with_path(label, params, is_leaf=learned)
