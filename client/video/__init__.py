"""Rows, frames and batches: from files on the site's disk to the game."""
