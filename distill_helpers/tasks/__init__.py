"""The tasks and texts of the course, and the teachers that come with it.

* ``bundled``: the files that ship with the course, checked before they are used;
* ``prose``: novels and glosses, as texts;
* ``teachers``: the packaged SmolLM2, the tiny pair, a profile's own teacher;
* ``three_sums``: sums of three numbers, step by step;
* ``word_problems``: word problems with a checker;
* ``glosses``: which kind of thing a dictionary's gloss describes;
* ``questions``: an exam of one's own.
"""
