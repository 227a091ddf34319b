"""The laws that every transform obeys, in one matrix over transforms, architectures and compute dtypes.

A new method is one more entry of `law_cases.CASES`. Its own oracles belong into a test file of its own.

  1  observe and search are jitted and compiled once
  2  init and search work on shapes alone
  3  what comes back has the structure and dtypes that such a transform leaves (tests/transforms/shardings_test.py: and
     is sharded as declared)
  4  what the transform does not claim comes back identical, to the bit
  5  statistics of halves merge to those of the whole; where order matters, a saved state continues the run
  6  all of this in float32 and in bfloat16
  7  folding leaves the full-precision function of the block unchanged, the residual branch of post-norm blocks included
     (tests/transforms/equivalence_test.py: that of whole networks in float64)
  8  the block's output on the calibration data is no further from the float block's than that of a plainer method; of a
     fold that was searched, once both are quantized, no further than without the fold
  9  simulated, integer and reloaded trees evaluate to the same bits

Every case meets every architecture in both dtypes, under law 9 operation by operation. Programs that are compiled whole
have to agree for one of these per case, since each structure of a tree takes two (tests/transforms/exactness_test.py
compiles whole networks).
"""

import collections
import functools
import itertools
import json
import re
from collections.abc import Iterable

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from jaxquant.calibration import sites
from jaxquant.calibration import statistics
from jaxquant.calibration import transform as transforms
from jaxquant.layers import linear
from jaxquant.models import staging
from jaxquant.models import validate
from jaxquant.numerics import formats
from jaxquant.numerics import nodes
from jaxquant.numerics import quantize
from jaxquant.numerics import quantizers
from jaxquant.numerics import trees
from jaxquant.transforms import grids
from tests import law_cases
from tests import networks


def _over(names: Iterable[str]):
  """Decorator: a test that is run for every case of `names` on every model."""
  return _named(itertools.product(names, law_cases.MODELS))


def _named(pairs: Iterable[tuple[str, tuple[str, str]]]):
  """Decorator: a test that is run for every pair of a case and a model, and is called by both."""
  called = lambda name, model: re.sub(r'\W+', '_', f'_{name}_{"_".join(model)}')
  return parameterized.named_parameters(*((called(name, model), name, model) for name, model in pairs))


_every_case = _over(law_cases.CASES)
_PATH = 'layers/0'
_quantize = networks.quick_jit(lambda kernel: quantize.quantize(kernel, formats.IntFormat(8)))


def _claim(case: str, style: str) -> transforms.Claim:
  """What `case` claims in a block of `style`: all but the last of what it might."""
  block = _block(style, 'float32')
  case = law_cases.CASES[case]
  if case.owns == 'linears':
    return transforms.Claim(trees.linears(_params(style))[:-1], block)
  return transforms.Claim(tuple(site.name for site in getattr(block, case.owns)[:-1] if case.claimable(site)), block)


def _params(style: str) -> dict:
  return trees.get(networks.params_with_outliers(style), _PATH)


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
  """(inputs of the block, its observations as batches of four sequences)."""
  embed = networks.quick_jit(staging.staged(networks.config(style, dtype)).embed)
  inputs = embed(networks.params(style), networks.tokens(16))
  activations = networks.quick_jit(_block(style, dtype).taps)(_params(style), inputs)[1]
  batches = [
      transforms.Batch(jnp.arange(i, i + 4), {point: x[i : i + 4] for point, x in activations.items()})
      for i in range(0, 16, 4)]
  return inputs, batches


def _block(style: str, dtype: str, implementation: str = linear.DEQUANTIZED) -> sites.Block:
  return staging.staged(networks.config(style, dtype), implementation).blocks[0][1]


def _output(style: str, dtype: str, params: dict, implementation: str = linear.DEQUANTIZED) -> np.ndarray:
  """What the block puts out on all inputs, as float32.

  Computed operation by operation: programs of single ones serve trees of every structure, each of which would take ten
  times as long to be compiled.
  """
  with jax.disable_jit(), jax.default_matmul_precision('highest'):
    output = _block(style, dtype, implementation).forward(params, _calibration(style, dtype)[0])
  return np.asarray(output, np.float32)


@functools.cache
def _float_output(style: str, dtype: str) -> np.ndarray:
  return _output(style, dtype, _params(style))


@functools.cache
def _forward(style: str, dtype: str, implementation: str):
  return networks.exact_jit(_block(style, dtype, implementation).forward)


def _compiled_output(style: str, dtype: str, params: dict, implementation: str) -> np.ndarray:
  """The same of a program that is compiled whole."""
  return np.asarray(_forward(style, dtype, implementation)(params, _calibration(style, dtype)[0]), np.float32)


def _integer(case: str, style: str, dtype: str) -> dict:
  """The block after the transform; what it leaves in floats is quantized plainly, unless its kernels allow for none."""
  params = _applied(law_cases.CASES[case].make, _claim(case, style), style, dtype)[0]
  if law_cases.CASES[case].weight_only:
    return params
  for path in trees.linears(params):
    layer = trees.get(params, path)
    if not nodes.is_node(layer['kernel']):
      round_it = layer['kernel_quantizer'].quantized if 'kernel_quantizer' in layer else _quantize
      params = grids.put_kernel(params, path, round_it(layer['kernel']))
  for site in _block(style, dtype).sites:
    if trees.get(params, f'{site.name}/quantizer') is None:
      quantizer = quantizers.ClipQuantizer(jnp.float32(-3), jnp.float32(4), 8)
      params = trees.put(params, f'{site.name}/quantizer', quantizer)
  return params


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
    self.assertEqual(bool(changed), any(owned.values()))

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
    after = _applied(law_cases.CASES[case].make, _claim(case, style), style, dtype)[0]
    want, got = _float_output(style, 'float32'), _output(style, 'float32', after)
    self.assertLessEqual(np.max(np.abs(got - want)), 1e-5 * np.max(np.abs(want)))

  @_over(name for name, case in law_cases.CASES.items() if case.plainer)
  def test_8_no_worse_than_a_plainer_method(self, case, model):
    style, dtype = model
    claim, case = _claim(case, style), law_cases.CASES[case]

    def error(make):
      tree = case.behind(claim, _applied(make, claim, style, dtype)[0])
      return np.mean((_output(style, dtype, tree) - _float_output(style, dtype)) ** 2)

    self.assertLessEqual(error(case.make), error(case.plainer))

  @_every_case
  def test_9_simulated_integer_and_reloaded_trees_agree(self, case, model):
    self._check_implementations(case, model, _output)

  @_named(law_cases.IN_TURN.items())
  def test_9_compiled_programs_agree(self, case, model):
    self._check_implementations(case, model, _compiled_output)

  def _check_implementations(self, case, model, output):
    params = _integer(case, *model)
    arrays = trees.arrays(params)
    reloaded = nodes.decode(json.loads(json.dumps(nodes.encode(params))), lambda path, _: arrays[path])
    simulated = output(*model, params, 'simulated')
    self.assertTrue(np.isfinite(simulated).all())
    other = 'simulated' if law_cases.CASES[case].weight_only else 'xla'
    np.testing.assert_array_equal(output(*model, reloaded, other), simulated)


if __name__ == '__main__':
  absltest.main()
