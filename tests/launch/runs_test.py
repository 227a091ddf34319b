"""Whole runs of the launchers leave every file and measurement, and the settings of a training do what they say."""

import re

from absl.testing import absltest
import numpy as np

from jaxquant.training import restoring
from tests import compiling
from tests import launching

_RTN = '--config=configs/ptq/rtn_w4a4.py'
_LINE = (r'step (?P<step>\d+)/12 [\d.]+% loss (?P<loss>[\d.]+) lr (?P<learning_rate>[\d.e-]+)'
         r'( tokens/s [\d,]+ ETA (\d+m)?\d+s)? memory [\d.]+G')


class RunsTest(absltest.TestCase):

  def setUp(self):
    super().setUp()
    self.workdir = launching.folder() / self.id()

  def train(self, *flags):
    """Trains the tiny configuration, with `flags`, in a workdir of this test."""
    finished = launching.run('train', launching.config(), f'--workdir={self.workdir}', *flags)
    self.assertEqual((finished.code, finished.error), (0, ''))
    return finished

  def test_training_leaves_every_file_and_every_measurement(self):
    workdir = launching.trained()
    for name in ('config.json', 'metrics.jsonl', 'results.json', 'report.html', 'tokenizer.json'):
      self.assertTrue((workdir / name).is_file(), name)
    measured = launching.evaluations(workdir)
    precisions = [(16, 16, 'none'), (16, 4, 'static'), (4, 16, 'none'), (4, 4, 'static'), (4, 4, 'dynamic')]
    self.assertEqual(
        [(e['variant'], e['weights'], e['activations'], e['activation_mode']) for e in measured],
        [(variant, *precision) for variant in ('baseline', 'both') for precision in precisions])
    for evaluation in measured:
      self.assertGreater(evaluation['perplexity'], 1)
      self.assertGreater(evaluation['bits_per_byte'], 0)
      self.assertGreater(evaluation['tokens'], 100)
    for variant, kinds in (('baseline', ('site', 'weight')), ('both', ('site', 'weight', 'range'))):
      self.assertEqual([record['step'] for record in launching.records(workdir, 'train', variant)], [1, 4, 8, 12])
      for kind, want in (*((kind, {0, 1, 12}) for kind in kinds), ('validation', {0, 1, 4, 8, 12})):
        steps = {record['step'] for record in launching.records(workdir, kind, variant)}
        self.assertEqual(steps, want, (variant, kind))
    self.assertEmpty(launching.records(workdir, 'range', 'baseline'))

  def test_quantized_checkpoint_evaluates_as_it_was_measured(self):
    model, quantized, scored = launching.trained(), self.workdir / 'quantized', self.workdir / 'scored'
    text = f'--text={launching.folder() / "validation.txt"}'
    flags = [_RTN, '--config.calibration_windows=8']
    finished = launching.run('quantize', *flags, f'--model={model}', text, f'--workdir={quantized}')
    self.assertEqual((finished.code, finished.error), (0, ''))
    finished = launching.run('evaluate', f'--model={quantized}', text, f'--workdir={scored}', '--implementation=xla')
    self.assertEqual((finished.code, finished.error), (0, ''))
    trained = next(e for e in launching.evaluations(model)
                   if (e['variant'], e['weights'], e['activation_mode']) == ('both', 4, 'static'))
    for workdir in (quantized, scored):
      np.testing.assert_allclose(launching.evaluations(workdir)[0]['perplexity'], trained['perplexity'], rtol=1e-6)
    finished = launching.run('quantize', *flags, f'--model={quantized}', f'--workdir={self.workdir / "twice"}')
    self.assertEqual(finished.code, 2)
    self.assertIn('quantized already', finished.error)

  def test_lines_are_the_records_and_a_file_gets_no_bar(self):
    output = self.train().output
    self.assertNotIn('\r', output)
    lines = [line for line in output.splitlines() if line.startswith('step ')]
    records = launching.records(self.workdir, 'train')
    self.assertLen(lines, len(records))
    for line, record in zip(lines, records):
      match = re.fullmatch(_LINE, line)
      self.assertIsNotNone(match, line)
      for key, text in match.groupdict().items():
        self.assertAlmostEqual(float(text), record[key], delta=5e-3 * record[key] + 1e-9, msg=line)

  def test_terminal_shows_a_bar_and_the_same_lines(self):
    # This launch is not forked, so it also shows that forked ones compute what `python -m launch.train` does.
    code, sent = launching.run_on_terminal('train', launching.config(), f'--workdir={self.workdir}')
    self.assertEqual(code, 0, sent)
    bar = r'\r\x1b\[K\[(#*)(\.*)\] step (\d+)/12( ETA (\d+m)?\d+s)?'
    drawn = list(re.finditer(bar, sent))
    self.assertNotEmpty(drawn)
    for match in drawn:
      filled, rest, step = match.group(1, 2, 3)
      self.assertEqual((len(filled), len(rest)), (30 * int(step) // 12, 30 - 30 * int(step) // 12))
    left = re.sub(bar, '', sent).replace('\r\x1b[K', '').replace('\r\n', '\n')
    self.assertNotRegex(left, r'[\r\x1b]')
    lines = [line for line in left.splitlines() if line.startswith('step ')]
    self.assertLen([line for line in lines if re.fullmatch(_LINE, line)], 4, left)
    self.assertEqual(launching.checksums(self.workdir), launching.checksums(launching.trained()))

  def test_every_seed_is_measured_and_the_table_gives_mean_and_deviation(self):
    finished = self.train('--config.seeds=(0,3)', '--config.training.steps=4')
    perplexities = {e['seed']: e['perplexity'] for e in launching.evaluations(self.workdir)}
    self.assertEqual(list(perplexities), [0, 3])
    self.assertNotEqual(perplexities[0], perplexities[3])
    mean, deviation = np.mean([*perplexities.values()]), np.std([*perplexities.values()], ddof=1)
    table = finished.output[finished.output.index('Perplexity on text') :]
    self.assertIn('mean ± sample standard deviation of 2 seeds', table)
    shown = re.search(r'baseline +([\d.]+) ± ([\d.]+)', table)
    self.assertIsNotNone(shown, table)
    np.testing.assert_allclose([float(shown[1]), float(shown[2])], [mean, deviation], rtol=0, atol=0.051)
    self.assertIn(f'<td>{shown[1]} <small>± {shown[2]}</small></td>', (self.workdir / 'report.html').read_text())

  def test_a_text_too_small_for_the_vocabulary_is_told_in_one_line(self):
    finished = launching.run('train', launching.config(), f'--workdir={self.workdir}', '--config.training.steps=1',
                             '--config.model.vocabulary=30000')
    self.assertEqual(finished.code, 0, finished)
    self.assertRegex(finished.error, r'\Aconfig\.data\.train is too small a text for the 30000 tokens of '
                     r'config\.model\.vocabulary: its tokenizer has \d+\n\Z')

  def test_microbatches_change_no_loss(self):
    self.train('--config.training.microbatches=2')
    whole, parts = (launching.records(workdir, 'train') for workdir in (launching.trained(), self.workdir))
    self.assertEqual([record['step'] for record in parts], [1, 4, 8, 12])
    np.testing.assert_allclose([record['loss'] for record in parts], [record['loss'] for record in whole], rtol=1e-4)

  def test_validation_and_the_best_checkpoint_are_of_kernels_as_they_are_trained(self):
    # Two programs, which only the emitters that users have compile to the same sums where both compute the same.
    run = lambda workdir, *flags: launching.run(
        'train', launching.config(), f'--workdir={workdir}', '--config.evaluation.precisions=W16A16', *flags,
        XLA_FLAGS=compiling.UNOPTIMIZED)
    finished = run(self.workdir, "--config.variants=('baseline','both')", '--config.qat.weight_bits=2',
                   '--config.qat.weight_start=9')
    self.assertEqual((finished.code, finished.error), (0, ''))
    unrounded = self.workdir.with_name(f'{self.workdir.name}_unrounded')
    self.assertEqual(run(unrounded, '--config.variants=both').code, 0)
    rounded, plain = (
        {record['step']: record['cross_entropy'] for record in launching.records(workdir, 'validation', 'both')}
        for workdir in (self.workdir, unrounded))
    self.assertEqual([step for step in plain if rounded[step] == plain[step]], [0, 1, 4, 8])
    metrics = lambda step: restoring.read_manifest(self.workdir / 'checkpoints' / 'both-seed0', step)['metrics']
    self.assertEqual((metrics(8), metrics(12)), ({}, {'cross_entropy': rounded[12]}))
    # A step of either variant: kernels start being rounded within one program.
    self.assertEqual(re.findall(r'compiled in .* step (\d+) included', finished.output), ['1', '1'])

  def test_kernels_alone_are_quantized_where_no_site_is(self):
    self.train('--config.variants=qat', '--config.qat.ranges=()', '--config.qat.weight_bits=4',
               "--config.evaluation.precisions=('W16A16','W4A16')")
    measured = [(e['weights'], e['activations']) for e in launching.evaluations(self.workdir)]
    self.assertEqual(measured, [(16, 16), (4, 16)])

  def test_quantized_training_starts_from_a_trained_model(self):
    trained = launching.trained()
    self.train(f'--config.init_from={trained}', '--config.init_variant=baseline', '--config.variants=qat')
    untrained, *_, last = launching.records(trained, 'validation')
    start, *_, end = launching.records(self.workdir, 'validation', 'qat')
    first = launching.records(self.workdir, 'train', 'qat')[0]
    self.assertLess(last['cross_entropy'], untrained['cross_entropy'] - 0.5)
    # The first validation is that of the trained model, but for 4-bit activations, whose ranges are calibrated.
    self.assertAlmostEqual(start['cross_entropy'], last['cross_entropy'], delta=0.05)
    self.assertLess(first['loss'], untrained['cross_entropy'] - 0.5)
    self.assertLess(end['cross_entropy'], start['cross_entropy'])
    ranges, fixed = (
        {record['path']: (record['low'], record['high']) for record in launching.records(workdir, 'range', variant)
         if record['step'] == 0} for workdir, variant in ((self.workdir, 'qat'), (trained, 'both')))
    self.assertEqual(ranges.keys(), fixed.keys())
    for path, (low, high) in ranges.items():
      self.assertLess(low, 0)
      self.assertGreater(high, 0)
      self.assertNotEqual((low, high), fixed[path])


if __name__ == '__main__':
  absltest.main()
