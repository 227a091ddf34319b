"""Tests of the page, on synthetic files that cover the whole schema."""

import html.parser
import json
import math
import pathlib
import re
import xml.etree.ElementTree as ElementTree

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from jaxquant import errors
from jaxquant.report import page

VARIANTS = ('baseline', 'qat', 'kurtosis', 'both')
# How strongly outliers grow in the activations, and in the weights, of each variant.
_ACTIVATION_GROWTH = {'baseline': 1.0, 'qat': 0.45, 'kurtosis': 0.12, 'both': 0.08}
_WEIGHT_GROWTH = {'baseline': 0.3, 'qat': 1.0, 'kurtosis': 0.25, 'both': 0.35}
_PERPLEXITY = {
    ('W16A16', 'none'): (24.31, 24.9, 24.45, 25.02), ('W16A4', 'static'): (3274.0, 28.4, 31.9, 26.1),
    ('W4A16', 'none'): (27.9, 41.3, 27.6, 26.4), ('W4A4', 'static'): (4120.0, 49.7, 36.2, 27.3),
    ('W4A4', 'dynamic'): (1.2e6, 44.0, 33.1, 26.9),
}
_SITES = (('attention/input', True), ('attention/output', False), ('mlp/input', True), ('mlp/down', False))
_LINEARS = ('attention/q', 'attention/k', 'attention/v', 'attention/output', 'mlp/gate', 'mlp/up', 'mlp/down')


