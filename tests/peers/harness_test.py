"""lm-evaluation-harness gives the numbers of our own tasks, and those of transformers, for the same files."""

import importlib
import importlib.util
import json
import math
import os
import pathlib
import unittest
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from jaxquant import errors
from jaxquant.data import tokenizers
from jaxquant.evaluation import generation
from jaxquant.evaluation import likelihood
from jaxquant.evaluation import task_scores
from jaxquant.evaluation import tasks
from jaxquant.interop import source
from jaxquant.numerics import formats
from jaxquant.numerics import quantize
from jaxquant.numerics import trees
from tests import model_directories
from tests import peering

_RNG = np.random.default_rng(5)
_WORDS = 'the cat sat on a mat and ate its dinner of fish'.split()
_CHOICES = [{'context': ' '.join(_RNG.choice(_WORDS, 3)), 'choices': [' ' + ' '.join(_RNG.choice(_WORDS, count))
                                                                     for count in (1, 2, 3)], 'answer': i % 3}
            for i in range(12)]
# Blanks that end a context, an empty context, and more than the model sees.
_CHOICES[0]['context'] += ' '
_CHOICES[1]['context'] = ''
_CHOICES[2]['context'] *= 5
_TEXTS = [{'text': ' '.join(_RNG.choice(_WORDS, count))} for count in (3, 4, 5, 12, 30)]
_FILES = {'choices': _CHOICES, 'words': _TEXTS, 'rolling': _TEXTS, 'generation': _TEXTS}
_MEAN = {'aggregation': 'mean', 'higher_is_better': True}
_CONFIGS = {
    'choices': {
        'output_type': 'multiple_choice', 'doc_to_text': '{{context}}', 'doc_to_choice': '{{choices}}',
        'doc_to_target': '{{answer}}', 'target_delimiter': '',
        'metric_list': [{'metric': 'acc', **_MEAN}, {'metric': 'acc_bytes', **_MEAN}]},
    'words': {
        'output_type': 'loglikelihood', 'doc_to_text': "{{text.split(' ')[:-1] | join(' ')}}",
        'doc_to_target': "{{' ' + text.split(' ')[-1]}}",
        'metric_list': [{'metric': 'acc', **_MEAN},
                        {'metric': 'perplexity', 'aggregation': 'perplexity', 'higher_is_better': False}]},
    'rolling': {
        'output_type': 'loglikelihood_rolling', 'doc_to_text': '', 'doc_to_target': '{{text}}',
        'metric_list': [{'metric': 'bits_per_byte', 'aggregation': 'bits_per_byte', 'higher_is_better': False}]},
    'generation': {
        'output_type': 'generate_until', 'doc_to_text': '{{text}}', 'doc_to_target': '{{text}}',
        'generation_kwargs': {'until': ['\n', 'ab'], 'max_gen_toks': 8, 'do_sample': False},
        'metric_list': [{'metric': 'exact_match', **_MEAN}]},
}


