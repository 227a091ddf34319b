"""Tests, in the rooms of the packages they test: tests/numerics/packing_test.py tests jaxquant/numerics/packing.py.

Only this folder is a package (so that `from tests import ...` means this one); rooms below it are not, since a
`tests/kernels` with an `__init__.py` would hide `kernels` from a test that is run as a script.
"""
