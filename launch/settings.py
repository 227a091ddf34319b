"""Every key of the configurations, with its default. A configuration file starts from here and changes what it must.

Keys whose default is None take the type that the comment names.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import ml_collections
from ml_collections import config_dict

from jaxquant import errors
from jaxquant.models import config as model_config
from jaxquant.training import optimizer
from jaxquant.training import qat
from jaxquant.training import regularizers
from jaxquant.transforms import methods

# Linears that a clip search may clamp one by one: not q and k, whose errors meet in a product (arXiv:2306.00978).
CLIPPED = r'.*/(v|o|gate|up|down)'


def train() -> ml_collections.ConfigDict:
  """The configuration of `launch.train`."""
  config = ml_collections.ConfigDict()
  config.name = 'experiment'
  # What is trained: any of baseline, qat, kurtosis, both (qat and kurtosis together).
  config.variants = ('baseline', 'both')
  config.seeds = (0,)
  # A workdir (and its variant) to start every variant from, instead of random parameters.
  config.init_from = ''
  config.init_variant = ''

  config.model = _fields(
      model_config.TransformerConfig(vocabulary=1024, width=128, layers=2, heads=4, feed_forward=352))

  config.data = ml_collections.ConfigDict()
  # Files of text, JSON Lines or Parquet (.xz and .gz too), or `standard_library`: the documentation of the running
  # Python interpreter. `validation` names the texts to report on.
  config.data.train = ()
  config.data.validation = ml_collections.ConfigDict()
  config.data.field = 'text'
  # A tokenizer.json, or empty: train a byte-level BPE of model.vocabulary entries on the training text.
  config.data.tokenizer = ''

  config.training = ml_collections.ConfigDict()
  config.training.steps = 1000
  config.training.batch_size = 32  # sequences, over all devices
  config.training.length = 256  # tokens predicted in a sequence
  config.training.microbatches = 1
  config.training.log_every = 50
  config.training.save_every = 1000
  # Log-spaced steps at which outliers, ranges and validation are measured; validation at every checkpoint too.
  config.training.measurements = 12
  config.training.fully_sharded = False
  config.training.keep_newest = 2
  config.training.keep_best = 1

  config.optimizer = _fields(optimizer.OptimizerConfig())

  config.qat = _fields(qat.QATConfig())
  config.qat.weight_group_size = config_dict.placeholder(int)

  # Regularizers of the variants kurtosis and both; a weight of zero leaves one out.
  config.kurtosis = _fields(regularizers.OutputKurtosis(weight=1e-4))
  config.kure = _fields(regularizers.WeightKurtosis(weight=0.0))

  config.ptq = ptq()  # activations are as trained: config.qat
  config.evaluation = ml_collections.ConfigDict()
  config.evaluation.batch_size = 32
  config.evaluation.precisions = ()  # names such as 'W4A4 static'; empty: all five
  config.evaluation.implementation = 'simulated'  # or xla: the same bits through int8 products
  return config


def ptq() -> ml_collections.ConfigDict:
  """What `launch.train` and `launch.quantize` share about the quantization of a trained model."""
  config = ml_collections.ConfigDict()
  config.weights = 4  # bits; 16 leaves kernels as they are
  config.weight_pattern = r'layers/.*'
  config.group_size = config_dict.placeholder(int)  # inputs that share a scale; none: a scale per output channel
  # How static ranges are calibrated where none were learned: minmax, average, moving_average, percentile or token_wise
  # (transforms.activation_ranges); the percentile is that of the latter two.
  config.ranges = 'minmax'
  config.percentile = 99.99
  config.calibration_windows = 64
  config.seed = 0
  return config


def quantize() -> ml_collections.ConfigDict:
  """The configuration of `launch.quantize`."""
  config = ptq()
  # In order; the last rounds; () for weights of 16 bits. Each has its options in a group of its name
  # (transforms.methods), and there a site_pattern if it folds: the sites, out of site_patterns, at which it does.
  config.methods = ('round_to_nearest',)
  # int, full_int: symmetric; uint: asymmetric; offset_uint: that without zero in range; dint: half steps around zero,
  # dint/4 and dint/8 quarters and eighths.
  config.weight_kind = 'int'
  # Or outputs: scales that each input channel has for itself, which exclude quantized activations.
  config.group_along = 'inputs'
  # Scales of groups that are multiples, 1 to 15, of one number for each output (numerics.two_level): faster on GPUs
  # where activations are quantized. For int and full_int of at most 4 bits, with a group_size along the inputs.
  config.two_level = False
  config.weight_per_tensor = False  # one scale for a whole kernel, which round_to_nearest alone rounds to
  config.clip_pattern = r'.*'  # linears that clip_search clamps, out of those that are quantized
  config.activations = 4  # bits, those of learned ranges if there are any; 16: as they are, or clipped
  config.activation_mode = 'static'  # per tensor; or dynamic: per token
  config.activation_kind = 'uint'  # of dynamic codes: uint, int, or full_int, which is what others serve
  config.activation_group_size = config_dict.placeholder(int)  # features that share a dynamic scale; none: all
  config.activation_per_tensor = False  # dynamic ranges of whole batches instead of tokens, for experiments
  config.align_zero = False  # static ranges that have zero as a level, which is what other formats know
  config.symmetric_ranges = False  # static ranges that have zero in their middle
  config.value_bits = 16  # bits of attention's values, static per channel between the extrema
  config.cache_bits = 16  # bits of its keys and values, a range for each head of each token; 8 make a cache of codes
  config.site_patterns = (r'layers/.*',)  # sites that are quantized, and folded, where the model has no learned ranges
  config.calibration_length = config_dict.placeholder(int)  # tokens of a window; none: as trained
  # A grid for each linear instead of one for all, under a budget (transforms.allocation). Folds come first and are
  # judged with the grid above; then every linear is scored on each candidate, and the methods behind round to what it
  # got. Candidates share the groups above; those of 3 bits are stored in 4, those of 5 to 7 bits in 8. No block is
  # rounded before all are folded, so that a fold which looks at quantized blocks before its own finds them folded only.
  config.allocation = ml_collections.ConfigDict()
  config.allocation.bits = config_dict.placeholder(float)  # stored per weight, scales included; none: one grid for all
  config.allocation.candidates = ('int2', 'int4', 'int8')
  # What rounding does to the output of each linear; or loss: to the model's loss, by gradients of the whole model.
  config.allocation.score = 'layer_errors'
  for name, method in methods.METHODS.items():
    if options := method.options():
      config[name] = ml_collections.ConfigDict(options)
  return config


def of_family(family: str, choices: Mapping[str, Any]) -> Any:
  """What a configuration has for models like `family`; raises `UserError` for one that is none of its choices."""
  if family not in choices:
    raise errors.UserError(f'no family {family!r}, only {", ".join(choices)}')
  return choices[family]


def _fields(instance) -> ml_collections.ConfigDict:
  """A dataclass as a ConfigDict; fields that are None become placeholders of int."""
  values = {f.name: getattr(instance, f.name) for f in dataclasses.fields(instance)}
  if isinstance(instance, model_config.TransformerConfig):
    values.update(kv_heads=None, head_dim=None, embedding_width=None)
  config = ml_collections.ConfigDict({key: value for key, value in values.items() if value is not None})
  for key, value in values.items():
    if value is None:
      config[key] = config_dict.placeholder(int)
  return config
