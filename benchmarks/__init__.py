"""One script per figure that README and docs quote. Every figure is a ratio measured within one run."""