def write_files(folder, *, variants=VARIANTS, seeds=2, layers=2, steps=1000, train_points=60, bins=64):
  """Writes metrics.jsonl, results.json and config.json of an invented run that has every kind of record."""
  folder = pathlib.Path(folder)
  metrics, evaluations, histograms, runs = [], [], [], []
  train_steps = np.unique(np.linspace(1, steps, train_points).astype(int))
  site_steps = np.unique(np.r_[0, np.geomspace(1, steps, 22).astype(int)])
  for index, variant in enumerate(variants):
    name = variant if variant in VARIANTS else VARIANTS[index % len(VARIANTS)]
    place = VARIANTS.index(name)
    for seed in range(seeds):
      noise = np.random.default_rng([index, seed])
      identity = {'variant': variant, 'seed': seed}
      for step in train_steps.tolist():
        progress = step / steps
        entropy = 3.15 + 0.03 * place + 2.2 * (1 + step / 40) ** -0.35 + 3.6 * math.exp(-step / (0.01 * steps))
        rate = 1e-3 * min(1, step / (0.05 * steps)) * (0.55 + 0.45 * math.cos(math.pi * progress))
        entropy += 0.05 * noise.normal()
        metrics.append({
            'kind': 'train', **identity, 'step': step, 'loss': entropy + 0.01, 'cross_entropy': entropy,
            'kurtosis': 3 + 60 * _ACTIVATION_GROWTH[name] * progress**0.7 + 0.3 * noise.random(), 'learning_rate': rate,
            'gradient_norm': (0.3 + 4 * math.exp(-8 * progress)) * (1 + 0.2 * noise.random()),
            'tokens_per_second': (1.21e6, 0.98e6, 1.12e6, 0.93e6)[place] * (1 + 0.02 * noise.normal()),
            'eta_seconds': 3000 * (1 - progress), 'memory_bytes': (31 + 2 * index) * 2**30,
        })
      for step in np.linspace(0, steps, 21).astype(int).tolist():
        entropy = 3.17 + 0.03 * place + 2.2 * (1 + step / 40) ** -0.35 + 3.6 * math.exp(-step / (0.01 * steps))
        metrics.append({'kind': 'validation', **identity, 'step': step, 'cross_entropy': entropy,
                        'perplexity': math.exp(entropy)})
      for step in site_steps.tolist():
        late = math.log1p(step) / math.log1p(steps)
        for layer in range(layers):
          depth = (layer + 1) / layers
          for path, reads in _SITES:
            growth = _ACTIVATION_GROWTH[name] * (1 if reads else 0.25) * depth * late**3 * (1 + 0.1 * noise.random())
            metrics.append({
                'kind': 'site', **identity, 'step': step, 'site': f'layers/{layer}/{path}', 'reads_residual': reads,
                'peak_ratio': 1.6 * math.exp(4.4 * growth), 'absolute_maximum': 4 * math.exp(3.2 * growth),
                'kurtosis': 3.1 * math.exp(3.9 * growth), 'outlier_channels': int(6 * growth)})
      for step in np.linspace(0, steps, 13).astype(int).tolist():
        progress = step / steps
        for layer in range(layers):
          for order, path in enumerate(_LINEARS):
            growth = _WEIGHT_GROWTH[name] * progress * (2.0 if path.endswith(('output', 'down')) else 0.5)
            growth *= 1 + 0.3 * noise.random() + layer / layers
            metrics.append({'kind': 'weight', **identity, 'step': step, 'path': f'layers/{layer}/{path}/kernel',
                            'kurtosis': 3 + 9 * growth, 'absolute_maximum': 0.1 + 0.35 * growth + 0.01 * order})
          for path, _ in _SITES:
            if name in ('qat', 'both'):
              high = (1.5 + layer / layers) * (1 + (1.4 if name == 'qat' else 0.3) * progress**0.5)
              metrics.append({'kind': 'range', **identity, 'step': step, 'path': f'layers/{layer}/{path}/quantizer',
                              'low': -0.9 * high, 'high': high})
      for (widths, mode), values in _PERPLEXITY.items():
        weights, activations = map(int, re.findall(r'\d+', widths))
        perplexity = values[place] * (1 + 0.01 * noise.normal())
        evaluations.append({
            **identity, 'weights': weights, 'activations': activations, 'activation_mode': mode,
            'dataset': 'expo_valid', 'method': 'none' if widths == 'W16A16' else 'rtn', 'tokens': 262144,
            'perplexity': perplexity, 'bits_per_byte': math.log2(perplexity) / 4.2})
      histograms.extend(_histograms(identity, name, layers, bins, noise))
      runs.append({**identity, 'steps': steps, 'tokens': steps * 32768, 'seconds': steps * 0.03,
                   'tokens_per_second': 1.1e6, 'checkpoint': f'checkpoints/{variant}/{seed}'})
  results = {
      'evaluations': evaluations, 'histograms': histograms, 'runs': runs, 'seconds': 4320.0,
      'environment': {'device': 'Example accelerator', 'device_count': 1, 'jax': '0.10.2', 'python': '3.11.2'}}
  config = {
      'name': 'outlier_channels', 'model': {'layers': layers, 'width': 512, 'heads': 8, 'vocabulary_size': 8192},
      'training': {
          'steps': steps, 'batch_size': 64, 'sequence_length': 512, 'learning_rate': 1e-3, 'betas': [0.9, 0.95]},
      'data': {'dataset': 'expo', 'seed': None}}
  (folder / 'metrics.jsonl').write_text(''.join(json.dumps(record) + '\n' for record in metrics))
  (folder / 'results.json').write_text(json.dumps(results))
  (folder / 'config.json').write_text(json.dumps(config))


def _histograms(identity, name, layers, bins, noise):
  """Weights and activations of all layers, full precision before and 16 levels after."""
  for layer in range(layers):
    for quantity, paths, scale, growth in (
        ('weight', _LINEARS, 0.04, _WEIGHT_GROWTH[name]),
        ('activation', [path for path, _ in _SITES], 1.0, _ACTIVATION_GROWTH[name])):
      for path in paths:
        values = noise.normal(size=4000) * scale
        values[:12] *= 1 + 8 * growth * (layer + 1) / layers
        limit = np.abs(values).max()
        levels = np.clip(np.round(values / limit * 7), -8, 7) * limit / 7
        for stage, shown in (('before', values), ('after', levels)):
          counts, edges = np.histogram(shown, bins=bins, range=(-limit, limit))
          yield {**identity, 'path': f'layers/{layer}/{path}', 'quantity': quantity, 'stage': stage,
                 'edges': edges.tolist(), 'counts': counts.tolist()}


