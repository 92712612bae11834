"""What Spark runs: tasks, the sink, the commit."""
