"""Any model by its configuration: the module, its sites, and how it is cut into blocks for calibration."""

import functools

from flax import linen as nn

from jaxquant.calibration import sites
from jaxquant.layers import linear
from jaxquant.layers import tap
from jaxquant.models import blocks
from jaxquant.models import config as model_config
from jaxquant.models import decoder
from jaxquant.models import encoder
from jaxquant.models import functions

_EVERY = (tap.Tap('.*(input|query|key|value)', lambda x: x),)


def make(
    config: model_config.TransformerConfig, implementation: str = 'simulated', taps: tuple[tap.Tap, ...] = ()
) -> nn.Module:
  """The module: a decoder, or an encoder where the configuration is not causal."""
  return (decoder.Decoder if config.causal else encoder.Encoder)(config, implementation, taps)


def model_sites(config: model_config.TransformerConfig) -> tuple[sites.Site, ...]:
  """The sites of the whole model, paths from the root; the head's are the last."""
  prefixed = lambda i, site: site._replace(
      name=f'layers/{i}/{site.name}', producer=site.producer and f'layers/{i}/{site.producer}',
      residual=site.residual and f'layers/{i}/{site.residual}',
      consumers=tuple(f'layers/{i}/{c}' for c in site.consumers),
      through=tuple(f'layers/{i}/{name}' for name in site.through))
  layers = [prefixed(i, site) for i in range(config.layers)
            for site in blocks.block_sites(config, blocks.opens_with_norm(config, i))]
  head = 'embedding' if config.tied else 'head'
  if config.projected:
    return (*layers, sites.Site('project_out/input', 'final_norm', ('project_out',), True),
            sites.Site('head/input', 'project_out', (head,)))
  if config.causal:
    return (*layers, sites.Site('head/input', 'final_norm', (head,), True))
  if not config.head:
    return tuple(layers)
  return (*layers, sites.Site('transform/input', 'final_norm', ('transform',), True),
          sites.Site('head/input', 'transform_norm', ('embedding',)))


@functools.cache
def staged(config: model_config.TransformerConfig, implementation: str = linear.DEQUANTIZED) -> sites.StagedModel:
  """The model cut into blocks for the calibration driver; the last stage is the final norm and head."""
  plain, tapped = make(config, implementation), make(config, implementation, _EVERY)
  head_sites = tuple(site for site in model_sites(config) if not site.name.startswith('layers/'))
  head = sites.Block(
      head_sites,
      lambda params, x: plain.apply({'params': params}, x, method='logits'),
      lambda params, x: _observe(tapped, params, x, method='logits'),
      functions.judge_by_linears(head_sites, implementation))
  # One object for all blocks that are alike, so that they share what is compiled for them.
  kinds = {opening: _layer(config, implementation, opening) for opening in {True, config.opening_norm}}
  layers = tuple((f'layers/{i}', kinds[blocks.opens_with_norm(config, i)]) for i in range(config.layers))
  return sites.StagedModel(
      lambda params, ids: plain.apply({'params': params}, ids, method='embed'), (*layers, ('', head)))


def _layer(config: model_config.TransformerConfig, implementation: str, opening: bool) -> sites.Block:
  """A block of the model for calibration."""
  block, tapped = (blocks.Block(config, implementation, taps, opening) for taps in ((), _EVERY))
  last_input = (tap.Tap('(o|down)/input', lambda x: x),)
  modules = {'attention': lambda taps: blocks.make_attention(config, implementation, taps),
             'mlp': lambda taps: blocks.MLP(config, implementation, taps)}
  block_sites = blocks.block_sites(config, opening)
  by_linears = functions.judge_by_linears(block_sites, implementation)

  def judge(name, scope, params, x):
    module = name.partition('/')[0]
    if scope == 'linears' or name != f'{module}/input':
      return by_linears(name, scope, params, x)
    variables = {'params': params[module]}
    if scope == 'module':
      return modules[module](()).apply(variables, x)
    recorded = modules[module](last_input).apply(variables, x, mutable=[tap.COLLECTION])[1]
    return next(iter(tap.by_point(recorded[tap.COLLECTION]).values()))

  return sites.Block(
      block_sites,
      lambda params, x: block.apply({'params': params}, x),
      lambda params, x: _observe(tapped, params, x),
      judge,
      blocks.block_operands())


def _observe(module: nn.Module, params, x, **kwargs):
  """(outputs, activations by tap point) of a module whose taps return what they read."""
  y, recorded = module.apply({'params': params}, x, mutable=[tap.COLLECTION], **kwargs)
  return y, tap.by_point(recorded.get(tap.COLLECTION, {}))
