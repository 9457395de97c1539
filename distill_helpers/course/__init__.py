"""The course around the toolkit: what lessons show, ask and compare.

* ``checks``: says of a learner's answer whether it is right, and which mistake it is;
* ``bugs``: known bugs of distillation, in words; ``mutants``: as losses that have them;
* ``clinic``: patients with a bug, and probes to examine them with;
* ``ward``: the short trainings of the bug clinic, and their charts;
* ``plots``: figures in the course's colours; ``figure_words``: what they show, in
  words; ``widgets``: figures with a slider;
* ``diagrams``: who gives what to whom, as boxes and arrows;
* ``prices``: what a project costs;
* ``project``: the parts of the capstone; ``verdict``: is a student good enough?;
* ``model_card``: a card for what was trained;
* ``local_server``: a GGUF file behind an API, on this machine.
"""
