"""The embedded farm of a home: its processes, broker and logs."""
