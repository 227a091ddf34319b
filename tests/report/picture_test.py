"""Charts as files of their own."""

import re
import xml.etree.ElementTree as ElementTree

from absl.testing import absltest
import numpy as np

from jaxquant.report import picture
from jaxquant.report import svg

_SPACE = '{http://www.w3.org/2000/svg}'


class PictureTest(absltest.TestCase):

  def setUp(self):
    super().setUp()
    self.chart = svg.line_chart([svg.Series('a', 0, np.arange(3.0), np.arange(3.0))], 'loss', y_label='bits')
    self.text = picture.standalone(self.chart, '<title>', ('first', 'second'))
    self.root = ElementTree.fromstring(self.text)

  def test_every_color_is_defined_within(self):
    used, defined = (set(re.findall(pattern, self.text)) for pattern in (r'var\((--\w+)\)', r'(--\w+):'))
    self.assertContainsSubset(used, defined)
    self.assertNotIn('prefers-color-scheme', self.text)
    self.assertEmpty(re.findall(r'href|url\(|@import|<script', self.text))

  def test_all_of_the_chart_and_the_lines_above_it_are_in_view_on_a_ground(self):
    left, top, width, height = map(float, self.root.get('viewBox').split())
    _, _, chart_width, chart_height = map(float, ElementTree.fromstring(self.chart).get('viewBox').split())
    self.assertEqual((float(self.root.get('width')), float(self.root.get('height'))), (width, height))
    self.assertGreater(left + width, chart_width)
    self.assertGreater(top + height, chart_height)
    ground = self.root.find(f'{_SPACE}rect')
    self.assertEqual([float(ground.get(name)) for name in ('x', 'y', 'width', 'height')], [left, top, width, height])
    lines = self.root.findall(f'{_SPACE}text')[:3]
    self.assertEqual([line.text for line in lines], ['<title>', 'first', 'second'])
    heights = [float(line.get('y')) for line in lines]
    self.assertTrue((np.diff([top, *heights, 0.0]) >= 10).all())


if __name__ == '__main__':
  absltest.main()
