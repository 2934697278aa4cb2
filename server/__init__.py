"""The coordinator: numbers, never pixels."""