@unittest.skipIf(importlib.util.find_spec('lm_eval') is None, 'lm_eval not installed; the extra [eval] has it')
class HarnessTest(parameterized.TestCase):

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.folder = pathlib.Path(absltest.get_default_test_tmpdir()) / 'harness'
    os.environ['HF_HOME'] = str(cls.folder / 'cache')
    cls.harness = importlib.import_module('jaxquant.evaluation.harness')
    model_directories.write(cls.folder / 'model')
    opened = source.DirectorySource(cls.folder / 'model')
    cls.params, cls.config = opened.whole(), opened.config
    (cls.folder / 'tasks').mkdir(exist_ok=True)
    for name, values in _CONFIGS.items():
      data = cls.folder / 'tasks' / f'{name}.jsonl'
      data.write_text('\n'.join(map(json.dumps, _FILES[name])))
      values = {'task': name, 'dataset_path': 'json', 'dataset_kwargs': {'data_files': {'test': str(data)}},
                'test_split': 'test', **values}
      (cls.folder / 'tasks' / f'{name}.yaml').write_text(json.dumps(values))

  def _tokenizer(self, kind):
    if kind == 'bytes':  # behind <s>
      return tokenizers.Tokenizer(model_directories.tokenizer())
    return tokenizers.Tokenizer.train([' '.join(_RNG.choice(_WORDS, 500))], 290)

  def _packed(self):
    params = self.params
    for path in trees.matching('layers/.*', trees.linears(params)):
      kernel = trees.get(params, path)['kernel']
      params = trees.put(params, f'{path}/kernel', quantize.quantize(kernel, formats.parse('int4')))
    return params

  def _run(self, model, *names):
    """The results of tasks, by name and metric, and the answers that the model gave, by name."""
    evaluator, managers = map(importlib.import_module, ('lm_eval.evaluator', 'lm_eval.tasks'))
    manager = managers.TaskManager(include_path=str(self.folder / 'tasks'), include_defaults=False)
    found = evaluator.simple_evaluate(model=model, tasks=list(names), task_manager=manager, bootstrap_iters=0)
    answers = {name: [sample['filtered_resps'] for sample in samples] for name, samples in found['samples'].items()}
    return {name: {metric.removesuffix(',none'): value for metric, value in values.items()}
            for name, values in found['results'].items()}, answers

  @parameterized.product(kind=['bytes', 'merges'], context=[' ', '\n', '', 'the'])
  def test_a_context_of_blanks_alone_is_one(self, kind, context):
    tokenizer, instance = self._tokenizer(kind), importlib.import_module('lm_eval.api.instance').Instance
    model = self.harness.HarnessModel(self.params, self.config, tokenizer)
    (nats, _), = model.loglikelihood([instance('loglikelihood', {}, (context, 'cat'), 0)])
    want, = likelihood.score(self.params, self.config, [likelihood.encode_pair(tokenizer, context, 'cat')])
    self.assertAlmostEqual(nats, want.nats, delta=1e-5)

  @parameterized.parameters(('bytes', False), ('merges', False), ('bytes', True))
  def test_local_tasks_give_the_same_numbers_both_ways(self, kind, packed):
    tokenizer, params = self._tokenizer(kind), self._packed() if packed else self.params
    results, _ = self._run(self.harness.HarnessModel(params, self.config, tokenizer), 'choices', 'words')
    for task in tasks.read([str(self.folder / 'tasks' / f'{name}.jsonl') for name in ('choices', 'words')]):
      want = task_scores.score(params, self.config, tokenizer, task, task_scores.encode(task, tokenizer))
      got = results[task.name]
      self.assertAlmostEqual(got['acc'], want['accuracy'], delta=1e-9)
      if task.kind == tasks.CHOICE:
        self.assertAlmostEqual(got['acc_bytes'], want['normalized_accuracy'], delta=1e-9)
        self.assertBetween(got['acc'], 0.05, 0.95)
      else:
        self.assertAlmostEqual(got['perplexity'] / want['perplexity'], 1, delta=1e-6)

  @peering.needed
  def test_harness_gives_the_same_numbers_through_transformers(self):
    torch, transformers = peering.libraries()
    peer = importlib.import_module('lm_eval.models.huggingface').HFLM(
        transformers.LlamaForCausalLM.from_pretrained(self.folder / 'model', dtype=torch.float32),
        tokenizer=transformers.PreTrainedTokenizerFast(
            tokenizer_file=str(self.folder / 'model' / 'tokenizer.json'), bos_token='<s>', eos_token='</s>'),
        device='cpu', max_length=self.config.max_length)
    ours = self.harness.HarnessModel(self.params, self.config, self._tokenizer('bytes'))
    (want, peers), (got, answers) = (self._run(model, 'choices', 'words', 'generation') for model in (peer, ours))
    for name, metric in (('choices', 'acc'), ('choices', 'acc_bytes'), ('words', 'acc'), ('words', 'perplexity')):
      self.assertAlmostEqual(got[name][metric] / (want[name][metric] or 1), bool(want[name][metric]), delta=1e-4)
    np.testing.assert_allclose([each[0] for sample in answers['choices'] for each in sample],
                               [each[0] for sample in peers['choices'] for each in sample], rtol=1e-5)
    self.assertEqual(answers['generation'], peers['generation'])

  def test_rolling_likelihoods_predict_every_token_once(self):
    tokenizer = self._tokenizer('merges')
    results, answers = self._run(self.harness.HarnessModel(self.params, self.config, tokenizer, length=8), 'rolling')
    nats = 0.0
    for line, answer in zip(_TEXTS, answers['rolling']):
      tokens = tokenizer.encode_bare(line['text'])
      # Windows of eight; the last has a whole context, and before the first stands the end of another text.
      ends = [*range(8, len(tokens), 8), len(tokens)]
      pairs = [likelihood.Pair([tokenizer.end_of_text, *tokens][max(0, end - 8):start + 1], tokens[start:end])
               for start, end in zip([0, *ends], ends)]
      want = sum(scored.nats for scored in likelihood.score(self.params, self.config, pairs, length=8))
      self.assertAlmostEqual(float(answer[0]) / want, 1, delta=1e-5)
      nats += want
    size = sum(len(line['text']) for line in _TEXTS)
    self.assertAlmostEqual(results['rolling']['bits_per_byte'], -nats / size / math.log(2), delta=1e-4)

  def test_generation_is_cut_off_where_the_task_says(self):
    tokenizer = self._tokenizer('bytes')
    model = self.harness.HarnessModel(self.params, self.config, tokenizer)
    request = lambda text, **kwargs: mock.Mock(args=(text, {'max_gen_toks': 8, **kwargs}))
    whole = generation.texts(
        self.params, self.config, tokenizer, [tokenizer.encode_prompt('the cat')], limit=8,
        stop=[tokenizer.end_of_text])
    cut = model.generate_until([request('the cat', until=whole[0][3:5]), request('the cat')])
    self.assertEqual(cut, [whole[0][:whole[0].index(whole[0][3:5])], whole[0]])
    # The end of a long context is what is gone on with.
    long = 'x' * 90 + ' the cat sat on the mat'
    self.assertEqual(model.generate_until([request(long)]), generation.texts(
        self.params, self.config, tokenizer, [tokenizer.encode_prompt(long)[-24:]], limit=8,
        stop=[tokenizer.end_of_text]))
    for kwargs, words in (({'num_beams': 4}, "'num_beams'"), ({'max_gen_toks': 32}, '32 tokens to generate')):
      with self.assertRaisesRegex(errors.UserError, words):
        model.generate_until([request('the cat', **kwargs)])

  def test_encoders_are_refused(self):
    folder = model_directories.write(self.create_tempdir().full_path, 'bert')
    opened = source.DirectorySource(folder)
    with self.assertRaisesRegex(errors.UserError, 'encoder'):
      self.harness.HarnessModel(opened.whole(), opened.config, self._tokenizer('bytes'))


if __name__ == '__main__':
  absltest.main()
