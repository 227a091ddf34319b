"""Goes on with a prompt, on the terminal, a token at a time.

  python -m launch.generate --model=DIR --prompt='Once upon a time'

The model is a decoder in a workdir, float or quantized, or in a Hugging Face directory. It takes the likeliest tokens
unless there is a temperature, and stops at the end of the text, after --tokens, or where its context is full. The text
goes to standard output, the speed to standard error.
"""

import sys
import time

from absl import flags
import jax

from jaxquant import errors
from jaxquant.data import streaming
from jaxquant.evaluation import generation
from jaxquant.layers import device_kernels
from jaxquant.layers import sharding
from launch import agreement
from launch import model_flags
from launch import progress
from launch import runtime
from launch import scoring

_PROMPT = flags.DEFINE_string('prompt', None, 'The text to go on with.')
_TOKENS = flags.DEFINE_integer(
    'tokens', None, 'Tokens to generate at most; by default 128, or what the context leaves.', lower_bound=1)
_TEMPERATURE = flags.DEFINE_float('temperature', 0.0, 'Divides the logits; 0 takes the likeliest token.')
_TOP_P = flags.DEFINE_float('top_p', 1.0, 'Draws from the fewest tokens that have this probability together.')
_BURST = flags.DEFINE_integer(
    'burst', 1, 'Tokens behind the first that come at once: more cost fewer calls of the device.', lower_bound=1)
_KEY = flags.DEFINE_integer(
    'sampling_seed', 0, 'Of the draws: the same seed draws the same text.', lower_bound=0, upper_bound=2**32 - 1)
_IMPLEMENTATION = scoring.define_implementation()

_DEFAULT_TOKENS = 128


def main() -> None:
  """Generates what the flags ask for."""
  say = progress.Printer()
  with jax.set_mesh(sharding.data_mesh()):
    model, tokenizer, prompt, limit, sampling = agreement.agree(_open)
    params = device_kernels.prepared(model.load()[0], _IMPLEMENTATION.value)
    text = streaming.TextStream(tokenizer, prompt)
    # The prompt and the first burst are compiled while their tokens are waited for.
    count, started, untimed = 0, None, 1 + _BURST.value
    for (token,) in generation.stream(
        params, model.decoder, [prompt], limit=limit, sampling=sampling, key=jax.random.key(_KEY.value),
        stop=scoring.end_tokens(model, tokenizer), implementation=_IMPLEMENTATION.value, burst=_BURST.value):
      _write(text.add(token))
      count += 1
      if count == untimed:
        started = time.monotonic()
  _write(text.rest() + '\n')
  speed = ''
  if count > untimed:
    speed = f', {(count - untimed) / (time.monotonic() - started):,.1f} tokens/s'
  say.error(f'{count} tokens{speed}')


def _open():
  """The model, its tokenizer, the tokens of the prompt, how many to add, and the sampling; raises `UserError`."""
  if _PROMPT.value is None:
    raise errors.UserError('--prompt=TEXT is needed: what to go on with')
  for flag, given in (('text', model_flags.text_names()), ('workdir', runtime.WORKDIR.value)):
    if given:
      raise errors.UserError(f'--{flag} means nothing here: a prompt is gone on with, and nothing is written to files')
  scoring.check_implementation(_IMPLEMENTATION.value, '--implementation')
  sampling = generation.Sampling(_TEMPERATURE.value, _TOP_P.value)
  sampling.check()
  model = model_flags.model()
  if not model.decoder.causal:
    raise errors.UserError(f'{model.path} is an encoder, which cannot go on with a text')
  tokenizer = model.tokenizer()
  try:
    prompt = tokenizer.encode_prompt(_PROMPT.value.encode().decode())
  except UnicodeEncodeError:
    raise errors.UserError('--prompt is not UTF-8') from None
  if not prompt:
    raise errors.UserError('--prompt is empty, and the tokenizer has no token that begins a text')
  room = model.decoder.max_length - len(prompt)
  limit = min(_DEFAULT_TOKENS, room) if _TOKENS.value is None else _TOKENS.value
  if not 1 <= limit <= room:
    raise errors.UserError(f'--prompt has {len(prompt)} tokens, which leaves {max(room, 0)} of the model\'s context of '
                           f'{model.decoder.max_length}' + (f' for --tokens={limit}' if limit > 0 else ''))
  return model, tokenizer, prompt, limit, sampling


def _write(piece: str) -> None:
  if piece and jax.process_index() == 0:
    sys.stdout.write(piece)
    sys.stdout.flush()


if __name__ == '__main__':
  runtime.launch(main)
