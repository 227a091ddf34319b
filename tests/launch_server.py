"""Forks launches from a process that has imported JAX and its libraries, which saves each of them some seconds.

A line of standard input asks for one thing, a line of standard output answers, both in JSON:

  {"launcher": name, "arguments": [...], "environment": {...}, "output": file, "error": file, "seconds": at most}
      starts a launch; its process id
  {"process": its id, "options": of os.waitpid}
      its exit code, negative for that of a signal; null while it runs

After the imports a launch is what `python -m launch.<name>` is, to the end of its interpreter.
"""

import gc
import json
import os
import runpy
import signal
import sys


def _serve() -> dict:
  """Answers until standard input ends; returns only in a forked process, with what it is to launch."""
  for line in sys.stdin:
    request = json.loads(line)
    if 'launcher' not in request:
      ended, status = os.waitpid(request['process'], request['options'])
      answer = os.waitstatus_to_exitcode(status) if ended else None
    elif not (answer := os.fork()):
      return request
    print(json.dumps(answer), flush=True)
  sys.exit()


def _launch(request: dict) -> None:
  """Runs a launcher as the main module of this process."""
  signal.alarm(request['seconds'])  # whoever waits for the end of this process does not wait for ever
  for number, path in enumerate((os.devnull, request['output'], request['error'])):
    os.dup2(os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC), number)
  os.environ.update(request['environment'])
  sys.argv = [request['launcher'], *request['arguments']]
  runpy.run_module(f'launch.{request["launcher"]}', run_name='__main__', alter_sys=True)


if __name__ == '__main__':
  import launch.comparison  # pylint: disable=unused-import  # it imports the rest
  if len(os.listdir('/proc/self/task')) > 1:
    sys.exit('An import has started a thread, or a backend of JAX, and a forked process would lack its threads.')
  gc.freeze()  # else every fork would collect these imports when it ends, and copy their memory for that
  _launch(_serve())
