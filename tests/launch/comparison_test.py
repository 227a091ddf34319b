"""What trainings are measured on."""

import types

from absl.testing import absltest
import numpy as np

from jaxquant.layers import sharding
from launch import comparison
from launch import corpora


class ProbeTest(absltest.TestCase):

  def test_outliers_are_those_of_whole_windows(self):
    """What fills the last one up is no text."""
    for tokens, windows in ((68, 1), (40, 1), (128, 2), (640, 8)):
      experiment = types.SimpleNamespace(
          config=types.SimpleNamespace(training=types.SimpleNamespace(length=64)), mesh=sharding.data_mesh())
      corpus = types.SimpleNamespace(validation=[corpora.Text('text', np.arange(1, tokens + 1), tokens)])
      job = types.SimpleNamespace(experiment=experiment, corpus=corpus)
      probe = comparison._probe(job)  # pylint: disable=protected-access
      self.assertLen(probe, windows)
      np.testing.assert_array_equal(np.ravel(probe), np.arange(1, probe.size + 1))


if __name__ == '__main__':
  absltest.main()
