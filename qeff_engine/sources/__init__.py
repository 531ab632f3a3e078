"""Kinds of model sources, one module each: ``fetch(spec, context)`` puts a checkpoint into ``context.out``."""
