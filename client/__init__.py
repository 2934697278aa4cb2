"""A site: owns the pixels; everything that touches video or leaves the building."""
