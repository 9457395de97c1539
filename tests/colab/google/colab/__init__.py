"""A stand-in for Colab's own package, written for tests, with its behaviour.

Only what a course might touch: secrets, Drive, files. ``tests/test_colab.py`` plays
the part of the person before the browser. There is no ``google/__init__.py``, as in the
real one: other packages of that name live beside it.
"""
