"""Writes a model in a format of others, for the engines that serve it, as a Hugging Face directory.

  python -m launch.export --model=WORKDIR --format=compressed-tensors --output=DIR

The model is a workdir of `launch.quantize` or, in the format `float`, of `launch.train`, whether the model was imported
or trained here, as one of the architectures that others know; or a Hugging Face directory, whose format changes.
Formats: compressed-tensors, gptq (version 1), gptq_v2, awq; float. What one cannot express is refused.
"""

from absl import flags
import jax

from jaxquant import errors
from jaxquant.interop import export
from jaxquant.interop import manifest
from jaxquant.interop import writing
from jaxquant.layers import sharding
from launch import model_flags
from launch import progress
from launch import runtime

_FORMAT = flags.DEFINE_enum('format', export.FORMATS[0], export.FORMATS, 'What to write.')
_OUTPUT = flags.DEFINE_string('output', None, 'The directory to write; it must not exist.')
_DTYPE = flags.DEFINE_enum(
    'dtype', None, ('float32', 'float16', 'bfloat16'), 'Of what stays floating; that of the model by default.')


def main() -> None:
  """Exports the model of the flags."""
  say = progress.Printer()
  if not _OUTPUT.value:
    raise errors.UserError('--output=DIR is needed: what to write')
  writing.check_new(_OUTPUT.value)
  if jax.process_count() > 1:
    raise errors.UserError('an export is written by one process')
  with jax.set_mesh(sharding.data_mesh()):
    model = model_flags.model(to_be_written=True)
    origin = model.origin()
    params, description = model.load()
    say(description)
    path = writing.write(
        _OUTPUT.value, params, origin, _FORMAT.value, dtype=_DTYPE.value, provenance=model.provenance(),
        decisions=model.decisions())
  size = sum(file.stat().st_size for file in path.glob('*.safetensors'))
  say(f'{path}: {_FORMAT.value}, {size / 1e6:.2f} MB of tensors, {manifest.NAME} beside them')


if __name__ == '__main__':
  runtime.launch(main)
