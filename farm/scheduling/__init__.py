"""What the scheduler looks at, and what it does beside placing."""
