"""How an anonymizer is judged: what each protocol needs and asks, and the figures that come out of it."""
