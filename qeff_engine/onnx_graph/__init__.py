"""Graph to graph: functions, weight binding, rewriting."""
