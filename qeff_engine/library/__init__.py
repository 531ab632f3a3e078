"""The engine as a library: stages run in the caller's process, their results kept in a cache of content."""
