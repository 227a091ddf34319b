"""What is said of a calibration while it runs."""

import contextlib
import io

from absl.testing import absltest

from jaxquant.calibration import driver
from launch import progress


class BlocksTest(absltest.TestCase):

  def test_a_line_for_each_block_and_each_warning_once(self):
    lines, warnings = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(lines), contextlib.redirect_stderr(warnings):
      report = progress.blocks(progress.Printer(), lambda record: None)
      for i, text in enumerate(('few tokens', 'few tokens', 'fewer tokens')):
        report(driver.Progress(f'layers/{i}', 'mlp/up', i + 1, 3, 1.0, {}, {f'layers/{i}/mlp/up': text}))
    self.assertEqual([line.split(' ETA')[0] for line in lines.getvalue().splitlines()],
                     ['calibrated layers/0 33%', 'calibrated layers/1 67%', 'calibrated layers/2 100%'])
    self.assertEqual(warnings.getvalue().splitlines(),
                     ['warning: layers/0/mlp/up: few tokens', 'warning: layers/2/mlp/up: fewer tokens'])


if __name__ == '__main__':
  absltest.main()
