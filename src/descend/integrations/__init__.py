"""What other people's frameworks need of an optimizer: one module for each, imported by its name alone."""
