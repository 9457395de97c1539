"""The course around the toolkit: what lessons show, ask and compare."""
