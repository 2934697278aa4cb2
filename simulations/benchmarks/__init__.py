"""What costs how much: each benchmark beside a plain twin, by ratios (``fedspact bench``)."""
