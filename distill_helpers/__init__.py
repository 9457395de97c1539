"""Helpers for distilling language models, and for the course that teaches it.

Modules are flat and named for what a learner looks for: ``losses``, ``models``,
``data``, ``trainers``, ``evaluation``, ``studies``, ``checks``. Importing the package
downloads nothing and imports no heavy library.
"""

__version__ = "0.1.0"
