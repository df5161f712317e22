"""`descend bench`: how long a step takes, what it must move, what it costs beside that, and what others take."""
