"""The read side: frozen values for commands and reports. Writes nothing."""
