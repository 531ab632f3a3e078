"""Torch modules made exportable: retained-state caches, masks from positions, fused norms."""
