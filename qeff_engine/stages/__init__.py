"""The five verbs of the pipeline, one thin module each."""
