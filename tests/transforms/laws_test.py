"""The laws that every transform obeys, in one matrix over transforms, architectures and compute dtypes.

A new method is one more entry of `law_cases.CASES`. Its own oracles belong into a test file of its own.

  1  observe and search are jitted and compiled once
  2  init and search work on shapes alone
  3  what comes back has the structure and dtypes that such a transform leaves
  4  what the transform does not claim comes back identical, to the bit
  5  statistics of halves merge to those of the whole; where order matters, a saved state continues the run
  6  all of this in float32 and in bfloat16
  7  folding leaves the full-precision function of the block unchanged, the residual branch of post-norm blocks included
  8  the block's output on the calibration data is no further from the float block's than that of a plainer method; of a
     fold that was searched, once both are quantized, no further than without the fold
  9  simulated, integer and reloaded trees evaluate to the same bits

Every case meets every architecture in float32 and one in bfloat16: activations are all that a dtype changes, and the
architecture has no part in how it does. What differs from another case in options alone meets one of these, in turn; so
does every case under law 9, which compiles whole networks (tests/transforms/exactness_test.py has all of them).
"""

import collections
import functools
import json
import re
from collections.abc import Iterable

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from jaxquant.calibration import statistics
from jaxquant.calibration import transform as transforms
from jaxquant.models import staging
from jaxquant.models import validate
from jaxquant.numerics import formats
from jaxquant.numerics import nodes
from jaxquant.numerics import qtensor
from jaxquant.numerics import quantize
from jaxquant.numerics import quantizers
from jaxquant.numerics import trees
from tests import law_cases
from tests import networks


def _over(names: Iterable[str]):
  """Decorator: a test that is run for every case of `names` on the models that it meets."""
  models = lambda name: [law_cases.IN_TURN[name]] if law_cases.CASES[name].variant else law_cases.MODELS
  return _named((name, model) for name in names for model in models(name))


def _named(pairs: Iterable[tuple[str, tuple[str, str]]]):
  """Decorator: a test that is run for every pair of a case and a model, and is called by both."""
  called = lambda name, model: re.sub(r'\W+', '_', f'_{name}_{"_".join(model)}')
  return parameterized.named_parameters(*((called(name, model), name, model) for name, model in pairs))


_every_case = _over(law_cases.CASES)
_PATH = 'layers/0'
_quantize = networks.quick_jit(lambda kernel: quantize.quantize(kernel, formats.IntFormat(8)))
_dequantize = networks.quick_jit(quantize.dequantize)


def _claim(case: str, style: str) -> transforms.Claim:
  """What `case` claims in a block of `style`: all but the last of what it might."""
  block = staging.staged(networks.config(style)).blocks[0][1]
  case = law_cases.CASES[case]
  if case.owns == 'linears':
    return transforms.Claim(trees.linears(_params(style))[:-1], block)
  return transforms.Claim(tuple(site.name for site in getattr(block, case.owns)[:-1] if case.claimable(site)), block)


@functools.cache
def _params(style: str) -> dict:
  """The block, with a channel that sticks out of what each norm puts out: what folds are for."""
  params = trees.get(networks.params(style), _PATH)
  for gain in ('attention_norm/scale', 'mlp_norm/scale'):
    params = trees.put(params, gain, trees.get(params, gain).at[5].multiply(6.0))
  return params


class _Counted:
  """A jitted function that counts how often it was traced for arguments of the same structure, shapes and dtypes."""

  def __init__(self, function):
    self.traces = collections.Counter()

    def count(*args):
      self.traces[jax.tree.structure(args), tuple(map(law_cases.aval, jax.tree.leaves(args)))] += 1
      return function(*args)

    self._jitted = networks.quick_jit(count)

  def __call__(self, *args):
    return self._jitted(*args)

  def shapes(self, *args):
    """What it returns for `args`, arrays or their shapes, as shapes."""
    return self._jitted.eval_shape(*args)


@functools.cache
def _transform(make, claim, style) -> transforms.Transform:
  """The transform with `observe` and `search` jitted, once for the dtypes of a style."""
  del style
  made = make(claim)
  return made._replace(observe=_Counted(made.observe), search=_Counted(made.search))


