"""The compiler's flags as data, and what may be asked with them. Standard library only: the farm reads it, too."""
