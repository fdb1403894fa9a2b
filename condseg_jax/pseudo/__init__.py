"""Pseudo-masks: what the members of a cross-validation find of classes that nobody annotated."""
