"""Parameters that are spread over processes: where their pieces lie, and what these have to tell one another."""
