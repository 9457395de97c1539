"""Checks for the exercises: they say what is wrong, and never give the answer."""
