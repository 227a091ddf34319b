"""A user's mistake gets one line that names the culprit and its exit code, and leaves earlier results alone."""

import hashlib
import pathlib
import shutil
import signal
import socket

from absl.testing import absltest
from absl.testing import parameterized

from tests import launching

_PTQ = '--config=configs/ptq/rtn_w4a4.py'
_BAD_CONFIGS = {
    'broken': 'def get_config(:\n',
    'raises': 'def get_config():\n  size = 3\n  return size.shape\n',
    'imports': 'import nosuchmodule\n',
    'empty': 'x = 1\n',
    'none': 'def get_config():\n  pass\n',
    'added': 'from launch import settings\ndef get_config():\n  c = settings.train()\n  c.batchsize = 3\n  return c\n',
    'typed': 'from launch import settings\ndef get_config():\n  c = settings.train()\n  c.training.steps = "3"\n',
    'blind': 'from launch import settings\ndef get_config():\n  return settings.train()\n',
}


def _digest(folder: pathlib.Path) -> dict[str, str]:
  """The contents of all files below `folder`."""
  files = [path for path in folder.rglob('*') if path.is_file()]
  return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


class BadInputTest(parameterized.TestCase):

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.folder = launching.folder() / 'bad_input'
    cls.folder.mkdir(exist_ok=True)
    (cls.folder / 'empty.txt').write_text('')
    (cls.folder / 'blank.txt').write_text(' \n\n')
    (cls.folder / 'latin.txt').write_bytes('Dvo\u0159\u00e1k '.encode('iso8859-2') * 10)
    (cls.folder / 'short.txt').write_text('Fewer tokens than one batch of them. ' * 3)
    (cls.folder / 'letter.txt').write_text('a')
    (cls.folder / 'file').write_text('not a folder')
    for name, text in _BAD_CONFIGS.items():
      (cls.folder / f'{name}.py').write_text(text)

  def setUp(self):
    super().setUp()
    self.workdir = pathlib.Path(self.create_tempdir().full_path) / 'workdir'

  def _format(self, flags):
    """The flags, the names in them filled in, and a workdir unless they have one."""
    given = {flag.partition('=')[0] for flag in flags}
    common = [f'--workdir={self.workdir}'] if '--workdir' not in given else []
    return common + [flag.format(config=launching.config(), folder=self.folder, workdir=self.workdir) for flag in flags]

  def assert_refused(self, finished, *words, code=2):
    self.assertEqual(finished.code, code, finished)
    self.assertLen(finished.error.splitlines(), 1, finished.error)
    for word in words:
      self.assertIn(word, finished.error)

  @parameterized.named_parameters(
      ('no_config', [], ['--config=FILE']),
      ('missing_config', ['--config=nowhere.py'], ['nowhere.py', 'no file']),
      ('config_without_value', ['--config'], ['--config']),
      ('folder_for_a_config', ['--config={folder}'], ['{folder}', 'no file']),
      ('text_for_a_config', ['--config={folder}/latin.txt'], ['latin.txt']),
      ('syntax_error', ['--config={folder}/broken.py'], ['broken.py', 'line 1', 'invalid syntax']),
      ('raising', ['--config={folder}/raises.py'], ['raises.py', 'line 3', 'AttributeError', 'shape']),
      ('missing_module', ['--config={folder}/imports.py'], ['imports.py', 'line 1', 'nosuchmodule']),
      ('no_function', ['--config={folder}/empty.py'], ['empty.py', 'get_config']),
      ('no_result', ['--config={folder}/none.py'], ['none.py', 'NoneType']),
      ('unknown_key_in_file', ['--config={folder}/added.py'], ['config.batchsize']),
      ('wrong_type_in_file', ['--config={folder}/typed.py'], ['typed.py', 'line 4', 'TypeError']),
      ('no_validation_text', ['--config={folder}/blind.py'], ['config.data.validation']),
      ('needless_argument', ['{config}:large'], ['tiny.py:large', 'takes 0 positional arguments']),
      ('config_of_another_launcher', [_PTQ], ['config.activation_group_size', 'launch/settings.py']),
      ('unknown_flag', ['{config}', '--nosuchflag=1'], ["'nosuchflag'"]),
      ('flag_of_another_launcher', ['{config}', '--model=x'], ["'model'"]),
      ('misspelt_flag', ['{config}', '--workdri=x'], ['workdir']),
      ('misspelt_key', ['{config}', '--config.training.stepz=3'], ['training.stepz', 'did you mean training.steps?']),
      ('misspelt_group', ['{config}', '--config.trainin.steps=3'], ['did you mean training.steps?']),
      ('key_without_group', ['{config}', '--config.steps=3'], ['did you mean training.steps?']),
      ('key_before_config', ['--config.training.steps=3', '{config}'], ['--config.training.steps=3']),
      ('key_without_value', ['{config}', '--config.training.steps'], ['--config.training.steps']),
      ('wrong_type', ['{config}', '--config.training.steps=many'], ['--config.training.steps=many']),
      ('fraction', ['{config}', '--config.training.steps=1.5'], ['--config.training.steps=1.5']),
      ('wrong_type_in_tuple', ['{config}', "--config.seeds=('one',)"], ['config.seeds', "'one'", 'int']),
      ('init_variant', ['{config}', '--config.init_variant=both'], ["'both', but config.init_from names no model"]),
      ('penalty_of_a_table', ['{config}', '--config.kurtosis.pattern=embedding'], [
          "config.kurtosis.pattern 'embedding' matches no linear layer"]),
      ('unknown_variant', ['{config}', '--config.variants=best'], ['config.variants', "'best'", 'baseline']),
      ('no_variant', ['{config}', '--config.variants=()'], ['config.variants']),
      ('variant_twice', ['{config}', "--config.variants=('qat','qat')"], ['config.variants']),
      ('stray_argument', ['{config}', 'extra'], ["'extra'"]),
      ('missing_text', ['{config}', '--config.data.train=nowhere.txt'], ['config.data.train', 'nowhere.txt']),
      ('empty_text', ['{config}', '--config.data.train={folder}/empty.txt'], ['empty.txt', 'no text']),
      ('not_utf8', ['{config}', '--config.data.train={folder}/latin.txt'], ['latin.txt', 'byte 3 is not UTF-8']),
      ('too_short', ['{config}', '--config.data.train={folder}/short.txt'], ['tokens', 'fewer than the 129']),
      ('unnamed_validation', ['{config}', '--config.data.validation.text='], ['config.data.validation.text']),
      ('blank_validation', ['{config}', '--config.data.validation.text={folder}/blank.txt'], ['blank.txt', 'no text']),
      ('one_letter', ['{config}', '--config.data.validation.text={folder}/letter.txt'], ['letter.txt', 'token']),
      ('small_vocabulary', ['{config}', '--config.model.vocabulary=200'], [
          'config.model.vocabulary', '200 tokens is too small']),
      ('nothing_to_merge', ['{config}', '--config.data.train={folder}/letter.txt'], [
          'config.data.train', 'nothing to train a tokenizer on']),
      ('unknown_precision', ['{config}', '--config.evaluation.precisions=W4'], [
          "config.evaluation.precisions: unknown precision 'W4'"]),
      ('precision_of_other_bits', ['{config}', "--config.evaluation.precisions=('W4A8 static',)"], [
          "config.evaluation.precisions: 'W4A8 static'", 'config.qat.bits, 4']),
      ('few_windows', ['{config}', '--config.ptq.calibration_windows=9999'], ['config.ptq.calibration_windows']),
      ('no_tokenizer', ['{config}', '--config.data.tokenizer={folder}/empty.txt'], ['empty.txt', 'tokenizer']),
      ('group_size', ['{config}', '--config.ptq.group_size=24'], ['layers/0', 'group size 24 does not divide 32']),
      ('out_of_bounds', ['{config}', '--config.optimizer.clip_norm=0.0'], ['config.optimizer.clip_norm', 'above 0']),
      ('no_sites', ['{config}', '--config.qat.ranges=()'], ['config.qat.ranges is empty', 'W4A4 static']),
      ('nothing_to_quantize', [
          '{config}', '--config.qat.ranges=()', '--config.variants=qat', '--config.evaluation.precisions=W4A16'], [
              'config.qat.ranges is empty', 'config.qat.weight_bits is 16', 'qat']),
      ('never_rounded', [
          '{config}', '--config.variants=both', '--config.qat.weight_bits=4', '--config.qat.weight_start=13'], [
              'config.qat.weight_start is 13', '12 training steps', 'config.training.steps', 'both']),
      ('other_bits', ['{config}', '--config.variants=qat', '--config.qat.weight_bits=3'], [
          'config.qat.weight_bits is 3', 'config.ptq.weights is 4']),
      ('other_groups', [
          '{config}', '--config.variants=qat', '--config.qat.weight_bits=4', '--config.qat.weight_group_size=16'], [
              'config.qat.weight_group_size is 16', 'config.ptq.group_size is None']),
      ('heads', ['{config}', '--config.model.heads=5'], ['model.heads 5', 'model.width 32']),
      ('batch', ['{config}', '--config.training.microbatches=3'], ['batch_size 8', '3 microbatches']),
      ('other_device', ['{config}', '--config.evaluation.implementation=mosaic_gpu'], [
          "config.evaluation.implementation is 'mosaic_gpu'", 'NVIDIA GPU', 'this is cpu']),
      ('missing_source', ['{config}', '--config.init_from=nowhere'], ['config.init_from', 'nowhere']),
      ('unwritable', ['{config}', '--workdir={folder}/file/below'], ['{folder}/file/below', 'Not a directory']),
      ('coordinator_alone', ['{config}', '--num_processes=2'], ['--coordinator_address']),
      ('process_out_of_range', [
          '{config}', '--num_processes=2', '--process_id=2', '--coordinator_address=localhost:1'], ['--process_id=2']),
      ('devices_of_no_process', ['{config}', '--local_device_ids=0'], ['--local_device_ids', '--coordinator_address']),
  )
  def test_training_refuses(self, flags, words):
    finished = launching.run('train', *self._format(flags))
    self.assert_refused(finished, *(word.format(folder=self.folder) for word in words))
    self.assertFalse((self.workdir / 'checkpoints').exists())

  @parameterized.named_parameters(
      ('no_model', 'evaluate', ['--text={folder}/short.txt'], ['--model=DIR']),
      ('missing_model', 'evaluate', ['--model=nowhere', '--text={folder}/short.txt'], ['nowhere', 'neither a workdir']),
      ('no_text', 'evaluate', ['--model={trained}'], ['--text=FILE']),
      ('missing_text', 'evaluate', ['--model={trained}', '--text=nowhere.txt'], ['nowhere.txt']),
      ('blank_text', 'evaluate', ['--model={trained}', '--text={folder}/blank.txt'], ['blank.txt', 'no text']),
      ('variant', 'evaluate', ['--model={trained}', '--text={folder}/short.txt', '--variant=qat'], [
          'variant qat', 'baseline seed 0, both seed 0']),
      ('seed', 'evaluate', ['--model={trained}', '--text={folder}/short.txt', '--seed=7'], ['seed 7']),
      ('long_windows', 'evaluate', ['--model={trained}', '--text={folder}/short.txt', '--length=33'], [
          '--length=33', '32']),
      ('no_batch', 'evaluate', ['--model={trained}', '--text={folder}/short.txt', '--batch_size=0'], [
          '--batch_size=0']),
      ('step', 'evaluate', ['--model={trained}', '--text={folder}/short.txt', '--step=7'], ['--step=7', 'only 8, 12']),
      ('no_step', 'evaluate', ['--model={trained}', '--text={folder}/short.txt', '--step=last'], [
          '--step=last', 'newest, best']),
      ('precision', 'evaluate', ['--model={trained}', '--text={folder}/short.txt', '--precisions=W4A16,W4A4'], [
          "--precisions: unknown precision 'W4A4'"]),
      ('learned_bits', 'evaluate', ['--model={trained}', '--text={folder}/short.txt', '--precisions=W8A8 static'], [
          "--precisions: 'W8A8 static'", 'has learned, 4']),
      ('needless_calibration', 'evaluate', [
          '--model={trained}', '--text={folder}/short.txt', '--calibration={folder}/short.txt'], [
              '--calibration', 'has learned']),
      ('short_calibration', 'evaluate', [
          '--model={trained}', '--variant=baseline', '--text={folder}/short.txt',
          '--calibration={folder}/letter.txt'], [
              '--calibration={folder}/letter.txt: 2 tokens are no window of 16']),
      ('other_device', 'evaluate', ['--model={trained}', '--text={folder}/short.txt', '--implementation=mosaic_gpu'], [
          "--implementation is 'mosaic_gpu'", 'this is cpu']),
      ('no_config', 'quantize', ['--model={trained}'], ['--config=FILE']),
      ('key_without_config', 'quantize', ['--model={trained}', '--config.weights=3'], [
          '--config.weights changes a configuration', '--config=FILE is needed']),
      ('key_of_a_command_without_configuration', 'evaluate', ['--model={trained}', '--config.weights=3'], [
          '--config.weights changes a configuration, and this command has none']),
      ('activation_group_size', 'quantize', [
          _PTQ, '--model={trained}', '--variant=baseline', '--config.activation_mode=dynamic',
          '--config.activation_group_size=7'], [
              'attention/input: group size 7 does not divide 32']),
      ('not_a_workdir', 'quantize', [_PTQ, '--model={folder}'], ['config.json']),
      ('training_config', 'quantize', ['{config}', '--model={trained}'], ['is no setting']),
      ('group_size', 'quantize', [_PTQ, '--model={trained}', '--config.group_size=24'], [
          'layers/0', 'group size 24 does not divide 32']),
      ('few_tokens', 'quantize', [_PTQ, '--model={trained}', '--config.calibration_windows=9999'], [
          'config.calibration_windows', 'fewer than the 9999 asked for']),
      ('two_levels_of_one_group', 'quantize', [_PTQ, '--model={trained}', '--config.two_level=True'], [
          'config.two_level: two-level scales', 'there is no group size']),
      ('two_levels_of_wide_codes', 'quantize', [
          _PTQ, '--model={trained}', '--config.two_level=True', '--config.group_size=16', '--config.weights=8'], [
              'config.two_level: two-level scales', 'at most 4 bits, not int8']),
      ('two_levels_with_zero_points', 'quantize', [
          '--config=configs/ptq/awq_w4a16_g128.py', '--model={trained}', '--config.two_level=True'], [
              'config.two_level: two-level scales', 'symmetric integers', 'not uint4']),
      ('two_levels_of_input_channels', 'quantize', [
          _PTQ, '--model={trained}', '--config.two_level=True', '--config.group_size=16',
          '--config.group_along=outputs'], ['config.two_level: two-level scales', 'each input channel']),
      ('two_levels_of_floats', 'quantize', [
          _PTQ, '--model={trained}', '--config.two_level=True', '--config.weights=16', '--config.methods=()'], [
              'config.two_level is for weights that are quantized']),
      ('two_levels_in_turn', 'quantize', [
          '--config=configs/ptq/gptq_w4a16_g128.py', '--model={trained}', '--config.two_level=True',
          '--config.group_size=16', '--config.weight_kind=int', '--config.calibration_windows=8'], [
              'attention/k: two-level scales', 'ask for static_groups too']),
      ('learned_activations', 'quantize', [_PTQ, '--model={trained}', '--config.activations=8'], [
          'config.activations is 8', 'layers/0', 'has learned its range for 4 bits']),
      ('pattern', 'quantize', [_PTQ, '--model={trained}', '--config.weight_pattern=blocks'], ["'blocks'"]),
      ('clip_pattern', 'quantize', [
          '--config=configs/ptq/awq_w4a16_g128.py', '--model={trained}', '--config.group_size=16',
          '--config.clip_pattern=layers/1/.*'], ["config.clip_pattern 'layers/1/.*' matches no linear"]),
      ('mode', 'quantize', [_PTQ, '--model={trained}', '--config.activation_mode=lazy'], ["'lazy'", 'static, dynamic']),
      ('calibration', 'quantize', [_PTQ, '--model={trained}', '--calibration={folder}/latin.txt'], [
          'latin.txt', 'UTF-8']),
      ('budget', 'quantize', [_PTQ, '--model={trained}', '--config.allocation.bits=2.5'], [
          'config.allocation: a budget of 2.5 bits per weight is below 2.9', 'cheapest']),
      ('budget_type', 'quantize', [_PTQ, '--model={trained}', '--config.allocation.bits=few'], [
          '--config.allocation.bits=few']),
      ('candidate', 'quantize', [
          _PTQ, '--model={trained}', '--config.allocation.bits=5', "--config.allocation.candidates=('int4','int9')"], [
              "unknown number format 'int9'"]),
      ('no_candidates', 'quantize', [
          _PTQ, '--model={trained}', '--config.allocation.bits=5', '--config.allocation.candidates=()'], [
              'config.allocation.candidates is empty']),
      ('score', 'quantize', [
          _PTQ, '--model={trained}', '--config.allocation.bits=5', '--config.allocation.score=size'], [
              "config.allocation.score is 'size'", 'layer_errors, loss']),
      ('two_choose', 'quantize', [
          '--config=configs/ptq/adadim_rtn_w3a16_g128.py', '--model={trained}', '--config.group_size=16',
          '--config.allocation.bits=5'], ['adadim chooses the grids']),
      ('no_weights', 'quantize', [
          _PTQ, '--model={trained}', '--config.allocation.bits=5', '--config.weights=16', '--config.methods=()'], [
              'an allocation of bits is for weights']),
      ('long_calibration', 'quantize', [_PTQ, '--model={trained}', '--config.calibration_length=33'], [
          "config.calibration_length 33 exceeds the model's 32"]),
      ('own_workdir', 'quantize', [_PTQ, '--model={trained}', '--workdir={trained}'], ['another configuration']),
  )
  def test_other_launchers_refuse(self, launcher, flags, words):
    trained = launching.trained()
    before = _digest(trained)
    flags = self._format([flag.replace('{trained}', str(trained)) for flag in flags])
    self.assert_refused(launching.run(launcher, *flags), *(word.format(folder=self.folder) for word in words))
    self.assertEqual(_digest(trained), before)

  def test_model_of_another_size_is_no_start_for_training(self):
    flags = [f'--config.init_from={launching.trained()}', '--config.model.width=64', f'--workdir={self.workdir}']
    finished = launching.run('train', launching.config(), *flags)
    self.assert_refused(finished, 'config.init_from', 'config.model', 'embedding/kernel: shape (300, 32)')

  def test_broken_checkpoint_ends_with_code_3_and_names_the_one_before(self):
    """No other step is taken in its place: what is made of a model, and scores, say of which step they are."""
    model = self.workdir.with_name('model')
    shutil.copytree(launching.trained(), model)
    before, newest = launching.steps(model, 'both-seed0')[-2:]
    for path in model.glob(f'checkpoints/both-seed0/{newest}/manifest/*'):
      path.write_bytes(b'{}')
    flags = [f'--model={model}', f'--text={self.folder}/short.txt', f'--workdir={self.workdir}']
    finished = launching.run('evaluate', *flags)
    self.assert_refused(finished, f'checkpoint step {newest} in {model}/checkpoints/both-seed0 is damaged: ',
                        f'; before it there is step {before}', code=3)
    self.assertEqual(launching.run('evaluate', *flags, '--variant=baseline').code, 0)

  def test_workdir_of_another_configuration_is_refused_and_kept(self):
    trained = launching.trained()
    before = _digest(trained)
    finished = launching.run('train', launching.config(), f'--workdir={trained}', '--config.optimizer.b1=0.5')
    self.assert_refused(finished, str(trained), 'another configuration', 'evaluation.precisions was [] and is now')
    self.assertEqual(_digest(trained), before)

  def test_second_launch_on_a_workdir_is_refused_and_the_first_goes_on(self):
    flags = ['train', launching.config(), f'--workdir={self.workdir}', '--config.training.steps=2']
    first = launching.Launch(*flags)
    first.until((self.workdir / 'config.json').exists)
    first.send(signal.SIGSTOP)
    self.assert_refused(launching.run(*flags), f'the workdir {self.workdir} is in use by another launch')
    first.send(signal.SIGCONT)
    self.assertEqual(first.finish().code, 0)

  def test_non_finite_loss_ends_with_code_4_and_keeps_what_was_finished_before(self):
    flags = [launching.config(), f'--workdir={self.workdir}', "--config.variants=('baseline','kurtosis')",
             '--config.kurtosis.weight=3e35', '--config.kurtosis.reduction=sum']
    finished = launching.run('train', *flags)
    self.assert_refused(finished, 'step 1: the loss is inf', code=4)
    self.assertEmpty(launching.steps(self.workdir, 'kurtosis-seed0'))
    flags = [f'--model={self.workdir}', '--variant=baseline', f'--text={launching.folder()}/validation.txt']
    self.assertEqual(launching.run('evaluate', *flags, f'--workdir={self.workdir}-scores').code, 0)

  def test_non_finite_parameters_are_not_saved_though_the_loss_is_finite(self):
    flags = [launching.config(), f'--workdir={self.workdir}', '--config.training.steps=1',
             '--config.optimizer.warmup_steps=0', '--config.optimizer.learning_rate=3e38',
             '--config.optimizer.weight_decay=1e3']
    finished = launching.run('train', *flags)
    self.assert_refused(finished, 'step 1: non-finite values in', 'kernel', code=4)
    self.assertEmpty(launching.steps(self.workdir))

  def test_text_that_changed_between_two_launches_is_refused(self):
    text = self.workdir.with_name('changing.txt')
    shutil.copy(launching.folder() / 'train.txt', text)
    flags = ['train', launching.config(), f'--workdir={self.workdir}', f'--config.data.train={text}',
             '--config.training.steps=2']
    self.assertEqual(launching.run(*flags).code, 0)
    before = (tokens := self.workdir / 'tokens' / 'train.npy').read_bytes()
    text.write_text(text.read_text() + 'One sentence more.')
    self.assert_refused(launching.run(*flags), 'config.data.train is another text than')
    self.assertEqual(tokens.read_bytes(), before)
    tokens.unlink()
    self.assert_refused(launching.run(*flags), 'config.data.train is another text than')
    quantize = ['quantize', f'--model={self.workdir}', '--config=configs/ptq/rtn_w4a4.py',
                '--config.calibration_windows=8', f'--workdir={self.workdir}-quantized']
    self.assert_refused(launching.run(*quantize), f'{self.workdir}/tokens are of another text than ')

  def test_mended_configuration_may_use_the_workdir_of_a_launch_that_did_nothing(self):
    flags = ['train', launching.config(), f'--workdir={self.workdir}', '--config.training.steps=1']
    self.assertEqual(launching.run(*flags, '--config.ptq.calibration_windows=9999').code, 2)
    (self.workdir / 'tokenizer.json').write_text('that of the failed launch')
    finished = launching.run(*flags)
    self.assertEqual(finished.code, 0, finished)

  def test_full_disk_is_named(self):
    self.workdir.mkdir()
    (self.workdir / 'results.json.partial').symlink_to('/dev/full')
    finished = launching.run('train', launching.config(), f'--workdir={self.workdir}', '--config.training.steps=1')
    self.assert_refused(finished, f'cannot write {self.workdir}/results.json: No space left on device')

  def test_processes_that_do_not_find_each_other_are_told_the_flags(self):
    # As Open MPI 5 starts them.
    finished = launching.run(
        'train', *self._format(['{config}']), OMPI_COMM_WORLD_SIZE='2', OMPI_COMM_WORLD_RANK='0')
    self.assert_refused(finished, '2 processes', '--coordinator_address, --num_processes and --process_id')

  def test_port_in_use_is_named(self):
    with socket.create_server(('', 0)) as taken:
      address = f'localhost:{taken.getsockname()[1]}'
      finished = launching.run(
          'train', launching.config(), f'--coordinator_address={address}', '--num_processes=2', '--process_id=0')
    self.assert_refused(finished, f'--coordinator_address={address}', 'in use')


if __name__ == '__main__':
  absltest.main()
