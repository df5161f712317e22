"""Recordings of timm 1.0.31, and how they were made."""
