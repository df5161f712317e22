"""What storing state and weights in fewer bytes saves, and what it costs: measured, and told."""
