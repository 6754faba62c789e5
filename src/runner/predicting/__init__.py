"""A trained dense model on a person's own pictures: `runner predict`."""