@functools.cache
def _calibration(style: str, dtype: str):
  """(inputs of the block, its observations as batches of four sequences, jitted forward)."""
  model = staging.staged(networks.config(style, dtype))
  block = model.blocks[0][1]
  inputs = networks.quick_jit(model.embed)(networks.params(style), networks.tokens(16))
  activations = networks.quick_jit(block.taps)(_params(style), inputs)[1]
  batches = [
      transforms.Batch(jnp.arange(i, i + 4), {point: x[i : i + 4] for point, x in activations.items()})
      for i in range(0, 16, 4)]

  @networks.quick_jit
  def forward(params, x):
    with jax.default_matmul_precision('highest'):
      return block.forward(params, x)

  return inputs, batches, forward


def _shapes(tree):
  return jax.eval_shape(lambda x: x, tree)


def _observed(transform, params, batches, state=None):
  state = transform.init(params, _shapes(batches[0])) if state is None else state
  for batch in batches:
    state = transform.observe(state, batch)
  return state


@functools.cache
def _applied(make, claim, style, dtype):
  """(params, record with decisions) of the block after the transform."""
  transform, params = _transform(make, claim, style), _params(style)
  params, record, decisions = transform.search(params, _observed(transform, params, _calibration(style, dtype)[1]))
  params = transform.rewrite(params, record, jax.tree.map(lambda x: x.item(), decisions))
  return params, {name: {**record.get(name, {}), **decisions.get(name, {})} for name in {**record, **decisions}}


def _same(first, second) -> bool:
  """Whether two entries of a tree, arrays or nodes, are equal to the bit, in structure and in dtypes."""
  pairs = lambda: zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True)
  return jax.tree.structure(first) == jax.tree.structure(second) and all(
      law_cases.aval(a) == law_cases.aval(b) and np.array_equal(a, b) for a, b in pairs())


