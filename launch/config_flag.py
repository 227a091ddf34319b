"""The flag --config=FILE[:argument] and its overrides --config.a.b=value, with mistakes named."""

import difflib
import re
import sys

from absl import flags
import ml_collections
from ml_collections import config_flags

from jaxquant import errors
from launch import python_file


class _Parser(flags.ArgumentParser):
  """Runs a configuration file; raises `flags.Error` for whatever goes wrong in it, and overrides of unknown keys."""

  def parse(self, argument):
    try:
      config = python_file.call('config', argument, 'get_config')
    except errors.UserError as error:
      raise flags.Error(str(error)) from error
    if not isinstance(config, ml_collections.ConfigDict):
      raise flags.Error(f'--config={argument}: get_config() returns {type(config).__name__}, not a ConfigDict')
    config.lock()
    for flag in flags.FLAGS.read_flags_from_files(sys.argv, force_gnu=False):
      if override := re.match(r'--?(?:no)?config\.([^=]+)', flag):
        _check_key(config, override[1], flag)
    return config


_CONFIG = config_flags.DEFINE_config_file(
    'config', None, 'Configuration file; --config.a.b=value changes one of its keys.')
# That of ml_collections answers mistakes with traces, and a missing file with an object that fails when it is read.
flags.FLAGS['config'].parser = _Parser()


def value(example: str) -> ml_collections.ConfigDict:
  """The configuration of the command line; raises `UserError`, naming a file for example, if there is none."""
  if _CONFIG.value is None:
    raise errors.UserError(f'--config=FILE is needed, for instance --config={example}')
  return _CONFIG.value


def _check_key(config: ml_collections.ConfigDict, path: str, flag: str) -> None:
  """Raises `flags.Error` if `config` has no key `path` for an override to change."""
  node = config
  for key in path.split('.'):
    name = key.partition('[')[0]
    if not isinstance(node, ml_collections.ConfigDict) or name not in node:
      raise flags.Error(f'{flag}: the configuration has no key {path}{_suggestion(path, _keys(config))}')
    node = node[name]


def _keys(config: ml_collections.ConfigDict, prefix: str = '') -> list[str]:
  """The full names of all keys, groups included."""
  found = []
  for key in config:
    found.append(prefix + key)
    if isinstance(config[key], ml_collections.ConfigDict):
      found += _keys(config[key], f'{prefix}{key}.')
  return found


def _suggestion(path: str, keys: list[str]) -> str:
  """The key that was meant: one of that last part in another group, or one spelled alike."""
  last = path.rpartition('.')[2]
  same = [key for key in keys if key.rpartition('.')[2] == last]
  close = same or difflib.get_close_matches(path, keys, 1)
  return f'; did you mean {close[0]}?' if close else ''
