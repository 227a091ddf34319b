"""Outlier analysis: which channels of which activations stand out, how heavy-tailed weights are, and histograms."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxquant import compilation
from jaxquant.layers import linear
from jaxquant.layers import sharding
from jaxquant.layers import tap
from jaxquant.models import config as model_config
from jaxquant.models import staging
from jaxquant.numerics import trees
from jaxquant.training import regularizers

OUTLIER_FACTOR = 6.0
_BINS = 120


def read(x) -> dict[str, Any]:
  """What `site_statistics` asks of an activation x [..., channels].

  Returns:
    channels: float32 [channels], the mean |x| of each.
    absolute_maximum: float32 scalar, the largest |x|.
    kurtosis: float32 scalar, per token over channels, mean over tokens.
  """
  magnitude = jnp.abs(x.astype(jnp.float32))
  return {'channels': jnp.mean(magnitude, axis=tuple(range(x.ndim - 1))), 'absolute_maximum': jnp.max(magnitude),
          'kurtosis': jnp.mean(regularizers.kurtosis(x))}


def site_statistics(readings: dict[str, Any]) -> dict[str, float]:
  """Statistics of an activation of which `read` has told.

  The median of channels is taken here, since a sort is what an accelerator's compiler is slowest at.

  Returns:
    peak_ratio: largest mean |x| of a channel over that of the median channel; infinite where that is dead, as a
      ReLU can leave more than half of the channels; 0 where all are.
    outlier_channels: channels whose mean |x| exceeds six times the mean over channels (the factor is ours).
    absolute_maximum, kurtosis: as read.
  """
  channels = np.asarray(readings['channels'])
  largest, median = (0.0 if value < np.finfo(np.float32).tiny else float(value)
                     for value in (channels.max(), np.median(channels)))
  return {
      'peak_ratio': largest / median if median else math.inf if largest else 0.0,
      'outlier_channels': float(np.sum(channels > OUTLIER_FACTOR * channels.mean())),
      'absolute_maximum': float(readings['absolute_maximum']), 'kurtosis': float(readings['kurtosis'])}


def analyze(params: Any, config: model_config.TransformerConfig, tokens) -> tuple[list[dict], list[dict]]:
  """Measures every site and every kernel of the blocks.

  Args:
    params: a tree of the model, float or quantized; sites are measured before their input specification, kernels
      before any rounding in training.
    config: the model.
    tokens: int32 [sequences, tokens].

  Returns:
    (sites, weights): records with Python numbers; of a site `site`, `reads_residual` and `site_statistics`; of a
    kernel `path`, `kurtosis` over all its elements and `absolute_maximum`.
  """
  recorded = jax.device_get(_sites(params, tokens, config=config))
  residual = {site.name: site.reads_residual for site in staging.model_sites(config)}
  sites = [
      {'site': name, 'reads_residual': residual[name], **site_statistics(readings)}
      for name, readings in recorded.items() if name in residual]
  kernels = {path: {'kernel': trees.get(params, path)['kernel']}
             for path in trees.matching(r'layers/.*', trees.linears(params))}
  weights = [{'path': path, **{key: float(value) for key, value in statistics.items()}}
             for path, statistics in jax.device_get(_weights(kernels)).items()]
  return sites, weights


@functools.partial(compilation.jit, static_argnames='config')
def _sites(params, tokens, *, config):
  model = staging.make(config, taps=(tap.Tap(r'.*/input', read),))
  _, recorded = model.apply({'params': params}, tokens, mutable=[tap.COLLECTION])
  return jax.tree.map(sharding.constrain_replicated, tap.by_point(recorded[tap.COLLECTION]))


@compilation.jit
def _weights(kernels):
  return {path: _weight_statistics(linear.dense_kernel(kernel).reshape(-1)) for path, kernel in kernels.items()}


def _weight_statistics(weights):
  return {'kurtosis': regularizers.kurtosis(weights), 'absolute_maximum': jnp.max(jnp.abs(weights))}


def histograms(params: Any, quantized: Any, config: model_config.TransformerConfig, tokens) -> list[dict]:
  """Histograms of site activations and kernels, before and after quantization, on shared edges.

  Args:
    params: the float tree.
    quantized: the same model quantized, kernels as QTensors, sites with quantizers.
    config: the model.
    tokens: int32 [sequences, tokens]; the first sequence is shown.

  Returns:
    Records with `path`, `quantity` (`activation`, `weight`), `stage` (`before`, `after`), `edges` and `counts`.
  """
  pairs = []
  points = jax.device_get(_activations(quantized, tokens[:1], config=config))
  for name in [name for name in points if name.endswith('/input')]:
    pairs.append((name, 'activation', points[name], points[name.removesuffix('input') + 'quantized_input']))
  for path in trees.matching(r'layers/.*', trees.linears(params)):
    before, after = (jax.device_get(_kernel(trees.get(tree, path))) for tree in (params, quantized))
    pairs.append((path, 'weight', before, after))
  records = []
  for path, quantity, before, after in pairs:
    before, after = np.asarray(before, np.float32).ravel(), np.asarray(after, np.float32).ravel()
    if not (np.isfinite(before).all() and np.isfinite(after).all()):
      continue
    edges = np.linspace(min(before.min(), after.min()), max(before.max(), after.max()) + 1e-6, _BINS + 1)
    for stage, values in (('before', before), ('after', after)):
      records.append({'path': path, 'quantity': quantity, 'stage': stage, 'edges': [float(f'{e:.5g}') for e in edges],
                      'counts': np.histogram(values, edges)[0].tolist()})
  return records


@functools.partial(compilation.jit, static_argnames='config')
def _activations(params, tokens, *, config):
  model = staging.make(config, taps=(tap.Tap(r'layers/.*input', lambda x: x.astype(jnp.float32)),))
  _, recorded = model.apply({'params': params}, tokens, mutable=[tap.COLLECTION])
  return jax.tree.map(sharding.constrain_replicated, tap.by_point(recorded[tap.COLLECTION]))


@compilation.jit
def _kernel(layer):
  return sharding.constrain_replicated(linear.dense_kernel(layer))
