"""The farm: scheduler, SQL database, artifact store and the ``farm`` command. Imports no torch."""