class LawsTest(parameterized.TestCase):

  @_every_case
  def test_1_compiled_once(self, case, model):
    style, dtype = model
    transform = _transform(law_cases.CASES[case].make, _claim(case, style), style)
    batches = _calibration(style, dtype)[1]
    trees_made = []
    for part, factor in ((batches[:2], 1.0), (batches[2:], 1.5)):
      params = jax.tree.map(lambda x: np.asarray(x) * np.float32(factor), _params(style))
      params, record, decisions = transform.search(params, _observed(transform, params, part))
      trees_made.append(transform.rewrite(params, record, jax.tree.map(lambda x: x.item(), decisions)))
    for function in (transform.search, *([transform.observe] if transform.needs_data else [])):
      self.assertEqual(set(function.traces.values()), {1})
      self.assertLessEqual(len(function.traces), sum(other == style for other, _ in law_cases.MODELS))
    if not decisions:
      self.assertEqual(law_cases.avals(trees_made[0]), law_cases.avals(trees_made[1]))

  @_every_case
  def test_2_and_3_shapes_alone_tell_the_declared_structure(self, case, model):
    style, dtype = model
    claim, params = _claim(case, style), _params(style)
    transform = _transform(law_cases.CASES[case].make, claim, style)
    shapes, batch = _shapes(params), _shapes(_calibration(style, dtype)[1][0])
    state = jax.eval_shape(lambda params: transform.init(params, batch), shapes)
    self.assertEqual(law_cases.avals(transform.observe.shapes(state, batch)), law_cases.avals(state))
    abstract = transform.search.shapes(shapes, state)
    after, record = _applied(law_cases.CASES[case].make, claim, style, dtype)
    if not abstract[2]:
      self.assertEqual(law_cases.avals(abstract[0]), law_cases.avals(after))

    self.assertCountEqual(record, claim.names)
    self.assertEqual({frozenset(entry) for entry in record.values()}, {law_cases.CASES[case].record})
    validate.validate(trees.put(networks.params(style), _PATH, after), networks.config(style, dtype))
    for name in claim.names:
      law_cases.CASES[case].outcome.check(self, claim.block, name, params, after)

  @_every_case
  def test_4_what_is_not_claimed_comes_back_identical(self, case, model):
    style, dtype = model
    claim = _claim(case, style)
    owned = {name: set(law_cases.CASES[case].outcome.owned(claim.block, name)) for name in claim.names}
    before, after = (
        {path: value for path, value in trees.walk(tree) if not isinstance(value, dict)}
        for tree in (_params(style), _applied(law_cases.CASES[case].make, claim, style, dtype)[0]))
    changed = {path for path in {*before, *after} if not _same(before.get(path), after.get(path))}
    self.assertEmpty(changed - set().union(*owned.values()))
    self.assertNotEmpty(changed)

  @_every_case
  def test_5_merged_halves_equal_the_whole(self, case, model):
    style, dtype = model
    transform, params = _transform(law_cases.CASES[case].make, _claim(case, style), style), _params(style)
    batches = _calibration(style, dtype)[1]
    whole = _observed(transform, params, batches)
    if law_cases.CASES[case].ordered:
      saved = jax.device_get(_observed(transform, params, batches[:2]))
      resumed = _observed(transform, params, batches[2:], jax.tree.map(jnp.asarray, saved))
      jax.tree.map(np.testing.assert_array_equal, resumed, whole)
      return
    first, second = (_observed(transform, params, part) for part in (batches[:1], batches[1:]))
    want = transform.search(params, whole)
    for state in (statistics.merge(first, second), statistics.merge(second, first),
                  _observed(transform, params, batches[::-1])):
      self.assertEqual(law_cases.avals(state), law_cases.avals(whole))
      # Solvers amplify the rounding of float32 sums; no code, however, may differ.
      close = functools.partial(np.testing.assert_allclose, rtol=2e-5, atol=1e-6)
      jax.tree.map(close, transform.search(params, state), want)

  @_over(name for name, case in law_cases.CASES.items() if case.outcome is law_cases.FOLD)
  def test_7_folding_leaves_the_full_precision_function_unchanged(self, case, model):
    style, dtype = model
    inputs, _, forward = _calibration(style, 'float32')
    after = _applied(law_cases.CASES[case].make, _claim(case, style), style, dtype)[0]
    want = forward(_params(style), inputs)
    self.assertLessEqual(jnp.max(jnp.abs(forward(after, inputs) - want)), 1e-5 * jnp.max(jnp.abs(want)))

  @_over(name for name, case in law_cases.CASES.items() if case.plainer)
  def test_8_no_worse_than_a_plainer_method(self, case, model):
    style, dtype = model
    claim, case = _claim(case, style), law_cases.CASES[case]
    inputs, _, forward = _calibration(style, dtype)
    exact = np.asarray(forward(_params(style), inputs), np.float32)

    def error(make):
      tree = case.behind(claim, _applied(make, claim, style, dtype)[0])
      # Codes that meet floats are dequantized; doing so here saves a compilation for each format.
      tree = trees.map_nodes(lambda path, x: _dequantize(x) if isinstance(x, qtensor.QTensor) else x, tree)
      return np.mean((np.asarray(forward(tree, inputs), np.float32) - exact) ** 2)

    self.assertLessEqual(error(case.make), error(case.plainer))

  @_named(law_cases.IN_TURN.items())
  def test_9_simulated_integer_and_reloaded_trees_agree(self, case, model):
    style, dtype = model
    after = _applied(law_cases.CASES[case].make, _claim(case, style), style, dtype)[0]
    config = networks.config(style, dtype)
    if not law_cases.CASES[case].weight_only:  # What the transform leaves in floats is quantized plainly.
      for path in trees.linears(after):
        if not nodes.is_node(kernel := trees.get(after, path)['kernel']):
          after = trees.put(after, f'{path}/kernel', _quantize(kernel))
      for site in staging.staged(config).blocks[0][1].sites:
        if trees.get(after, f'{site.name}/quantizer') is None:
          quantizer = quantizers.ClipQuantizer(jnp.float32(-3), jnp.float32(4), 8)
          after = trees.put(after, f'{site.name}/quantizer', quantizer)
    params, ids = trees.put(networks.params(style), _PATH, after), networks.tokens(3, seed=1)
    evaluate = lambda tree, name: networks.evaluator(config, name, networks.exact_jit)(tree, ids)
    simulated = evaluate(params, 'simulated')
    self.assertTrue(jnp.isfinite(simulated).all())
    if not law_cases.CASES[case].weight_only:
      np.testing.assert_array_equal(evaluate(params, 'xla'), simulated)
    saved = trees.arrays(params)
    reloaded = nodes.decode(json.loads(json.dumps(nodes.encode(params))), lambda path, _: np.asarray(saved[path]))
    np.testing.assert_array_equal(evaluate(reloaded, 'simulated'), simulated)


if __name__ == '__main__':
  absltest.main()
