"""Float weights to packed weights: one module per method, its mathematics apart."""
