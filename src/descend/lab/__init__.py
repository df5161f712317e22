"""The lab: what people run to compare and look up optimizers (`descend race`, `list`, `show`)."""
