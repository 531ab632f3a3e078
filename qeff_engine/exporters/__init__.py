"""What is exported for each task, one module each: ``export(spec, context) -> (ExportedModel, figures)``."""
