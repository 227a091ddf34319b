"""`launch.generate` says what the library generates, as it does; what it cannot do it refuses in one line."""

import json
import shutil

from absl.testing import absltest
from absl.testing import parameterized
import jax

from jaxquant.data import tokenizers
from jaxquant.evaluation import generation
from jaxquant.interop import source
from tests import launching
from tests import model_directories


class GenerationTest(parameterized.TestCase):

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.folder = launching.folder() / 'generation'
    for family in ('llama', 'bert'):
      model_directories.write(cls.folder / family, family)

  def _run(self, *flags, model='llama', devices=1):
    return launching.run('generate', f'--model={self.folder / model}', *flags, devices=devices)

  def _tokens(self, limit, **options):
    opened = source.DirectorySource(self.folder / 'llama')
    prompt = tokenizers.Tokenizer.load(self.folder / 'llama').encode_prompt('Hé')
    made = generation.stream(opened.whole(), opened.config, [prompt], limit=limit, **options)
    return [int(token) for (token,) in made]

  @parameterized.parameters(((), {}, 1), ((), {}, 2), (('--temperature=2', '--top_p=0.9', '--sampling_seed=3'), dict(
      sampling=generation.Sampling(2.0, 0.9), key=jax.random.key(3)), 1))
  def test_text_is_what_the_tokens_stand_for_and_the_speed_is_said(self, flags, options, devices):
    finished = self._run('--prompt=Hé', '--tokens=12', *flags, devices=devices)
    tokens = self._tokens(12, stop=[1], **options)
    self.assertEqual(finished.code, 0, finished)
    text = model_directories.tokenizer().decode(tokens, skip_special_tokens=False) + '\n'
    self.assertEqual(finished.output, text.replace('\r\n', '\n').replace('\r', '\n'))  # as a file is read
    self.assertRegex(finished.error, rf'^{len(tokens)} tokens, [\d,.]+ tokens/s\n$')

  def test_stops_at_the_end_token_of_the_generation_configuration_and_of_the_context(self):
    whole = self._tokens(28)  # The context has 32 tokens, <s> and three of them the prompt's.
    model = self.folder / 'ends'
    shutil.copytree(self.folder / 'llama', model)
    for end, count in ((None, len(whole)), (whole[5], whole.index(whole[5])), ([1, whole[7]], whole.index(whole[7]))):
      (model / 'generation_config.json').write_text(json.dumps({'eos_token_id': end}))
      finished = self._run('--prompt=Hé', model='ends')
      self.assertEqual(finished.code, 0, finished)
      self.assertEqual(finished.error.split()[0], str(count if 1 not in whole[:count] else whole.index(1)))

  def test_a_trained_model_goes_on_with_a_prompt(self):
    finished = launching.run('generate', f'--model={launching.trained()}', '--prompt=The', '--tokens=5')
    self.assertEqual(finished.code, 0, finished)
    self.assertTrue(finished.output.endswith('\n'))
    self.assertRegex(finished.error, r'^[0-5] tokens')

  @parameterized.named_parameters(
      ('no_prompt', 'llama', [], ['--prompt']),
      ('encoder', 'bert', ['--prompt=a'], ['encoder']),
      ('missing_model', 'nowhere', ['--prompt=a'], ['nowhere']),
      ('no_tokens', 'llama', ['--prompt=a', '--tokens=0'], ['tokens']),
      ('long_prompt', 'llama', ['--prompt=' + 'a' * 31], ['32 tokens', 'leaves 0']),
      ('many_tokens', 'llama', ['--prompt=abc', '--tokens=29'], ['--tokens=29', 'leaves 28', '32']),
      ('cold', 'llama', ['--prompt=a', '--temperature=-1'], ['temperature']),
      ('no_probability', 'llama', ['--prompt=a', '--top_p=0'], ['top_p']),
      ('text', 'llama', ['--prompt=a', '--text=x.txt'], ['--text']),
      ('workdir', 'llama', ['--prompt=a', '--workdir=x'], ['--workdir']))
  def test_refused(self, model, flags, words):
    finished = self._run(*flags, model=model)
    self.assertEqual((finished.code, finished.output), (2, ''), finished)
    self.assertLen(finished.error.splitlines(), 1)
    for word in words:
      self.assertIn(word, finished.error)


if __name__ == '__main__':
  absltest.main()