class _Checker(html.parser.HTMLParser):
  """Collects tags, texts and what is left open, the way a browser would see them."""

  def __init__(self, text):
    super().__init__()
    self.tags, self.texts, self.open = [], [], []
    self.feed(text)

  def handle_starttag(self, tag, attrs):
    self.tags.append((tag, dict(attrs)))
    if tag not in ('meta', 'wbr'):
      self.open.append(tag)

  def handle_endtag(self, tag):
    if self.open.pop() != tag:
      raise AssertionError(f'</{tag}> closes another element')

  def handle_data(self, data):
    self.texts.append(data)


def _charts(text):
  return re.findall(r'<svg class="chart".*?</svg></g>.*?</svg>', text, re.DOTALL)


def _sections(text):
  return re.findall(r'<section id="([^"]*)">', text)


class PageTest(parameterized.TestCase):

  def _folder(self, **options):
    folder = pathlib.Path(self.create_tempdir().full_path)
    write_files(folder, **options)
    return folder

  def _page(self, folder):
    return page.write_report(folder).read_text(encoding='utf-8')

  def _edit(self, folder, name, change):
    value = json.loads((folder / name).read_text())
    change(value)
    (folder / name).write_text(json.dumps(value))

  def test_page_has_every_section_and_is_well_formed(self):
    folder = self._folder()
    path = page.write_report(folder)
    self.assertEqual(path, folder / 'report.html')
    self.assertCountEqual([entry.name for entry in folder.iterdir()],
                          ['config.json', 'metrics.jsonl', 'report.html', 'results.json'])
    text = path.read_text(encoding='utf-8')
    self.assertEqual(_sections(text), [
        'precision', 'training', 'outlier-channels', 'weights-over-time', 'clip-ranges-over-time', 'distributions',
        'record'])
    checker = _Checker(text)
    self.assertEmpty(checker.open)
    self.assertIn('4 variants (baseline, qat, kurtosis, both) with 2 seeds each trained for 1,000 steps (32.8 million '
                  'tokens each) on 1 × Example accelerator in 1 h 12 min.', ' '.join(checker.texts))

  def test_each_chart_is_well_formed_xml_and_none_is_lost(self):
    text = self._page(self._folder())
    charts = _charts(text)
    self.assertLen(charts, text.count('<svg class="chart"'))
    # 2 losses and 5 of progress, 4 sites and 7 weights by 2 measures, 4 ranges, 11 histograms of 4 variants.
    self.assertLen(charts, 7 + 4 * 2 + 7 * 2 + 4 + 11 * 4)
    for chart in charts:
      self.assertNotEmpty(ElementTree.fromstring(chart).get('aria-label'))

  def test_nothing_is_loaded_from_elsewhere_and_nothing_is_executed(self):
    text = self._page(self._folder())
    for tag, attributes in _Checker(text).tags:
      self.assertNotIn(tag, ('script', 'link', 'img', 'iframe', 'object'))
      self.assertStartsWith(attributes.get('href', '#'), '#')
      self.assertNotIn('src', attributes)
      self.assertEmpty([name for name in attributes if name.startswith('on')])
    self.assertNotRegex(text, r'https?://|url\(|@import')

  def test_tables_show_exact_numbers(self):
    folder = self._folder(variants=('baseline',), seeds=1)
    def change(results):
      results['evaluations'] = [
          {'variant': 'baseline', 'seed': seed, 'weights': bits, 'activations': bits, 'activation_mode': 'static',
           'dataset': 'expo', 'perplexity': value}
          for seed, bits, value in ((0, 16, 20.0), (1, 16, 25.0), (0, 4, 50.0), (1, 4, 100.0))]
    self._edit(folder, 'results.json', change)
    table = re.search(r'<table class="precision">.*?</table>', self._page(folder), re.DOTALL).group()
    cells = [''.join(_Checker(cell).texts) for cell in re.findall(r'<td[^>]*>.*?</td>', table)]
    self.assertEqual(cells, ['22.50 ± 3.54', '75.00 ± 35.36', '3.250 ± 1.061'])

  def test_higher_accuracies_are_the_better_ones(self):
    folder = self._folder(variants=('baseline',), seeds=1)
    def change(results):
      results['evaluations'] = [
          {'variant': variant, 'weights': bits, 'activations': bits, 'activation_mode': 'static', 'dataset': 'choices',
           'accuracy': value}
          for variant, bits, value in (('a', 16, 0.5), ('a', 4, 0.4), ('b', 16, 0.25), ('b', 4, 0.3), ('c', 16, 0.4),
                                       ('c', 4, 0.0))]
    self._edit(folder, 'results.json', change)
    caption, table = re.search(
        r'<p class="caption">(Accuracy.*?)</p>.*?<table class="precision">(.*?)</table>', self._page(folder)).groups()
    self.assertEqual(caption, 'Accuracy on choices, higher is better')
    self.assertEqual(re.findall(r'<b>(.*?)</b>', table), ['0.5000', '0.4000'])
    # What fell by a fifth is shaded a little, what rose not at all, and what fell to nothing fully.
    shades = re.findall(r'rgb\(var\(--heat\)/([\d.]+)\)">(?:<b>)?([\d.]+)', table)
    self.assertEqual(shades, [('0.16', '0.4000'), ('0.50', '0')])

  @parameterized.parameters(('evaluations', 'precision'), ('histograms', 'distributions'))
  def test_missing_results_leave_out_their_section_only(self, key, section):
    folder = self._folder(variants=('both',), seeds=1)
    before = _sections(self._page(folder))
    self._edit(folder, 'results.json', lambda results: results.pop(key))
    self.assertIn(section, before)
    self.assertEqual(_sections(self._page(folder)), [name for name in before if name != section])

  @parameterized.parameters(
      ('site', 'outlier-channels'), ('weight', 'weights-over-time'), ('range', 'clip-ranges-over-time'))
  def test_missing_records_leave_out_their_section_only(self, kind, section):
    folder = self._folder(variants=('both',), seeds=1)
    before = _sections(self._page(folder))
    lines = (folder / 'metrics.jsonl').read_text().splitlines()
    (folder / 'metrics.jsonl').write_text('\n'.join(line for line in lines if json.loads(line)['kind'] != kind))
    self.assertIn(section, before)
    self.assertEqual(_sections(self._page(folder)), [name for name in before if name != section])

  def test_any_single_file_is_enough(self):
    sections = {}
    for kept in ('metrics.jsonl', 'results.json', 'config.json'):
      folder = self._folder(variants=('both',), seeds=1)
      for path in folder.iterdir():
        if path.name != kept:
          path.unlink()
      sections[kept] = _sections(self._page(folder))
    self.assertEqual(sections['metrics.jsonl'],
                     ['training', 'outlier-channels', 'weights-over-time', 'clip-ranges-over-time'])
    self.assertEqual(sections['results.json'], ['precision', 'distributions', 'record'])
    self.assertEqual(sections['config.json'], ['record'])

  def test_no_file_is_an_error(self):
    with self.assertRaisesRegex(errors.UserError, 'is it a workdir'):
      page.write_report(self.create_tempdir().full_path)

  @parameterized.parameters(
      'kind', 'step', 'variant', 'seed', 'site', 'path', 'reads_residual', 'peak_ratio', 'kurtosis', 'loss',
      'cross_entropy', 'low', 'absolute_maximum', 'outlier_channels')
  def test_a_field_missing_everywhere_does_no_harm(self, field):
    folder = self._folder(variants=('both',), seeds=1, train_points=5)
    lines = [json.loads(line) for line in (folder / 'metrics.jsonl').read_text().splitlines()]
    for line in lines:
      line.pop(field, None)
    (folder / 'metrics.jsonl').write_text('\n'.join(map(json.dumps, lines)))
    self.assertIn('precision', _sections(self._page(folder)))

  @parameterized.parameters(math.nan, math.inf, None, 'nan', 0, -1)
  def test_no_value_breaks_the_page(self, value):
    folder = self._folder(variants=('both',), seeds=1, train_points=5)
    def replaced(record):
      kept = ('kind', 'step', 'site', 'path', 'variant', 'seed', 'dataset', 'weights', 'activations')
      return {key: old if key in kept else value for key, old in record.items()}
    lines = [replaced(json.loads(line)) for line in (folder / 'metrics.jsonl').read_text().splitlines()]
    (folder / 'metrics.jsonl').write_text('\n'.join(map(json.dumps, lines)))
    def change(results):
      for key in ('evaluations', 'histograms', 'runs'):
        results[key] = [replaced(entry) for entry in results[key]]
    self._edit(folder, 'results.json', change)
    text = self._page(folder)
    for chart in _charts(text):
      ElementTree.fromstring(chart)
    self.assertNotRegex(' '.join(re.findall(r' d="[^"]*"', text)), 'nan|inf')

  def test_texts_from_files_are_escaped(self):
    attack = '<script>alert(1)</script>"\'&'
    folder = self._folder(variants=('both', attack), seeds=1)
    text = (folder / 'metrics.jsonl').read_text().replace('layers/0', json.dumps('layers/0' + attack)[1:-1])
    (folder / 'metrics.jsonl').write_text(text)
    def change(results):
      results['environment'][attack] = attack
      for entry in results['evaluations'] + results['histograms']:
        entry.update(dataset=attack, method=attack, stage=attack + entry.get('stage', ''), quantity=attack,
                     path=attack + entry.get('path', ''))
      results['histograms'].append({'variant': attack, 'stage': attack, 'path': attack, 'edges': [1], 'counts': [2]})
    self._edit(folder, 'results.json', change)
    self._edit(folder, 'config.json', lambda config: config.update({'name': attack, 'dtype': attack, attack: attack}))
    text = self._page(folder)
    self.assertNotIn('<script', text)
    checker = _Checker(text)
    self.assertEmpty(checker.open)
    self.assertGreater(sum(attack in data for data in checker.texts), 20)
    for chart in _charts(text):
      ElementTree.fromstring(chart)

  def test_divergences_and_failures_and_useless_histograms_are_announced(self):
    folder = self._folder(variants=('both',), seeds=1)
    lines = [json.loads(line) for line in (folder / 'metrics.jsonl').read_text().splitlines()]
    for line in lines:
      if line['kind'] == 'train' and line['step'] > 500:
        line['loss'] = math.nan
    (folder / 'metrics.jsonl').write_text('\n'.join(map(json.dumps, lines)))
    self._edit(folder, 'results.json', lambda results: results['histograms'][0]['counts'].pop())
    self._edit(folder, 'results.json', lambda results: results['evaluations'][0].update(perplexity=None))
    first = min(line['step'] for line in lines if line['kind'] == 'train' and line['step'] > 500)
    notes = re.search(r'<ul class=notes>.*?</ul>', self._page(folder)).group()
    self.assertIn(f'The loss of both, seed 0, is not finite from step {first}.', notes)
    self.assertRegex(notes, r'The perplexity of both, seed 0, at W16A16 on \w+ is not finite\.')
    self.assertIn('>n/a', self._page(folder))
    self.assertIn('The before histogram of layers/0/attention/q (both) is left out', notes)

  def test_the_worst_sites_come_from_the_end_or_from_the_summary(self):
    folder = self._folder(variants=('both',), seeds=1)
    site = {'variant': 'both', 'seed': 0, 'site': 'layers/0/one', 'reads_residual': True, 'peak_ratio': 77.5}
    site.update(kind='site', step=2000)
    lines = [dict(site, peak_ratio=2.5), dict(site, site='layers/1/two')]
    with (folder / 'metrics.jsonl').open('a') as file:
      file.write(''.join(json.dumps(line) + '\n' for line in lines))
    row = '<tr><td class="text">both</td><td class="text">{}</td><td>{}</td>'
    self.assertIn(row.format('layers/1/two', '77.50'), self._page(folder))
    self._edit(folder, 'results.json', lambda results: results.update(outlier_summary=[dict(site, peak_ratio=8.25)]))
    self.assertIn(row.format('layers/0/one', '8.250'), self._page(folder))

  def test_eight_layers_and_four_variants_stay_below_a_megabyte(self):
    folder = self._folder(layers=8, seeds=1, steps=12000, train_points=1200, bins=128)
    self.assertLess(page.write_report(folder).stat().st_size, 1_000_000)

  def test_equal_files_give_equal_pages(self):
    folder = self._folder(variants=('both',), seeds=1)
    self.assertEqual(self._page(folder), self._page(folder))


if __name__ == '__main__':
  absltest.main()
