"""Repositories that Bazel without modules asks for, made on this machine: nothing is fetched."""

_PROGRAM = """
sh_binary(
    name = "{name}",
    srcs = ["nothing.sh"],
    visibility = ["//visibility:public"],
)
"""

_PYTHON = """
load("@bazel_tools//tools/python:toolchain.bzl", "py_runtime_pair")

py_runtime(
    name = "runtime",
    interpreter_path = "{interpreter}",
    python_version = "PY3",
    stub_shebang = "#!/usr/bin/env python3",
)

py_runtime_pair(
    name = "pair",
    py3_runtime = ":runtime",
)

toolchain(
    name = "toolchain",
    toolchain = ":pair",
    toolchain_type = "@bazel_tools//tools/python:toolchain_type",
)
"""

def _rules_of_bazel(repository):
    lines = ["%s = native.%s\n" % (rule, rule) for rule in repository.attr.rules]
    programs = [_PROGRAM.format(name = name) for name in repository.attr.programs]
    repository.file("BUILD", "".join(programs))
    repository.file("nothing.sh", "#!/bin/sh\n")
    if lines:
        folder = repository.attr.file.rpartition("/")[0]
        repository.file(folder + "/BUILD", "")
        repository.file(repository.attr.file, "".join(lines))

rules_of_bazel = repository_rule(
    implementation = _rules_of_bazel,
    doc = "A repository of rules that are Bazel's own: `rules` in `file`. And of `programs` that do nothing.",
    attrs = {
        "file": attr.string(),
        "programs": attr.string_list(),
        "rules": attr.string_list(),
    },
)

def _python_of_run(repository):
    repository.path(Label("//:setup.cfg"))  # whose change may mean another interpreter
    run = repository.path(Label("//:run"))
    found = repository.execute([run, "--python"], timeout = 1800)
    if found.return_code:
        fail(found.stderr)
    repository.file("BUILD", _PYTHON.format(interpreter = found.stdout.strip()))

python_of_run = repository_rule(
    implementation = _python_of_run,
    doc = "The toolchain of the interpreter that `run` takes for tests; the first time `run` may install one.",
    environ = ["JAXQUANT_EXTRAS", "JAXQUANT_PYTHON", "PATH"],
    local = True,
)
